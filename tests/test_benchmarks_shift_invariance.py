"""The shifted grid of the benchmark: patches of 100 px with 40 px overlap, so a stride of 60."""

import importlib.util
import sys
from pathlib import Path

import pytest

from survey.geometry import PatchGrid

FILE = Path(__file__).parent.parent / "benchmarks" / "shift_invariance.py"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FILE.parent))  # it imports its neighbour `measure`
        spec = importlib.util.spec_from_file_location("shift_invariance", FILE)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "shift_invariance", module)  # dataclasses look there
        spec.loader.exec_module(module)
        yield module


def test_the_first_stride_is_shortened_and_the_last_patch_snaps(benchmark):
    # 280 px: the last patch starts at 180. With a first stride of 25: 25, 85, 145, and 205 would reach beyond.
    grid = benchmark.ShiftedGrid(100, 280, 100, 40, 60, 25)
    assert grid.row_starts == (0,)
    assert grid.column_starts == (0, 25, 85, 145, 180)
    # Cores still tile: they meet in the middle of what neighbours share, as (0 + 25 + 100) // 2 = 62.
    assert [grid.core(0, i).x0 for i in range(5)] == [0, 62, 105, 165, 212]
    assert grid.core(0, 4).x1 == 280


def test_a_full_first_stride_is_the_plain_grid(benchmark):
    shifted, plain = benchmark.ShiftedGrid(230, 310, 100, 40, 60, 60), PatchGrid(230, 310, 100, 40)
    assert (shifted.row_starts, shifted.column_starts) == (plain.row_starts, plain.column_starts)


def test_shifts_are_drawn_within_the_stride_and_repeat(benchmark):
    drawn = benchmark.shifts(60, 1, 50)
    assert drawn == benchmark.shifts(60, 1, 50)
    assert all(1 <= one <= 60 for pair in drawn for one in pair)
    # Whole steps of 16 px away from 60: 60, 44, 28 and 12 are those above 0, and 60 // 16 = 3 of them are drawn from.
    assert {one for pair in benchmark.shifts(60, 16, 50) for one in pair} == {60, 44, 28}
