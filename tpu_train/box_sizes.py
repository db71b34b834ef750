"""Widths and heights of a dataset's boxes, from its TFRecords without TensorFlow.

A record is almost all picture. Only its four lists of box sides are looked at, by the wire format of protocol buffers
(https://protobuf.dev/programming-guides/encoding/) and the field numbers of tensorflow/core/example/{example,feature}.proto.
"""

import os
from collections.abc import Iterator

import numpy as np

from survey import dataset
from survey.errors import InputError
from survey.progress import Progress
from tpu_train import shards

SIDES = tuple(f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax"))

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def of_dataset(folder: str, split: str, *, max_bad_records: int = 0) -> np.ndarray:
    """Sizes of all boxes of a split.

    Args:
      folder: of the dataset, local or gs://.
      split: its name.
      max_bad_records: go on without so many records that are damaged.

    Returns:
      float32 [N, 2], (width, height) in pixels of the patch.

    Raises:
      InputError: no such split, more damaged records, or a record without boxes' lists.
    """
    data = dataset.read(folder)
    if not data.splits.get(split):
        raise InputError(f"--split={split}: the dataset has patches in {', '.join(data.splits)}")
    found = [np.zeros((0, 2), np.float32)]
    progress = Progress("anchors", data.records(split), "patches")
    seen = damaged = 0
    for shard in data.splits[split]:
        path = os.path.join(folder, shard.file)
        try:
            whole = 0
            for content in _records(path):
                if content is not None:
                    found.append(sizes(content))
                    whole += 1
                if (seen + whole) % 1000 == 0 or seen + whole == data.records(split):
                    progress.update(seen + whole)
        except FileNotFoundError:
            raise InputError(f"{path} is missing: copy the dataset again") from None
        except ValueError as error:
            raise InputError(f"{path}: a record cannot be read ({error}): `rookery doctor` says more") from None
        seen, damaged = seen + whole, damaged + shard.records - whole
        if damaged > max_bad_records:
            raise InputError(
                f"{path}: {shard.records - whole} of {shard.records} records cannot be read: `rookery doctor` names them; "
                f"`rookery train` goes on without them with --max_bad_records {damaged} or more"
            )
    return np.concatenate(found) * np.float32(data.patch_size)


def sizes(serialized: bytes) -> np.ndarray:
    """Sizes of the boxes of a record.

    Args:
      serialized: a tf.train.Example.

    Returns:
      float32 [N, 2], (width, height) as shares of the patch.

    Raises:
      ValueError: it is no tf.train.Example, or it lacks a list of box sides, or they differ in length; says which.
    """
    lists: dict[str, np.ndarray] = {}
    for features in _messages(memoryview(serialized), 1):
        for entry in _messages(features, 1):
            name = b"".join(bytes(key) for key in _messages(entry, 1)).decode(errors="replace")
            if name in SIDES:
                lists[name] = _floats(entry)
    if lacking := [name for name in SIDES if name not in lists]:
        raise ValueError(f"without {lacking[0]}")
    if len({len(one) for one in lists.values()}) > 1:
        raise ValueError("its lists of box sides are of different lengths")
    y0, x0, y1, x1 = (lists[name] for name in SIDES)
    return np.stack([x1 - x0, y1 - y0], axis=1)


def _records(path: str) -> Iterator[bytes | None]:
    """The bytes of each record, None of those that are damaged; behind a wrong length comes nothing."""
    with shards.opened(path) as (ranges, size):
        for frame in shards.frames(ranges, size):
            yield shards.intact(ranges, frame)


def _floats(entry: memoryview) -> np.ndarray:
    """The numbers of an entry of Features: its field 2 is a Feature, whose field 2 is a FloatList, whose field 1 are floats."""
    pieces = [
        piece
        for feature in _messages(entry, 2)
        for float_list in _messages(feature, 2)
        for number, piece in _fields(float_list)
        if number == 1
    ]
    return np.frombuffer(b"".join(pieces), "<f4")


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The bytes of every field of this number."""
    return (piece for found, piece in _fields(message) if found == number)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of the fields of a message that have bytes of their own; single numbers are passed over but for floats.

    Raises:
      ValueError: not a message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("not a tf.train.Example")
        if not number or at + length > len(message):
            raise ValueError("not a tf.train.Example")
        if kind != _FIXED64:
            yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("not a tf.train.Example")
