"""What a YOLO's flags mean: anchors, counts of steps and of records, and what is refused before anything is trained."""

import dataclasses
import json
import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from yolo_survey import CLASSES, SIZE
from yolo_survey import survey as survey

from survey import box_shapes, dataset
from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train import box_sizes, configure, loop, patches, sources, train
from tpu_train import input as host
from tpu_train import plan as planning
from tpu_train import shards as framing
from tpu_train.experiments import yolo
from tpu_train.models import yolo_networks
from tpu_train.options import Options
from tpu_train.shards import Shard

NINE = ((5, 6), (8, 7), (9, 12), (14, 9), (21, 8), (13, 16), (20, 18), (25, 20), (30, 28))  # by area: 30 .. 840
TINY = {"model": "yolo", "backbone": "tiny", "init": "scratch"}


def options(data: str, **flags: object) -> Options:
    return Options(**{"dataset": data, "model_dir": "unused", **TINY, **flags})


def plan(data: str, **flags: object) -> planning.Plan:
    return planning.make(options(data, **flags), dataset.read(data))


def write_anchors(path: Path, anchors: Sequence[Sequence[float]]) -> str:
    path.write_text(json.dumps({"format_version": 1, "anchors_px": [list(each) for each in anchors]}))
    return str(path)


@pytest.mark.parametrize(("head", "levels"), [("yolo3", (3, 4, 5)), ("yolo3_dense_2", (4, 5)), ("yolo3_dense_1", (5,))])
def test_anchors_are_those_of_the_training_split(survey: str, head: str, levels: tuple[int, ...]) -> None:
    """Three a level, k-means of the sizes of `train` alone, the smallest for the finest level."""
    heads = plan(survey, head=head).anchors
    assert isinstance(heads, YoloHeads)
    expected = box_shapes.fit(box_sizes.of_dataset(survey, "train"), 3 * len(levels)).anchors_px
    assert heads.levels == levels
    assert tuple(anchor for level in heads.anchors_px for anchor in level) == expected
    assert [len(level) for level in heads.anchors_px] == [3] * len(levels)
    other = box_shapes.fit(box_sizes.of_dataset(survey, "val"), 3 * len(levels)).anchors_px
    assert expected != other


