"""Which patches show which objects: the vectorised plan beside a loop over every object and every patch."""

from collections import Counter

import numpy as np
import pytest

from pipeline import labelling, split
from survey.geometry import PatchGrid


def label(grid: PatchGrid, boxes: np.ndarray, min_visible: float = 0.3, cells: np.ndarray | None = None):
    """The patches as {(row, column): (objects, boxes)}, and the counts."""
    cells = np.zeros((grid.rows, grid.columns), np.int8) if cells is None else cells
    counts: Counter[str] = Counter()
    place = labelling.Place(0, 1000, grid, (1.0, 1.0), cells)
    table = labelling.patches(place, boxes, np.ones(len(boxes), int), 0, min_visible, counts)
    found = {}
    for i in range(len(table)):
        part = slice(table.first_box[i], table.first_box[i + 1])
        found[int(table.rows[i]), int(table.columns[i])] = (table.object_ids[part].tolist(), table.boxes_patch_px[part])
    return found, counts


@pytest.mark.parametrize("min_visible", [0.0, 0.3, 1.0])
def test_equals_brute_force(min_visible):
    grid = PatchGrid(417, 533, 100, 37)
    random = np.random.default_rng(0)
    low = random.integers(0, (417, 533), (200, 2))
    high = np.minimum(low + random.integers(1, 150, (200, 2)), (417, 533))
    boxes = np.concatenate([low, high], axis=1).astype(float)
    cells = random.integers(-1, 2, (grid.rows, grid.columns)).astype(np.int8)
    assert split.NONE == -1
    found, counts = label(grid, boxes, min_visible, cells)
    shown, small = set(), 0
    for cell in grid.cells():
        if cells[cell] == split.NONE:
            assert cell not in found
            continue
        window = grid.window(*cell)
        expected = []
        for i, (y0, x0, y1, x1) in enumerate(boxes):
            clipped = (max(y0, window.y0), max(x0, window.x0), min(y1, window.y1), min(x1, window.x1))
            if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                continue
            if (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) < min_visible * (y1 - y0) * (x1 - x0):
                small += 1
                continue
            expected.append((i, np.array(clipped) - [window.y0, window.x0, window.y0, window.x0]))
        objects, patch_boxes = found[cell]
        assert objects == [i for i, _ in expected]
        np.testing.assert_array_equal(patch_boxes, np.array([box for _, box in expected]).reshape(-1, 4))
        shown.update(objects)
    assert counts["boxes_too_little_visible_in_patch"] == small
    assert (counts["objects_labelled"], counts["objects_in_no_patch"]) == (len(shown), 200 - len(shown))


def test_a_box_that_ends_where_a_patch_begins_is_not_in_it():
    # Half-open: [0, 80) and [80, 180) share no pixel; [100, 110) begins where patch 0 ends.
    grid = PatchGrid(100, 180, 100, 20)
    boxes = np.array([[0.0, 60, 10, 80], [0.0, 100, 10, 110]])
    found, counts = label(grid, boxes, 0.0)
    assert {cell: objects for cell, (objects, _) in found.items()} == {(0, 0): [0], (0, 1): [1]}
    assert not counts["boxes_too_little_visible_in_patch"]
