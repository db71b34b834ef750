"""How many objects training does not learn from, and why: a cap that is too low, crops, and what a crop barely shows."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects of the patches that were read, by what became of them.

    Attributes:
      seen: in the records.
      capped: cut off, because the patch holds more than --max_boxes, or a mosaic more than its rows.
      outside: in no pixel of the training crop.
      barely: in the crop, but with less than `augmentation.min_visible` of their area: left out as well.
    """

    seen: int = 0
    capped: int = 0
    outside: int = 0
    barely: int = 0

    @property
    def learned(self) -> int:
        """Objects that the loss is told of."""
        return self.seen - self.capped - self.outside - self.barely

    def __add__(self, other: Self) -> "Objects":
        return Objects(
            self.seen + other.seen, self.capped + other.capped, self.outside + other.outside, self.barely + other.barely
        )


def meter(objects: Objects, *, max_boxes: int, min_visible: float) -> str:
    """One line for people, with a warning where the cap cuts any.

    Args:
      objects: over the steps since the last line.
      max_boxes: the cap.
      min_visible: share of an object's area that a crop must show.

    >>> meter(Objects(1000, 0, 120, 30), max_boxes=46, min_visible=0.3)
    'objects: 1,000 read, 850 learned from (85.0 %); the crop left out 120 (12.0 %) and showed less than 30 % of 30 (3.0 %)'
    >>> meter(Objects(80, 20), max_boxes=30, min_visible=0.3)
    'objects: 80 read, 60 learned from (75.0 %); WARNING: the cap of 30 a patch (--max_boxes) cut off 20 (25.0 %): raise it'
    >>> meter(Objects(), max_boxes=30, min_visible=0.3)
    'objects: none in these patches'
    """
    if not objects.seen:
        return "objects: none in these patches"

    def share(number: int) -> str:
        return f"{number:,} ({100 * number / objects.seen:.1f} %)"

    parts = [f"objects: {objects.seen:,} read, {objects.learned:,} learned from ({100 * objects.learned / objects.seen:.1f} %)"]
    crop = []
    if objects.outside:
        crop.append(f"left out {share(objects.outside)}")
    if objects.barely:
        crop.append(f"showed less than {100 * min_visible:g} % of {share(objects.barely)}")
    if crop:
        parts.append("the crop " + " and ".join(crop))
    if objects.capped:
        parts.append(f"WARNING: the cap of {max_boxes:,} a patch (--max_boxes) cut off {share(objects.capped)}: raise it")
    return "; ".join(parts)
