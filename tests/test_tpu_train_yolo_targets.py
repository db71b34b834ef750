"""YOLO's assignment: by hand, and cell by cell as Model Garden's labeler."""

import garden_yolo
import numpy as np
import pytest
import tensorflow as tf

from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train.yolo import targets

SIZE = 128
Learned = list[set[tuple[int, ...]]]


def learned(heads: YoloHeads, found: targets.Targets, size: int) -> dict[int, Learned]:
    """For each level and image, the set of (row, column, anchor, rounded box, class)."""
    sides = np.stack([found.x, found.y, found.width, found.height], axis=-1)  # [B, M, 4]
    out: dict[int, Learned] = {}
    for level in heads.levels:
        cells, learns = (value.numpy() for value in found.levels[level])
        per_object, side = cells.shape[1] // sides.shape[1], size >> level
        out[level] = []
        for i in range(len(cells)):
            rows = []
            for slot, which in zip(*np.nonzero(learns[i]), strict=True):
                own = slot // per_object
                where = divmod(int(cells[i, slot]), side)
                rows.append((*where, int(which), *box(sides[i, own], size), int(found.classes[i, own])))
            assert len(set(rows)) == len(rows)
            out[level].append(set(rows))
    return out


def garden_learned(labels: dict, heads: YoloHeads, size: int) -> dict[int, Learned]:
    out: dict[int, Learned] = {}
    for level in heads.levels:
        inds, updates = labels["inds"][str(level)].numpy(), labels["upds"][str(level)].numpy()
        out[level] = []
        for i in range(len(inds)):
            real = updates[i, :, 4] > 0
            rows = [
                (*map(int, where), *box(update[:4], size), int(update[5]))
                for where, update in zip(inds[i][real], updates[i][real], strict=True)
            ]
            out[level].append(set(rows))
            assert len(set(rows)) == len(rows)
    return out


def box(sides: np.ndarray, size: int) -> tuple[int, ...]:
    """To a hundredth of a pixel."""
    return tuple(np.round(np.asarray(sides) * size * 100).astype(int).tolist())


@pytest.mark.parametrize("name", garden_yolo.HEADS)
@pytest.mark.parametrize(
    ("match", "best_only", "tie_breaker", "neighbours"),
    [
        (0.213, False, True, False),
        (0.4, False, True, False),
        (-0.01, False, True, False),
        (0.4, False, False, False),
        (0.4, True, True, False),
        (4.0, True, True, True),
        (1.5, False, True, True),
    ],
)
def test_equals_model_garden(name: str, match: float, best_only: bool, tie_breaker: bool, neighbours: bool) -> None:
    heads, rng = garden_yolo.HEADS[name], np.random.default_rng(5)
    boxes, classes = garden_yolo.batch(rng, [0, 1, 6, 12], 12, SIZE, 3)
    boxes[1, 5] = 77.0  # padding may hold anything
    labels = garden_yolo.labels(
        heads, boxes, classes, SIZE, match=match, best_only=best_only, tie_breaker=tie_breaker, darknet=not neighbours
    )  # fmt: skip

    @tf.function(jit_compile=True)
    def compiled(boxes: tf.Tensor, classes: tf.Tensor) -> tuple[targets.Targets, tf.Tensor]:
        found = targets.assign(
            heads,
            boxes,
            classes,
            image_size=SIZE,
            match_threshold=match,
            best_match_only=best_only,
            use_tie_breaker=tie_breaker,
            neighbours=neighbours,
        )
        return found, targets.positive(heads, found, SIZE)

    found, positive = compiled(tf.constant(boxes), tf.constant(classes))
    ours, theirs = learned(heads, found, SIZE), garden_learned(labels, heads, SIZE)
    for level in heads.levels:
        assert ours[level] == theirs[level]
    assert sum(len(image) for level in theirs.values() for image in level) > 10
    grid = np.concatenate([labels["true_conf"][str(level)].numpy().reshape(4, -1) > 0 for level in heads.levels], axis=1)
    np.testing.assert_array_equal(positive, grid)
    assert not positive.numpy()[0].any()


