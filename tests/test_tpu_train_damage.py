"""Damaged shards: what is found in them, what is left out, and what a later start reads."""

import json
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import records
from survey import files
from survey.errors import InputError
from tpu_train import damage
from tpu_train.shards import Shard

# Ten bytes each, so that record i lies at 26 i: 8 of length, 4 of checksum, 10, 4 of checksum.
CONTENTS = [b"record %03d" % i for i in range(6)]
FRAME = 26
CAUSE = tf.errors.DataLossError(None, None, "corrupted record at 30")


def write(path: Path, contents: list[bytes] = CONTENTS) -> Shard:
    records.write_tfrecord(str(path), contents)
    return Shard(str(path), len(contents))


def flip(path: Path | str, position: int) -> None:
    content = bytearray(Path(path).read_bytes())
    content[position] ^= 4
    Path(path).write_bytes(content)


def read(shard: Shard) -> list[bytes]:
    return [record.numpy() for record in tf.data.TFRecordDataset(shard.path)]


@pytest.mark.parametrize(
    ("position", "damaged", "why"),
    [
        (FRAME + 12, [1], "checksum of its bytes"),  # the first byte of record 1
        (2 * FRAME - 1, [1], "checksum of its bytes"),  # the last byte of its checksum
        (3 * FRAME, [3, 4, 5], "checksum of its length"),  # its length: what follows cannot be found
        (3 * FRAME + 9, [3, 4, 5], "checksum of its length"),
    ],
)
def test_a_flipped_bit_is_found(tmp_path: Path, position: int, damaged: list[int], why: str) -> None:
    shard = write(tmp_path / "a.tfrecord")
    assert damage.scan(shard.path, 6) == {}
    flip(shard.path, position)
    found = damage.scan(shard.path, 6)
    assert list(found) == damaged
    assert all(why in words for words in found.values())
    with pytest.raises(tf.errors.DataLossError):
        read(shard)


@pytest.mark.parametrize(
    ("size", "damaged", "why"),
    [
        (4 * FRAME, [4, 5], "the file ends before it"),  # between two records: TensorFlow would not even notice
        (4 * FRAME + 5, [4, 5], "cut off before it"),
        (4 * FRAME + 20, [4, 5], "cut off within it"),
        (6 * FRAME - 1, [5], "cut off within it"),
        (0, [0, 1, 2, 3, 4, 5], "the file ends before it"),
    ],
)
def test_a_file_cut_off_loses_what_follows(tmp_path: Path, size: int, damaged: list[int], why: str) -> None:
    shard = write(tmp_path / "a.tfrecord")
    Path(shard.path).write_bytes(Path(shard.path).read_bytes()[:size])
    found = damage.scan(shard.path, 6)
    assert list(found) == damaged
    assert all(why in words for words in found.values())


def test_too_much_damage_names_every_record_and_writes_nothing(tmp_path: Path) -> None:
    """One record of a, two of b: three in all, of which two would be allowed."""
    shards = [write(tmp_path / f"{name}.tfrecord") for name in "abc"]
    flip(shards[0].path, FRAME + 12)
    flip(shards[1].path, 12)
    flip(shards[1].path, 4 * FRAME + 12)
    with pytest.raises(InputError) as caught:
        damage.repair(shards, str(tmp_path / "run"), 2, cause=CAUSE)
    text = str(caught.value)
    assert text.startswith("--max_bad_records=2, but 3 records are damaged")
    assert "a.tfrecord: record 1 (the checksum" in text
    assert "b.tfrecord: records 0, 4 (the checksum" in text
    assert "c.tfrecord" not in text
    assert "--max_bad_records 3" in text
    assert not (tmp_path / "run").exists()


