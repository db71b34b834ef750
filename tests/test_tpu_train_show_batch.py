"""`rookery show-batch`: the picture shows the very batch that training sees, and refuses what training refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tensorflow as tf
import tf_keras
from official.core import config_definitions, task_factory
from PIL import Image

from pipeline import shard
from survey import dataset
from survey.drawing import FALSE, FOUND, rgb
from survey.errors import InputError
from tpu_train import batch_picture, batch_view, configure, patches, plan, show_batch, train
from tpu_train.experiments import retinanet
from tpu_train.sources import Sources
from tpu_train.validation_pictures import ValidationPictures

SIZE = 128


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two mosaics of 3 x 3 patches with 49 bright squares of 20 px each, one mosaic to learn from."""
    folder = tmp_path_factory.mktemp("survey")
    for seed, name in enumerate(("one", "two")):
        image = np.random.default_rng(seed).integers(20, 60, (300, 300, 3)).astype(np.uint8)
        text = ""
        for y in range(6, 266, 40):
            for x in range(6, 266, 40):
                image[y : y + 20, x : x + 20] = 220
                corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 20}</xmax><ymax>{y + 20}</ymax>"
                text += f"<object><name>square</name><bndbox>{corners}</bndbox></object>"
        placed = rasterio.Affine(0.1, 0, 5e5 + 100 * seed, 0, -0.1, 4e6)
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", height=300, width=300, count=3, dtype="uint8",
                           crs="EPSG:32617", transform=placed) as out:  # fmt: skip
            out.write(image.transpose(2, 0, 1))
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.tif</filename>{text}</annotation>")
    out = str(folder / "dataset")
    argv = f"--mosaics {folder}/*.tif --annotations {folder}/*.xml --patch_size {SIZE} --overlap 32 --split train=0.5,val=0.5"
    assert shard.run([*argv.split(), "--output", out]) == 0
    return out