def test_best_anchor_by_hand() -> None:
    """A box 16 wide and 8 high about (x, y) = (20, 12), in an image of 32 px with cells of 8 px and of 16 px.

    IoU with the anchors (w, h): (8, 8): 64 / 128 = 0.5; (16, 16): 128 / 256 = 0.5; (32, 8): 128 / 256 = 0.5; (16, 10): 0.8.
    The best is the last; the cell is row 12 // 16 = 0, column 20 // 16 = 1 of level 4, flat 1; in level 3 it would be row 1,
    column 2, flat 1 * 4 + 2 = 6. From 0.5 on all four learn it, from 0.6 on only the best; above 0.8 the best all the same.
    """
    heads = YoloHeads((3, 4), (((8.0, 8.0), (16.0, 16.0)), ((32.0, 8.0), (16.0, 10.0))))
    boxes, classes = tf.constant([[[8.0, 12.0, 16.0, 28.0], [1.0, 1.0, 5.0, 5.0]]]), tf.constant([[2, 0]])
    for threshold, fine, coarse in (
        (0.5, [True, True], [True, True]),
        (0.6, [False, False], [False, True]),
        (0.9, [False, False], [False, True]),
    ):
        found = targets.assign(heads, boxes, classes, image_size=32, match_threshold=threshold)
        assert found.levels[3].cells.numpy()[0, 0] == 6
        assert found.levels[4].cells.numpy()[0, 0] == 1
        assert found.levels[3].learns.numpy()[0].tolist() == [fine, [False, False]]
        assert found.levels[4].learns.numpy()[0].tolist() == [coarse, [False, False]]
        assert found.classes.numpy().tolist() == [[1, -1]]
    none = targets.assign(heads, boxes, classes, image_size=32, match_threshold=0.9, best_match_only=True)
    assert not targets.positive(heads, none, 32).numpy().any()
    # Centre and sides over 32 px: 20, 12, 16, 8; the padding is zeros.
    sides = [none.x.numpy()[0], none.y.numpy()[0], none.width.numpy()[0], none.height.numpy()[0]]
    assert np.transpose(sides).tolist() == [[0.625, 0.375, 0.5, 0.25], [0, 0, 0, 0]]


def test_equal_anchors_give_the_first() -> None:
    heads = YoloHeads((3,), (((8.0, 8.0), (8.0, 8.0)),))
    found = targets.assign(heads, tf.constant([[[0.0, 0.0, 8.0, 8.0]]]), tf.constant([[1]]), image_size=32, match_threshold=1.0)
    assert found.levels[3].learns.numpy().tolist() == [[[True, False]]]


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        # In cells of 8 px: x 2.25, y 1.75: left of the middle of column 2, so column 1; below that of row 1, so row 2.
        (18.0, 14.0, {(1, 2), (1, 1), (2, 2)}),
        # x 0.25 has no column before it; y 3.75 has no row after it.
        (2.0, 30.0, {(3, 0)}),
        # x 2.5 is in the middle: neither; y 1.0 is on the border, into = 0 < 0.5 but not y > 1.
        (20.0, 8.0, {(1, 2)}),
    ],
)
def test_neighbours_by_hand(x: float, y: float, cells: set[tuple[int, int]]) -> None:
    heads = YoloHeads((3,), (((4.0, 4.0),),), "scaled", (2.0,))
    boxes = tf.constant([[[y - 2, x - 2, y + 2, x + 2]]])
    found = targets.assign(heads, boxes, tf.constant([[1]]), image_size=32, match_threshold=4.0, neighbours=True)
    used = found.levels[3].cells.numpy()[0][found.levels[3].learns.numpy()[0, :, 0]]
    assert {divmod(int(cell), 4) for cell in used} == cells


def test_ratio_by_hand() -> None:
    """A box 8 wide and 30 high: 30 / 8 = 3.75 < 4 for the anchor of 8 px; 32 / 8 = 4 for the one of 32 px is not below 4."""
    heads = YoloHeads((3,), (((8.0, 8.0), (32.0, 32.0)),))
    boxes = tf.constant([[[0.0, 0.0, 30.0, 8.0]]])
    found = targets.assign(heads, boxes, tf.constant([[1]]), image_size=32, match_threshold=4.0, best_match_only=True)
    assert found.levels[3].learns.numpy().tolist() == [[[True, False]]]


def test_a_centre_on_the_far_border_stays_inside_and_a_flat_box_is_padding() -> None:
    heads = YoloHeads((3,), (((8.0, 8.0),),))
    edge = np.nextafter(np.float32(32), np.float32(0))
    boxes = tf.constant([[[edge, edge, 32.0, 32.0], [4.0, 4.0, 4.0, 9.0]]], tf.float32)
    found = targets.assign(heads, boxes, tf.constant([[1, 1]]), image_size=32, match_threshold=0.4)
    assert found.levels[3].cells.numpy()[0, 0] == 15
    assert found.levels[3].learns.numpy()[0, :, 0].tolist() == [True, False]
    assert found.classes.numpy().tolist() == [[0, -1]]


def test_refusals() -> None:
    boxes, classes = tf.zeros([1, 2, 4]), tf.zeros([1, 2], tf.int32)
    with pytest.raises(InputError, match="image_size=100: must be a multiple of the coarsest stride, 32 px"):
        targets.assign(garden_yolo.HEADS["three"], boxes, classes, image_size=100, match_threshold=0.4)
    heads = YoloHeads((3,), (((8.0, 8.0),),), "scaled", (2.5,))
    with pytest.raises(InputError, match=r"scale_xy=\[2.5\]: must be at most 2"):
        targets.assign(heads, boxes, classes, image_size=32, match_threshold=4.0, neighbours=True)
