"""Which TFRecord files a run reads: those of a split, or those that --training_file_pattern names.

Also how such a file is laid out: each record is its length (8 bytes), the checksum of the length (4), the bytes, and their
checksum (4), see tensorflow/core/lib/io/record_writer.h.
"""

import bisect
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import google_crc32c

from survey import byte_ranges, dataset, files, storage
from survey.byte_ranges import ByteRanges
from survey.dataset import MANIFEST, Dataset
from survey.errors import InputError

FLAG = "training_file_pattern"
HEAD_BYTES, TAIL_BYTES = 12, 4  # around the bytes of a record
FILES_AT_ONCE = 8  # looked into side by side: on a disk as in Cloud Storage that is mostly waiting


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to read.

    Attributes:
      path: local or gs://.
      records: to read, all that it has or some in a row.
      first: number of the first of them.
      lost: of a cleaned copy, the numbers that records had which it lacks, ascending.
    """

    path: str
    records: int
    first: int = 0
    lost: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a record is.

    Attributes:
      offset: of its bytes in the file.
      length: of its bytes.
      broken: why neither this record nor any behind it can be read; empty where it can.
    """

    offset: int
    length: int
    broken: str = ""


def resolve(folder: str, split: str, pattern: str | None = None, *, held_out: str = "", max_boxes: int) -> tuple[Shard, ...]:
    """The files of a split, or those that match a pattern instead.

    Numbers of records come from the manifest beside a file; where there is none, or it does not list the file, they are counted,
    which in Cloud Storage takes as long as reading the file. Without a pattern nothing but the manifest is read.

    Args:
      folder: of the dataset.
      split: its name; says nothing where there is a pattern.
      pattern: glob pattern of TFRecord files, local or gs://; None or empty for the split.
      held_out: split whose files a pattern must not match.
      max_boxes: objects of a patch that training takes.

    Returns:
      Files in the manifest's order, or sorted by name.

    Raises:
      InputError: nothing matches, or a file cannot be what this dataset's training learns from.
    """
    data = dataset.read(folder)
    if not pattern:
        return tuple(Shard(os.path.join(folder, shard.file), shard.records) for shard in data.splits[split])
    paths = files.match(pattern, FLAG)
    _refuse_held_out(paths, folder, data, held_out)
    counts = _listed(paths, data)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        uncounted = [path for path in paths if path not in counts]
        counts.update(zip(uncounted, pool.map(count_records, uncounted), strict=True))
        first = list(pool.map(first_record, paths))
    for path, content in zip(paths, first, strict=True):
        if content is not None:
            _check(path, content, data, max_boxes)
    if not sum(counts.values()):
        raise InputError(f"--{FLAG}={pattern!r}: the {len(paths)} files that match hold no record; check the pattern")
    return tuple(Shard(path, counts[path]) for path in paths)


def held_out(shards: Sequence[Shard], share: float) -> tuple[tuple[Shard, ...], tuple[Shard, ...]]:
    """Splits files by their records: what comes first is for learning, a share at the end of each is held out.

    `rookery shard` writes the patches of a split in random order, so this is a random share of the patches.

    Raises:
      InputError: nothing is left on one side.
    """
    total = sum(shard.records for shard in shards)
    kept = _shared_out(shards, round(total * (1 - share)))
    sides = (
        tuple(Shard(shard.path, number, shard.first) for shard, number in zip(shards, kept, strict=True)),
        tuple(
            Shard(shard.path, shard.records - number, shard.first + number) for shard, number in zip(shards, kept, strict=True)
        ),
    )
    if not all(any(shard.records for shard in side) for side in sides):
        raise InputError(f"--validation={share}: the training split has {total} patches, which leaves one side without any")
    return sides


def sampled(shards: Sequence[Shard], number: int) -> tuple[Shard, ...]:
    """So many records, of each file as large a share.

    Raises:
      InputError: there are not so many.
    """
    total = sum(shard.records for shard in shards)
    if number > total:
        raise InputError(f"--sample_train={number}: there are {total} patches to learn from; drop the flag to take them all")
    return tuple(Shard(shard.path, share, shard.first) for shard, share in zip(shards, _shared_out(shards, number), strict=True))


def in_copy(part: Shard, copy: Shard) -> Shard:
    """The same records in a cleaned copy of their file, those aside that it lacks.

    Args:
      part: some records in a row of the file as it was cut.
      copy: the whole cleaned copy, or the file itself.
    """
    before, until = (bisect.bisect_left(copy.lost, number) for number in (part.first, part.first + part.records))
    return Shard(copy.path, part.records - (until - before), part.first - before)


def _shared_out(shards: Sequence[Shard], number: int) -> list[int]:
    """A number of records as a sum over files, each in proportion to its own."""
    ends = [0, *itertools.accumulate(shard.records for shard in shards)]
    bounds = [round(end * number / max(1, ends[-1])) for end in ends]
    return [high - low for low, high in itertools.pairwise(bounds)]


def count_records(path: str) -> int:
    """Records of a TFRecord file, by their lengths; a damaged end is not counted.

    Raises:
      InputError: it is no such file.
    """
    with opened(path) as (ranges, size):
        count = 0
        for frame in frames(ranges, size):
            if frame.broken and not count:
                raise _not_tfrecord(path, frame.broken)
            count += not frame.broken
    return count


