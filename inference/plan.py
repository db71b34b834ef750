"""What a prediction has to search: the mosaics as they are searched, their parts, and which parts one worker does in one go."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from inference.parts import Part
from survey import mosaics as survey_mosaics
from survey.geometry import Mosaic, PatchGrid

# Patches in a part, the unit that is kept when a run is cut short. Enough that writing it costs little beside the model, few
# enough that little is lost. Parts follow from the survey alone, and mean the same whatever the runner and the number of workers.
PATCHES_PER_PART = 32

# Rows of patches that one worker does in one go. Rows share tiles of the file, and within an item each is decoded once: with
# patches and tiles of 512 px, workers decode a quarter of the tiles twice. With more rows, workers would stand idle at the end.
ROWS_PER_ITEM = 4


@dataclass(frozen=True, slots=True)
class Planned:
    """One mosaic to be searched.

    Attributes:
      mosaic: the file.
      searched: the same ground at the resolution that it is searched at; the mosaic itself unless that was asked for.
      patch_size, overlap_px: of the patches, in pixels of `searched`.
      key: names the search of its content with these options (`parts.key`).
    """

    mosaic: Mosaic
    searched: Mosaic
    patch_size: int
    overlap_px: int
    key: str

    @property
    def grid(self) -> PatchGrid:
        """The patches, in pixels of `searched`."""
        return self.searched.grid(self.patch_size, self.overlap_px)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the file for one of `searched`, down and across."""
        return self.mosaic.height / self.searched.height, self.mosaic.width / self.searched.width

    @property
    def parts(self) -> list[Part]:
        """All its parts, in order."""
        count = len(self.grid)
        return [Part(self.key, i, min(i + PATCHES_PER_PART, count)) for i in range(0, count, PATCHES_PER_PART)]


@dataclass(frozen=True, slots=True)
class SearchItem:
    """Parts of one mosaic that one worker searches one after the other."""

    planned: Planned
    parts: tuple[Part, ...]


def at_resolution(
    mosaics: Sequence[Mosaic], gsd_m: float | None, *, patch_size: int, overlap_px: int
) -> list[tuple[Mosaic, Mosaic]]:
    """(file, the same as it is searched) of each mosaic; both carry the number of its first patch as it is searched.

    Raises:
      InputError: `gsd_m` is given, and a mosaic does not say how large its pixels are.
    """
    wanted = list(mosaics) if gsd_m is None else [mosaic.at_gsd(gsd_m) for mosaic in mosaics]
    numbered = survey_mosaics.numbered(wanted, patch_size=patch_size, overlap_px=overlap_px)
    by_name = {mosaic.name: mosaic for mosaic in mosaics}
    return [(dataclasses.replace(by_name[m.name], first_patch_id=m.first_patch_id), m) for m in numbered]


def items(planned: Sequence[Planned], missing: Collection[Part]) -> list[SearchItem]:
    """The missing parts of all mosaics, grouped for the workers.

    A mosaic without tiles is one item, so that it is read once, front to back.
    """
    wanted = set(missing)
    result = []
    for one in planned:
        band = len(one.grid) if one.mosaic.one_pass else one.grid.columns * ROWS_PER_ITEM
        todo = [part for part in one.parts if part in wanted]
        groups = itertools.groupby(todo, key=lambda part, band=band: part.start // band)  # type: ignore[misc]
        result += [SearchItem(one, tuple(group)) for _, group in groups]
    return result
