"""The host's input: static shapes, an order that follows from seed and step, and fair shares for several hosts."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import records
from survey.errors import InputError
from tpu_train import damage
from tpu_train import input as host
from tpu_train.crop import Crop
from tpu_train.example import complaint, labels
from tpu_train.shards import Shard

SIZE = 16
CAUSE = tf.errors.InvalidArgumentError(None, None, "Invalid JPEG data")


def example(patch_id: int, objects: int = 1, encoded: bytes | None = None, size: int = SIZE) -> bytes:
    """A grey patch; box i is [i, 0, i + 2, 4] and of class 1 + i % 2."""
    tops = np.arange(objects, dtype=float)
    return records.example(
        patch_id=patch_id,
        filename="a.tif",
        encoded=encoded or records.encode_jpeg(np.full((size, size, 3), 10 + patch_id, np.uint8), 95),
        patch_size=SIZE,
        boxes_patch_px=np.stack([tops, 0 * tops, tops + 2, 0 * tops + 4], axis=1),
        class_ids=1 + np.arange(objects) % 2,
        classes=("auk", "gull"),
    )


def write(folder: Path, counts: list[int]) -> list[Shard]:
    """Shards of so many records; patch numbers go on from one to the next."""
    first = np.cumsum([0, *counts])
    shards = []
    for i, count in enumerate(counts):
        path = str(folder / f"{i}.tfrecord")
        records.write_tfrecord(path, [example(int(first[i]) + j) for j in range(count)])
        shards.append(Shard(path, count))
    return shards


def context(hosts: int, index: int, replicas: int) -> tf.distribute.InputContext:
    return tf.distribute.InputContext(hosts, index, replicas)


def ids(dataset: tf.data.Dataset) -> list[list[int]]:
    return [batch["patch_id"].numpy().tolist() for batch in dataset]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def train(shards: list[Shard], batch_size: int, steps: int, **more: object) -> list[list[int]]:
    """Batches of so many steps of one replica."""
    found = host.read(shards, patch_size=SIZE, max_boxes=2, training=True, batch_size=batch_size, **more)
    return ids(found.take(steps))


def validate(shards: list[Shard], batch_size: int, **more: object) -> list[list[int]]:
    return ids(host.read(shards, patch_size=SIZE, max_boxes=2, training=False, batch_size=batch_size, **more))


def test_boxes_are_padded_or_cut_off_and_counted() -> None:
    """Records of 0, 2 and 5 objects where 3 fit: two are cut off, and `objects` tells."""
    for objects in (0, 2, 5):
        found = host.decode(tf.constant(example(7, objects)), SIZE, 3)
        kept = min(objects, 3)
        np.testing.assert_allclose(found["boxes"][:kept], [[i, 0, i + 2, 4] for i in range(kept)] or np.zeros((0, 4)))
        assert not found["boxes"][kept:].numpy().any()
        assert found["classes"].numpy().tolist() == [1, 2, 1][:kept] + [0] * (3 - kept)
        assert (int(found["objects"]), int(found["patch_id"])) == (objects, 7)
        assert found["objects"].dtype == tf.int32
        assert found["image"].numpy()[0, 0].tolist() == [17, 17, 17]


def test_shapes_are_static(tmp_path: Path) -> None:
    spec = host.read(write(tmp_path, [3]), patch_size=SIZE, max_boxes=5, training=True, batch_size=2).element_spec
    shapes = {name: tuple(value.shape) for name, value in spec.items()}
    assert shapes == {"image": (2, SIZE, SIZE, 3), "boxes": (2, 5, 4), "classes": (2, 5), "objects": (2,), "patch_id": (2,)}


def test_validation_loses_nothing_and_ends_with_blanks(tmp_path: Path) -> None:
    assert validate(write(tmp_path, [3, 0, 4]), 4) == [[0, 1, 2, 3], [4, 5, 6, -1]]
    blank = next(iter(host.read(write(tmp_path, [1]), patch_size=SIZE, max_boxes=2, training=False, batch_size=2)))
    assert blank["objects"].numpy().tolist() == [1, 0]
    assert not blank["image"][1].numpy().any()


def test_validation_fills_the_last_step_of_all_replicas(tmp_path: Path) -> None:
    """Five records, four replicas of one: two steps of four batches; with five batches the second step would be lost."""
    assert validate(write(tmp_path, [5]), 4, context=context(1, 0, 4)) == [[0], [1], [2], [3], [4], [-1], [-1], [-1]]


def test_hosts_validate_for_as_many_steps(tmp_path: Path) -> None:
    """Shards of 5, 1 and 2 for two hosts of two replicas: 7 records and 1. A step takes 4, two a host: 4 steps for both."""
    shards = write(tmp_path, [5, 1, 2])
    assert validate(shards, 4, context=context(2, 0, 4)) == [[0], [1], [2], [3], [4], [6], [7], [-1]]
    assert validate(shards, 4, context=context(2, 1, 4)) == [[5]] + [[-1]] * 7


def test_an_epoch_shows_each_record_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    shards = write(tmp_path, [5, 4, 3])
    order = flat(train(shards, 4, 9))
    epochs = [order[:12], order[12:24], order[24:]]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert flat(train(shards, 4, 9)) == order
    assert flat(train(shards, 4, 9, seed=1)) != order
    assert flat(train(shards[::-1], 4, 9)) != order


def test_windows_smaller_than_an_epoch_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 5: an epoch's 12 records come in three of them."""
    monkeypatch.setattr(host, "SHUFFLE_RECORDS", 5)
    order = flat(train(write(tmp_path, [5, 4, 3]), 4, 3))
    assert sorted(order) == list(range(12))
    assert order != sorted(order)


