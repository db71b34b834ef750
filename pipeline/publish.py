"""The output folder while a dataset is being made: who may write to it, what is finished, and the step that makes it a dataset.

    unfinished/plan.json          the plan whose shards these are; written first
    unfinished/NAME.HEX           a shard being written
    NAME                          a whole shard: moved here in one step
    unfinished/NAME.json          its digest; written after that step, so a shard with this file is finished
    labels.pbtxt patches.parquet dataset.json   in this order, dataset.json makes the folder a dataset; then unfinished/ goes

A worker that dies leaves nothing that looks finished; two workers that do the same work publish the same bytes.
"""

import dataclasses
import os
import shutil
import uuid
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import records
from pipeline.plan import Plan
from survey import dataset, files, labels
from survey.dataset import LABELS, LEDGER, LEDGER_SCHEMA, MANIFEST, Dataset, Shard
from survey.errors import InputError

UNFINISHED = "unfinished"


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
    if not os.path.exists(folder):
        return False
    if not os.path.isdir(folder):
        raise InputError(f"--output={folder} is a file: name a folder")
    plan_file = os.path.join(folder, UNFINISHED, "plan.json")
    if os.path.exists(os.path.join(folder, MANIFEST)):
        found = dataset.read(folder)
        if found.options.get("plan_sha256") != options["plan_sha256"]:
            raise InputError(
                f"--output={folder} holds another dataset ({_difference(found.options, options)}): name another folder"
            )
        names = [shard.file for shards in found.splits.values() for shard in shards]
        lost = [name for name in (*names, LABELS, LEDGER) if not os.path.exists(os.path.join(folder, name))]
        if lost:
            raise InputError(
                f"--output={folder} holds this dataset, but {lost[0]} is missing: delete the folder to make it again"
            )
        return True
    if os.path.exists(plan_file):
        found_options = files.read_json(plan_file, "the plan of an interrupted `rookery shard`")
        if found_options.get("plan_sha256") != options["plan_sha256"]:
            raise InputError(
                f"--output={folder} holds an interrupted run with other input ({_difference(found_options, options)}): delete "
                "the folder, or name another"
            )
        return False
    others = sorted(name for name in os.listdir(folder) if name != UNFINISHED)
    if others:
        raise InputError(f"--output={folder} holds other files ({others[0]!r}): name an empty or a new folder")
    return False


def start(folder: str, options: dict[str, Any]) -> None:
    """Takes possession of the output folder for one plan.

    Raises:
      InputError: the folder cannot be made or written to.
    """
    try:
        files.write_json(os.path.join(folder, UNFINISHED, "plan.json"), options)
    except OSError as error:
        raise InputError(f"--output={folder} cannot be written: {error}") from error


def publish_shard(folder: str, name: str, examples: Iterable[bytes]) -> Shard:
    """Writes one shard; called by workers.

    Args:
      folder: the output folder.
      name: of the shard.
      examples: its records.
    """
    os.makedirs(os.path.join(folder, UNFINISHED), exist_ok=True)
    temporary = os.path.join(folder, UNFINISHED, f"{name}.{uuid.uuid4().hex}")
    examples = list(examples)
    shard = Shard(name, len(examples), records.write_tfrecord(temporary, examples))
    os.replace(temporary, os.path.join(folder, name))
    files.write_json(_receipt(folder, name), dataclasses.asdict(shard))
    return shard


def finished(folder: str, names: Iterable[str]) -> list[Shard]:
    """Those of the named shards that workers have published."""
    result = []
    for name in names:
        if os.path.exists(_receipt(folder, name)):
            result.append(Shard(**files.read_json(_receipt(folder, name), "the digest of a shard")))
    return result


def intact(folder: str, shard: Shard) -> bool:
    """Whether a published shard still has the bytes of its digest."""
    path = os.path.join(folder, shard.file)
    return os.path.exists(path) and files.sha256(path) == shard.sha256


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
    splits: dict[str, tuple[Shard, ...]] = {}
    for planned in plan.shards:
        shard = done[planned.file]
        assert shard.records == len(planned.patches), planned.file
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
    )
    labels.write(os.path.join(folder, LABELS), plan.classes)
    sink = pa.BufferOutputStream()
    pq.write_table(ledger(plan), sink)
    files.write(os.path.join(folder, LEDGER), sink.getvalue().to_pybytes())
    dataset.write(folder, made)
    shutil.rmtree(os.path.join(folder, UNFINISHED))
    return made


def ledger(plan: Plan) -> pa.Table:
    """One row per record, by patch number: from a number to its pixels, its split and its place in a shard."""
    rows = [
        {
            "patch_id": patch.patch_id,
            "mosaic": patch.mosaic,
            "row": patch.row,
            "column": patch.column,
            **dataclasses.asdict(patch.window),
            "split": patch.split,
            "shard": shard.file,
            "record": record,
            "objects": len(patch.class_ids),
        }
        for shard in plan.shards
        for record, patch in enumerate(shard.patches)
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["patch_id"]), schema=LEDGER_SCHEMA)


def _receipt(folder: str, name: str) -> str:
    return os.path.join(folder, UNFINISHED, f"{name}.json")


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    other = [
        f"--{key} {found.get(key)} there, {asked[key]} now"
        for key in asked
        if key != "plan_sha256" and found.get(key) != asked[key]
    ]
    return "; ".join(other[:2]) or "the mosaics or annotations have changed since"
