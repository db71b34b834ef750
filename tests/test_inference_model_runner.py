from dataclasses import replace

import numpy as np
import pytest
import stub_model
import tensorflow as tf

from inference.model_runner import ModelRunner
from inference.search import aligned
from survey.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stub_model.export(str(tmp_path_factory.mktemp("model")))


def images(count: int) -> np.ndarray:
    return np.stack([stub_model.paint(64, 64, [(12, 12 + i, 16, 0.8, 1)]) for i in range(count)])


def test_any_number_of_images_in_static_batches(folder):
    runner = ModelRunner(folder, stub_model.SPEC, batch_size=4)
    raw = runner(images(3))
    assert sorted(raw) == ["raw_boxes", "raw_scores"]
    raw_boxes, raw_scores = raw["raw_boxes"], raw["raw_scores"]
    assert (raw_boxes.shape, raw_scores.shape) == ((3, 64, 4), (3, 64, 2))
    # Pixel (12, 12) lies in cell (1, 1), number 9, whose middle is 12: offset 0.5 px of the anchor's 16 in both directions.
    np.testing.assert_allclose(raw_boxes[0, 9], [0.5 / 16, 0.5 / 16, 0, 0], atol=1e-6)
    # 0.8 * 255 = 204; the logit of 204/255 is log 4. The other class has none.
    np.testing.assert_allclose(raw_scores[0, 9], [np.log(4), -15], atol=1e-5)
    six = runner(images(6))
    np.testing.assert_array_equal(six["raw_boxes"][:3], raw_boxes)
    np.testing.assert_array_equal(six["raw_scores"][:3], raw_scores)
    assert len(six["raw_boxes"]) == 6


def test_an_aligned_batch_is_not_copied(folder, monkeypatch):
    runner = ModelRunner(folder, stub_model.SPEC, batch_size=4)
    batch = aligned((4, 64, 64, 3))
    batch[:] = images(4)
    shifted = aligned((batch.size + 1,))[1:].reshape(batch.shape)
    shifted[:] = batch
    frozen = aligned(batch.shape)
    frozen[:] = batch
    frozen.flags.writeable = False
    copied = {
        name: runner(array) for name, array in {"shifted": shifted, "frozen": frozen, "strided": batch[:, ::-1, ::-1]}.items()
    }
    monkeypatch.setattr(tf, "constant", None)
    taken = runner(batch)
    for name in ("raw_boxes", "raw_scores"):
        np.testing.assert_array_equal(taken[name], copied["shifted"][name])
        np.testing.assert_array_equal(taken[name], copied["frozen"][name])
        assert not np.array_equal(taken[name], copied["strided"][name])
    with pytest.raises(TypeError, match="not callable"):  # the others are
        runner(shifted)


def test_a_fixed_batch_is_kept(tmp_path):
    runner = ModelRunner(stub_model.export(str(tmp_path), batch_size=2), stub_model.SPEC, batch_size=8)
    assert runner.batch_size == 2
    assert len(runner(images(5))["raw_boxes"]) == 5


def test_no_saved_model(tmp_path):
    with pytest.raises(InputError, match="saved_model is not a SavedModel: write it with `rookery export`"):
        ModelRunner(str(tmp_path), stub_model.SPEC, 1)


def test_no_raw_signature(tmp_path):
    folder = stub_model.export(str(tmp_path), signature="serving_default")
    with pytest.raises(InputError, match=r"no signature 'raw' \(it has: serving_default\)"):
        ModelRunner(folder, stub_model.SPEC, 1)


def test_another_image_size(folder):
    with pytest.raises(InputError, match=r"shape \[None, 64, 64, 3\], but model.json asks for images \[batch, 128, 128, 3\]"):
        ModelRunner(folder, replace(stub_model.SPEC, image_size=128), 1)


def test_heads_that_the_model_does_not_give(folder):
    heads = replace(stub_model.SPEC.heads, layout="levels")
    with pytest.raises(InputError, match=r"gives raw_boxes, raw_scores, but the heads .* ask for box_outputs_3, cls_outputs_3"):
        ModelRunner(folder, replace(stub_model.SPEC, heads=heads), 1)
