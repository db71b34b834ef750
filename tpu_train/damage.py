"""Damaged records: found, named, and left out.

A flipped byte in a shard ends a run: TensorFlow notices the wrong checksum but cannot read on behind it. Here each record of each
shard is looked at, and where the user allows so many losses the rest of a damaged shard is copied beside the run:

    MODEL_DIR/cleaned/NAME-HEX.tfrecord   the records of one damaged shard that are whole
    MODEL_DIR/cleaned/cleaned.json        what was left out of which shard, and why; written last
"""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from survey import files
from survey.errors import InputError
from survey.progress import Progress
from tpu_train import shards as framing
from tpu_train.shards import HEAD_BYTES, TAIL_BYTES, Shard

FOLDER = "cleaned"  # in the model folder
RECORD = "cleaned.json"
NAMED = 10  # records of a shard that a message names one by one

Judge = Callable[[bytes], str | None]
"""Says of the bytes of a record why they cannot be used, None if they can."""


def scan(path: str, records: int = 0, judge: Judge | None = None) -> dict[int, str]:
    """Looks at every record of a TFRecord file, one in memory at a time.

    Args:
      path: the file.
      records: how many there should be; what is missing at the end counts as damaged.
      judge: looks into the records whose checksums are right; by default nothing does.

    Returns:
      Numbers of the damaged records, ascending, and what is wrong with each. A wrong length loses all that follow.
    """
    damaged: dict[int, str] = {}
    number, behind = -1, "the file ends before it"
    with framing.opened(path) as (ranges, size):
        for number, frame in enumerate(framing.frames(ranges, size)):
            if frame.broken:
                damaged[number] = behind = frame.broken
                break
            content = framing.intact(ranges, frame)
            why = "the checksum of its bytes is wrong" if content is None else judge(content) if judge else None
            if why:
                damaged[number] = why
    return damaged | dict.fromkeys(range(number + 1, records), behind)


def known(shards: Sequence[Shard], model_dir: str, max_bad_records: int) -> tuple[Shard, ...]:
    """The files to read at the start of a run: cleaned copies where an earlier start made them, else the shards.

    Args:
      shards: of all splits, as `tpu_train.shards.resolve` gives them.
      model_dir: of the run.
      max_bad_records: see `repair`.

    Returns:
      As many, in the same order. A shard that was cut again since is read itself.

    Raises:
      InputError: more records were left out than are now allowed.
    """
    record = _recorded(shards, model_dir)
    _refuse_too_many({path: _left_out(entry) for path, entry in record.items()}, max_bad_records)
    return _replaced(shards, record, model_dir)


def repair(
    shards: Sequence[Shard], model_dir: str, max_bad_records: int, *, cause: Exception, judge: Judge | None = None
) -> tuple[Shard, ...]:
    """The files to read after TensorFlow met damage: looks at all shards, and copies what is whole of the damaged ones.

    Args:
      shards: of all splits, as `tpu_train.shards.resolve` gives them: not those that `known` or `repair` returned.
      model_dir: of the run; gets the copies.
      max_bad_records: go on without so many records, over all shards.
      cause: what TensorFlow raised.
      judge: see `scan`; needed where the cause is not a wrong checksum.

    Returns:
      As many, in the same order, with cleaned copies in place of damaged shards.

    Raises:
      InputError: more records than that are damaged; names shards and records.
      Exception: `cause`, if no shard is to blame, or none that was not known before.
    """
    record = _recorded(shards, model_dir)
    progress = Progress("train: looking for damaged records", len(shards), "shards")
    scanned = []
    with ThreadPoolExecutor(framing.FILES_AT_ONCE) as pool:
        for damaged in pool.map(lambda shard: scan(shard.path, shard.records, judge), shards):
            scanned.append(damaged)
            progress.update(len(scanned))
    before = {path: _left_out(entry) for path, entry in record.items()}
    found = {
        shard.path: dict(sorted({**before.get(shard.path, {}), **damaged}.items()))
        for shard, damaged in zip(shards, scanned, strict=True)
        if damaged
    }
    fresh = {path: damaged for path, damaged in found.items() if damaged.keys() != before.get(path, {}).keys()}
    if not fresh:
        raise cause
    _refuse_too_many({**before, **found}, max_bad_records)
    for path, damaged in fresh.items():
        record[path] = _clean(path, damaged, model_dir)
        print(f"train: {path}: goes on without {_named(damaged)}", file=sys.stderr, flush=True)
    files.write_json(os.path.join(model_dir, FOLDER, RECORD), {"shards": record})
    return _replaced(shards, record, model_dir)


