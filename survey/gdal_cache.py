"""What GDAL remembers of objects in Cloud Storage, for the whole process: also what it got of a body that was cut off."""

import ctypes
import functools
import os

from survey import storage


def forget(url: str) -> None:
    """Lets the GDAL of rasterio fetch an object, and what lies beside it under the same name, anew.

    Args:
      url: of the object.
    """
    bucket, name = storage.split(url)
    _gdal().VSICurlPartialClearCache(f"/vsigs/{bucket}/{os.path.splitext(name)[0]}".encode())


@functools.cache
def _gdal() -> ctypes.CDLL:
    """The GDAL inside rasterio, whose Python has no function for it: https://gdal.org/en/stable/api/cpl.html."""
    import rasterio._base

    return ctypes.CDLL(rasterio._base.__file__)
