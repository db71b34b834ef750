"""tpu_train.validation: what a validation says of counting."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from survey import calibration
from survey.geometry import Mosaic
from tpu_train import loop, validation
from tpu_train.validation import Validation


@dataclasses.dataclass
class Dataset:
    """One mosaic of 1 x 4 patches of 16 px, side by side."""

    classes: tuple[str, ...] = ("gull",)

    def locate(self, patch_id):
        mosaic = Mosaic("m", "m.png", 16, 64)
        return mosaic, mosaic.grid(16, 0), 0, patch_id


@pytest.fixture
def state(monkeypatch):
    monkeypatch.setattr(validation, "dataset", SimpleNamespace(read=lambda folder: Dataset()))
    return Validation("nowhere")


def batch(patch_id, scores, hits, truths):
    """Detections in a row of 3 px boxes; the first of them lie on objects, the others on nothing."""
    boxes = np.array([[0, 4 * i, 3, 4 * i + 3] for i in range(4)], np.float32)
    false = boxes + np.array([8, 0, 8, 0], np.float32)
    found = np.concatenate([boxes[:hits], false[: len(scores) - hits]])
    return {
        "patch_id": np.array([patch_id]),
        "boxes": found[None],
        "scores": np.array([scores], np.float32),
        "classes": np.ones((1, len(scores)), np.int32),
        "count": np.array([len(scores)]),
        "truth_boxes": boxes[None],
        "truth_classes": (np.arange(4) < truths).astype(np.int32)[None],
    }


def test_counting_by_hand(state):
    # Four patches. Hits have score .75, false ones .25: knots (.25, 1.5 / 4 ...) are not needed, only their sums.
    for patch_id, (hits, false, truths) in enumerate([(2, 1, 3), (1, 0, 1), (3, 1, 3), (0, 1, 1)]):
        state.add(batch(patch_id, [0.75] * hits + [0.25] * false, hits, truths))
    found = state.result(0.5)
    # Three false of three: (0 + .5) / 4; six hits of six: 6.5 / 7.
    knots = found.pop(calibration.KEY)
    assert knots == pytest.approx(np.array([(0.25, 0.125), (0.75, 6.5 / 7)]))
    assert all(isinstance(value, float) for value in found.values())
    # 8 objects, 6 found. All detections are worth what they are: f = 6.5 / 7 * (2, 1, 3, 0) + 1 / 8 * (1, 0, 1, 1).
    assert (found["true_count"], found["objects_found"], found["score_threshold"]) == (8, 6, 0.5)
    assert found["calibrated_count"] == pytest.approx(6.5 / 7 * 6 + 3 / 8)
    # Times 56: f = (111, 52, 163, 7), 333 in all, and R = 448 / 333. Residuals y - R f / 56 = y - 8 f / 333:
    # (999 - 888, 333 - 416, 999 - 1304, 333 - 56) / 333.
    squares = (111**2 + 83**2 + 305**2 + 277**2) / 333**2
    assert found["count_error"] == pytest.approx(np.sqrt(4 / 3 * squares) / 8)
    assert found["count_dispersion"] == pytest.approx(squares / 8)
    assert found["count_units"] == 4


def test_nothing_found(state):
    state.add(batch(0, [], 0, 2))
    found = state.result(0.5)
    assert found[calibration.KEY].shape == (0, 2)
    assert (found["calibrated_count"], found["count_error"], found["count_units"]) == (0, 0, 0)


def test_calibration_is_kept_beside_the_best_record_only(tmp_path):
    run = SimpleNamespace(_options=SimpleNamespace(model_dir=str(tmp_path)))
    best = tmp_path / "best"
    best.mkdir()
    (best / "info.json").write_text('{"best_ckpt_global_step": 20.0}')
    first, second = np.array([[0.2, 0.1], [0.8, 0.9]]), np.array([[0.5, 0.5]])
    loop.Run._keep_calibration(run, 20, first)
    loop.Run._keep_calibration(run, 40, second)  # step 40 was not better
    assert calibration.read(str(best)) == ((0.2, 0.1), (0.8, 0.9))
    loop.Run._keep_calibration(run, 20, None)  # a task that knows no calibration
    assert calibration.read(str(best)) == ((0.2, 0.1), (0.8, 0.9))
