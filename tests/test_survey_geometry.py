import numpy as np
import pytest

from survey.errors import InputError
from survey.geometry import Mosaic, PatchGrid, Window, patch_starts


def test_last_patch_snaps_inward_and_all_are_square():
    # 300 x 500 px, patch 100, overlap 20, stride 80. Rows: ceil((300 - 100) / 80) + 1 = 4, the last from 240 back to 200.
    # Columns: (500 - 100) / 80 + 1 = 6, the last at 400 exactly.
    grid = PatchGrid(300, 500, 100, 20)
    assert grid.row_starts == (0, 80, 160, 200)
    assert grid.column_starts == (0, 80, 160, 240, 320, 400)
    assert len(grid) == 24
    windows = [grid.window(row, column) for row, column in grid.cells()]
    assert {(w.height, w.width) for w in windows} == {(100, 100)}
    assert max(w.y1 for w in windows) == 300
    assert max(w.x1 for w in windows) == 500


@pytest.mark.parametrize(("height", "width", "overlap"), [(300, 500, 20), (99, 100, 0), (417, 1033, 64), (250, 101, 99)])
def test_cores_tile_the_mosaic(height, width, overlap):
    grid = PatchGrid(height, width, 100, overlap)
    owners = np.zeros((height, width), int)
    for row, column in grid.cells():
        core, window = grid.core(row, column), grid.window(row, column)
        owners[core.y0 : core.y1, core.x0 : core.x1] += 1
        assert core.intersect(window) == core
    assert (owners == 1).all()


def test_core_ends_in_the_middle_of_the_overlap():
    # Columns 0 (0..100) and 1 (80..180) share 80..100: they meet at 90.
    grid = PatchGrid(100, 180, 100, 20)
    assert grid.core(0, 0) == Window(0, 0, 100, 90)
    assert grid.core(0, 1) == Window(0, 90, 100, 180)


def test_number_and_cell_are_inverse():
    grid = PatchGrid(300, 500, 100, 20)
    assert [grid.cell(grid.index(*cell)) for cell in grid.cells()] == list(grid.cells())
    assert grid.index(2, 3) == 2 * 6 + 3
    with pytest.raises(InputError, match=r"patch 24 .* 24 patches"):
        grid.cell(24)


def test_mosaic_smaller_than_a_patch_has_one_padded_patch():
    assert patch_starts(60, 100, 20) == (0,)
    assert PatchGrid(60, 100, 100, 20).window(0, 0) == Window(0, 0, 100, 100)


@pytest.mark.parametrize(("patch_size", "overlap", "words"), [(0, 0, "patch_size=0"), (100, 100, "overlap=100"), (100, -1, "-1")])
def test_impossible_grids_are_refused(patch_size, overlap, words):
    with pytest.raises(InputError, match=words):
        PatchGrid(300, 300, patch_size, overlap)


def test_map_coordinates():
    # 0.5 m pixels, north up, upper left corner (1000, 2000): pixel corner (y=4, x=10) lies at x = 1000 + 5, y = 2000 - 2.
    mosaic = Mosaic("m", "m.tif", 100, 100, transform=(0.5, 0.0, 1000.0, 0.0, -0.5, 2000.0))
    np.testing.assert_array_equal(mosaic.to_map(np.array([[4.0, 10.0]])), [[1005.0, 1998.0]])
    with pytest.raises(InputError, match="no affine transform"):
        Mosaic("m", "m.png", 100, 100).to_map(np.zeros((1, 2)))


def test_windows_that_do_not_meet_have_no_area():
    assert Window(0, 0, 10, 10).intersect(Window(20, 0, 30, 10)).area == 0
    assert Window(0, 0, 10, 10).intersect(Window(5, 8, 30, 30)) == Window(5, 8, 10, 10)
