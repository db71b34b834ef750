"""`--model yolo` from shards to a model, through the verbs: what is learned, what a stop changes, what is exported."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from test_tpu_train_loop import Stopped, curve, same, weights
from yolo_survey import CLASSES, SIZE
from yolo_survey import survey as survey

from inference import decode
from survey import box_shapes, dataset, model
from survey.heads import YoloHeads
from tpu_train import batch_view, box_sizes, configure, export, plan, reports, shards, show_batch, sources, train
from tpu_train import input as host

TINY = ["--model=yolo", "--backbone=tiny", "--head=yolo3_dense_1", "--init=scratch", "--batch_size=4"]
LONG = [*TINY, "--steps=30", "--validate_every=30", "--steps_per_loop=5", "--learning_rate=0.003"]
MOSAICS = "task.augmentation.mosaic=0.7,task.augmentation.mixup=0.5,task.augmentation.mosaic_zoom=0.5"


def fit(data: str, folder: Path, *argv: str) -> Path:
    assert train.run(["--dataset", data, "--model_dir", str(folder), *argv]) == 0
    return folder


@pytest.fixture(scope="module")
def straight(survey: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 steps of v3 without a stop."""
    return fit(survey, tmp_path_factory.mktemp("runs") / "straight", *LONG)


def test_the_loss_falls(straight: Path) -> None:
    """Means of five steps each; all parts add up to what is minimised, as there is no weight decay in the loss."""
    total = dict(curve(straight, "total_loss"))
    assert sorted(total) == [5, 10, 15, 20, 25, 30]
    assert total[30] < 0.8 * total[5]
    parts = [dict(curve(straight, name)) for name in ("box_loss", "object_loss", "cls_loss")]
    for step, value in total.items():
        assert value == pytest.approx(sum(part[step] for part in parts), rel=1e-4)
        assert all(part[step] > 0 for part in parts)


