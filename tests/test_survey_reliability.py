"""survey.reliability by hand."""

import math

import numpy as np
import pytest

from survey.reliability import Reliability, expected_calibration_error, reliability


def test_bins_of_equal_promise_by_hand(monkeypatch):
    monkeypatch.setattr("survey.reliability.PROMISED", 1)
    # The scores add up to 2.4, two bins of 1.2 at least: .9 + .5 reach it, .4 .3 .2 .1 are the rest.
    scores = np.array([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    low, high = reliability(scores, np.array([True, True, False, True, False, False]))
    assert (low.number, low.precision, high.number, high.precision) == (4, 0.25, 2, 1.0)
    assert (low.mean_score, high.mean_score) == pytest.approx((0.25, 0.7))
    # (4 * 0 + 2 * .3) / 6 = .1
    assert expected_calibration_error([low, high]) == pytest.approx(0.1)
    assert len(reliability(scores, scores > 0.2, most=1)) == 1


def test_equal_scores_share_a_bin(monkeypatch):
    monkeypatch.setattr("survey.reliability.PROMISED", 1)
    # The sum is 2.6 and half of it reached amid the four at .4: the upper bin takes all of them.
    scores = np.array([0.8, 0.4, 0.4, 0.4, 0.4, 0.1, 0.1])
    bins = reliability(scores, scores > 0.2)
    assert [(one.number, one.precision) for one in bins] == [(2, 0.0), (5, 1.0)]


def test_too_few_for_two_bins():
    # 15 promised are one bin of at least 10; 20.25 promised are two.
    assert len(reliability(np.full(30, 0.5), np.ones(30, bool))) == 1
    assert len(reliability(np.linspace(0.5, 0.4, 45), np.ones(45, bool))) == 2


@pytest.mark.parametrize("number", [1, 2, 7, 100, 1234])
def test_bins_hold_every_detection_once(number):
    rng = np.random.default_rng(number)
    scores = -np.sort(-np.round(rng.uniform(0, 1, number), 2))
    hits = rng.uniform(size=number) < scores
    bins = reliability(scores, hits)
    assert len(bins) <= 20
    assert sum(one.number for one in bins) == number
    assert sum(one.number * one.precision for one in bins) == pytest.approx(hits.sum())
    assert [one.mean_score for one in bins] == sorted(one.mean_score for one in bins)


def test_calibration_error_weighs_by_number():
    # (30 |.9 - .5| + 10 |.2 - .2|) / 40 = .3
    assert expected_calibration_error([Reliability(0.9, 0.5, 30), Reliability(0.2, 0.2, 10)]) == pytest.approx(0.3)


def test_scores_of_zero():
    assert reliability(np.zeros(3), np.zeros(3, bool)) == (Reliability(0.0, 0.0, 3),)


def test_nothing():
    assert reliability(np.zeros(0), np.zeros(0, bool)) == ()
    assert math.isnan(expected_calibration_error(()))