def _recorded(shards: Sequence[Shard], model_dir: str) -> dict[str, dict[str, Any]]:
    """What earlier starts left out, by the path of the shard: of these shards, and if they still have the same bytes."""
    path = os.path.join(model_dir, FOLDER, RECORD)
    if not files.exists(path):
        return {}
    entries: dict[str, dict[str, Any]] = files.read_json(path, "the record of damaged shards")["shards"]
    mine = {shard.path: entries[shard.path] for shard in shards if shard.path in entries}
    return {
        shard: entry
        for shard, entry in mine.items()
        if files.fingerprint(shard) == entry["fingerprint"] and files.exists(os.path.join(model_dir, FOLDER, entry["file"]))
    }


def _left_out(entry: Mapping[str, Any]) -> dict[int, str]:
    return {int(number): why for number, why in entry["left_out"].items()}


def _replaced(shards: Sequence[Shard], record: Mapping[str, Mapping[str, Any]], model_dir: str) -> tuple[Shard, ...]:
    def replaced(shard: Shard) -> Shard:
        entry = record.get(shard.path)
        if entry is None:
            return shard
        return Shard(os.path.join(model_dir, FOLDER, entry["file"]), entry["records"], lost=tuple(sorted(_left_out(entry))))

    return tuple(replaced(shard) for shard in shards)


def _clean(path: str, damaged: Mapping[int, str], model_dir: str) -> dict[str, Any]:
    """Copies what is whole of a shard; returns what the record says of it."""
    folder = os.path.join(model_dir, FOLDER)
    # Files of one name may come from several folders.
    name = f"{os.path.basename(path).removesuffix('.tfrecord')}-{hashlib.sha256(path.encode()).hexdigest()[:8]}.tfrecord"
    target = os.path.join(folder, name)
    digest, kept = hashlib.sha256(), 0
    with framing.opened(path) as (ranges, size), files.scratch(target, beside=folder) as temporary:
        with open(temporary, "wb") as file:
            for number, frame in enumerate(framing.frames(ranges, size)):
                if frame.broken or number in damaged:
                    continue
                framed = ranges.read_at(frame.offset - HEAD_BYTES, HEAD_BYTES + frame.length + TAIL_BYTES)
                digest.update(framed)
                file.write(framed)
                kept += 1
            file.flush()
            os.fsync(file.fileno())
        files.publish(temporary, target, digest.hexdigest())
    left_out = {str(number): why for number, why in damaged.items()}
    return {"fingerprint": files.fingerprint(path), "file": name, "records": kept, "left_out": left_out}


def _refuse_too_many(damaged: Mapping[str, Mapping[int, str]], most: int) -> None:
    """Refuses to lose more records than the user allows.

    Raises:
      InputError: names all shards.
    """
    total = sum(map(len, damaged.values()))
    if total > most:
        listed = "".join(f"\n  {path}: {_named(found)}" for path, found in sorted(damaged.items()) if found)
        raise InputError(
            f"--max_bad_records={most}, but {total} record{' is' if total == 1 else 's are'} damaged: copy these shards again "
            "from where they came, or delete the dataset's folder and run `rookery shard` again, which writes the same bytes; "
            f"or go on without them with --max_bad_records {total}{listed}"
        )


def _named(damaged: Mapping[int, str]) -> str:
    """The records of a shard for people: the first ones, each reason once."""
    reasons: dict[str, list[int]] = {}
    for number, why in damaged.items():
        reasons.setdefault(why, []).append(number)
    parts = []
    for why, numbers in list(reasons.items())[:NAMED]:
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        parts.append(f"record{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:NAMED]))}{more} ({why})")
    rest = len(reasons) - NAMED
    return "; ".join(parts) + (f"; and {rest} more" if rest > 0 else "")
