"""survey.breakdown: by hand, against tidecv, and what must hold of any scene."""

import dataclasses
import math

import numpy as np
import pytest
from crowded_frames import random_frames

from survey import breakdown, matching, metrics
from survey.breakdown import KINDS, RIGHT
from survey.matching import Frame

GULL, TERN = 1, 2
A, B, C, D, E, F = range(6)
OBJECTS = [(GULL, 0), (GULL, 100), (TERN, 200), (TERN, 300), (GULL, 400), (TERN, 500)]

# Boxes are 10 x 10 and moved in x only: moved by d, IoU = (10 - d) / (10 + d).
DETECTIONS = [
    (GULL, 0.95, 0),  # A exactly
    (GULL, 0.90, 1),  # A too, 9/11
    (GULL, 0.85, 106),  # B by 4/16
    (GULL, 0.80, 200),  # C exactly, but that is a tern
    (GULL, 0.75, 306),  # D by 4/16, a tern
    (GULL, 0.70, 600),  # nothing
    (TERN, 0.65, 200),  # C exactly
]


def squares(columns):
    x = np.array(columns, float).reshape(-1)
    return np.stack([np.zeros(len(x)), x, np.full(len(x), 10.0), x + 10], axis=1)


def scene(detections=DETECTIONS, objects=OBJECTS):
    class_ids, scores, columns = zip(*detections, strict=True) if detections else ((), (), ())
    truth_ids, truth_columns = zip(*objects, strict=True) if objects else ((), ())
    ids = np.array(class_ids, int), np.array(truth_ids, int)
    return matching.pool([Frame(squares(columns), np.array(scores, float), ids[0], squares(truth_columns), ids[1])])


def named(verdicts):
    return ["right" if kind == RIGHT else KINDS[kind] for kind in verdicts.kind]


def test_each_kind_by_hand():
    verdicts = breakdown.judge(scene(), 0.5)
    assert named(verdicts) == ["right", "duplicate", "localisation", "wrong_class", "both", "background", "right"]
    assert verdicts.meant.tolist() == [-1, -1, B, C, -1, -1, -1]
    assert verdicts.truth_index.tolist() == [A, -1, -1, -1, -1, -1, C]
    # Of the six objects A and C are found, B is meant; nobody means D, E and F.
    assert np.flatnonzero(breakdown.missed(scene(), verdicts, 7)).tolist() == [D, E, F]
    # Columns as KINDS: wrong_class localisation both duplicate background missed.
    assert breakdown.tally(scene(), verdicts, 2, 7).tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 2]]
    # From .78 on, four count: A right, a duplicate, B meant, C found by nobody but meant by the wrong class: still D, E, F.
    assert breakdown.tally(scene(), verdicts, 2, 4).tolist() == [[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 2]]
    # Only the first: B and C are missed as well.
    assert breakdown.tally(scene(), verdicts, 2, 1).tolist() == [[0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 3]]


def test_thresholds_belong_to_the_better_kind():
    # Moved by 5: 5/15 = 1/3. At t = 1/3 it is right; above, the outline is wrong.
    one = scene([(GULL, 0.9, 5)], [(GULL, 0)])
    assert named(breakdown.judge(one, 1 / 3)) == ["right"]
    assert named(breakdown.judge(one, 0.34)) == ["localisation"]
    # Moved by 8: 2/18 = .111 is above .1; by 9: 1/19 = .053 is below and so on the background.
    assert named(breakdown.judge(scene([(GULL, 0.9, 8), (GULL, 0.8, 29)], [(GULL, 0), (GULL, 20)]), 0.5)) == [
        "localisation",
        "background",
    ]
    # At t = .05 an overlap of .053 is a match, and nothing is left for localisation and both.
    verdicts = breakdown.judge(scene([(GULL, 0.9, 9), (TERN, 0.8, 1)], [(GULL, 0)]), 0.05)
    assert named(verdicts) == ["right", "wrong_class"]


def test_order_of_questions_where_several_kinds_fit():
    # 1/3 of a gull and all of a tern: localisation is asked first, as in tidecv.
    objects = [(GULL, 5), (TERN, 0)]
    assert named(breakdown.judge(scene([(GULL, 0.9, 0)], objects), 0.5)) == ["localisation"]
    # A gull found already and a tern, both at IoU 1: wrong_class before duplicate.
    objects = [(GULL, 0), (TERN, 0)]
    assert named(breakdown.judge(scene([(GULL, 0.9, 0), (GULL, 0.8, 0)], objects), 0.5)) == ["right", "wrong_class"]


