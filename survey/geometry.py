"""Where pixels are: mosaics, windows, and the grid of overlapping patches that covers a mosaic.

A mosaic of any size is covered by square patches of one static size. Neighbours overlap; the last row and column snap inward
instead of hanging over the edge. Each pixel has exactly one owner: the patch whose *core* holds it.

    0        start[1]   patch   start[1]+patch
    |-----------|=========|-----------|          === overlap of two neighbours
    |   core 0     |   core 1         |          the cores meet in the middle of the overlap

A patch is named by a dense, reversible number: patch_id = first_patch_id + row * columns + column.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from survey.errors import InputError


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open rectangle of pixels: rows [y0, y1), columns [x0, x1)."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        """Rows, in pixels."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns, in pixels."""
        return self.x1 - self.x0

    @property
    def area(self) -> int:
        """Pixels inside; 0 for an empty window."""
        return max(0, self.height) * max(0, self.width)

    def intersect(self, other: "Window") -> "Window":
        """The pixels in both; its area is 0 where they do not meet."""
        return Window(max(self.y0, other.y0), max(self.x0, other.x0), min(self.y1, other.y1), min(self.x1, other.x1))


def patch_starts(length: int, patch_size: int, overlap_px: int) -> tuple[int, ...]:
    """First pixels of the patches along one axis; the last one snaps inward so that no patch hangs over the end.

    >>> patch_starts(1000, 416, 64)
    (0, 352, 584)
    >>> patch_starts(300, 416, 64)
    (0,)
    """
    stride = patch_size - overlap_px
    count = 1 if length <= patch_size else -(-(length - patch_size) // stride) + 1
    return tuple(max(0, min(i * stride, length - patch_size)) for i in range(count))


@dataclass(frozen=True)
class PatchGrid:
    """The patches of one mosaic.

    Attributes:
      height, width: size of the mosaic in pixels.
      patch_size: side of a patch in pixels. A mosaic smaller than a patch has one patch, padded below and to the right.
      overlap_px: pixels that neighbours share, at least; patches at the far edges share more.
    """

    height: int
    width: int
    patch_size: int
    overlap_px: int

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise InputError(f"patch_size={self.patch_size}: must be at least 1 px")
        if not 0 <= self.overlap_px < self.patch_size:
            raise InputError(
                f"overlap={self.overlap_px} px with patch_size={self.patch_size} px: must be from 0 to patch_size - 1; "
                "choose about the size of a large object"
            )

    @cached_property
    def row_starts(self) -> tuple[int, ...]:
        """First row of pixels of each row of patches."""
        return patch_starts(self.height, self.patch_size, self.overlap_px)

    @cached_property
    def column_starts(self) -> tuple[int, ...]:
        """First column of pixels of each column of patches."""
        return patch_starts(self.width, self.patch_size, self.overlap_px)

    @property
    def rows(self) -> int:
        """Rows of patches."""
        return len(self.row_starts)

    @property
    def columns(self) -> int:
        """Columns of patches."""
        return len(self.column_starts)

    def __len__(self) -> int:
        return self.rows * self.columns

    def cells(self) -> Iterator[tuple[int, int]]:
        """(row, column) of every patch, in the order of their numbers."""
        return ((row, column) for row in range(self.rows) for column in range(self.columns))

    def index(self, row: int, column: int) -> int:
        """Number of a patch within its mosaic."""
        return row * self.columns + column

    def cell(self, index: int) -> tuple[int, int]:
        """(row, column) of the patch with this number; the inverse of `index`."""
        if not 0 <= index < len(self):
            raise InputError(f"patch {index} of a mosaic of {len(self)} patches: must be from 0 to {len(self) - 1}")
        return divmod(index, self.columns)

    def window(self, row: int, column: int) -> Window:
        """Pixels of a patch, always patch_size square (beyond the mosaic only where that is smaller than a patch)."""
        y0, x0 = self.row_starts[row], self.column_starts[column]
        return Window(y0, x0, y0 + self.patch_size, x0 + self.patch_size)

    def core(self, row: int, column: int) -> Window:
        """Pixels of the mosaic that this patch owns: nearer to its centre than to any other's. Cores tile the mosaic."""
        y0, y1 = self._core_span(self.row_starts, row, self.height)
        x0, x1 = self._core_span(self.column_starts, column, self.width)
        return Window(y0, x0, y1, x1)

    def _core_span(self, starts: tuple[int, ...], i: int, length: int) -> tuple[int, int]:
        first = 0 if i == 0 else (starts[i - 1] + starts[i] + self.patch_size) // 2
        last = length if i == len(starts) - 1 else (starts[i] + starts[i + 1] + self.patch_size) // 2
        return first, last


@dataclass(frozen=True, slots=True)
class Mosaic:
    """One survey image, as every stage knows it.

    Attributes:
      name: unique within a survey; the file name without folder and ending.
      path: where its pixels are.
      height, width: pixels.
      bands: colour bands in the file.
      crs: coordinate reference system ("EPSG:32617" or WKT), None for a plain image.
      transform: affine (a, b, c, d, e, f) from pixel corners to map units: x = a*column + b*row + c, y = d*column + e*row + f.
      gsd_m: side of a pixel on the ground in metres, None where the CRS does not say.
      sha256: names the content (`survey.files.fingerprint`): sha256 of a local file, in a bucket the MD5 that is kept with it, as
        "gs-md5:..."; "" until it was read.
      first_patch_id: number of its first patch in the dataset.
      stretch: of a 16-bit file, (low, high) of each colour band: low becomes 0 and high 255; None of an 8-bit one.
      one_pass: whether the file has rows only, no tiles, so that it is best read once, front to back, by one worker.
    """

    name: str
    path: str
    height: int
    width: int
    bands: int = 3
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    gsd_m: float | None = None
    sha256: str = ""
    first_patch_id: int = 0
    stretch: tuple[tuple[float, float], ...] | None = None
    one_pass: bool = False

    def grid(self, patch_size: int, overlap_px: int) -> PatchGrid:
        """The patches that cover this mosaic."""
        return PatchGrid(self.height, self.width, patch_size, overlap_px)

    def at_gsd(self, gsd_m: float) -> "Mosaic":
        """This mosaic as it would be at another ground resolution: same ground, other pixels, to the nearest whole one.

        Args:
          gsd_m: side of its pixels on the ground, in metres.

        Raises:
          InputError: nothing says how large its pixels are now.
        """
        if self.gsd_m is None:
            raise InputError(
                f"--gsd_m={gsd_m:g}: mosaic {self.path} does not say how large its pixels are on the ground (no projected CRS): "
                "georeference it (gdal_translate -a_srs EPSG:... -a_ullr ...), or leave --gsd_m out"
            )
        height, width = (max(1, round(side * self.gsd_m / gsd_m)) for side in (self.height, self.width))
        transform = None
        if self.transform is not None:
            a, b, c, d, e, f = self.transform
            tall, wide = self.height / height, self.width / width
            transform = (a * wide, b * tall, c, d * wide, e * tall, f)
        return dataclasses.replace(self, height=height, width=width, transform=transform, gsd_m=gsd_m)

    def to_map(self, points: np.ndarray) -> np.ndarray:
        """Map coordinates of pixel positions.

        Args:
          points: [N, 2] (y, x) in mosaic pixels, corners at whole numbers.

        Returns:
          [N, 2] (x, y) in units of the CRS.
        """
        if self.transform is None:
            raise InputError(f"mosaic {self.name} has no affine transform: its detections can only be given in pixels")
        a, b, c, d, e, f = self.transform
        y, x = points[:, 0].astype(float), points[:, 1].astype(float)
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
