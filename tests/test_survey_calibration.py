"""survey.calibration: what scores are worth."""

import numpy as np
import pytest

from survey import calibration
from survey.errors import InputError


def test_pools_adjacent_violators_by_hand():
    # Scores ascending .1 .2 .3 .4 .5 with hits 0 1 0 1 1: .2 hit and .3 missed violate the order and pool to 1/2.
    # Blocks: {.1}: 0 of 1; {.2 .3}: 1 of 2; {.4 .5}: 2 of 2. Shrunk (h + 1/2) / (n + 1): .25, .5, 2.5 / 3.
    scores, hits = np.array([0.5, 0.1, 0.3, 0.2, 0.4]), np.array([True, False, False, True, True])
    knots = calibration.fit(scores, hits)
    assert np.array(knots) == pytest.approx(np.array([(0.1, 0.25), (0.25, 0.5), (0.45, 2.5 / 3)]))
    # Between .25 and .45 a straight line: at .35 half way between 1/2 and 5/6. Above the last knot that one, below the first 0.
    assert calibration.apply(knots, np.array([0.35, 0.1, 0.09, 1.0])) == pytest.approx([2 / 3, 0.25, 0, 2.5 / 3])


def test_equal_scores_share_a_block():
    # .3 twice, hit and missed: one block of 1 of 2, so (1 + 1/2) / 3.
    assert calibration.fit(np.array([0.3, 0.3]), np.array([True, False])) == ((0.3, 0.5),)


def test_thinned_calibration_keeps_order_and_number():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    hits = rng.random(20_000) < scores**2  # the true calibration is p = s^2
    knots = calibration.fit(scores, hits, max_knots=12)
    assert len(knots) == 12
    assert calibration.check(knots, "test") == knots
    assert calibration.apply(knots, scores).sum() == pytest.approx(hits.sum(), rel=0.02)
    middle = np.array([0.3, 0.5, 0.7])
    assert calibration.apply(knots, middle) == pytest.approx(middle**2, abs=0.05)


def test_no_detections_no_knots():
    assert calibration.fit(np.zeros(0), np.zeros(0, bool)) == ()
    with pytest.raises(InputError, match=r"calibration=\(\)"):
        calibration.apply((), np.array([0.5]))


def test_round_trip_and_damage(tmp_path):
    assert calibration.read(str(tmp_path)) == ()
    knots = ((0.1, 0.2), (0.7, 0.9))
    calibration.write(str(tmp_path), knots)
    assert calibration.read(str(tmp_path)) == knots
    file = tmp_path / calibration.FILE
    file.write_text(file.read_text().replace("0.2", "0.95"))  # falls from .95 to .9
    with pytest.raises(InputError, match=r"never fall"):
        calibration.read(str(tmp_path))
    file.write_text('{"format_version": 9, "knots": []}')
    with pytest.raises(InputError, match="format_version 9"):
        calibration.read(str(tmp_path))
