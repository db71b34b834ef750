"""Patches of 100 px with 40 px overlap. In a mosaic of 100 x 280 px they stand side by side:

columns   0..100, 60..160, 120..220, 180..280   (the last needs no snap)
cores     0..80, 80..140, 140..200, 200..280
"""

import numpy as np
import pytest

from inference import stitch
from survey import boxes
from survey.detections import Detections
from survey.geometry import PatchGrid, Window

STRIP = PatchGrid(100, 280, 100, 40)
SQUARE = PatchGrid(160, 160, 100, 40)  # 2 x 2 patches; cores meet at 80; all four see 60..100 x 60..100


def views(*entries: tuple[int, float, tuple[float, float, float, float]], class_ids: list[int] | None = None) -> Detections:
    """Claims from (patch, score, box) triples."""
    patches, scores, found = zip(*entries, strict=True)
    return Detections(
        np.array(found, np.float32),
        np.array(scores, np.float32),
        np.array(class_ids or [1] * len(entries), np.int32),
        np.array(patches, np.int64),
    )


def stitched(claimed: Detections, grid: PatchGrid, nms_iou: float = 0.5, first: int = 0) -> list[tuple[int, float, list[float]]]:
    found, _ = stitch.stitch(claimed, grid, first_patch_id=first, nms_iou=nms_iou)
    rows = zip(found.patch_ids.tolist(), found.scores.tolist(), found.boxes_mosaic_px.tolist(), strict=True)
    return [(patch, round(score, 4), box) for patch, score, box in rows]


def test_the_grids_are_as_described():
    assert STRIP.column_starts == (0, 60, 120, 180)
    assert [STRIP.core(0, i).x0 for i in range(4)] == [0, 80, 140, 200]
    assert SQUARE.core(1, 1) == Window(80, 80, 160, 160)


def test_claims_are_boxes_that_reach_into_the_core():
    found = np.array([[10, 81, 20, 99], [10, 70, 20, 90], [10, 60, 20, 80]], np.float32)
    assert stitch.claims(found, STRIP.core(0, 1)).tolist() == [True, True, False]


def test_owner_is_the_core_that_holds_the_centre():
    # Centres 79.5, 80 (a core is half-open, so it is the second's), and 270.
    found = np.array([[0, 70, 10, 89], [0, 70, 10, 90], [0, 265, 10, 275]], np.float32)
    assert stitch.owners(found, STRIP).tolist() == [0, 1, 3]
    # (90, 90) in the 2 x 2 grid is the last patch's.
    assert stitch.owners(np.array([[85, 85, 95, 95]]), SQUARE).tolist() == [3]


def test_an_object_away_from_seams_passes_through():
    one = (0, 0.3, (10, 10, 30, 30))
    assert stitched(views(one), STRIP) == [(0, 0.3, [10, 10, 30, 30])]
    assert stitched(views((7, 0.3, (10, 10, 30, 30))), STRIP, first=7) == [(7, 0.3, [10, 10, 30, 30])]


def test_a_double_on_the_seam_is_counted_once_with_the_higher_score():
    # Centres at 79.5 and 80.5: each patch owns what it saw. IoU = 19 / 21.
    claimed = views((0, 0.6, (10, 69.5, 30, 89.5)), (1, 0.8, (10, 70.5, 30, 90.5)))
    assert stitched(claimed, STRIP) == [(1, 0.8, [10, 70.5, 30, 90.5])]


def test_equal_scores_go_to_the_smaller_patch():
    claimed = views((1, 0.8, (10, 70.5, 30, 90.5)), (0, 0.8, (10, 69.5, 30, 89.5)))
    assert stitched(claimed, STRIP) == [(0, 0.8, [10, 69.5, 30, 89.5])]


def test_an_object_that_each_patch_sees_in_the_other_core_is_not_lost():
    # Patch 0 sees the centre at 81, in core 1; patch 1 sees it at 79, in core 0. IoU = 18 / 22. The better view is kept, and its
    # place decides who owns it.
    claimed = views((0, 0.6, (10, 71, 30, 91)), (1, 0.8, (10, 69, 30, 89)))
    found, counters = stitch.stitch(claimed, STRIP, first_patch_id=0, nms_iou=0.5)
    assert found.patch_ids.tolist() == [0]
    assert found.boxes_mosaic_px.tolist() == [[10, 69, 30, 89]]
    assert counters == {
        "detections_claimed": 2,
        "detections_merged_at_seams": 1,
        "detections_disowned": 0,
        "objects_between_owners": 1,
    }


