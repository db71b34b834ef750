"""Which files training reads: the split's own, or those of a pattern, which must fit the dataset."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import records
from survey import dataset, files
from survey.dataset import Dataset, Statistics
from survey.errors import InputError
from tpu_train import shards
from tpu_train.shards import Shard

SIZE = 32
CLASSES = ("auk", "gull")


def example(patch_id: int, *, size: int = SIZE, labels: tuple[int, ...] = (1,), classes: tuple[str, ...] = CLASSES) -> bytes:
    boxes = np.tile([4.0, 4.0, 12.0, 12.0], (len(labels), 1))
    picture = records.encode_jpeg(np.full((size, size, 3), 90, np.uint8), 90)
    return records.example(
        patch_id=patch_id, filename="a.tif", encoded=picture, patch_size=size,
        boxes_patch_px=boxes, class_ids=np.array(labels), classes=classes,
    )  # fmt: skip


def write_dataset(folder: Path, counts: dict[str, tuple[int, ...]], classes: tuple[str, ...] = CLASSES) -> str:
    """A dataset with so many records in each shard of each split."""
    folder.mkdir()
    splits = {}
    for split, numbers in counts.items():
        found = []
        for i, number in enumerate(numbers):
            name = dataset.shard_file(split, i, len(numbers))
            found.append(dataset.Shard(name, number, records.write_tfrecord(str(folder / name), map(example, range(number)))))
        splits[split] = tuple(found)
    statistics = Statistics({}, {}, 1, dict.fromkeys(dataset.QUANTILES, 8.0))
    dataset.write(str(folder), Dataset(SIZE, 0, classes, splits, (), statistics, {}, {}))
    return str(folder)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_dataset(tmp_path / "data", {"train": (3, 2), "val": (1,)})


def resolve(data: str, pattern: object, max_boxes: int = 2) -> tuple[Shard, ...]:
    return shards.resolve(data, "train", str(pattern), held_out="val", max_boxes=max_boxes)


def test_a_split_is_what_the_manifest_lists(data: str) -> None:
    found = shards.resolve(data, "train", max_boxes=2)
    assert found == (Shard(f"{data}/train-00000-of-00002.tfrecord", 3), Shard(f"{data}/train-00001-of-00002.tfrecord", 2))


def test_a_pattern_takes_files_with_and_without_a_manifest(data: str, tmp_path: Path) -> None:
    """Counts are the manifest's where there is one: 3 and 2, and counted where not: 4 and 0."""
    records.write_tfrecord(str(tmp_path / "data-extra.tfrecord"), map(example, range(4)))
    records.write_tfrecord(str(tmp_path / "data-none.tfrecord"), ())
    assert [shard.records for shard in resolve(data, tmp_path / "data" / "train-*")] == [3, 2]
    assert resolve(data, tmp_path / "data-*") == (
        Shard(f"{tmp_path}/data-extra.tfrecord", 4),
        Shard(f"{tmp_path}/data-none.tfrecord", 0),
    )


def test_records_are_counted_up_to_a_damaged_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    records.write_tfrecord(str(path), map(example, range(3)))
    path.write_bytes(path.read_bytes()[:-1])
    assert shards.count_records(str(path)) == 2


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"JFIF" * 10), r"bad.tfrecord is not a TFRecord file .*checksum of its length is wrong"),
        (lambda path: path.write_bytes(b"short"), r"bad.tfrecord is not a TFRecord file \(the file is cut off"),
        (lambda path: path.write_bytes(gzip.compress(records.frame(example(0)))), "is not a TFRecord file.*unpack compressed"),
        (lambda path: path.write_bytes(records.frame(b"\xff\xff")), r"another layout \(not a tf.train.Example\).*rookery shard"),
        (lambda path: path.write_bytes(records.frame(b"")), r"another layout \(without image/encoded\)"),
        (lambda path: path.write_bytes(records.frame(example(7, size=16))), r"patch 7: .*16 px high.*--patch_size 32"),
        (lambda path: path.write_bytes(records.frame(example(0, labels=(1, 3), classes=("a", "b", "c")))), r"label 3; .*1 to 2"),
        (lambda path: path.write_bytes(records.frame(example(0, labels=(1, 2, 1)))), r"3 objects, but --max_boxes=2: raise it"),
        (lambda path: path.write_bytes(b""), "the 1 files that match hold no record"),
    ],
)
def test_files_that_do_not_fit_are_refused(data: str, tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "bad.tfrecord")
    with pytest.raises(InputError, match=message) as caught:
        resolve(data, tmp_path / "bad*")
    assert "--training_file_pattern" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_without_files_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--training_file_pattern=.*none-\*' matches no file"):
        resolve(data, tmp_path / "none-*")


def test_training_never_sees_validation(data: str, tmp_path: Path) -> None:
    """By any name: a link to the folder is the same folder."""
    (tmp_path / "link").symlink_to(data)
    for folder in (data, tmp_path / "link"):
        with pytest.raises(InputError, match=r"val-00000-of-00001.tfrecord, which the split 'val' validates with"):
            resolve(data, f"{folder}/*.tfrecord")


def test_another_dataset_must_have_the_same_classes(data: str, tmp_path: Path) -> None:
    """Its labels are numbers that mean something else there, which no look at a record can tell."""
    other = write_dataset(tmp_path / "other", {"train": (1,), "val": (2,)})
    assert [shard.records for shard in resolve(data, f"{other}/*.tfrecord")] == [1, 2]
    swapped = write_dataset(tmp_path / "swapped", {"train": (1,)}, classes=("gull", "auk"))
    with pytest.raises(InputError, match=r"classes are gull, auk; --dataset has auk, gull"):
        resolve(data, f"{swapped}/*.tfrecord")


def test_a_pattern_in_cloud_storage(gcs: object, data: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = f"gs://bkt/{request.node.name}"
    records.write_tfrecord(str(tmp_path / "a.tfrecord"), map(example, range(3)))
    files.write(f"{folder}/a.tfrecord", (tmp_path / "a.tfrecord").read_bytes())
    assert resolve(data, f"{folder}/*.tfrecord") == (Shard(f"{folder}/a.tfrecord", 3),)
    files.write(f"{folder}/b.tfrecord", b"no records at all")
    with pytest.raises(InputError, match=f"{folder}/b.tfrecord is not a TFRecord file"):
        resolve(data, f"{folder}/*.tfrecord")