def test_a_stop_changes_nothing(survey: str, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped after 20 steps of which 15 are saved, and gone on with under the seal study's name of the mode."""
    real = reports.Reports.loop

    def stopped(self: reports.Reports, step: int, *rest: object) -> None:
        if step == 20:
            raise Stopped
        real(self, step, *rest)  # type: ignore[arg-type]

    run, often = tmp_path / "run", ["--checkpoint_minutes=1e-6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports.Reports, "loop", stopped)
        with pytest.raises(Stopped):
            fit(survey, run, *LONG, *often)
    capsys.readouterr()
    fit(survey, run, *LONG, *often, "--mode=fit")
    assert "train: goes on from step 15\n" in capsys.readouterr().out
    assert same(weights(straight), weights(run))
    expected = dict(curve(straight))
    assert all(value == expected[step] for step, value in curve(run))


def test_a_validation_changes_nothing(survey: str, straight: Path, tmp_path: Path) -> None:
    """It uses averages of the weights in their place, and gives them back to the last bit."""
    run = fit(survey, tmp_path / "run", *LONG, "--validate_every=10")
    assert [each["step"] for each in json.loads((run / "history.json").read_text())["validations"]] == [10, 20, 30]
    assert curve(run) == curve(straight)
    assert same(weights(straight), weights(run))


def exported(run: Path, out: Path, *argv: str) -> model.ModelSpec:
    assert export.run(["--model_dir", str(run), "--output", str(out), *argv]) == 0
    return model.read(str(out))


def compare(data: str, out: Path, *, at_least: int) -> None:
    """Our decoder on signature `raw`, and Model Garden's in `serving_default`, find the same on validation patches."""
    spec = model.read(str(out))
    images = next(
        iter(host.read(shards.resolve(data, "val", max_boxes=8), patch_size=SIZE, max_boxes=8, training=False, batch_size=8))
    )["image"]
    loaded = tf.saved_model.load(str(out / model.SAVED_MODEL))
    raw = {name: value.numpy() for name, value in loaded.signatures["raw"](images=images).items()}
    shapes = spec.heads.shapes(SIZE, len(CLASSES))
    assert {name: (value.shape, value.dtype) for name, value in raw.items()} == {
        name: ((8, *shape), np.dtype(np.float32)) for name, shape in shapes.items()
    }
    theirs = {name: value.numpy() for name, value in loaded.signatures["serving_default"](images=images).items()}
    found = 0
    for i, (boxes, scores, classes) in enumerate(decode.Decoder(spec, most=100)(raw)):
        count = int(theirs["num_detections"][i])
        assert len(scores) == count
        np.testing.assert_allclose(scores, theirs["detection_scores"][i][:count], atol=1e-5)
        for box, label, score in zip(
            theirs["detection_boxes"][i], theirs["detection_classes"][i][:count], theirs["detection_scores"][i], strict=False
        ):
            alike = (classes == label) & (np.abs(scores - score) < 1e-5)
            assert np.abs(boxes[alike] - box).max(axis=1).min() <= SIZE * 1e-5
        found += count
    assert found >= at_least


def test_original_boxes_are_exported(survey: str, straight: Path, tmp_path: Path) -> None:
    spec = exported(straight, tmp_path / "model", "--score_floor=0.02")
    fitted = box_shapes.fit(box_sizes.of_dataset(survey, "train"), 3).anchors_px
    assert spec.heads == YoloHeads((5,), (fitted,), "original", (1.0,))
    assert (spec.classes, spec.image_size, spec.score_floor) == (CLASSES, SIZE, 0.02)
    stored = json.loads((tmp_path / "model" / model.SPEC).read_text())["heads"]
    assert stored["kind"] == "yolo"
    assert stored["anchors_px"] == [[list(each) for each in fitted]]
    compare(survey, tmp_path / "model", at_least=30)


def test_scaled_boxes_are_exported(survey: str, tmp_path: Path) -> None:
    """A few steps over mosaics and mixtures; its mish must compute in a graph, which TensorFlow's own fusion of it does not."""
    argv = ["--model=yolo", "--yolo=scaled", "--head=yolo3_dense_2", "--steps=4", "--validate_every=4", "--steps_per_loop=2"]
    run = fit(survey, tmp_path / "run", *argv, "--batch_size=4", "--params_override", MOSAICS)
    losses = dict(curve(run, "total_loss"))
    assert sorted(losses) == [2, 4]
    assert all(np.isfinite(list(losses.values())))
    spec = exported(run, tmp_path / "model", "--score_floor=0.001")
    fitted = box_shapes.fit(box_sizes.of_dataset(survey, "train"), 6).anchors_px
    assert spec.heads == YoloHeads((4, 5), (fitted[:3], fitted[3:]), "scaled", (2.0, 2.0))
    compare(survey, tmp_path / "model", at_least=30)


def test_all_modes_train_alike(survey: str, tmp_path: Path) -> None:
    """Three losses in a compiled step, line by line, and in a plain loop that reads when asked."""
    short = [*TINY, "--steps=3", "--validate_every=3", "--steps_per_loop=1"]
    modes = (["--mode=graph"], ["--mode=eager_fit"], ["--mode=eager_tf", "--disable_prefetch"])
    losses = [curve(fit(survey, tmp_path / mode[0], *short, *mode), "total_loss") for mode in modes]
    assert [step for step, _ in losses[0]] == [1, 2, 3]
    for other in losses[1:]:
        assert [step for step, _ in other] == [1, 2, 3]
        np.testing.assert_allclose([loss for _, loss in other], [loss for _, loss in losses[0]], rtol=1e-4)


def test_validation_on_a_share_of_the_training_split(survey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six patches judge, and their run remembers that they do."""
    argv = [*TINY, "--epochs=1", "--validation=0.25", "--sample_train=8", "--validate_every=2", "--mode=eager"]
    run = fit(survey, tmp_path / "run", *argv)
    history = json.loads((run / "history.json").read_text())["validations"]
    assert [each["step"] for each in history] == [2]  # 8 patches in batches of 4
    record = json.loads((run / "train.json").read_text())
    assert (record["steps"], record["validation"], record["sample_train"]) == (2, 0.25, 8)
    counted = history[0]["true_count"]
    assert 0 < counted < 49  # the mosaic has 49, the six patches' cores some of them


def test_show_batch_draws_mosaics(survey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every fate is counted: what the records of the images hold is shown, cut off, outside or barely visible."""
    out = tmp_path / "batch.png"
    flags = [*TINY, "--params_override", MOSAICS]
    assert show_batch.run(["--dataset", survey, "--output", str(out), "--step=3", "--anchors", *flags]) == 0
    read, learned = map(int, re.search(r"objects: (\d+) read, (\d+) learned from", capsys.readouterr().out).groups())  # type: ignore[union-attr]
    assert out.read_bytes().startswith(b"\x89PNG")

    options = train.Options(dataset=survey, model_dir="", model="yolo", backbone="tiny", head="yolo3_dense_1", init="scratch",
                            batch_size=4, params_override=MOSAICS)  # fmt: skip
    settled = plan.make(options, dataset.read(survey))
    view = batch_view.at_step(configure.experiment(options, settled), sources.Sources(options, settled), 3)
    assert (view.fates[:, 0].sum(), (view.classes > 0).sum()) == (read, learned)
    assert (view.fates[:, 0] - view.fates[:, 1:].sum(axis=1)).tolist() == (view.classes > 0).sum(axis=1).tolist()
    # A patch holds six objects at most: an image of which more is read is made of several.
    assert view.fates[:, 0].max() > 6
    assert view.positive.any()
