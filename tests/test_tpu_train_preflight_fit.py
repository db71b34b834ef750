"""The largest batch is found in few questions, and is what a search one by one would find."""

import pytest

from tpu_train.preflight import fit
from tpu_train.preflight.fit import Largest, Tried


def memory(fixed: int, each: int, capacity: int, *, bend: float = 0.0):
    """A chip in which a batch takes `fixed + each * batch`, a little more where it bends; and the batches that were asked for."""
    asked: list[int] = []

    def compiled(batch: int) -> Tried:
        asked.append(batch)
        taken = int(fixed + each * batch * (1 + bend * batch))
        return Tried(batch, taken, taken <= capacity)

    return compiled, asked


@pytest.mark.parametrize(
    ("fixed", "each", "capacity", "start", "expected"),
    [
        # (1000 - 100) / 10 = 90 images: 88 is the multiple of eight, 96 do not fit.
        (100, 10, 1000, 8, 88),
        # (1000 - 400) / 100 = 6 images: below eight each counts.
        (400, 100, 1000, 1, 6),
        (400, 100, 1000, 64, 6),
        (900, 200, 1000, 4, 0),  # not even one
        # (1000 - 200) / 100 = 8: exactly full is full.
        (200, 100, 1000, 3, 8),
    ],
)
def test_finds_it(fixed: int, each: int, capacity: int, start: int, expected: int) -> None:
    compiled, asked = memory(fixed, each, capacity)
    found = fit.largest(compiled, start=start, capacity_bytes=capacity)
    assert found.batch == expected
    assert found.exact
    assert found.refused == fit.above(expected)
    assert asked == [each.batch for each in found.tried]
    assert len(set(asked)) == len(asked) <= 8


def test_from_above() -> None:
    """Of 100 + 10 a batch: 4,096 take 41,060, so 99.8 and a fifth are tried; the line through both says 90, so 96, then 88."""
    compiled, asked = memory(100, 10, 1000)
    fit.largest(compiled, start=8, capacity_bytes=1000)
    assert asked == [8, fit.MOST, 120, 96, 88]


def test_a_compiler_that_makes_it_fit() -> None:
    """What fits takes less than a line says, the nearer the end the more: ResNet-50 on v5e, in 0.1 GiB."""

    def compiled(batch: int) -> Tried:
        taken = 157.7 + 2.4 * (batch - 96) if batch > 88 else min(5.3 * batch, 150 + batch / 100)
        return Tried(batch, int(taken), batch <= 88)

    found = fit.largest(compiled, start=8, capacity_bytes=157)
    assert (found.batch, found.refused) == (88, 96)
    assert [each.batch for each in found.tried if each.fits] == [8, 80, 88]


def test_a_line_that_bends_takes_a_few_more() -> None:
    """A batch b takes 100 + 10 b (1 + b / 500): at 72 images 924, at 80 images 1,028."""
    compiled, asked = memory(100, 10, 1000, bend=1 / 500)
    found = fit.largest(compiled, start=8, capacity_bytes=1000)
    assert (found.batch, found.refused) == (72, 80)
    assert len(asked) <= fit.QUESTIONS


def test_sizes_that_the_compiler_does_not_say() -> None:
    """Refusals without sizes: the interval is divided in proportion."""

    def compiled(batch: int) -> Tried:
        return Tried(batch, 0 if batch > 40 else 100 + 20 * batch, batch <= 40)

    found = fit.largest(compiled, start=8, capacity_bytes=900)
    assert (found.batch, found.refused) == (40, 48)


def test_a_small_model_is_not_searched_for_ever() -> None:
    compiled, asked = memory(100, 1, 1_000_000)
    found = fit.largest(compiled, start=8, capacity_bytes=1_000_000)
    assert asked == [8, fit.MOST]
    assert (found.batch, found.refused) == (fit.MOST, 0)
    assert found.line() == "4096 images a replica, at least: larger ones were not tried, --max_batch_limit says how far to go"


def test_a_small_model_is_searched_further_if_asked() -> None:
    """(10,000 - 100) / 10 = 990: 984 in eights."""
    compiled, asked = memory(100, 10, 10_000)
    found = fit.largest(compiled, start=8, capacity_bytes=10_000, most=2000)
    assert (found.batch, found.refused) == (984, 992)
    compiled, asked = memory(100, 10, 10_000)
    found = fit.largest(compiled, start=8, capacity_bytes=10_000, most=400)
    assert (found.batch, found.refused) == (400, 0)
    assert asked == [8, 400]


def test_what_was_not_tried_is_not_claimed() -> None:
    assert not Largest(16, 32, ()).exact
    assert Largest(0, 1, ()).line() == "none: 1 image a replica does not fit"
    assert Largest(0, 8, ()).line() == "none: 8 images a replica do not fit"