def test_the_owner_decides_what_is_there():
    # Patch 0 believes in something at 90, in core 1, which patch 1 sees better and does not report.
    assert stitched(views((0, 0.9, (10, 75, 30, 105))), STRIP) == []
    # Both report it: the owner's box and score stand, however sure the other is.
    claimed = views((0, 0.9, (10, 72, 30, 92)), (1, 0.4, (10, 73, 30, 93)))
    assert stitched(claimed, STRIP) == [(1, 0.4, [10, 73, 30, 93])]


def test_neighbours_across_a_seam_are_two():
    # Side by side and overlapping by 4 of 20 px: IoU = 4 / 36. Each is seen whole by both patches.
    left, right = (10, 62, 30, 82), (10, 78, 30, 98)
    claimed = views((0, 0.9, left), (1, 0.8, left), (0, 0.85, right), (1, 0.7, right))
    assert stitched(claimed, STRIP) == [(0, 0.9, list(left)), (1, 0.7, list(right))]


def test_two_boxes_that_one_patch_told_apart_stay_two():
    # Close neighbours, 10 px apart, 20 px wide: IoU = 10 / 30, below 0.4 in both patches. Patch 1 sees the left one 1 px to the
    # right: IoU with patch 0's right one 11 / 29 = 0.379; with patch 0's at 0.36 the wrong pair would pass as one object, but
    # the right pair (IoU 19 / 21) comes first and patch 0 told its two apart.
    claimed = views(
        (0, 0.5, (10, 64, 30, 84)),
        (0, 0.9, (10, 74, 30, 94)),
        (1, 0.95, (10, 65, 30, 85)),
        (1, 0.4, (10, 74, 30, 94)),
    )
    assert stitched(claimed, STRIP, nms_iou=0.36) == [(0, 0.5, [10, 64, 30, 84]), (1, 0.4, [10, 74, 30, 94])]


def test_classes_do_not_mix():
    box = (10, 70, 30, 90.5)
    assert len(stitched(views((0, 0.6, (10, 69, 30, 89)), (1, 0.8, box), class_ids=[1, 2]), STRIP)) == 2


def test_a_small_object_on_a_large_one_is_not_its_fragment():
    # The small one lies inside the large one, not at the edge of patch 1 (60): it was not cut, so it is another object.
    # Large: 41..115, centre 78, but cut by patch 0 at 100; owned by patch 0 (centre 70.5). Small: 82..96 in patch 1.
    claimed = views((0, 0.9, (10, 41, 80, 100)), (1, 0.8, (20, 82, 34, 96)))
    assert len(stitched(claimed, STRIP)) == 2


def test_a_fragment_does_not_double_the_whole():
    # The object 38..86 has its centre in core 0. Patch 1 begins at 60 and sees 60..86: IoU with the whole 26 / 48 = 0.54 < 0.6,
    # but within 60..100, which both saw, the two views are the same.
    claimed = views((0, 0.5, (10, 38, 50, 86)), (1, 0.9, (10, 60, 50, 86)))
    assert stitched(claimed, STRIP, nms_iou=0.6) == [(0, 0.5, [10, 38, 50, 86])]
    # Patch 1 owns the fragment when patch 0's view of the object is bad: patch 0 still saw it whole, so its box stands.
    claimed = views((0, 0.5, (10, 38, 50, 104)), (1, 0.9, (10, 60, 50, 104)))
    assert stitch.owners(claimed.boxes_mosaic_px, STRIP).tolist() == [0, 1]


def test_whole_view_replaces_the_owners_cut_one():
    # With 70 px overlap the patches begin at 0, 30, 60, ...; cores meet at 65, 95, ... Patch 0 ends at 100 and cuts the object
    # 40..125 to 40..100 (centre 70, not its own); patch 1 (30..130) sees it whole, its centre 82.5 in core 1 (65..95).
    grid = PatchGrid(100, 280, 100, 70)
    assert [grid.core(0, i).x0 for i in range(3)] == [0, 65, 95]
    claimed = views((0, 0.9, (10, 40, 90, 100)), (1, 0.6, (10, 40, 90, 125)), (2, 0.8, (10, 60, 90, 125)))
    assert stitched(claimed, grid) == [(1, 0.6, [10, 40, 90, 125])]


