"""Pixels of a window, and what a raster says of itself, without reading it whole.

    tiled or striped TIFF of a common layout     tiled_tiff: each tile or strip decoded once, by byte ranges
    JPEG, PNG                                    row_bands: front to back, a band of rows in memory
    anything else that GDAL reads                GDAL, window by window

Windows may be asked for in any order, and are cheapest in row order. Of a raster in a bucket the first way fetches ranges; for
the others it is copied to TMPDIR when the first pixel is asked for.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import rasterio
import rasterio.windows
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError

from survey import gdal, storage
from survey import stretch as stretching
from survey.errors import InputError
from survey.geometry import Window
from survey.row_bands import RowBands
from survey.stretch import Stretch
from survey.tiled_tiff import TiledTiff, open_tiled_tiff

# 5.5 times 60,000 x 60,000; a file of a few kilobytes can claim 2**62 pixels.
MAX_PIXELS = 20_000_000_000
# A tile or strip is decoded whole. 12,000 x 12,000 x 3 in one strip is 432 MB.
MAX_BLOCK_BYTES = 1 << 30
# Of 16-bit mosaics so many blocks, evenly spread, say how to stretch: 16 million pixels in all, or the whole if it is smaller.
SAMPLED_BLOCKS_A_SIDE = 16
SAMPLED_BLOCK_PX = 256


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """Size, bands, georeference and stretch of a raster; the fields mean what they mean in `geometry.Mosaic`."""

    height: int
    width: int
    bands: int
    crs: str | None
    transform: tuple[float, float, float, float, float, float] | None
    gsd_m: float | None
    stretch: Stretch | None = None
    one_pass: bool = False


class _Pixels(Protocol):
    """One of the three ways to read: a window inside the raster to [h, w, n], in the type of the file."""

    def read(self, window: Window) -> np.ndarray: ...

    def close(self) -> None: ...


class Raster:
    """An open raster that hands out RGB windows. Use it as a context manager.

    Args:
      path: local, or gs://BUCKET/OBJECT.
      stretch: of a 16-bit raster, as `info` gave it; by default measured when the first window is read, which gives the same.
      max_pixels: a larger raster is refused; by default ROOKERY_MAX_PIXELS of the environment, or MAX_PIXELS.

    Raises:
      InputError: the file cannot be read, is too large, or holds other than 8-bit or 16-bit whole numbers.
    """

    def __init__(self, path: str, *, stretch: Stretch | None = None, max_pixels: int | None = None) -> None:
        self.path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._dataset = gdal.open_raster(path)
        except RasterioError as error:
            raise InputError(f"{path} cannot be read as an image: {error}; convert it to GeoTIFF, PNG or JPEG") from error
        try:
            self._check(max_pixels)
        except InputError:
            self._dataset.close()
            raise
        dataset = self._dataset
        self._dtype = np.dtype(dataset.dtypes[0])
        self._bounds = Window(0, 0, dataset.height, dataset.width)
        alphas = [band for band, kind in enumerate(dataset.colorinterp) if kind == ColorInterp.alpha]
        self._alpha = alphas[0] if alphas else None
        others = [band for band in range(dataset.count) if band not in alphas]
        self._colours = others[:3] if len(others) >= 3 else others[:1]
        self._palette = _palette(dataset)
        self._as_stored = self._dtype == np.uint8 and len(self._colours) == dataset.count == 3  # RGB needs nothing done to it
        self._stretch = stretch
        self._pixels: _Pixels | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pixels is not None:
            self._pixels.close()
        self._dataset.close()
        if self._copy is not None:
            self._copy.cleanup()

    def info(self) -> RasterInfo:
        """What the header says; of a 16-bit raster a sample of the pixels is read too, to measure its stretch."""
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
            stretch=self.stretch,
            one_pass=self.one_pass,
        )

    @property
    def one_pass(self) -> bool:
        """Whether a window costs all that lies before it, or beside it: no tiles, only rows."""
        return bool(self._dataset.block_shapes[0][1] >= self._dataset.width)

    @property
    def concurrent(self) -> bool:
        """Whether several threads may call `read` at once, and gain by it; GDAL allows one thread a file."""
        return isinstance(self._opened(), TiledTiff)

    @property
    def stretch(self) -> Stretch | None:
        """Of a 16-bit raster (low, high) of each colour band, `stretch.PERCENTILES` of a sample; None of an 8-bit one."""
        if self._stretch is None and self._dtype.itemsize == 2:
            self._stretch = stretching.measure(self._sample(), len(self._colours))
        return self._stretch

    def read(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels of a window.

        Args:
          window: of the raster, in pixels; may reach beyond it.
          out: uint8 [window.height, window.width, 3] to put them in; by default a new array.

        Returns:
          uint8 [window.height, window.width, 3], RGB, `out` if it was given; a grey raster is repeated, an alpha band left out,
          16 bits stretched, and what lies beyond the raster is black.

        Raises:
          InputError: the file is damaged there.
        """
        part, pixels = window.intersect(self._bounds), self._opened()
        if part == window and isinstance(pixels, TiledTiff) and self._as_stored:
            return pixels.read(part, out)
        if part == window and out is None:
            return self._to_rgb(self._read_colours(part))
        out = np.empty((window.height, window.width, 3), np.uint8) if out is None else out
        if part != window:
            out[...] = 0
        if part.area:
            y, x = part.y0 - window.y0, part.x0 - window.x0
            out[y : y + part.height, x : x + part.width] = self._to_rgb(self._read_colours(part))
        return out

    @property
    def has_mask(self) -> bool:
        """Whether the file says that some pixels show nothing: an alpha band, a nodata value or a mask."""
        return self._alpha is not None or any(MaskFlags.all_valid not in flags for flags in self._dataset.mask_flag_enums)

    def read_valid(self, window: Window) -> np.ndarray:
        """Which pixels of a window show something.

        Returns:
          bool [window.height, window.width]; False where alpha is 0, all colour bands have the nodata value, the file's mask says
          so, or beyond the raster. JPEG blurs a nodata value: give such files a mask.
        """
        out = np.zeros((window.height, window.width), bool)
        part = window.intersect(self._bounds)
        if part.area:
            y, x = part.y0 - window.y0, part.x0 - window.x0
            out[y : y + part.height, x : x + part.width] = self._valid(part)
        return out

    def valid_fraction(self, window: Window) -> float:
        """Share of a window's pixels that show something, 0 to 1; without a mask nothing is read."""
        if not self.has_mask:
            return window.intersect(self._bounds).area / window.area
        return float(self.read_valid(window).mean())

    def overview(self, longest_px: int) -> np.ndarray:
        """The whole raster shrunk so that its longer side is at most `longest_px` px: uint8 [h, w, 3], RGB."""
        dataset = self._dataset
        scale = min(1.0, longest_px / max(dataset.height, dataset.width))
        shape = (len(self._colours), max(1, round(dataset.height * scale)), max(1, round(dataset.width * scale)))
        resampling = Resampling.average if self._palette is None else Resampling.nearest
        try:
            pixels = dataset.read([band + 1 for band in self._colours], out_shape=shape, resampling=resampling)
        except RasterioError as error:
            raise self._damaged(self._bounds, error) from error
        return self._to_rgb(pixels.transpose(1, 2, 0))

    def _check(self, max_pixels: int | None) -> None:
        dataset = self._dataset
        kinds = sorted(set(dataset.dtypes))
        if kinds not in (["uint8"], ["uint16"], ["int16"]):
            raise InputError(
                f"{self.path} holds {', '.join(kinds) or 'no'} pixels: must be uint8, uint16 or int16; convert it with "
                "gdal_translate -ot UInt16 -scale"
            )
        limit = int(os.environ.get("ROOKERY_MAX_PIXELS", MAX_PIXELS)) if max_pixels is None else max_pixels
        if dataset.height * dataset.width > limit:
            raise InputError(
                f"{self.path} claims {dataset.width:,} x {dataset.height:,} px: must be at most {limit:,} px in all; if it is no "
                "decompression bomb, set ROOKERY_MAX_PIXELS"
            )
        # GDAL gives an uncompressed file of one strip in rows: only what must be decoded as one piece counts.
        rows, columns = dataset.block_shapes[0]
        block_bytes = rows * columns * dataset.count * np.dtype(kinds[0]).itemsize
        if block_bytes > MAX_BLOCK_BYTES:
            raise InputError(
                f"{self.path} is stored in pieces of {columns:,} x {rows:,} px ({block_bytes / 2**30:.1f} GiB): must be at most "
                f"{MAX_BLOCK_BYTES / 2**30:.0f} GiB each; tile it with gdal_translate -co TILED=YES -co COMPRESS=DEFLATE"
            )

    def _open_pixels(self) -> _Pixels:
        dataset = self._dataset
        if dataset.driver == "GTiff":
            tiff = open_tiled_tiff(self.path, fill=dataset.nodata or 0)
            if tiff is not None:
                return tiff
        bands = list(range(1, dataset.count + 1))
        return RowBands(self._for_gdal(), bands) if self.one_pass else _GdalWindows(self._for_gdal(), bands)

    def _for_gdal(self) -> rasterio.DatasetReader:
        """The dataset for reading pixels through GDAL; of a raster in a bucket a copy in TMPDIR, made when it is first needed.

        GDAL takes an answer whose connection broke for all there is: of half a PNG it gives pixels, and no error.
        """
        if storage.is_remote(self.path) and self._copy is None:
            self._copy = tempfile.TemporaryDirectory(prefix="rookery-raster-")
            for part in self._dataset.files:  # with what lies beside it, such as a mask, and below it, as of a VRT
                url = storage.SCHEME + os.path.normpath(part.removeprefix("/vsigs/"))
                os.makedirs(os.path.dirname(self._copied(url)), exist_ok=True)
                storage.download(url, self._copied(url))
            self._dataset.close()
            self._dataset = rasterio.open(self._copied(self.path))
        return self._dataset

    def _copied(self, url: str) -> str:
        """Where the copy of a part lies: as it did in the bucket, seen from the raster's own folder.

        Raises:
          InputError: it does not lie in that folder or below.
        """
        assert self._copy is not None
        below = os.path.relpath(url, os.path.dirname(self.path))
        if below.startswith(os.pardir):
            raise InputError(f"{self.path} refers to {url}: in a bucket what a raster refers to must lie in its folder or below")
        return os.path.join(self._copy.name, below)

    def _opened(self) -> _Pixels:
        if self._pixels is None:
            self._pixels = self._open_pixels()
        return self._pixels

    def _read(self, window: Window) -> np.ndarray:
        """All bands of a window inside the raster: [h, w, bands], in the type of the file."""
        try:
            return self._opened().read(window)
        except RasterioError as error:
            raise self._damaged(window, error) from error

    def _read_colours(self, window: Window) -> np.ndarray:
        """The colour bands of a window inside the raster: [h, w, 1 or 3], in the type of the file."""
        pixels = self._read(window)
        return pixels if pixels.shape[-1] == len(self._colours) else np.ascontiguousarray(pixels[..., self._colours])

    def _to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Uint8 [h, w, 3] of colours [h, w, 1 or 3] in the type of the file."""
        if self._palette is not None:
            return self._palette[pixels[..., 0]][..., :3]
        if self._dtype.itemsize == 2:
            assert self.stretch is not None
            pixels = stretching.apply(pixels, self.stretch)
        return pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)

    def _valid(self, window: Window) -> np.ndarray:
        """Bool [h, w] of a window inside the raster."""
        if not self.has_mask:
            return np.ones((window.height, window.width), bool)
        flags, nodata = self._dataset.mask_flag_enums[0], self._dataset.nodata
        if self._alpha is not None:
            return self._read(window)[..., self._alpha] > 0
        if MaskFlags.nodata in flags and nodata is not None and self._palette is None:
            return (self._read(window)[..., self._colours] != nodata).any(axis=-1)
        region = rasterio.windows.Window(window.x0, window.y0, window.width, window.height)
        try:
            return self._for_gdal().dataset_mask(window=region) > 0
        except RasterioError as error:
            raise self._damaged(window, error) from error

    def _sample(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(colours [h, w, 1 or 3], valid [h, w]) of blocks that are spread evenly over the raster, in row order."""
        rows, columns = self._bounds.height, self._bounds.width
        for y in _spread(rows, SAMPLED_BLOCK_PX, SAMPLED_BLOCKS_A_SIDE):
            for x in _spread(columns, SAMPLED_BLOCK_PX, SAMPLED_BLOCKS_A_SIDE):
                window = Window(y, x, y + SAMPLED_BLOCK_PX, x + SAMPLED_BLOCK_PX).intersect(self._bounds)
                yield self._read_colours(window), self._valid(window)

    def _damaged(self, window: Window, error: Exception) -> InputError:
        # rasterio's own message only points at GDAL's.
        reason = error.__cause__ or error
        return InputError(f"{self.path} is damaged: rows {window.y0} to {window.y1} cannot be read ({reason}); copy it again")


class _GdalWindows:
    """Windows as GDAL reads them, with its own cache."""

    def __init__(self, dataset: rasterio.DatasetReader, bands: list[int]) -> None:
        self._dataset, self._bands = dataset, bands

    def read(self, window: Window) -> np.ndarray:
        region = rasterio.windows.Window(window.x0, window.y0, window.width, window.height)
        return np.ascontiguousarray(self._dataset.read(self._bands, window=region).transpose(1, 2, 0))

    def close(self) -> None:
        pass


def _spread(length: int, size: int, number: int) -> list[int]:
    """Starts of `number` pieces of `size` px evenly over `length` px, or of as many as cover it without overlap."""
    if length <= size * number:
        return list(range(0, length, size))
    return [round(i * (length - size) / (number - 1)) for i in range(number)]


def _palette(dataset: rasterio.DatasetReader) -> np.ndarray | None:
    """Colours of the values of a palette image: uint8 [256, 4], RGBA; None of any other."""
    if dataset.count != 1 or dataset.colorinterp[0] != ColorInterp.palette or dataset.dtypes[0] != "uint8":
        return None
    table = np.zeros((256, 4), np.uint8)
    for value, colour in dataset.colormap(1).items():
        table[value] = colour
    return table
