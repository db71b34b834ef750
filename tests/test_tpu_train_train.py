"""The training and export verbs: what they refuse before TensorFlow is imported, and one small run from shards to a model."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from inference import decode
from pipeline import shard
from survey import calibration, dataset, model
from survey.errors import InputError
from tpu_train import export, shards, train
from tpu_train import input as host
from tpu_train import plan as planning
from tpu_train.validation import Validation

SIZE = 128


def squares(height: int, width: int, seed: int) -> tuple[np.ndarray, list[tuple[str, tuple[float, ...]]]]:
    """A dark ground with bright squares of 16 to 28 px on a lattice of 40 px, and their boxes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(20, 60, (height, width, 3)).astype(np.uint8)
    objects = []
    for y in range(6, height - 34, 40):
        for x in range(6, width - 34, 40):
            side = int(rng.integers(16, 29))
            image[y : y + side, x : x + side] = rng.integers(180, 255, 3)
            objects.append(("square", (y, x, y + side, x + side)))
    return image, objects


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of two mosaics of squares, written by `rookery shard`."""
    folder = tmp_path_factory.mktemp("survey")
    import rasterio

    for seed, name in enumerate(("one", "two")):
        image, objects = squares(300, 300, seed)
        placed = rasterio.Affine(0.1, 0, 5e5 + 100 * seed, 0, -0.1, 4e6)  # two places: one ground would have to be in one split
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", height=300, width=300, count=3, dtype="uint8",
                           crs="EPSG:32617", transform=placed) as out:  # fmt: skip
            out.write(image.transpose(2, 0, 1))
        text = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (y0, x0, y1, x1) in objects
        )
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.tif</filename>{text}</annotation>")
    out = str(folder / "dataset")
    argv = f"--mosaics {folder}/*.tif --annotations {folder}/*.xml --patch_size {SIZE} --overlap 32 --split train=0.5,val=0.5"
    assert shard.run([*argv.split(), "--output", out]) == 0
    return out


def plan(data: str, **flags: object) -> planning.Plan:
    options = train.Options(dataset=data, model_dir="unused", **flags)
    return planning.make(options, dataset.read(data))


def test_defaults_come_from_the_dataset(data: str) -> None:
    """Squares of 16 to 28 px: the smallest anchor is about their 10th percentile, and the caps hold the fullest patch."""
    settled = plan(data)
    written = dataset.read(data)
    assert (settled.num_classes, settled.image_size, settled.patch_size) == (1, SIZE, SIZE)
    most = written.statistics.max_objects_per_patch
    assert 1.1 * most <= settled.max_boxes < 1.1 * most + 8
    assert settled.max_boxes % 8 == 0  # as a TPU lays them out
    assert settled.max_detections >= 2 * settled.max_boxes
    assert 12 <= settled.anchors.anchor_size * 8 <= 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_classes": 2}, r"--num_classes=2 but labels.pbtxt has 1 \(square\).*drop the flag to take 1"),
        ({"image_size": 100}, r"--image_size=100: must be a multiple of the coarsest stride, 16 px; use 96 or 112"),
        ({"image_size": 256}, r"--image_size=256 is larger than the dataset's patches of 128 px.*--patch_size 256"),
        ({"max_boxes": 1}, r"--max_boxes=1 would cut objects off: a patch holds \d+"),
        ({"val_split": "test"}, r"--val_split=test: the dataset has patches in train, val"),
        ({"steps": 0}, r"--steps=0: must be above 0"),
        ({"init": "nowhere/ckpt"}, r"--init=nowhere/ckpt: is neither imagenet nor scratch"),
    ],
)
def test_contradictions_are_refused(data: str, flags: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(data, **flags)


def test_nothing_is_written_before_the_checks(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_classes"):
        train.run(["--dataset", data, "--model_dir", str(tmp_path / "run"), "--num_classes", "7"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="dataset manifest"):
        train.run(["--dataset", str(tmp_path), "--model_dir", str(tmp_path / "run")])


def test_a_folder_of_another_run_is_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"dataset": dataset.digest(data), "steps": 5}))
    with pytest.raises(InputError, match="holds a run with"):
        train.run(["--dataset", data, "--model_dir", str(tmp_path), "--steps", "6"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="holds other files"):
        train.run(["--dataset", data, "--model_dir", str(other)])


def validation_batches(data: str) -> tf.data.Dataset:
    files = shards.resolve(data, "val", max_boxes=50)
    return host.read(files, patch_size=SIZE, training=False, batch_size=4, max_boxes=50)


def test_validation_counts_each_object_once(data: str) -> None:
    """Perfect detections on every validation patch: overlapping patches show objects twice, yet each is counted once."""
    written = dataset.read(data)
    state = Validation(data)
    for batch in validation_batches(data):
        truth = {name: value.numpy() for name, value in batch.items()}
        state.add(
            {
                "patch_id": truth["patch_id"],
                "boxes": truth["boxes"],
                "scores": (truth["classes"] > 0).astype(np.float32),
                "classes": truth["classes"],
                "count": (truth["classes"] > 0).sum(axis=1),
                "truth_boxes": truth["boxes"],
                "truth_classes": truth["classes"],
            }
        )
    found = state.result(0.5)
    assert found["f1"] == found["ap50"] == 1.0
    # One mosaic is for validation: 7 x 7 squares at 6, 46 .. 246 fit in 300 px.
    assert found["count"] == found["true_count"] == 49
    assert len(written.mosaics) == 2


def test_shards_to_model(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A short run on squares learns them; its export decodes with our reference to what Model Garden's own decoder says."""
    run, out = str(tmp_path / "run"), str(tmp_path / "model")
    short = "--steps 120 --batch_size 4 --validate_every 60 --image_size 96 --learning_rate 0.003"
    argv = ["--dataset", data, "--model_dir", run, *short.split()]
    assert train.run([*argv, "--params_override", "task.augmentation.quarter_turn=false"]) == 0
    assert "F1" in capsys.readouterr().out
    best = json.loads((tmp_path / "run/best/info.json").read_text())
    assert best["f1"] > 0.5
    for typo, message in (
        ("task.augmentation.turn=false", "params_override"),
        (
            "task.augmentation.scale_min=0",
            "scale_min=0.* and scale_max=1.25: the zoom goes from the first",
        ),
        ("task.model.backbone.type=resnet", "type=resnet, but --backbone=efficientnet_lite0: choose it by the flag"),
    ):
        with pytest.raises(InputError, match=message):
            train.run(["--dataset", data, "--model_dir", str(tmp_path / "typo"), "--params_override", typo])
    assert not (tmp_path / "typo").exists()

    assert export.run(["--model_dir", run, "--output", out]) == 0
    spec = model.read(out)
    assert spec.classes == ("square",)
    assert spec.image_size == SIZE
    assert spec.score_threshold == best["score_threshold"]
    mosaics = dataset.read(data).mosaics
    assert spec.bands == tuple(sorted({mosaic.bands for mosaic in mosaics}))
    assert (spec.gsd_m is None) == any(mosaic.gsd_m is None for mosaic in mosaics)
    assert spec.calibration == calibration.read(f"{run}/best")
    capsys.readouterr()
    assert export.run(["--model_dir", run, "--output", out]) == 0
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds something else"):
        export.run(["--model_dir", run, "--output", out, "--nms_iou", "0.7"])

    batch = next(iter(validation_batches(data)))
    loaded = tf.saved_model.load(f"{out}/{model.SAVED_MODEL}")
    raw = loaded.signatures["raw"](images=batch["image"])
    decoded = loaded.signatures["serving_default"](images=batch["image"])
    found = 0
    for i, (ours, scores, _) in enumerate(decode.Decoder(spec)({name: value.numpy() for name, value in raw.items()})):
        count = int(decoded["num_detections"][i])
        assert len(scores) == count
        np.testing.assert_allclose(np.sort(scores), np.sort(decoded["detection_scores"][i][:count]), atol=1e-5)
        np.testing.assert_allclose(ours[0], decoded["detection_boxes"][i][0], atol=SIZE * 1e-5)
        found += count
    assert found > 4