def test_ap_gains_by_hand():
    """Gull: T F F F F F of 3, AP 34/101 (recall 1/3 reaches r = 0 .. .33). Tern: T of 3, the same."""
    gains = breakdown.ap_gains(scene(), breakdown.judge(scene(), 0.5), 2) * 101
    # wrong_class: C is found by another detection, so the false one just goes: no gain at recall 1/3.
    # localisation: gull T F T ..: precision 2/3 at recall 2/3, the 33 points r = .34 .. .66: + 33 * 2/3 = 22.
    # missed: gull without E: T of 2: 51 points, + 17. Tern without D and F: T of 1: + 67.
    np.testing.assert_allclose(gains, [[0, 22, 0, 0, 0, 17], [0, 0, 0, 0, 0, 67]], atol=1e-9)


def test_ap_gain_of_the_right_name():
    # Without the right detection of C, the wrong one becomes a tern: T of 3 instead of nothing: + 34. C was meant: not missed.
    # A second wrong one on C goes: were it kept as a tern, it would be false; as a gull at .83 it costs nothing here.
    more = [*DETECTIONS[:3], (GULL, 0.83, 201), *DETECTIONS[3:6]]
    one = scene(more)
    verdicts = breakdown.judge(one, 0.5)
    gains = breakdown.ap_gains(one, verdicts, 2) * 101
    assert gains[1].tolist() == pytest.approx([34, 0, 0, 0, 0, 0])  # missed: the tern AP is 0 of 1 as of 3
    # The one of highest score is put right: 9/11 at .83, though the one at .80 fits better.
    assert verdicts.meant.tolist() == [-1, -1, B, C, C, -1, -1]


def test_ap_gain_of_duplicates_and_background():
    # T F(duplicate) T of 2: 1 up to recall 1/2 (51 points), then 2/3 (50 points). Without the duplicate: 1.
    one = scene([(GULL, 0.9, 0), (GULL, 0.8, 1), (GULL, 0.7, 100)], [(GULL, 0), (GULL, 100)])
    gains = breakdown.ap_gains(one, breakdown.judge(one, 0.5), 1)[0] * 101
    np.testing.assert_allclose(gains, [0, 0, 0, 50 / 3, 0, 0], atol=1e-9)
    # The same with background in the place of the duplicate.
    one = scene([(GULL, 0.9, 0), (GULL, 0.8, 500), (GULL, 0.7, 100)], [(GULL, 0), (GULL, 100)])
    gains = breakdown.ap_gains(one, breakdown.judge(one, 0.5), 1)[0] * 101
    np.testing.assert_allclose(gains, [0, 0, 0, 0, 50 / 3, 0], atol=1e-9)


def test_ap_gains_where_there_is_nothing():
    # No tern: nothing to gain is defined. Every gull missed: none is left to be asked for.
    one = scene([(TERN, 0.9, 500)], [(GULL, 0)])
    gains = breakdown.ap_gains(one, breakdown.judge(one, 0.5), 2)
    assert gains[0].tolist() == [0] * 6
    assert all(math.isnan(value) for value in gains[1])
    empty = scene([], [])
    assert np.isnan(breakdown.ap_gains(empty, breakdown.judge(empty, 0.5), 1)).all()
    assert breakdown.confusion(empty, 1, 0.5, 0).tolist() == [[0, 0], [0, 0]]


# What tidecv (github.com/dbolya/tide at 49a5d2a) gives for these scenes: seed, classes, t, numbers of errors, gains of AP. Its
# recall points are x / 100 and ours COCO's linspace; they differ in the last bit, and the test takes theirs.
TIDE = [
    (0, 3, 0.5, [93, 221, 79, 20, 13, 55], [0.07111462, 0.27443619, 0.01451403, 0.00175504, 0.00129937, 0.02052779]),
    (1, 3, 0.4, [156, 148, 43, 56, 13, 20], [0.12609209, 0.20601535, 0.00816152, 0.01549623, 0.00423009, 0.01793798]),
    (2, 1, 0.75, [0, 433, 0, 14, 16, 17], [0.0, 0.77908908, 0.0, 0.00035498, 0.00074919, 0.00344702]),
]