def test_an_object_larger_than_the_overlap_is_the_hull_of_its_views():
    # 30..130 is 100 px wide: patch 0 (to 100) sees 30..100, patch 1 (from 60, to 160) 60..130. Both own what they see: centres 65
    # and 95. The whole is 30..130, centre 80: patch 1's.
    claimed = views((0, 0.7, (10, 30, 50, 100)), (1, 0.9, (11, 60, 51, 130)))
    assert stitched(claimed, STRIP) == [(1, 0.9, [10, 30, 51, 130])]


def test_an_object_across_four_patches_is_one():
    # 20..260 in a strip of patches: ends of the chain share no pixels, the links in between hold it together.
    parts = [(0, 0.7, (10, 20, 50, 100)), (1, 0.6, (10, 60, 50, 160)), (2, 0.9, (10, 120, 50, 220)), (3, 0.5, (10, 180, 50, 260))]
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        assert stitched(views(*[parts[i] for i in order]), STRIP) == [(2, 0.9, [10, 20, 50, 260])]


def test_a_corner_of_four_patches_counts_once():
    # Four views of one object about (80, 80), each off by a pixel or two and each in the core of the patch that saw it.
    claimed = views(
        (0, 0.6, (69, 69, 90, 90)),
        (1, 0.9, (69, 71, 90, 92)),
        (2, 0.7, (71, 69, 92, 90)),
        (3, 0.8, (71, 71, 92, 92)),
    )
    assert stitched(claimed, SQUARE) == [(1, 0.9, [69, 71, 90, 92])]
    # And when each sees it in the core of the opposite patch.
    claimed = views((0, 0.6, (71, 71, 92, 92)), (3, 0.8, (69, 69, 90, 90)))
    assert len(stitched(claimed, SQUARE)) == 1


def test_a_drifting_chain_does_not_fuse_its_ends():
    # 70 px overlap: patches begin at 0, 30, 60 and cores meet at 65 and 95; all three share pixels. Boxes 36 px wide with
    # centres 64, 78 and 96, each owned by the patch that saw it: IoU of the first two 22 / 50, of the last two 18 / 54, of the
    # ends 4 / 68.
    grid = PatchGrid(100, 280, 100, 70)
    claimed = views((0, 0.7, (10, 46, 46, 82)), (1, 0.8, (10, 60, 46, 96)), (2, 0.9, (10, 78, 46, 114)))
    assert stitched(claimed, grid, nms_iou=0.3) == [(2, 0.9, [10, 78, 46, 114]), (1, 0.8, [10, 60, 46, 96])]


def test_empty():
    none = views((0, 0.5, (0, 0, 1, 1))).take(np.zeros(1, bool))
    found, counters = stitch.stitch(none, STRIP, first_patch_id=0, nms_iou=0.5)
    assert len(found) == 0
    assert set(counters.values()) == {0}


def look(
    objects: np.ndarray, grid: PatchGrid, rng: np.random.Generator, *, noise_px: float = 0.0, least_visible: float = 0.2
) -> Detections:
    """What a detector hands on that sees every object of which a patch shows enough, with sides off by up to `noise_px`."""
    claimed = []
    for row, column in grid.cells():
        window, core = grid.window(row, column), grid.core(row, column)
        frame = np.array([window.y0, window.x0, window.y1, window.x1], float)
        noisy = objects + rng.uniform(-noise_px, noise_px, objects.shape)
        seen = np.concatenate([np.maximum(noisy[:, :2], frame[:2]), np.minimum(noisy[:, 2:], frame[2:])], axis=1)
        seen = np.clip(seen, 0, [grid.height, grid.width, grid.height, grid.width])
        seen = seen[boxes.area(seen) >= least_visible * boxes.area(objects)]
        seen = seen[stitch.claims(seen, core)]
        scores = rng.uniform(0.5, 1, len(seen))
        claimed += [(grid.index(row, column), score, tuple(box)) for score, box in zip(scores, seen, strict=True)]
    return views(*claimed)


