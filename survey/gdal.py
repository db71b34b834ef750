"""Rasters as GDAL opens them, on disk or in a bucket, and what it is told and remembers for the whole process."""

import ctypes
import functools
import os
import time
import warnings

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from survey import storage

# A plain photo has no georeference: that is a fact for the ledger, not a problem. Set once and not around each `open`, because
# Beam opens rasters in several threads and `warnings.catch_warnings` changes what all of them see.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# GDAL reads these when it first caches or decodes, from the environment, in whatever thread that is. Its own cache would be
# 5 % of the machine's memory, per worker; and half a JPEG would be a picture with a grey lower half.
GDAL_CACHE_MB = 64
os.environ.setdefault("GDAL_CACHEMAX", str(GDAL_CACHE_MB))
os.environ.setdefault("GDAL_ERROR_ON_LIBJPEG_WARNING", "TRUE")

# In a bucket a file counts as unreadable when GDAL says so this often; in between are so many seconds, then twice as many.
REFUSALS = 3
RETRY_S = 0.5


def open_raster(path: str) -> rasterio.DatasetReader:
    """Opens a raster; one in a bucket when two looks at it agree.

    GDAL takes an answer whose connection broke for a file that ends there, and says nothing: half a world file is no world file,
    and the mosaic has lost its place. So what it says is believed when it says it again, having fetched everything anew; and that
    a file cannot be opened, when it says so REFUSALS times.

    Raises:
      RasterioError: it cannot be opened.
    """
    if not storage.is_remote(path):
        return rasterio.open(path)
    before, refused = None, 0
    while True:
        _forget(path)
        try:
            dataset = rasterio.open(storage.gdal_path(path))
            said = _said(dataset)
        except (RasterioError, CPLE_BaseError) as error:
            refused += 1
            if refused == REFUSALS:
                raise error if isinstance(error, RasterioError) else RasterioError(str(error)) from error
            time.sleep(RETRY_S * refused)
            continue
        if said == before:
            return dataset
        before = said
        dataset.close()


def _said(dataset: rasterio.DatasetReader) -> str:
    """All that the files of a raster say besides pixels."""
    masks = dataset.mask_flag_enums
    return repr((sorted(map(str, dataset.profile.items())), dataset.colorinterp, masks, dataset.tags(), dataset.files))


def _forget(url: str) -> None:
    """Lets GDAL fetch an object, and what lies beside it under the same name, anew: it also remembers a body that was cut off."""
    bucket, name = storage.split(url)
    _library().VSICurlPartialClearCache(f"/vsigs/{bucket}/{os.path.splitext(name)[0]}".encode())


@functools.cache
def _library() -> ctypes.CDLL:
    """The GDAL inside rasterio, whose Python has no function for it: https://gdal.org/en/stable/api/cpl.html."""
    import rasterio._base

    return ctypes.CDLL(rasterio._base.__file__)
