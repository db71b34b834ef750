"""The largest batch that fits into a chip: a few compiles, each where a line through the last two says that memory ends."""

from collections.abc import Callable
from dataclasses import dataclass

TILE = 8  # images, see `tpu_train.preflight.lint`: from so many on, batches are tried in eights
COMPILES = 8  # at most
MOST = 256  # images of one replica, not searched beyond unless told: compiles of more take ten minutes and longer


@dataclass(frozen=True, slots=True)
class Tried:
    """A batch that was compiled.

    Attributes:
      batch: images of one replica.
      hbm_bytes: what it takes, or would take; 0 where the compiler does not say.
      fits: whether it compiled.
      fixed_bytes: of those, variables and code, which any batch takes; 0 where the compiler does not say.
    """

    batch: int
    hbm_bytes: int
    fits: bool
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Largest:
    """What was found.

    Attributes:
      batch: the largest that was seen to fit, 0 if none was.
      refused: the smallest that was seen not to fit, 0 if none was.
      tried: all, in order.
    """

    batch: int
    refused: int
    tried: tuple[Tried, ...]

    @property
    def exact(self) -> bool:
        """Whether the next larger batch, in steps of 1 below TILE and of TILE above, was seen not to fit."""
        return self.refused == above(self.batch)

    def line(self) -> str:
        """For people.

        >>> Largest(24, 32, ()).line()
        '24 images a replica; 32 do not fit'
        >>> Largest(24, 40, ()).line()
        '24 images a replica, at least; 40 do not fit'
        """
        if not self.batch:
            return f"none: {self.refused} image{'s' if self.refused > 1 else ''} a replica do{'es' * (self.refused == 1)} not fit"
        untried = ", at least: larger ones were not tried, --max_batch_limit says how far to go"
        least = "" if self.exact else ", at least" if self.refused else untried
        return f"{self.batch} images a replica{least}" + (f"; {self.refused} do not fit" if self.refused else "")


def above(batch: int) -> int:
    """The next larger batch to try.

    >>> [above(batch) for batch in (0, 1, 7, 8, 9)]
    [1, 2, 8, 16, 16]
    """
    return batch + 1 if batch < TILE else batch // TILE * TILE + TILE


def largest(compile: Callable[[int], Tried], *, start: int, capacity_bytes: int, most: int = MOST) -> Largest:
    """Searches the largest batch of one replica that fits.

    Memory grows nearly in a straight line with the batch: the next batch to try is the one at which the line through the two
    nearest known batches reaches the capacity, kept between the largest that fits and the smallest that does not. While one batch
    is known, the line starts at what a batch of none would take.

    Args:
      compile: compiles the step for a batch and says what it takes.
      start: the first batch to try.
      capacity_bytes: of the chip's HBM.
      most: images, not searched beyond.
    """
    tried: list[Tried] = []
    low, high = 0, 0  # fits; does not fit, 0: not known
    batch = start
    while len(tried) < COMPILES:
        found = compile(batch)
        tried.append(found)
        low, high = (max(low, found.batch), high) if found.fits else (low, min(high or found.batch, found.batch))
        if low >= most or 0 < high <= above(low):
            break
        batch = _next(tried, low, min(_below(high), most) if high else most, capacity_bytes)
    return Largest(low, high, tuple(tried))


def _next(tried: list[Tried], low: int, most: int, capacity_bytes: int) -> int:
    """The batch to try next, above `low` and at most `most`."""
    known = sorted((each for each in tried if each.hbm_bytes), key=lambda each: abs(each.hbm_bytes - capacity_bytes))[:2]
    if len(known) == 2 and known[0].batch != known[1].batch:
        slope = (known[0].hbm_bytes - known[1].hbm_bytes) / (known[0].batch - known[1].batch)
    else:
        slope = (known[0].hbm_bytes - known[0].fixed_bytes) / known[0].batch if known else 0.0
    guess = known[0].batch + (capacity_bytes - known[0].hbm_bytes) / slope if slope > 0 else 2 * max(low, 1)
    rounded = int(guess) // TILE * TILE if guess >= TILE else int(guess)
    return max(above(low), min(rounded, most))


def _below(batch: int) -> int:
    """The next smaller batch to try.

    >>> [_below(batch) for batch in (2, 8, 9, 16, 20)]
    [1, 7, 8, 8, 16]
    """
    return batch - 1 if batch <= TILE else (batch - 1) // TILE * TILE