def test_given_anchors_are_taken(survey: str, tmp_path: Path) -> None:
    path = write_anchors(tmp_path / "anchors.json", NINE)
    expected = tuple(tuple((float(w), float(h)) for w, h in NINE[i : i + 3]) for i in (0, 3, 6))
    assert plan(survey, anchors=path).anchors == YoloHeads((3, 4, 5), expected, "original", (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"anchors.json holds 9 anchors: --head yolo3_dense_2 takes 6; .*rookery anchors --k 6"):
        plan(survey, anchors=path, head="yolo3_dense_2")
    with pytest.raises(InputError, match=r"nowhere.json"):
        plan(survey, anchors=str(tmp_path / "nowhere.json"))


def test_without_a_dataset(survey: str, tmp_path: Path) -> None:
    """As preflight plans: Model Garden's anchors unless others are given; of its nine, numbers 0, 3 and 6 for one level."""
    one = options("", head="yolo3_dense_1", image_size=SIZE, num_classes=2)
    heads = planning.without_dataset(one).anchors
    assert isinstance(heads, YoloHeads)
    assert heads.anchors_px == (((12.0, 16.0), (36.0, 75.0), (142.0, 110.0)),)
    path = write_anchors(tmp_path / "anchors.json", NINE[:3])
    heads = planning.without_dataset(dataclasses.replace(one, anchors=path)).anchors
    assert isinstance(heads, YoloHeads)
    assert heads.anchors_px == (((5.0, 6.0), (8.0, 7.0), (9.0, 12.0)),)


@pytest.mark.parametrize(
    ("backbone", "version", "head", "box_type", "scale_xy"),
    [
        ("tiny", None, "yolo3_dense_2", "original", (1.0, 1.0)),
        ("tiny", "v4", "yolo3_dense_2", "original", (1.05, 1.05)),
        ("csp", None, "yolo3", "original", (1.2, 1.1, 1.05)),  # v4
        ("original", "scaled", "yolo3_dense_1", "scaled", (2.0,)),
        ("dense", None, "yolo3_dense_2", "original", (1.0, 1.0)),
    ],
)
def test_the_configuration_says_what_the_plan_says(
    survey: str, backbone: str, version: str | None, head: str, box_type: str, scale_xy: tuple[float, ...]
) -> None:
    """Anchors with their fractions, classes without a background, and room for as many detections."""
    chosen = options(survey, backbone=backbone, yolo=version, head=head)
    settled = planning.make(chosen, dataset.read(survey))
    task = configure.experiment(chosen, settled).task
    assert yolo.heads(task.model) == settled.anchors
    assert isinstance(settled.anchors, YoloHeads)
    assert (settled.anchors.box_type, settled.anchors.scale_xy) == (box_type, scale_xy)
    assert task.model.num_classes == len(CLASSES)
    assert task.model.detection_generator.max_boxes == settled.max_detections == 100
    assert task.model.input_size == [SIZE, SIZE, 3]
    kind = yolo_networks.VERSIONS[planning.version(chosen)]
    assert (task.match_threshold, task.best_match_only) == (kind.match_threshold, kind.best_match_only)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"anchor_size": 3.0}, r"--anchor_size=3.0: only --model retinanet has it; drop the flag"),
        ({"min_level": 3}, r"--min_level=3: only --model retinanet has it"),
        ({"model": "retinanet", "backbone": "resnet18", "yolo": "v3"}, r"--yolo=v3: only --model yolo has it"),
        ({"model": "retinanet", "backbone": "resnet18", "head": "yolo3"}, r"--head=yolo3: only --model yolo has it"),
        ({"model": "retinanet", "backbone": "resnet18", "anchors": "a.json"}, r"--anchors=a.json: only --model yolo has it"),
        ({"backbone": "resnet18"}, r"--backbone=resnet18: --model yolo has original, dense, csp, tiny, efficientnet_lite0"),
        ({"model": "retinanet", "backbone": "dense"}, r"--backbone=dense: --model retinanet has "),
        ({"head": "yolo4"}, r"--head=yolo4: --model yolo has yolo3, yolo3_dense_2, yolo3_dense_1"),
        ({"yolo": "v5"}, r"--yolo=v5: --model yolo has v3, v4, scaled"),
        ({"yolo": "scaled"}, r"--yolo=scaled: .* --backbone tiny; use --yolo v3 or v4, or --backbone csp"),
        ({"init": "imagenet"}, r"--init=imagenet installs weights for efficientnet_lite0 only, not for tiny"),
        ({"image_size": 40}, r"--image_size=40: must be a multiple of the coarsest stride of .* tiny, 32 px; use 32 or 64"),
        ({"backbone": "dense", "image_size": 40}, r"--image_size=40: .*--backbone dense, 16 px; use 32 or 48"),
        ({"image_size": 96}, r"--image_size=96 is larger than the dataset's patches of 64 px"),
        ({"num_classes": 3}, r"--num_classes=3 but labels.pbtxt has 2 \(bar, square\)"),
        ({"epochs": 2.0, "steps": 7}, r"--epochs=2.0 and --steps=7: both say how long to train: drop one"),
        ({"epochs": -1.0}, r"--epochs=-1.0: must be above 0"),
        ({"validation": 1.0}, r"--validation=1.0: is a share of the training split, above 0 and below 1"),
        ({"validation": 0.0}, r"--validation=0.0: is a share"),
        ({"sample_train": 0}, r"--sample_train=0: must be above 0"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(survey: str, flags: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(survey, **flags)


def steps(data: str, **flags: object) -> int:
    return planning.sized(options(data, **flags), dataset.read(data)).steps


def test_epochs_are_steps(survey: str) -> None:
    """25 patches to learn from, rounded up to whole batches."""
    assert dataset.read(survey).records("train") == 25
    assert steps(survey) == 1000
    assert steps(survey, epochs=2.0, batch_size=8) == 7  # 50 / 8 = 6.25
    assert steps(survey, epochs=0.5, batch_size=4) == 4  # 12.5 / 4 = 3.1
    assert steps(survey, epochs=3.0, batch_size=4, sample_train=8) == 6  # 24 / 4
    assert steps(survey, epochs=2.0, batch_size=8, validation=0.25) == 5  # 25 * 0.75 = 18.75, so 19; 38 / 8 = 4.75
    # What validates is held out first: 19 are left, of which 8 are a sample.
    assert steps(survey, epochs=3.0, batch_size=4, validation=0.25, sample_train=8) == 6
    assert planning.sized(options(survey, epochs=2.0), dataset.read(survey)).epochs is None
    with pytest.raises(InputError, match=r"--epochs=1.0 counts the patches of --train_split.*give --steps instead"):
        steps(survey, epochs=1.0, training_file_pattern=f"{survey}/train-*")


def test_classes_are_compared(survey: str, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("bar\nsquare\n")
    assert steps(survey, classes=str(names)) == 1000
    for text, said in (("square\nbar\n", "square, bar"), ("bar\n", "bar"), ("bar\nball\n", "bar, ball")):
        names.write_text(text)
        with pytest.raises(InputError, match=rf"names.txt says {said}, the dataset has bar, square: both must be the same"):
            steps(survey, classes=str(names))
    with pytest.raises(InputError, match=r"names.txt does not exist"):
        steps(survey, classes=str(tmp_path / "no" / "names.txt"))


def divided(data: str, **flags: object) -> dict[str, tuple[Shard, ...]]:
    chosen = options(data, **flags)
    return sources.Sources(chosen, planning.make(chosen, dataset.read(data))).shards


def ids(files: Sequence[Shard]) -> list[int]:
    """Patches that validation reads from some files."""
    batches = host.read([each for each in files if each.records], patch_size=SIZE, max_boxes=8, training=False, batch_size=1)
    return [int(batch["patch_id"][0]) for batch in batches]


def counts(files: Sequence[Shard]) -> list[tuple[int, int]]:
    return [(each.first, each.records) for each in files]


def test_a_share_of_the_training_split_is_held_out(survey: str) -> None:
    """Files of 7, 6, 6 and 6 patches; 19 of 25 stay, after 7, 13, 19 and 25 of them 5.32, 9.88, 14.44 and 19: 5, 10, 14, 19."""
    whole = ids(divided(survey)[sources.TRAINING])
    parts = divided(survey, validation=0.25)
    assert counts(parts[sources.TRAINING]) == [(0, 5), (0, 5), (0, 4), (0, 5)]
    assert counts(parts[sources.VALIDATION]) == [(5, 2), (5, 1), (4, 2), (5, 1)]
    learned, judged = (ids(parts[name]) for name in (sources.TRAINING, sources.VALIDATION))
    assert (len(learned), len(judged)) == (19, 6)
    assert not set(learned) & set(judged)
    assert sorted(learned + judged) == sorted(whole)
    assert len(set(whole)) == 25
    assert set(whole) == set(patches.places(survey, split="train"))
    # The first epoch of training shows each of the 19 once, and no other.
    epoch = host.read(parts[sources.TRAINING], patch_size=SIZE, max_boxes=8, training=True, batch_size=1).take(19)
    assert sorted(int(batch["patch_id"][0]) for batch in epoch) == sorted(learned)


def test_a_sample_is_learned_from(survey: str) -> None:
    """10 of 25: after each file 2.8, 5.2, 7.6 and 10. With 0.25 held out, 8 of 19: after each 2.1, 4.2, 5.9 and 8."""
    whole = divided(survey)
    parts = divided(survey, sample_train=10)
    assert counts(parts[sources.TRAINING]) == [(0, 3), (0, 2), (0, 3), (0, 2)]
    assert parts[sources.VALIDATION] == whole[sources.VALIDATION]
    assert len(set(ids(parts[sources.TRAINING]))) == 10
    both = divided(survey, sample_train=8, validation=0.25)
    assert counts(both[sources.TRAINING]) == [(0, 2)] * 4
    assert both[sources.VALIDATION] == divided(survey, validation=0.25)[sources.VALIDATION]
    for flags, message in (
        ({"sample_train": 26}, r"--sample_train=26: there are 25 patches to learn from"),
        ({"sample_train": 20, "validation": 0.25}, r"--sample_train=20: there are 19 patches to learn from"),
        ({"validation": 0.99}, r"--validation=0.99: the training split has 25 patches, which leaves one side without any"),
        ({"validation": 0.01}, r"--validation=0.01: .*leaves one side without any"),
    ):
        with pytest.raises(InputError, match=message):
            divided(survey, **flags)


def damaged(path: str, number: int) -> None:
    """Writes over the first byte of a record."""
    with framing.opened(path) as (ranges, size):
        frame = list(framing.frames(ranges, size))[number]
    with open(path, "r+b") as file:
        file.seek(frame.offset)
        file.write(b"?")


def test_a_repair_moves_no_patch_to_the_other_side(survey: str, tmp_path: Path) -> None:
    """A byte of the second record of the first file and one of the last record of the last are wrong: learned and judged."""
    data = str(shutil.copytree(survey, tmp_path / "dataset"))
    chosen = options(data, model_dir=str(tmp_path / "run"), validation=0.25, sample_train=18, max_bad_records=2)
    files = sources.Sources(chosen, planning.make(chosen, dataset.read(data)))
    learned, judged = (ids(files.shards[name]) for name in (sources.TRAINING, sources.VALIDATION))
    shards = dataset.read(data).splits["train"]
    damaged(f"{data}/{shards[0].file}", 1)
    damaged(f"{data}/{shards[-1].file}", shards[-1].records - 1)
    files.repair(tf.errors.DataLossError(None, None, "corrupted record"))
    assert ids(files.shards[sources.TRAINING]) == [each for each in learned if each != learned[1]]
    assert ids(files.shards[sources.VALIDATION]) == judged[:-1]
    assert sources.Sources(chosen, planning.make(chosen, dataset.read(data))).shards == files.shards  # and the next start knows


def test_reading_when_asked_gives_the_same_batches(survey: str) -> None:
    files = divided(survey)[sources.TRAINING]

    def first(prefetch: bool) -> list[dict[str, np.ndarray]]:
        batches = host.read(files, patch_size=SIZE, max_boxes=8, training=True, batch_size=4, seed=3, prefetch=prefetch)
        return [{name: value.numpy() for name, value in batch.items()} for batch in batches.take(9)]  # 36 of 25: a second epoch

    ahead, asked = first(True), first(False)
    for one, other in zip(ahead, asked, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not configure.experiment(options(survey, disable_prefetch=True), plan(survey)).task.prefetch


def decoded_at_first(files: tuple[Shard, ...], prefetch: bool) -> int:
    """Records that are decoded when somebody has asked for one batch of four, and for no other."""
    real, read = host.decode, []

    def decode(serialized: tf.Tensor, *rest: Any) -> dict[str, tf.Tensor]:
        seen = tf.numpy_function(lambda record: read.append(record) or record, [serialized], tf.string)
        return real(tf.ensure_shape(seen, []), *rest)

    host.decode = decode
    batches = iter(host.read(files, patch_size=SIZE, max_boxes=8, training=True, batch_size=4, prefetch=prefetch))
    next(batches)
    until = time.monotonic() + 10
    while prefetch and len(read) <= 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    return len(read)


def test_reading_when_asked_reads_no_more(survey: str) -> None:
    """Four records are decoded for the first batch of four; ahead of time, others follow at once.

    In processes of their own: a training earlier in this one may have asked TensorFlow for deterministic operations, for good;
    then it reads nothing with side effects ahead, as counting is.
    """
    files = divided(survey)[sources.TRAINING]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        asked, ahead = (pool.submit(decoded_at_first, files, prefetch) for prefetch in (False, True))
        assert asked.result(timeout=600) == 4
        assert ahead.result(timeout=600) > 4


def test_a_run_keeps_its_anchors(survey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on must have the anchors that it began with, from wherever they come."""
    started: list[Options] = []
    monkeypatch.setattr(loop, "train", lambda config, options, *_, **__: started.append(options))
    run = tmp_path / "run"
    argv = ["--dataset", survey, "--model_dir", str(run), "--model=yolo", "--backbone=tiny", "--init=scratch", "--epochs=2"]
    assert train.run(argv) == 0
    assert started[0].steps == 7  # 2 * 25 patches in batches of 8
    record = json.loads((run / "train.json").read_text())
    fitted = box_shapes.fit(box_sizes.of_dataset(survey, "train"), 9).anchors_px
    assert record["anchors"] == [list(each) for each in fitted]
    assert train.run(argv) == 0
    assert train.run([*argv, "--anchors", write_anchors(tmp_path / "same.json", fitted)]) == 0
    with pytest.raises(InputError, match=r"holds a run with anchors=\[\[.*this one has \[\[5\.0, 6\.0\], \[8\.0, 7\.0\]"):
        train.run([*argv, "--anchors", write_anchors(tmp_path / "other.json", NINE)])
    assert len(started) == 3


def test_a_damaged_record_changes_no_anchors(survey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a run that has begun stay; one that begins finds its own without the record, if it may be missing."""
    monkeypatch.setattr(loop, "train", lambda *_, **__: None)
    data = shutil.copytree(survey, tmp_path / "dataset")
    argv = ["--dataset", str(data), "--model=yolo", "--backbone=tiny", "--init=scratch", "--steps=2", "--model_dir"]
    assert train.run([*argv, str(tmp_path / "begun")]) == 0
    before = json.loads((tmp_path / "begun/train.json").read_text())["anchors"]
    for number in range(5):
        damaged(f"{data}/{dataset.read(str(data)).splits['train'][0].file}", number)
    assert train.run([*argv, str(tmp_path / "begun")]) == 0
    assert json.loads((tmp_path / "begun/train.json").read_text())["anchors"] == before
    with pytest.raises(
        InputError, match=r"train-00000-of-00004.tfrecord: 5 of 7 records cannot be read: .*--max_bad_records 5 or"
    ):
        train.run([*argv, str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
    assert train.run([*argv, str(tmp_path / "new"), "--max_bad_records=5"]) == 0
    assert json.loads((tmp_path / "new/train.json").read_text())["anchors"] != before


def test_a_loss_that_differs_between_levels_is_refused(survey: str, tmp_path: Path) -> None:
    """Only the weight of objectness may: the others are one number in the loss."""
    override = tmp_path / "override.yaml"
    override.write_text("task: {model: {loss: {ignore_thresh: {all: null, '4': 0.5, '5': 0.7}}}}")
    flags = {"head": "yolo3_dense_2", "params_override": str(override)}
    with pytest.raises(InputError, match=r"task.model.loss.ignore_thresh=\{'4': 0.5, '5': 0.7\}: must be the same on all levels"):
        configure.experiment(options(survey, **flags), plan(survey, head="yolo3_dense_2"))