@pytest.mark.parametrize("start", [1, 2, 3, 5, 8])
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, start: int) -> None:
    shards = write(tmp_path, [5, 4, 3])
    assert train(shards, 5, 9 - start, start_step=start) == train(shards, 5, 9)[start:]


def test_views_go_on_where_a_run_stopped_and_differ_between_hosts(tmp_path: Path) -> None:
    """Of one record that each host shows eight times: eight views, the last four of them also of a run that goes on at step 4."""
    shards = write(tmp_path, [1, 1])
    crop = Crop(SIZE, 8, 0.8, 1.25)

    def views(index: int, start_step: int) -> np.ndarray:
        common = {"max_boxes": 2, "training": True, "batch_size": 2, "crop": crop, "start_step": start_step}
        batches = host.read(shards, patch_size=SIZE, context=context(2, index, 2), **common)
        return np.concatenate([batch["view"].numpy() for batch in batches.take(8 - start_step)])

    first, second = views(0, 0), views(1, 0)
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 16
    np.testing.assert_array_equal(views(0, 4), first[4:])


@pytest.mark.parametrize("start", [1, 3, 4])
def test_each_host_goes_on_in_its_own_files(tmp_path: Path, start: int) -> None:
    """Shards of 5, 1 and 2 for two hosts of two replicas, batch 4: a step takes two batches of one from each host."""
    shards = write(tmp_path, [5, 1, 2])
    for index, mine in enumerate(([0, 1, 2, 3, 4, 6, 7], [5])):
        whole = train(shards, 4, 14, context=context(2, index, 4))
        assert sorted(flat(whole[:7])) == (mine if index == 0 else mine * 7)
        rest = train(shards, 4, 14 - 2 * start, context=context(2, index, 4), start_step=start)
        assert rest == whole[2 * start :]


def test_what_hosts_and_replicas_cannot_share_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path, [2, 0])
    with pytest.raises(InputError, match=r"1 TFRecord files for 2 hosts.*smaller --records_per_shard"):
        train(shards, 4, 1, context=context(2, 0, 4))
    with pytest.raises(InputError, match=r"--batch_size=6: must be a multiple of the 4 replicas; use 4 or 8"):
        train(shards, 6, 1, context=context(1, 0, 4))
    with pytest.raises(InputError, match=r"--batch_size=2: .* use 4"):
        train(shards, 2, 1, context=context(1, 0, 4))


def test_a_picture_that_cannot_be_decoded_is_named_and_left_out(tmp_path: Path) -> None:
    """Cut off in the middle, as a full disk leaves it, with a checksum that is right: TensorFlow says neither where nor which."""
    whole = records.encode_jpeg(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8), 95)
    path = str(tmp_path / "a.tfrecord")
    contents = [example(40), example(41, encoded=whole[: len(whole) // 2]), example(42, size=8), example(43)]
    records.write_tfrecord(path, contents)
    shards = [Shard(path, 4)]
    with pytest.raises(tf.errors.InvalidArgumentError):
        validate(shards, 2)

    def judge(content: bytes) -> str | None:
        return complaint(content, SIZE)

    with pytest.raises(InputError, match=r"record 1 \(patch 41: .*can be decoded\); record 2 \(patch 42: .*8 px high"):
        damage.repair(shards, str(tmp_path / "run"), 1, cause=CAUSE, judge=judge)
    cleaned = damage.repair(shards, str(tmp_path / "run"), 2, cause=CAUSE, judge=judge)
    assert validate(list(cleaned), 2) == [[40, 43]]


def test_complaints(tmp_path: Path) -> None:
    good = tf.train.Example.FromString(example(3, 2))
    assert complaint(good.SerializeToString(), SIZE) is None
    assert labels(good.SerializeToString()) == [1, 2]
    good.features.feature["image/object/class/label"].int64_list.value.append(1)
    assert complaint(good.SerializeToString(), SIZE) == "patch 3: its lists of box sides and of labels are of different lengths"
    del good.features.feature["image/patch_id"]
    assert "image/patch_id" in str(complaint(good.SerializeToString(), SIZE))
