"""The largest batch that fits into a chip, searched in few questions to the compiler."""

import math
from collections.abc import Callable
from dataclasses import dataclass

TILE = 8  # images, see `tpu_train.preflight.lint`: from so many on, batches are tried in eights
QUESTIONS = 16  # at most
MOST = 4096  # images of one replica, not searched beyond unless told


@dataclass(frozen=True, slots=True)
class Tried:
    """A batch that was asked for.

    Attributes:
      batch: images of one replica.
      hbm_bytes: what it takes, or would take; 0 where the compiler does not say.
      fits: whether HBM holds it.
    """

    batch: int
    hbm_bytes: int
    fits: bool


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


def largest(place: Callable[[int], Tried], *, start: int, capacity_bytes: int, most: int = MOST) -> Largest:
    """Searches the largest batch of one replica that fits.

    The nearer the end of memory, the harder the compiler works at making a batch fit (88 images of ResNet-50 take nearly four
    times what 8 do). So what little takes says nothing of what would fit, and the line is drawn through what is refused: the
    first batch after `start` is `most`. Refused sizes grow nearly in a straight line: the next batch is where the line through
    the two smallest reaches the capacity, rounded up, but not below where the line from nothing to the smallest does, which is
    above the end of a straight line. After one refusal it is there, and a fifth more. Where a line has led to a batch that fits,
    it was too low: the next batch lies half way up in logarithms, and from then on none lies higher than that.

    Args:
      place: lays out the memory of the step for a batch and says what it takes.
      start: the first batch to try.
      capacity_bytes: of the chip's HBM.
      most: images, not searched beyond.
    """
    tried: list[Tried] = []
    low, high = 0, 0  # fits; does not fit, 0: not known
    batch = start
    while len(tried) < QUESTIONS:
        found = place(batch)
        tried.append(found)
        low, high = (found.batch, high) if found.fits else (low, found.batch)
        if low >= most or 0 < high <= above(low):
            break
        batch = _between(low, high, tried, capacity_bytes) if high else most
    return Largest(low, high, tuple(tried))


def _between(low: int, high: int, tried: list[Tried], capacity_bytes: int) -> int:
    """The batch to try next, above `low` and below `high`."""
    sizes = sorted((each.batch, each.hbm_bytes) for each in tried if not each.fits and each.hbm_bytes)
    (batch, size), (other, larger) = [*sizes, (0, 0), (0, 0)][:2]
    guess = batch * capacity_bytes / size if size else 0.0
    if len(sizes) == 1:
        guess *= 1.2
    elif sizes and larger > size:
        guess = max(guess, batch - (size - capacity_bytes) * (other - batch) / (larger - size))
    half = math.sqrt(max(low, 1) * high)
    if guess <= low or tried[-1].fits:
        guess = half
    elif low > tried[0].batch:
        guess = min(guess, half)
    return max(above(low), min(above(math.ceil(guess) - 1), _below(high)))


def _below(batch: int) -> int:
    """The next smaller batch to try.

    >>> [_below(batch) for batch in (2, 8, 9, 16, 20)]
    [1, 7, 8, 8, 16]
    """
    return batch - 1 if batch <= TILE else (batch - 1) // TILE * TILE