def test_the_rest_of_a_damaged_shard_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Now, and by a later start at once; shards of one name in two folders do not get in each other's way."""
    run = str(tmp_path / "run")
    for name in "ab":
        (tmp_path / name).mkdir()
    shards = [write(tmp_path / "a" / "train.tfrecord"), write(tmp_path / "b" / "train.tfrecord"), write(tmp_path / "c.tfrecord")]
    assert damage.known(shards, run, 0) == tuple(shards)
    flip(shards[0].path, FRAME + 12)
    flip(shards[1].path, 3 * FRAME)
    cleaned = damage.repair(shards, run, 4, cause=CAUSE)
    assert [shard.records for shard in cleaned] == [5, 3, 6]
    assert [read(shard) for shard in cleaned] == [[CONTENTS[i] for i in (0, 2, 3, 4, 5)], CONTENTS[:3], CONTENTS]
    assert cleaned[2] == shards[2]
    said = capsys.readouterr().err.splitlines()
    assert sum("goes on without record" in line for line in said) == 2
    assert f"train: {shards[0].path}: goes on without record 1 (the checksum of its bytes is wrong)" in said
    written = json.loads((tmp_path / "run/cleaned/cleaned.json").read_text())["shards"]
    assert list(written[shards[0].path]["left_out"]) == ["1"]
    assert len(list((tmp_path / "run/cleaned").iterdir())) == 3  # two copies and the record: nothing half-written

    assert damage.known(shards, run, 4) == cleaned
    assert damage.known(shards[2:], run, 0) == (shards[2],)
    with pytest.raises(InputError, match=r"--max_bad_records=3, but 4 records are damaged"):
        damage.known(shards, run, 3)


def test_a_shard_that_was_cut_again_is_read_itself(tmp_path: Path) -> None:
    """The damaged one and the good one are of the same size."""
    shard, run = write(tmp_path / "a.tfrecord"), str(tmp_path / "run")
    flip(shard.path, 12)
    assert damage.repair([shard], run, 1, cause=CAUSE) != (shard,)
    write(tmp_path / "a.tfrecord")
    assert damage.known([shard], run, 0) == (shard,)


def test_more_damage_adds_up_and_the_same_damage_is_no_cure(tmp_path: Path) -> None:
    """Records left out earlier count towards the limit; if nothing new is found, shards are not to blame for the error."""
    shards, run = [write(tmp_path / f"{name}.tfrecord") for name in "ab"], str(tmp_path / "run")
    with pytest.raises(tf.errors.DataLossError, match="corrupted record at 30"):
        damage.repair(shards, run, 1, cause=CAUSE)
    flip(shards[0].path, 12)
    first = damage.repair(shards, run, 1, cause=CAUSE)
    with pytest.raises(tf.errors.DataLossError):
        damage.repair(shards, run, 1, cause=CAUSE)
    flip(shards[1].path, 12)
    with pytest.raises(InputError, match="--max_bad_records=1, but 2"):
        damage.repair(shards, run, 1, cause=CAUSE)
    second = damage.repair(shards, run, 2, cause=CAUSE)
    assert second[0] == first[0]
    assert [shard.records for shard in second] == [5, 5]


def test_a_judge_finds_what_checksums_cannot(tmp_path: Path) -> None:
    """Record 4 is as it was written, yet cannot be used; it goes with record 1, whose checksum is wrong."""
    shard, run = write(tmp_path / "a.tfrecord"), str(tmp_path / "run")
    flip(shard.path, FRAME + 12)
    damage.repair([shard], run, 1, cause=CAUSE)

    def judge(content: bytes) -> str | None:
        return "patch 4: no picture" if content == CONTENTS[4] else None

    with pytest.raises(InputError, match=r"a.tfrecord: record 1 .*; record 4 \(patch 4: no picture\)"):
        damage.repair([shard], run, 1, cause=CAUSE, judge=judge)
    (cleaned,) = damage.repair([shard], run, 2, cause=CAUSE, judge=judge)
    assert read(cleaned) == [CONTENTS[i] for i in (0, 2, 3, 5)]
    with pytest.raises(tf.errors.DataLossError):
        damage.repair([shard], run, 2, cause=CAUSE)  # without the judge: what he found is not forgotten
    assert damage.known([shard], run, 2) == (cleaned,)


def test_shards_and_model_folder_in_cloud_storage(gcs: object, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Found, copied, and known to a later start; a shard uploaded again is read itself."""
    folder = f"gs://bkt/{request.node.name}"
    local = write(tmp_path / "a.tfrecord")
    good = Path(local.path).read_bytes()
    flip(local.path, FRAME + 12)
    shard = Shard(f"{folder}/data/a.tfrecord", 6)
    files.write(shard.path, Path(local.path).read_bytes())
    (cleaned,) = damage.repair([shard], f"{folder}/run", 1, cause=CAUSE)
    assert cleaned.path.startswith(f"{folder}/run/cleaned/a-")
    assert cleaned.records == 5
    assert files.read(cleaned.path) == good[:FRAME] + good[2 * FRAME :]
    assert damage.known([shard], f"{folder}/run", 1) == (cleaned,)
    files.write(shard.path, good)
    assert damage.known([shard], f"{folder}/run", 0) == (shard,)