def ids_of(data: str, split: str) -> list[int]:
    return list(patches.places(data, split=split))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--split", "test"], r"--split=test: the dataset has patches in train, val"),
        (["--step", "-1"], r"--step=-1: must be 0 for the first batch"),
        (["--output", "batch.jpg"], r"--output='batch.jpg': must be a file name ending in .png"),
        (["--image_size", "100"], r"--image_size=100: must be a multiple of the coarsest stride"),
        (["--image_size", "256"], r"--image_size=256 is larger than the dataset's patches of 128 px"),
        (["--imagesize", "96"], r"--imagesize is not a flag of rookery show-batch: did you mean --image_size"),
        (["--ste", "3"], r"--ste is not a flag of rookery show-batch: did you mean --step"),
        (["--train_split", "val"], r"--train_split=val: give --split=val"),
        (["--batch_size", "0"], r"--batch_size=0: must be above 0"),
    ],
)
def test_refuses(data: str, argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        show_batch.run(["--dataset", data, *argv])


def test_refuses_patches_that_are_not_there(data: str) -> None:
    there = ids_of(data, "val")[0]
    with pytest.raises(InputError, match=rf"patch {there} is in split val, not in train: give --split val"):
        patches.wanted(data, [there], "train")
    with pytest.raises(InputError, match=r"patch 999 is not in .*patches.parquet lists its patches"):
        patches.wanted(data, [999], "train")


def configured(data: str, **flags: object) -> tuple[config_definitions.ExperimentConfig, Sources]:
    options = train.Options(dataset=data, model_dir="", batch_size=4, init="scratch", **flags)
    settled = plan.make(options, dataset.read(data))
    return configure.experiment(options, settled), Sources(options, settled)


def test_shows_what_training_sees(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiled training step hands to its model and to its loss, step by step, is what `at_step` says of each step."""
    config, read = configured(data, image_size=96, seed=5, params_override="task.augmentation.contrast=0.4")
    images, boxes, classes = [], [], []
    anchors = len(retinanet.anchor_spec(config.task.model).boxes(96))

    class Blind(tf_keras.Model):
        """Notes what it is shown, and says the same of every anchor."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = self.add_weight("bias", ())

        def call(self, pixels: tf.Tensor, training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
            tf.py_function(lambda value: images.append(value.numpy()), [pixels], [])
            same = {name: self.bias * tf.ones([4, anchors, last]) for name, last in (("cls_outputs", 2), ("box_outputs", 4))}
            return {name: {"all": value} for name, value in same.items()}

    targets = retinanet.RetinaNetTask.targets

    def kept(self: retinanet.RetinaNetTask, some: tf.Tensor, of: tf.Tensor, size: int) -> dict[str, object]:
        tf.py_function(lambda *values: (boxes.append(values[0].numpy()), classes.append(values[1].numpy())), [some, of], [])
        return targets(self, some, of, size)

    with monkeypatch.context() as patch:
        patch.setattr(retinanet.RetinaNetTask, "targets", kept)
        task, model, optimizer = task_factory.get_task(config.task), Blind(), tf_keras.optimizers.SGD(0.1)
        step = tf.function(lambda inputs: task.train_step(inputs, model, optimizer)["loss"])
        task.shards = read.shards
        for inputs in task.build_inputs(config.task.train_data).take(3):
            step(inputs)
    assert len(images) == 3
    for trained in range(3):
        view = batch_view.at_step(config, read, trained)
        given = images[trained] * np.array(config.task.pixel_scale) + np.array(config.task.pixel_offset)
        np.testing.assert_allclose(view.images, given, atol=0.501)  # shown in whole numbers
        np.testing.assert_array_equal(view.boxes, boxes[trained])
        np.testing.assert_array_equal(view.classes, classes[trained])
        assert set(view.patch_ids.tolist()) <= set(ids_of(data, "train"))
    assert not np.array_equal(images[0], images[1])


def test_picture_and_numbers(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Takes the whole command line of a run, and writes the same bytes twice."""
    out = tmp_path / "batch.png"
    run = ["--dataset", data, "--image_size=96", "--batch_size", "4", "--model_dir", "run", "--hparams", "max_boxes=30"]
    argv = [*run, "--step", "2", "--seed", "1", "--anchors", "--output", str(out)]
    assert show_batch.run(argv) == 0
    text = capsys.readouterr().out
    assert "show-batch: dataset, train, step 2, seed 1" in text
    assert "learned from" in text
    assert "classes: square " in text
    assert "anchors: best IoU 0." in text
    first = out.read_bytes()
    width, height = Image.open(io.BytesIO(first)).size
    assert f"open {out} ({width:,} x {height:,} px)" in text
    assert width == 2 * 480 + 3 * 16  # two columns of 96 px, enlarged five times to reach 400, and gaps as wide as the text
    assert show_batch.run(argv) == 0
    assert out.read_bytes() == first


def test_patches_by_number(data: str) -> None:
    """Patches of the step's batch look as they do in it, whatever their order; others get a batch of their own, and a note."""
    config, read = configured(data, image_size=96, seed=1)
    batch = batch_view.at_step(config, read, 3)
    ids = batch.patch_ids.tolist()

    def look(*patch_ids: int) -> tuple[batch_view.BatchView, list[str]]:
        return show_batch.look(show_batch.Options(dataset=data, step=3, patch_ids=patch_ids), config, read)

    view, note = look(ids[2], ids[0])
    assert note == []
    np.testing.assert_array_equal(view.images, batch.images[[2, 0]])
    np.testing.assert_array_equal(view.boxes, batch.boxes[[2, 0]])
    other = next(i for i in ids_of(data, "train") if i not in ids)
    view, note = look(other, ids[0])
    assert note == [f"note: not in the batch of step 3, so with other random numbers: {other}"]
    assert view.patch_ids.tolist() == [other, ids[0]]


def test_whole_patches_and_the_cap(data: str) -> None:
    """Without augmentation: pixels and boxes of the records. A cap of 5 leaves 5 of each patch's objects, and says so."""
    config, _ = configured(data, image_size=96, params_override="task.max_boxes=5")
    ids = ids_of(data, "train")[:2]
    view = batch_view.of_patches(config, patches.wanted(data, ids, "train"), 0, augmented=False)
    assert view.images.shape == (2, SIZE, SIZE, 3)
    assert (view.classes == 1).all()
    assert view.classes.shape == (2, 5)
    # Patch 0 shows the lattice 6, 46, 86 and what is left, 2 px of 20, of 126: too little. The second starts at 86: 86, 126, 166
    # and 206, whose first 8 px of 20 are enough.
    assert view.fates[:, 0].tolist() == [9, 12]
    np.testing.assert_allclose(view.boxes[0, 0], [6, 6, 26, 26], atol=1e-4)
    assert view.images[0, 8:24, 8:24].min() > 200
    picture = batch_picture.BatchPicture(data, config, view)
    assert "objects: 21 read, 10 learned from (47.6 %); WARNING: the cap of 5 a patch" in "\n".join(picture.summary())


def detections(data: str, found: int, false: int) -> dict[int, dict[str, np.ndarray]]:
    """A batch for `Validation.add` of each validation patch: its first objects are found exactly, and some bare ground, too."""
    batches = {}
    for place in patches.places(data, split="val").values():
        one = patches.read(data, [place], patch_size=SIZE, max_boxes=20)
        truth = one["boxes"].numpy()[:, :found]
        wrong = np.array([[[30.0 + 40 * i, 30, 40 + 40 * i, 40] for i in range(false)]]).reshape(1, -1, 4)
        boxes = np.concatenate([truth, wrong], axis=1)
        batches[place.patch_id] = {
            "patch_id": one["patch_id"].numpy(),
            "boxes": np.pad(boxes, [(0, 0), (0, 3), (0, 0)]),
            "scores": np.pad(np.full(boxes.shape[:2], 0.8), [(0, 0), (0, 3)], constant_values=0.9),  # beyond the count
            "classes": np.pad(np.ones(boxes.shape[:2], int), [(0, 0), (0, 3)]),
            "count": np.array([boxes.shape[1]]),
            "truth_boxes": one["boxes"].numpy(),
            "truth_classes": one["classes"].numpy(),
        }
    return batches


def count(picture: np.ndarray, colour: str) -> int:
    return int((picture == rgb(colour)).all(axis=2).sum())


def test_validation_pictures(data: str, tmp_path: Path) -> None:
    """What is found is blue, what is not there red; a threshold above every score shows neither; each picture has a name."""
    watched = ValidationPictures(data, "val", iou=0.5, count=3)
    assert len(watched.patch_ids) == 3
    assert watched.pictures(0.5) == {}
    for batch in detections(data, found=4, false=2).values():
        watched.add(batch)
    pictures = watched.pictures(0.5)
    assert tuple(pictures) == watched.patch_ids
    for picture in pictures.values():
        assert picture.shape[1] == 512  # 128 px, four times as large
        # A square of 10 px has a ring of 40 x 40 - 36 x 36 pixels, less what a label hides of another box.
        assert 0.75 * 2 * 304 <= count(picture, FALSE.colour) <= 2 * 304
        assert count(picture, FOUND.colour) > 2 * 304
    assert all(count(picture, FOUND.colour) == 0 for picture in watched.pictures(0.81).values())

    for batch in detections(data, found=0, false=0).values():
        watched.add(batch)  # the next validation: nothing of the last one is left
    assert all(count(picture, FOUND.colour) == count(picture, FALSE.colour) == 0 for picture in watched.pictures(0.0).values())
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        watched.write(7, 0.5)
    (events,) = tmp_path.iterdir()
    found = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(events))]
    tags = [(event.step, value.tag) for event in found for value in event.summary.value]
    assert tags == [(7, f"validation/{rank}_patch_{patch_id}") for rank, patch_id in enumerate(watched.patch_ids)]