@pytest.mark.parametrize(("seed", "classes", "iou", "numbers", "gains"), TIDE)
def test_parity_with_tidecv(seed, classes, iou, numbers, gains, monkeypatch):
    monkeypatch.setattr(metrics, "RECALL_POINTS", np.array([x / 100 for x in range(101)]))
    one = matching.pool(random_frames(np.random.default_rng(seed), images=5, classes=classes, on_grid=False))
    verdicts = breakdown.judge(one, iou)
    assert breakdown.tally(one, verdicts, classes, len(one.scores)).sum(axis=0).tolist() == numbers
    np.testing.assert_allclose(breakdown.ap_gains(one, verdicts, classes).mean(axis=0), gains, atol=1e-8)


@pytest.mark.parametrize("on_grid", [False, True])
@pytest.mark.parametrize("iou", [0.05, 0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_kinds_add_up(seed, iou, on_grid):
    frames = random_frames(np.random.default_rng(seed), images=3, classes=3, on_grid=on_grid)
    one = matching.pool(frames)
    verdicts = breakdown.judge(one, iou)
    together = metrics.pooled(metrics.outcomes(frames, 3, (iou,)))
    for threshold in (0.0, 0.3, 0.8):
        count = one.counting(threshold)
        at = metrics.at_threshold(together, iou, threshold)
        table = breakdown.tally(one, verdicts, 3, count).sum(axis=0)
        assert table[:-1].sum() == at.fp
        assert (verdicts.kind[:count] == RIGHT).sum() == at.tp
        # Objects that nobody found are missed or were meant by some false detection.
        meant = set(verdicts.meant[:count].tolist()) - {-1} - set(verdicts.truth_index[:count].tolist())
        assert table[-1] + len(meant) == at.fn
        if iou <= 0.1:
            assert table[[breakdown.LOCALISATION, breakdown.BOTH]].sum() == 0
        # Detections of lower score change no verdict on those above.
        cut = dataclasses.replace(
            one,
            **{name: getattr(one, name)[:count] for name in ("frame", "boxes", "scores", "class_ids")},
            **{name: getattr(one, name)[one.i < count] for name in ("i", "j", "iou")},
        )
        np.testing.assert_array_equal(breakdown.judge(cut, iou).kind, verdicts.kind[:count])
    gains = breakdown.ap_gains(one, verdicts, 3)
    assert (gains > -1e-12).all()


def test_confusion_by_hand():
    one = scene()
    # At .5: A gull as gull; the second on A finds nothing free; B .25 is not enough; C goes to the gull of .80, which chose
    # before the tern of .65; that one, the both and the background one find nothing. B, D, E and F are found by nobody.
    expected = [[1, 0, 2], [1, 0, 2], [4, 1, 0]]
    assert breakdown.confusion(one, 2, 0.5, 7).tolist() == expected
    # At .2: B is found by its gull, D by the gull of .75.
    assert breakdown.confusion(one, 2, 0.2, 7).tolist() == [[2, 0, 1], [2, 0, 1], [2, 1, 0]]
    # Of equal overlaps a detection takes the one of its class: here the tern, though the gull comes last.
    tie = scene([(TERN, 0.9, 0)], [(TERN, 0), (GULL, 0)])
    assert breakdown.confusion(tie, 2, 0.5, 1).tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_adds_up(seed):
    one = matching.pool(random_frames(np.random.default_rng(seed), images=3, classes=3, on_grid=True))
    for threshold in (0.0, 0.5):
        count = one.counting(threshold)
        table = breakdown.confusion(one, 3, 0.4, count)
        assert table[:3].sum(axis=1).tolist() == [(one.truth_class_ids == k).sum() for k in (1, 2, 3)]
        assert table[:, :3].sum(axis=0).tolist() == [(one.class_ids[:count] == k).sum() for k in (1, 2, 3)]
        assert table[3, 3] == 0


def test_confusion_of_one_class_is_right_false_and_missed():
    frames = random_frames(np.random.default_rng(7), images=3, classes=1, on_grid=False)
    one = matching.pool(frames)
    at = metrics.at_threshold(metrics.outcomes(frames, 1, (0.5,))[0], 0.5, 0.4)
    assert breakdown.confusion(one, 1, 0.5, one.counting(0.4)).tolist() == [[at.tp, at.fn], [at.fp, 0]]
