"""Reads a whole dataset as training would, and keeps of each patch what the checks of `rookery doctor` need.

Each shard is read once, front to back: its digest, the checksum of each record, and the record through `tpu_train.input.decode`.
Pixels are dropped at once; a patch leaves about 70 bytes and each of its boxes 24, so that a million patches fit in memory.
"""

import collections
import hashlib
import itertools
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from survey import byte_ranges, files
from survey.dataset import Dataset
from survey.progress import Progress
from tpu_train import duplicates
from tpu_train import input as host
from tpu_train.example import FEATURES

CASES = 20  # kept of each kind of problem; the count is of all
BLACK = 8  # a pixel is black when no channel is above this: JPEG adds a little to the zeros of padding and nodata
_AHEAD = 64  # records read, and records decoded, ahead of the checks: 10 MB of JPEGs

_EXTRA = {
    "image/source_id": tf.io.FixedLenFeature([], tf.string, default_value=""),
    "image/height": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
    "image/width": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
    "image/object/class/text": tf.io.VarLenFeature(tf.string),
}
_SIDES = tuple(f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax"))


@dataclass(slots=True)
class Problem:
    """One kind of problem: how often it was met, and the first cases in words."""

    count: int = 0
    cases: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        """Counts a case, and keeps its words if it is among the first."""
        self.count += 1
        if len(self.cases) < CASES:
            self.cases.append(case)


class Problems(dict[str, Problem]):
    """Problems by kind; a kind that was never met is empty."""

    def __missing__(self, kind: str) -> Problem:
        self[kind] = Problem()
        return self[kind]


@dataclass(frozen=True)
class Inspection:
    """What was read. N patches in the order of the manifest's splits and shards, M boxes in the order of their patches.

    Attributes:
      splits: names.
      shards: file names.
      split, shard: int32 [N], indices into these.
      record: int32 [N], position in the shard.
      offset, length: int64 [N], where the record's bytes are.
      patch_id: int64 [N].
      objects: int32 [N], boxes of the patch.
      seen: bool [N], whether its pixels were decoded.
      black: float32 [N], share of black pixels, NaN where not seen.
      fingerprints: uint64 [N, 2], see `duplicates`.
      even: bool [N], too even for its fingerprint to mean anything.
      boxes: float32 [M, 4], yxyx, normalised to the patch, as they are in the record.
      labels: int64 [M].
      owner: int32 [M], index of the box's patch.
      problems: what was met on the way, by kind: shards, decoder, image_size, source_id, class_text.
    """

    splits: tuple[str, ...]
    shards: tuple[str, ...]
    split: np.ndarray
    shard: np.ndarray
    record: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    patch_id: np.ndarray
    objects: np.ndarray
    seen: np.ndarray
    black: np.ndarray
    fingerprints: np.ndarray
    even: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    owner: np.ndarray
    problems: Problems

    def __len__(self) -> int:
        return len(self.patch_id)

    def place(self, i: int) -> str:
        """Where patch `i` is, for people."""
        return f"{self.shards[self.shard[i]]} record {self.record[i]}"


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes of a record, where they are, and where that is for people."""

    split: int
    shard: int
    record: int
    offset: int
    content: bytes
    place: str
    look: bool


class Reader:
    """The decoder of training, with what only the doctor asks for added."""

    def __init__(self, patch_size: int, max_boxes: int) -> None:
        self._patch_size, self._max_boxes = patch_size, max_boxes

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Record, dict[str, Any] | None, list[tuple[str, str]]]]:
        """The values of records, decoded on all cores, in order.

        Yields:
          (record, values as numpy or None if they cannot be had, problems as (kind, words)). Values hold "bits" where pixels
          were decoded.
        """
        waiting: collections.deque[Record] = collections.deque()

        def feed() -> Iterator[tuple[list[bytes], list[bool]]]:
            for chunk in _chunks(records):
                waiting.extend(chunk)
                yield [record.content for record in chunk], [record.look for record in chunk]

        # Fed in chunks: for every single record the two threads of Python would wait for each other.
        kinds = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.bool))
        rows = tf.data.Dataset.from_generator(feed, output_signature=kinds).unbatch()
        # A fixed number, two more than cores: AUTOTUNE settles on one call at a time here, at half the speed.
        calls = (os.cpu_count() or 1) + 2
        rows = rows.map(self._values, num_parallel_calls=calls, deterministic=True).prefetch(_AHEAD)
        iterator = iter(rows)
        while True:
            try:
                found = {name: value.numpy() for name, value in next(iterator).items()}
            except StopIteration:
                return
            except tf.errors.OpError:  # of one record, at its place in the order; the next call goes on behind it
                record = waiting.popleft()
                yield record, *self._diagnose(record)
                continue
            record = waiting.popleft()
            if not record.look:
                del found["bits"]
            yield record, found, []

    def _values(self, serialized: tf.Tensor, look: tf.Tensor) -> dict[str, tf.Tensor]:
        def pixels() -> tuple[tf.Tensor, ...]:
            decoded = host.decode(serialized, self._patch_size, self._max_boxes)
            image = decoded["image"]
            # Asked for so that TensorFlow does not leave out the part of the decoder that pads boxes and labels.
            used = tf.reduce_sum(decoded["boxes"]) + tf.cast(tf.reduce_sum(decoded["classes"]), tf.float32)
            # A sixteenth of the pixels tells as much about black borders, and costs next to nothing beside decoding.
            black = tf.reduce_max(image[::4, ::4], axis=2) <= BLACK
            return used, tf.reduce_mean(tf.cast(black, tf.float32)), *duplicates.fingerprint(image)

        def nothing() -> tuple[tf.Tensor, ...]:
            return tf.constant(0.0), tf.constant(np.nan), tf.zeros(128, tf.bool), tf.constant(0.0)

        used, black, bits, deviation = tf.cond(look, pixels, nothing)
        return _fields(serialized) | {"used": used, "black": black, "bits": bits, "deviation": deviation}

    def image(self, content: bytes) -> np.ndarray | None:
        """The pixels of a record, None where they cannot be decoded; of any size."""
        try:
            encoded = tf.io.parse_single_example(content, {"image/encoded": FEATURES["image/encoded"]})["image/encoded"]
            pixels: np.ndarray = tf.io.decode_jpeg(encoded, channels=3).numpy()
        except tf.errors.OpError:
            return None
        return pixels

    def _diagnose(self, record: Record) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
        """Why the decoder of training fails on a record, step by step."""
        try:
            found = {name: value.numpy() for name, value in _fields(record.content).items()}
        except tf.errors.OpError as error:
            return None, [("decoder", f"{record.place}: {_first_line(error)}")]
        name = f"{record.place} (patch {found['image/patch_id']})"
        image = self.image(record.content)
        if image is None:
            return found, [("decoder", f"{name}: image/encoded is not a picture that can be decoded")]
        if image.shape[:2] != (self._patch_size, self._patch_size):
            return found, [("image_size", f"{name}: {image.shape[0]} px high, {image.shape[1]} px wide")]
        return found, [("decoder", f"{name}: its four lists of box sides and its list of labels are of different lengths")]


def _fields(serialized: tf.Tensor | bytes) -> dict[str, tf.Tensor]:
    """Everything of a record but its picture; lists as they are, of any length."""
    example = tf.io.parse_single_example(serialized, FEATURES | _EXTRA)
    kept = {name: value for name, value in example.items() if name != "image/encoded"}
    return {name: value.values if isinstance(value, tf.SparseTensor) else value for name, value in kept.items()}


def inspect(folder: str, data: Dataset, *, sample: int = 0, seed: int = 0) -> Inspection:
    """Reads everything.

    Args:
      folder: of the dataset.
      data: its manifest.
      sample: patches of each split whose pixels are decoded; 0 for all. Everything but pixels is always read of every patch.
      seed: of the choice.
    """
    problems = Problems()
    splits = tuple(data.splits)
    shards = tuple(shard.file for split in splits for shard in data.splits[split])
    rows: list[tuple[Any, ...]] = []
    prints: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    names = np.array([b"", *(name.encode() for name in data.classes)])
    reader = Reader(data.patch_size, max(1, data.statistics.max_objects_per_patch))
    total = sum(data.records(split) for split in splits)
    progress = Progress("doctor", total, "patches")
    records = _records(folder, data, _chosen(data, sample, seed), problems)
    for done, (record, found, met) in enumerate(reader.read(records), start=1):
        if done % _AHEAD == 0 or done == total:
            progress.update(done)
        for kind, words in met:
            problems[kind].add(words)
        if found is None:
            continue
        _judge_fields(found, record.place, data.patch_size, names, problems)
        sides, classes = _objects(found)
        boxes.append(sides)
        labels.append(classes)
        seen = "bits" in found
        prints.append(duplicates.pack(found["bits"]) if seen else np.zeros(2, np.uint64))
        rows.append(
            (record.split, record.shard, record.record, record.offset, len(record.content), int(found["image/patch_id"]),
             len(classes), seen, found.get("black", np.nan), seen and found["deviation"] < duplicates.EVEN)
        )  # fmt: skip
    kinds = (np.int32, np.int32, np.int32, np.int64, np.int64, np.int64, np.int32, bool, np.float32, bool)
    columns = zip(*rows, strict=True) if rows else ((),) * len(kinds)
    split, shard, position, offset, length, patch_id, objects, seen_, black, even = (
        np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)
    )
    return Inspection(
        splits, shards, split, shard, position, offset, length, patch_id, objects, seen_, black,
        fingerprints=np.array(prints, np.uint64).reshape(-1, 2),
        even=even,
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        owner=np.repeat(np.arange(len(objects), dtype=np.int32), objects),
        problems=problems,
    )  # fmt: skip


def content(folder: str, inspection: Inspection, i: int) -> bytes:
    """The bytes of patch `i`'s record, read again."""
    path = os.path.join(folder, inspection.shards[inspection.shard[i]])
    return files.read_range(path, int(inspection.offset[i]), int(inspection.length[i]))


def _objects(found: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of a record; of lists that differ in length, as much as all have."""
    lists = [*(found[side] for side in _SIDES), found["image/object/class/label"]]
    least = min(len(one) for one in lists)
    return np.stack([one[:least] for one in lists[:4]], axis=1).astype(np.float32), lists[4][:least]


def _judge_fields(found: dict[str, Any], place: str, patch_size: int, names: np.ndarray, problems: Problems) -> None:
    patch_id = int(found["image/patch_id"])
    given = found["image/source_id"]
    if not given:
        problems["source_id"].add(f"{place} (patch {patch_id}): image/source_id is empty")
    elif not re.fullmatch(rb"0|[1-9]\d*", given):
        problems["source_id"].add(f"{place} (patch {patch_id}): image/source_id is {given.decode(errors='replace')!r}")
    elif int(given) != patch_id:
        problems["source_id"].add(f"{place}: image/source_id is {int(given)}, image/patch_id is {patch_id}")
    stated = int(found["image/height"]), int(found["image/width"])
    if stated not in ((patch_size, patch_size), (-1, -1)):
        problems["image_size"].add(f"{place} (patch {patch_id}): image/height and image/width say {stated[0]} and {stated[1]} px")
    labels, texts = found["image/object/class/label"], found["image/object/class/text"]
    if len(texts) == len(labels):
        known = (labels >= 1) & (labels < len(names))
        wrong = np.flatnonzero(known & (names[np.where(known, labels, 0)] != texts.astype(names.dtype)))
        if len(wrong):
            label, text = int(labels[wrong[0]]), texts[wrong[0]].decode(errors="replace")
            meant = names[label].decode()
            problems["class_text"].add(
                f"{place} (patch {patch_id}): label {label} is called {text!r}, the manifest says {meant!r}"
            )


def _chosen(data: Dataset, sample: int, seed: int) -> dict[str, np.ndarray]:
    """Which records of each split to look at, as flags."""
    chosen = {}
    for name in data.splits:
        total = data.records(name)
        flags = np.full(total, not 0 < sample < total)
        if not flags.all():
            flags[np.random.default_rng(seed).choice(total, sample, replace=False)] = True
        chosen[name] = flags
    return chosen


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while chunk := list(itertools.islice(rest, _AHEAD)):
        yield chunk


def _records(folder: str, data: Dataset, chosen: dict[str, np.ndarray], problems: Problems) -> Iterator[Record]:
    """Every record whose bytes are whole, in order; damage goes to `problems["shards"]`."""
    number = 0
    for split_index, (split, shards) in enumerate(data.splits.items()):
        before = 0
        for shard in shards:
            path = os.path.join(folder, shard.file)
            total, damaged = 0, problems["shards"].count
            digest = hashlib.sha256()
            try:
                for index, offset, body, damage in _frames(path, digest):
                    total += damage is None or body is not None
                    if damage is not None:
                        problems["shards"].add(f"{shard.file} record {index}: {damage}")
                    else:
                        at = before + index
                        look = bool(chosen[split][at]) if at < len(chosen[split]) else True
                        yield Record(split_index, number, index, offset, body or b"", f"{shard.file} record {index}", look)
            except FileNotFoundError:
                problems["shards"].add(f"{shard.file} is missing: {shard.records} patches of split {split}")
            except OSError as error:
                problems["shards"].add(f"{shard.file} cannot be read: {error.strerror}")
            else:
                if total != shard.records:
                    problems["shards"].add(f"{shard.file} holds {total} records, the manifest says {shard.records}")
                if digest.hexdigest() != shard.sha256 and problems["shards"].count == damaged:
                    problems["shards"].add(
                        f"{shard.file} has sha256 {digest.hexdigest()[:12]}…, the manifest says {shard.sha256[:12]}…, though "
                        "each record's checksum is right: the file was written again after the manifest"
                    )
            before += shard.records
            number += 1


def _frames(path: str, digest: Any) -> Iterator[tuple[int, int, bytes | None, str | None]]:
    """The records of a TFRecord file as (index, offset of the bytes, bytes, damage); feeds every byte of the file to `digest`."""
    with byte_ranges.open_stream(path) as file:
        index = 0
        while head := file.read(12):
            digest.update(head)
            if len(head) < 12:
                yield index, file.tell(), None, "the file is cut off here, within the length of the record"
                return
            length, check = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != check:
                yield index, file.tell(), None, "the checksum (CRC) of its length is wrong; the rest of the file cannot be read"
                while rest := file.read(1 << 20):
                    digest.update(rest)
                return
            offset = file.tell()
            body = file.read(length)
            tail = file.read(4)
            digest.update(body)
            digest.update(tail)
            if len(tail) < 4:
                yield index, offset, None, f"the file is cut off here, {len(body):,} of {length:,} bytes into the record"
                return
            damaged = masked_crc32c(body) != struct.unpack("<I", tail)[0]
            yield index, offset, body, "the checksum (CRC) of its bytes is wrong" if damaged else None
            index += 1


def masked_crc32c(data: bytes) -> int:
    """The checksum of tensorflow/core/lib/hash/crc32c.h: CRC32C, rotated right by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _first_line(error: tf.errors.OpError) -> str:
    text = error.message.splitlines()[0]
    # TensorFlow puts the names of its graph nodes in front: "{{function_node ...}} what happened [Op:...]".
    return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", text)
