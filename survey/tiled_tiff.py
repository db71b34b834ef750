"""Windows of a TIFF at the speed of its codec: every tile or strip is fetched by its byte range and decoded once.

A strip is a tile as wide as the image.

GDAL decodes the same tiles, but hands the pixels out band by band, and turning them back costs more than the codec. Layouts
that this module does not know go to GDAL.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO, Any, cast

import numpy as np
import simplejpeg

from survey import byte_ranges
from survey.byte_ranges import ByteRanges
from survey.errors import InputError
from survey.geometry import Window

# Two rows of 512 px tiles across 60,000 px are 184 MB, with 1024 px tiles 369 MB; then a worker stays well below 1 GiB.
CACHE_BYTES = 384 << 20

# TIFF 6.0 and its supplements, by tag value.
_JPEG, _YCBCR, _RGB, _GREY, _CONTIGUOUS = 7, 6, 2, 1, 1
_LOSSLESS = {1, 5, 8, 32946, 34925, 50000}  # none, LZW, deflate (two numbers), LZMA, Zstandard

Decoder = Callable[[bytes, int], np.ndarray]


class TiledTiff:
    """An open TIFF.

    Windows are expected in row order, and several threads may read at once: the codecs let go of the interpreter, so that two
    threads decode twice as fast. Tiles that end above all windows being read are finished and let go; of the others the least
    recently used go when `cache_bytes` is exceeded.

    Attributes:
      tiles_decoded: so far; a measure of what the cache is worth.
    """

    def __init__(self, path: str, ranges: ByteRanges, page: Any, decode: Decoder, *, cache_bytes: int, fill: float) -> None:
        self._path, self._ranges, self._decode = path, ranges, decode
        self._height, self._width, self._samples = page.imagelength, page.imagewidth, page.samplesperpixel
        self._tile_height, self._tile_width, self._dtype = *_tile_shape(page), page.dtype
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        self._tiled = page.is_tiled  # edge tiles are whole, the last strip is not
        self._columns = -(-self._width // self._tile_width)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._decoding: dict[int, Future[np.ndarray]] = {}  # tiles that some thread is at, for others to wait for
        self._cache_bytes, self._held_bytes, self._fill = cache_bytes, 0, fill
        self._top = 0
        self._reading: Counter[int] = Counter()  # first rows of the windows being read
        self._lock = threading.Lock()  # guards all of the above, not the decoding
        self._file_lock = threading.Lock()
        self.tiles_decoded = 0

    def read(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels of a window inside the raster: [h, w, samples], in the type of the file; put into `out` where it is given.

        Raises:
          InputError: a tile is damaged or beyond the end of the file.
        """
        out = np.empty((window.height, window.width, self._samples), self._dtype) if out is None else out
        self._begin(window.y0)
        try:
            self._fill_in(out, window)
        finally:
            with self._lock:
                self._reading[window.y0] -= 1
        return out

    def close(self) -> None:
        """Lets go of the file and the tiles."""
        self._cache.clear()
        self._ranges.close()

    def _begin(self, y0: int) -> None:
        """Notes a window, and lets go of the tiles that end above this and all other windows being read."""
        with self._lock:
            self._reading[y0] += 1
            if y0 == self._top:
                return
            self._reading = +self._reading  # without those that have ended
            top = min(self._reading)
            if top == self._top:
                return
            self._top = top
            for index in [i for i in self._cache if (i // self._columns + 1) * self._tile_height <= top]:
                self._held_bytes -= self._cache.pop(index).nbytes

    def _fill_in(self, out: np.ndarray, window: Window) -> None:
        th, tw = self._tile_height, self._tile_width
        rows, columns = range(window.y0 // th, -(-window.y1 // th)), range(window.x0 // tw, -(-window.x1 // tw))
        with self._lock:
            busy = set(self._decoding)
        # Tiles that other threads are decoding come last: there is something to do until they are ready.
        for row, column in sorted(
            ((row, column) for row in rows for column in columns), key=lambda cell: cell[0] * self._columns + cell[1] in busy
        ):
            tile = self._tile(row, column)
            y, x = row * th, column * tw
            part = window.intersect(Window(y, x, y + th, x + tw))
            out[part.y0 - window.y0 : part.y1 - window.y0, part.x0 - window.x0 : part.x1 - window.x0] = tile[
                part.y0 - y : part.y1 - y, part.x0 - x : part.x1 - x
            ]

    def _tile(self, row: int, column: int) -> np.ndarray:
        index = row * self._columns + column
        with self._lock:
            tile = self._cache.get(index)
            if tile is not None:
                self._cache.move_to_end(index)
                return tile
            others = self._decoding.get(index)
            if others is None:
                mine: Future[np.ndarray] = Future()
                self._decoding[index] = mine
        if others is not None:
            return others.result()
        try:
            tile = self._read_tile(index, row)
        except BaseException as error:
            with self._lock:
                del self._decoding[index]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._decoding[index]
            self._cache[index] = tile
            self._held_bytes += tile.nbytes
            while self._held_bytes > self._cache_bytes and len(self._cache) > 1:
                self._held_bytes -= self._cache.popitem(last=False)[1].nbytes
        mine.set_result(tile)
        return tile

    def _read_tile(self, index: int, row: int) -> np.ndarray:
        height = self._tile_height if self._tiled else min(self._tile_height, self._height - row * self._tile_height)
        shape = (height, self._tile_width, self._samples)
        count = self._counts[index]
        if count == 0:  # a sparse file leaves out tiles without data
            return np.full(shape, self._fill, self._dtype)
        rows = f"rows {row * self._tile_height} to {min((row + 1) * self._tile_height, self._height)}"
        with self._file_lock:
            content = self._ranges.read_at(self._offsets[index], count)
        if len(content) < count:
            raise InputError(f"{self._path} is damaged: {rows} cannot be read (the file ends before tile {index}); copy it again")
        try:
            tile = self._decode(content, index)
        except Exception as error:  # each codec has its own errors, and none of them is ours
            raise InputError(f"{self._path} is damaged: {rows} cannot be read (tile {index}: {error}); copy it again") from error
        with self._lock:
            self.tiles_decoded += 1
        if tile.shape != shape:
            raise InputError(f"{self._path} is damaged: {rows} cannot be read (tile {index} is {tile.shape}, not {shape})")
        return tile


def open_tiled_tiff(path: str, *, fill: float, cache_bytes: int = CACHE_BYTES) -> TiledTiff | None:
    """The file, if it is a TIFF of a layout known here; None leaves it to GDAL.

    Args:
      path: local, or gs://.
      fill: value of the tiles that a sparse file leaves out.
      cache_bytes: decoded tiles kept, at most.
    """
    import tifffile  # here: a folder of photos never needs it

    ranges = byte_ranges.open_ranges(path)
    try:
        # Unbuffered: the parser asks for whole tags and tables.
        file = cast(IO[bytes], byte_ranges.RangesFile(ranges))
        page = tifffile.TiffFile(file, name=path).pages.first
        decode = _decoder(page)
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError):  # what GDAL could open and tifffile cannot
        decode = None
    if decode is None:
        ranges.close()
        return None
    return TiledTiff(path, ranges, page, decode, cache_bytes=cache_bytes, fill=fill)


def _decoder(page: Any) -> Decoder | None:
    """What turns the bytes of a tile into [tile height, tile width, samples]; None for a layout that is GDAL's."""
    whole = page.planarconfig == _CONTIGUOUS or page.samplesperpixel == 1
    height, width = _tile_shape(page)
    tiles = -(-page.imagelength // height) * -(-page.imagewidth // width)
    if not (whole and page.imagedepth == 1 and len(page.dataoffsets) == len(page.databytecounts) == tiles):
        return None
    if page.dtype is None or page.dtype.name not in ("uint8", "uint16", "int16") or page.bitspersample not in (8, 16):
        return None
    if page.compression == _JPEG:
        return _jpeg_decoder(page)
    if int(page.compression) not in _LOSSLESS or page.photometric == _YCBCR:
        return None

    def decode(content: bytes, index: int) -> np.ndarray:
        tile: np.ndarray = page.decode(content, index, _fullsize=page.is_tiled)[0]
        return tile[0]  # without the axis of depth

    return decode


def _tile_shape(page: Any) -> tuple[int, int]:
    """(height, width) of a tile or strip in pixels."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _jpeg_decoder(page: Any) -> Decoder | None:
    kind = (page.samplesperpixel, int(page.photometric), page.dtype.name)
    if kind not in {(1, _GREY, "uint8"), (3, _RGB, "uint8"), (3, _YCBCR, "uint8")}:
        return None  # four components would pass for CMYK
    # The tables that all tiles share stand in the tag, between its own start and end of image.
    tables = page.jpegtables[2:-2] if page.jpegtables else b""
    # libjpeg guesses the colour space of three components; Adobe's marker says it: transform 0 is RGB, 1 is YCbCr.
    marker = b""
    if page.samplesperpixel == 3:
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == _YCBCR])
    head = b"\xff\xd8" + marker + tables
    colorspace = "GRAY" if page.samplesperpixel == 1 else "RGB"

    def decode(content: bytes, index: int) -> np.ndarray:
        if kind[1] == _RGB and content[2:4] == b"\xff\xe0":
            raise InputError("its pixels are RGB but its JFIF marker says YCbCr; rewrite it with gdal_translate")
        # The accurate DCT and the smooth upsampling are what libtiff uses too: the same pixels as GDAL's.
        return simplejpeg.decode_jpeg(head + content[2:], colorspace=colorspace, fastdct=False, fastupsample=False, strict=True)

    return decode