def test_an_object_on_a_seam_counts_once_wherever_the_grid_lies():
    rng = np.random.default_rng(0)
    for _ in range(200):
        y, x = rng.uniform(60, 100, 2)
        height, width = rng.uniform(10, 40, 2)  # up to the overlap
        objects = np.array([[y - height / 2, x - width / 2, y + height / 2, x + width / 2]])
        found = stitched(look(objects, SQUARE, rng, noise_px=1.5), SQUARE)
        assert len(found) == 1
        assert boxes.iou(np.array([found[0][2]]), objects)[0, 0] > 0.5


def test_objects_of_any_size_count_once_for_a_detector_without_noise():
    rng = np.random.default_rng(1)
    grid = PatchGrid(400, 400, 100, 40)
    for _ in range(200):
        size = rng.uniform(10, 350, 2)
        low = rng.uniform(0, 400 - size)
        objects = np.concatenate([low, low + size])[None]
        found = stitched(look(objects, grid, rng, least_visible=0.0), grid)
        assert len(found) == 1
        np.testing.assert_allclose(found[0][2], objects[0], atol=1e-3)


@pytest.mark.parametrize("noise_px", [0.0, 1.5])
def test_a_dense_stand_is_counted_exactly_wherever_the_grid_lies(noise_px: float):
    # 20 px crowns every 16 px, so that each overlaps four neighbours: IoU = 4 / 36 beside each other, up to 7 / 33 with noise.
    rng = np.random.default_rng(2)
    grid = PatchGrid(300, 300, 100, 40)
    for _ in range(10):
        shift = rng.uniform(0, 16, 2)
        y, x = np.meshgrid(np.arange(12, 268, 16) + shift[0], np.arange(12, 268, 16) + shift[1], indexing="ij")
        centers = np.stack([y.ravel(), x.ravel()], axis=1)
        objects = np.concatenate([centers - 10, centers + 10], axis=1)
        found, _ = stitch.stitch(look(objects, grid, rng, noise_px=noise_px), grid, first_patch_id=0, nms_iou=0.5)
        assert len(found) == len(objects)
        assert (boxes.iou(found.boxes_mosaic_px, objects).max(axis=0) > 0.5).all()


def test_the_order_of_the_views_does_not_matter():
    rng = np.random.default_rng(3)
    grid = PatchGrid(300, 300, 100, 40)
    low = rng.uniform(0, 260, (150, 2))
    claimed = look(np.concatenate([low, low + rng.uniform(10, 60, low.shape)], axis=1), grid, rng, noise_px=3)
    first, counted = stitch.stitch(claimed, grid, first_patch_id=0, nms_iou=0.4)
    assert counted["detections_merged_at_seams"] > 10
    for _ in range(5):
        again, _ = stitch.stitch(claimed.take(rng.permutation(len(claimed))), grid, first_patch_id=0, nms_iou=0.4)
        for name in ("boxes_mosaic_px", "scores", "class_ids", "patch_ids"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("nms_iou", [0.0, 0.3, 0.5, 0.9])
def test_links_are_those_of_comparing_every_box_with_every_other(nms_iou: float):
    # Boxes from specks to larger than a patch, patches that share from nothing to 70 of 100 px, grids that snap at the far edge.
    rng = np.random.default_rng(4)
    links = 0
    for overlap_px in (0, 7, 40, 70):
        grid = PatchGrid(230, 310, 100, overlap_px)
        low = rng.uniform(0, 220, (60, 2))
        objects = np.concatenate([low, low + rng.choice([4, 30, 200], (60, 1)) * rng.uniform(0.5, 1, (60, 2))], axis=1)
        claimed = look(objects, grid, rng, noise_px=2, least_visible=0.05)
        found, seen_by = claimed.boxes_mosaic_px.astype(np.float64), claimed.patch_ids
        class_ids = rng.integers(1, 3, len(found))
        windows = np.array([[w.y0, w.x0, w.y1, w.x1] for w in (grid.window(*grid.cell(int(i))) for i in seen_by)])
        i, j = np.triu_indices(len(found), k=1)
        agree = stitch.agreement(found[i], found[j], windows[i], windows[j]) > nms_iou
        agree &= (seen_by[i] != seen_by[j]) & (class_ids[i] == class_ids[j])
        expected = set(zip(i[agree].tolist(), j[agree].tolist(), strict=True))
        got = stitch._links(found, class_ids, seen_by, grid, nms_iou).tolist()
        assert set(map(tuple, got)) == expected
        assert len(got) == len(expected)
        links += len(got)
    assert links > 50
