"""The output folder while a dataset is being made: who may write to it, what is finished, and the step that makes it a dataset.

    unfinished/plan.json          the plan whose shards these are; written first, by one of those that start at the same time
    unfinished/work-HEX.pickle    the shards that are left to do, for the workers (`pipeline.work`)
    unfinished/NAME.HEX           a shard being written; for a folder in Cloud Storage it lies in the worker's own TMPDIR
    NAME                          a whole shard: moved here, or uploaded, in one step
    unfinished/NAME.json          its receipt: digest, and what was left out; written after that step, so it is finished
    labels.pbtxt patches.parquet dataset.json   in this order, dataset.json makes the folder a dataset; then unfinished/ goes

A worker that dies leaves nothing that looks finished; two workers that do the same work publish the same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import patches, records
from pipeline.plan import Plan
from survey import dataset, files, labels
from survey.dataset import LABELS, LEDGER, MANIFEST, Dataset, Shard
from survey.errors import InputError

UNFINISHED = "unfinished"
_RECEIPT = ".json"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one planned shard. It depends on the input only, not on who cut it or when.

    Attributes:
      shard: the file.
      empty: numbers of patches left out because no pixel of theirs shows anything.
      bad_mosaics: mosaics that could not be read, and why; none of their patches is in the file.
    """

    shard: Shard
    empty: tuple[int, ...] = ()
    bad_mosaics: dict[str, str] = field(default_factory=dict)


def is_complete(folder: str, options: dict[str, Any]) -> bool:
    """Whether the folder already holds the very dataset that is asked for.

    Args:
      folder: the output folder, which need not exist.
      options: as they will stand in dataset.json; equal `plan_sha256` means equal bytes.

    Returns:
      True for the same dataset, whole; False for an empty folder, or one where the same work was interrupted.

    Raises:
      InputError: the folder holds something else.
    """
    try:
        there = set(files.names(folder))
    except NotADirectoryError:
        raise InputError(f"--output={folder} is a file: name a folder") from None
    if MANIFEST in there:
        found = dataset.read(folder)
        if found.options.get("plan_sha256") != options["plan_sha256"]:
            raise InputError(
                f"--output={folder} holds another dataset ({_difference(found.options, options)}): name another folder"
            )
        names = [shard.file for shards in found.splits.values() for shard in shards]
        lost = [name for name in (*names, LABELS, LEDGER) if name not in there]
        if lost:
            raise InputError(
                f"--output={folder} holds this dataset, but {lost[0]} is missing: delete the folder to make it again"
            )
        if UNFINISHED in there:  # of a run that was killed between its last two steps
            files.remove_folder(os.path.join(folder, UNFINISHED))
        return True
    if UNFINISHED in there and files.exists(_plan_file(folder)):
        _refuse_another(folder, options)
        return False
    others = sorted(there - {UNFINISHED})
    if others:
        raise InputError(f"--output={folder} holds other files ({others[0]!r}): name an empty or a new folder")
    return False


def start(folder: str, options: dict[str, Any]) -> None:
    """Takes possession of the output folder for one plan.

    Raises:
      InputError: the folder cannot be made or written to, or another plan took it since `is_complete` looked.
    """
    with writing(folder):
        mine = files.create(_plan_file(folder), files.as_json(options))
    if not mine:
        _refuse_another(folder, options)


def publish_shard(
    folder: str, name: str, examples: Iterable[bytes], *, empty: Iterable[int] = (), bad_mosaics: Mapping[str, str] | None = None
) -> Shard:
    """Writes one shard; called by workers.

    Args:
      folder: the output folder.
      name: of the shard.
      examples: its records.
      empty: numbers of planned patches that are not in it, because they show nothing.
      bad_mosaics: mosaics whose patches are not in it, and why.

    Raises:
      InputError: the disk is full, or the folder cannot be written to.
    """
    examples = list(examples)
    path = os.path.join(folder, name)
    with writing(folder):
        with files.scratch(path, beside=os.path.join(folder, UNFINISHED)) as temporary:
            shard = Shard(name, len(examples), records.write_tfrecord(temporary, examples))
            files.publish(temporary, path, shard.sha256)
        receipt = Receipt(shard, tuple(empty), dict(bad_mosaics or {}))
        files.write_json(_receipt(folder, name), dataclasses.asdict(receipt))
    return shard


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Turns what the system says of a full or missing disk into an error that says what to do.

    Raises:
      InputError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--output={folder} cannot be written: {error.strerror or error}; make room or name another folder, and run the same "
            "command again: finished shards are kept"
        ) from error


