"""Pieces of a file by position, local or in a bucket: what a tiled raster needs, and never the whole file."""

import functools
import io
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from survey import storage

# A request to a bucket takes about 30 ms whatever its size; 4 MiB, tens of tiles that lie side by side, takes twice that.
CHUNK_BYTES = 4 << 20
CHUNKS_KEPT = 8
# Asked of the chunks at a time by who reads front to back.
STREAM_BYTES = 1 << 20


class ByteRanges(Protocol):
    """A file of which pieces are read."""

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the file ends."""
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...


def open_ranges(path: str) -> ByteRanges:
    """Opens a local path or a gs:// URL for reading in pieces."""
    return BucketRanges(path) if storage.is_remote(path) else LocalRanges(path)


def open_stream(path: str) -> io.BufferedReader:
    """Opens a local path or a gs:// URL for reading front to back; of an object no more than a few chunks are in memory.

    Raises:
      FileNotFoundError: there is none; of an object at the first read.
    """
    if storage.is_remote(path):
        return io.BufferedReader(RangesFile(BucketRanges(path)), STREAM_BYTES)
    return open(path, "rb")


class LocalRanges:
    """Pieces of a local file, by pread: unlike a memory map, its pages do not count as the memory of the worker."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the file ends."""
        return os.pread(self._file, length, offset)

    def close(self) -> None:
        """Lets go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class BucketRanges:
    """Pieces of an object of Cloud Storage, fetched in chunks of which the last few are kept.

    Args:
      path: gs://BUCKET/OBJECT.
      read_range: for tests: takes the first and the last position and returns what lies there; by default from the bucket.
      chunk_bytes: size of a request; by default CHUNK_BYTES.

    Attributes:
      requests: chunks fetched so far.
    """

    def __init__(self, path: str, read_range: Callable[[int, int], bytes] | None = None, chunk_bytes: int | None = None) -> None:
        self._read_range = read_range or functools.partial(storage.read_range, path)
        self._chunk_bytes = chunk_bytes or CHUNK_BYTES
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self.requests = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer where the object ends."""
        first, last = offset // self._chunk_bytes, (offset + length - 1) // self._chunk_bytes
        pieces = b"".join([self._chunk(number) for number in range(first, last + 1)]) if length > 0 else b""
        start = offset - first * self._chunk_bytes
        return pieces[start : start + length]

    def close(self) -> None:
        """Forgets the chunks."""
        self._chunks.clear()

    def _chunk(self, number: int) -> bytes:
        if number not in self._chunks:
            self.requests += 1
            start = number * self._chunk_bytes
            self._chunks[number] = self._read_range(start, start + self._chunk_bytes - 1)
            if len(self._chunks) > CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(number)
        return self._chunks[number]


class RangesFile(io.RawIOBase):
    """A seekable file over byte ranges, for parsers that want one. Its size is not known, so it cannot seek from the end."""

    def __init__(self, ranges: ByteRanges) -> None:
        self._ranges = ranges
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """From the start and from here."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position; parsers that ask for the end get the largest one a TIFF can name."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: 1 << 62}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, as far as the file goes."""
        content = self._ranges.read_at(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