def first_record(path: str) -> bytes | None:
    """The bytes of the first record whose checksum is right, None if there is none.

    Raises:
      InputError: not a TFRecord file.
    """
    with opened(path) as (ranges, size):
        for number, frame in enumerate(frames(ranges, size)):
            if frame.broken and not number:
                raise _not_tfrecord(path, frame.broken)
            content = intact(ranges, frame)
            if content is not None:
                return content
    return None


def frames(ranges: ByteRanges, size: int) -> Iterator[Frame]:
    """The records of a file from first to last; if one is broken, it is the last.

    Args:
      ranges: the file.
      size: its bytes.
    """
    offset = 0
    while offset < size:
        head = ranges.read_at(offset, HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            yield Frame(offset, 0, "the file is cut off before it")
            return
        length, check = struct.unpack("<QI", head)
        if masked_crc32c(head[:8]) != check:
            yield Frame(offset, 0, "the checksum of its length is wrong, so that nothing from here on can be found")
            return
        offset += HEAD_BYTES
        if offset + length + TAIL_BYTES > size:
            yield Frame(offset, 0, "the file is cut off within it")
            return
        yield Frame(offset, length)
        offset += length + TAIL_BYTES


def intact(ranges: ByteRanges, frame: Frame) -> bytes | None:
    """The bytes of a record, None where it is broken or its checksum is wrong."""
    if frame.broken:
        return None
    content = ranges.read_at(frame.offset, frame.length + TAIL_BYTES)
    body, check = content[:-TAIL_BYTES], content[-TAIL_BYTES:]
    return body if struct.pack("<I", masked_crc32c(body)) == check else None


def masked_crc32c(data: bytes) -> int:
    """The checksum of tensorflow/core/lib/hash/crc32c.h: CRC32C, rotated right by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def opened(path: str) -> Iterator[tuple[ByteRanges, int]]:
    """The bytes of a file by position, and how many there are."""
    size = files.size(path)
    ranges = byte_ranges.open_ranges(path)
    try:
        yield ranges, size
    finally:
        ranges.close()


def _refuse_held_out(paths: Sequence[str], folder: str, data: Dataset, split: str) -> None:
    """Training must not see the patches that judge it."""
    kept_back = {_place(os.path.join(folder, shard.file)) for shard in data.splits.get(split, ())}
    for path in paths:
        if _place(path) in kept_back:
            raise InputError(
                f"--{FLAG} matches {path}, which the split {split!r} validates with: narrow the pattern, for example to train-*"
            )


def _listed(paths: Sequence[str], data: Dataset) -> dict[str, int]:
    """Records of the files that a manifest beside them lists.

    Raises:
      InputError: the manifest is that of a dataset of other classes, or of another patch size.
    """
    counts = {}
    for folder in sorted({os.path.dirname(path) for path in paths}):
        if not files.exists(os.path.join(folder, MANIFEST)):
            continue
        found = dataset.read(folder)
        listed = {os.path.join(folder, shard.file): shard.records for shards in found.splits.values() for shard in shards}
        mine = {path: listed[path] for path in paths if path in listed}
        if mine and found.classes != data.classes:
            raise InputError(
                f"--{FLAG} matches files of {folder}, whose classes are {', '.join(found.classes)}; --dataset has "
                f"{', '.join(data.classes)}: both must have the same, in the same order; shard again with that label map"
            )
        if mine and found.patch_size != data.patch_size:
            raise InputError(
                f"--{FLAG} matches files of {folder}, whose patch_size is {found.patch_size}; --dataset has {data.patch_size}: "
                f"shard again with --patch_size {data.patch_size}"
            )
        counts.update(mine)
    return counts


def _check(path: str, content: bytes, data: Dataset, max_boxes: int) -> None:
    """Refuses a file whose first record training cannot learn from."""
    from tpu_train import example  # here: TensorFlow takes seconds to import, and most runs have no pattern

    try:
        labels = example.labels(content)
    except ValueError as error:
        raise InputError(
            f"--{FLAG}: {path} holds records of another layout ({error}): must be files written by `rookery shard`"
        ) from None
    if wrong := example.complaint(content, data.patch_size):
        raise InputError(
            f"--{FLAG}: {path}, first record: {wrong}; must be patches of {data.patch_size} px as in --dataset: "
            f"shard again with --patch_size {data.patch_size}, or narrow the pattern"
        )
    strange = [label for label in labels if not 1 <= label <= len(data.classes)]
    if strange:
        raise InputError(
            f"--{FLAG}: {path}, first record: label {strange[0]}; must be from 1 to {len(data.classes)} "
            f"({', '.join(data.classes)}): shard again with the label map of --dataset"
        )
    if len(labels) > max_boxes:
        raise InputError(
            f"--{FLAG}: {path}, first record: {len(labels)} objects, but --max_boxes={max_boxes}: raise it to the most that a "
            "patch holds"
        )


def _not_tfrecord(path: str, why: str) -> InputError:
    return InputError(f"--{FLAG}: {path} is not a TFRecord file ({why}): narrow the pattern; unpack compressed files")


def _place(path: str) -> str:
    """A name by which two ways of writing one path are equal."""
    return path if storage.is_remote(path) else os.path.realpath(path)