def receipts(folder: str, names: Iterable[str]) -> list[Receipt]:
    """Receipts of those of the named shards that workers have published."""
    there = finished_names(folder)
    values = map(json.loads, files.read_all([_receipt(folder, name) for name in names if name in there]))
    return [Receipt(Shard(**value["shard"]), tuple(value["empty"]), value["bad_mosaics"]) for value in values]


def finished_names(folder: str) -> set[str]:
    """Files of the shards that workers have published, as one listing tells: cheap enough to be asked for every second."""
    found = files.names(os.path.join(folder, UNFINISHED))
    return {name.removesuffix(_RECEIPT) for name in found if name.endswith(f".tfrecord{_RECEIPT}")}


def finished(folder: str, names: Iterable[str]) -> list[Shard]:
    """Those of the named shards that workers have published."""
    return [receipt.shard for receipt in receipts(folder, names)]


def forget(folder: str, name: str) -> None:
    """Takes a shard's receipt back, before it is cut again."""
    files.remove(_receipt(folder, name))


def intact(folder: str, shards: Iterable[Shard]) -> set[str]:
    """Files of those published shards that still have the bytes of their digests."""
    return files.intact(folder, {shard.file: shard.sha256 for shard in shards})


def commit(folder: str, plan: Plan, *, patch_size: int, overlap_px: int, options: dict[str, Any]) -> Dataset:
    """Turns a folder of finished shards into a dataset.

    Args:
      folder: the output folder.
      plan: what was written.
      patch_size: side of a patch in pixels.
      overlap_px: overlap of neighbouring patches.
      options: what made it, for the manifest.
    """
    done = {shard.file: shard for shard in finished(folder, (planned.file for planned in plan.shards))}
    unseen = [planned.file for planned in plan.shards if planned.file not in done]
    if unseen:
        raise InputError(
            f"--output={folder} lacks {len(unseen)} of {len(plan.shards)} shards, the first {unseen[0]}, though the workers "
            "finished: name a folder that workers and launcher both see, such as gs://BUCKET/FOLDER"
        )
    splits: dict[str, tuple[Shard, ...]] = {}
    for planned in plan.shards:
        shard = done[planned.file]
        assert shard.records == len(planned), planned.file
        splits[planned.split] = (*splits.get(planned.split, ()), shard)
    made = Dataset(
        patch_size=patch_size,
        overlap_px=overlap_px,
        classes=plan.classes,
        splits=splits,
        mosaics=plan.mosaics,
        statistics=plan.statistics,
        counts=plan.counts,
        options=options,
        gsd_m=plan.gsd_m,
        no_shared_pixels=dataclasses.asdict(plan.proof),
    )
    with writing(folder):
        # What a killed run, or a full disk, left of these three files.
        for name in files.names(folder):
            if name.startswith((f"{LABELS}.", f"{LEDGER}.", f"{MANIFEST}.")):
                files.remove(os.path.join(folder, name))
        labels.write(os.path.join(folder, LABELS), plan.classes)
        sink = pa.BufferOutputStream()
        pq.write_table(ledger(plan), sink)
        files.write(os.path.join(folder, LEDGER), sink.getvalue().to_pybytes())
        dataset.write(folder, made)
        files.remove_folder(os.path.join(folder, UNFINISHED))
    return made


def ledger(plan: Plan) -> pa.Table:
    """One row per record, by patch number: from a number to its pixels, its split and its place in a shard."""
    return patches.ledger(plan.table, plan.shards, plan.mosaics)


def _receipt(folder: str, name: str) -> str:
    return os.path.join(folder, UNFINISHED, f"{name}{_RECEIPT}")


def _plan_file(folder: str) -> str:
    return os.path.join(folder, UNFINISHED, "plan.json")


def _refuse_another(folder: str, options: dict[str, Any]) -> None:
    found = files.read_json(_plan_file(folder), "the plan of an interrupted `rookery shard`")
    if found.get("plan_sha256") != options["plan_sha256"]:
        raise InputError(
            f"--output={folder} holds an interrupted run with other input ({_difference(found, options)}): delete the folder, or "
            "name another"
        )


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    other = [
        f"--{key} {found.get(key)} there, {asked[key]} now"
        for key in asked
        if key != "plan_sha256" and found.get(key) != asked[key]
    ]
    return "; ".join(other[:2]) or "the mosaics or annotations have changed since"
