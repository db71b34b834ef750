"""Pixels of a window, and what a raster says of itself, without reading it whole."""

import math
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import rasterio
import rasterio.windows
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError

from survey.errors import InputError
from survey.geometry import Window


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """Size, bands and georeference of a raster; the fields mean what they mean in `geometry.Mosaic`."""

    height: int
    width: int
    bands: int
    crs: str | None
    transform: tuple[float, float, float, float, float, float] | None
    gsd_m: float | None


class Raster:
    """An open raster that hands out RGB windows. Use it as a context manager.

    Raises:
      InputError: the file cannot be read, or holds something other than 8-bit pixels.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._dataset = _open(path)
        except RasterioError as error:
            raise InputError(f"{path} cannot be read as an image: {error}; convert it to GeoTIFF, PNG or JPEG") from error
        kinds = sorted(set(self._dataset.dtypes))
        if kinds != ["uint8"]:
            self._dataset.close()
            raise InputError(
                f"{path} holds {', '.join(kinds)} pixels: must be uint8; stretch it with gdal_translate -ot Byte -scale"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._dataset.close()

    def info(self) -> RasterInfo:
        """What the header says; no pixel is read."""
        dataset = self._dataset
        affine = dataset.transform
        placed = dataset.crs is not None or not affine.is_identity
        gsd = None
        if dataset.crs is not None and dataset.crs.is_projected:
            gsd = math.sqrt(abs(affine.determinant)) * dataset.crs.linear_units_factor[1]
        return RasterInfo(
            height=dataset.height,
            width=dataset.width,
            bands=dataset.count,
            crs=dataset.crs.to_string() if dataset.crs is not None else None,
            transform=tuple(affine)[:6] if placed else None,
            gsd_m=gsd,
        )

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window.

        Returns:
          uint8 [window.height, window.width, 3], RGB; a grey raster is repeated, an alpha band left out, and what lies beyond
          the raster is black.
        """
        dataset = self._dataset
        bands = [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]
        out = np.zeros((window.height, window.width, 3), np.uint8)
        part = window.intersect(Window(0, 0, dataset.height, dataset.width))
        if part.area:
            region = rasterio.windows.Window(part.x0, part.y0, part.width, part.height)
            try:
                pixels = dataset.read(bands, window=region)  # [3, h, w]
            except RasterioIOError as error:
                raise InputError(f"{self.path} is damaged: rows {part.y0} to {part.y1} cannot be read ({error})") from error
            y, x = part.y0 - window.y0, part.x0 - window.x0
            out[y : y + part.height, x : x + part.width] = pixels.transpose(1, 2, 0)
        return out

    def overview(self, longest_px: int) -> np.ndarray:
        """The whole raster shrunk so that its longer side is at most `longest_px` px: uint8 [h, w, 3], RGB."""
        dataset = self._dataset
        scale = min(1.0, longest_px / max(dataset.height, dataset.width))
        shape = (3, max(1, round(dataset.height * scale)), max(1, round(dataset.width * scale)))
        bands = [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]
        resampling = rasterio.enums.Resampling.average
        pixels: np.ndarray = dataset.read(bands, out_shape=shape, resampling=resampling).transpose(1, 2, 0)
        return pixels


def _open(path: str) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        # A plain photo has no georeference; that is a fact for the ledger, not a problem.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)
