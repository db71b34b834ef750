"""Are the records of a dataset what they should be? From what was read (`inspection`) to verdicts; `fitness` has the rest."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes as box_ops
from survey import dataset, files, labels
from survey.dataset import Dataset
from survey.errors import InputError
from tpu_train.inspection import Inspection

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"
SEVERITIES = (OK, NOTE, WARNING, ERROR)  # by weight

EXACT_IDS = 2**24  # float32 holds all whole numbers below
TOLERANCE = 1e-5  # of a normalised coordinate: float32 rounding of the last pixel's edge
TINY_PX = 4.0  # side below which a box is a handful of pixels that no detector tells from noise


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict.

    Attributes:
      name: short, unique.
      severity: of SEVERITIES.
      found: what was found, in one line.
      why: why it matters.
      remedy: what to do; "" where nothing is wrong.
      cases: where exactly, the first of them.
      traps: Model Garden traps (see `traps`) that this check catches.
    """

    name: str
    severity: str
    found: str
    why: str
    remedy: str = ""
    cases: tuple[str, ...] = ()
    traps: tuple[int, ...] = ()


def worst(checks: Sequence[Check]) -> str:
    """The heaviest severity."""
    return max((check.severity for check in checks), key=SEVERITIES.index, default=OK)


def headline(checks: Sequence[Check]) -> str:
    """The verdict in a line."""
    errors, warnings = (sum(check.severity == severity for check in checks) for severity in (ERROR, WARNING))
    if errors:
        return f"not fit to train: {plural(errors, 'error')}, {plural(warnings, 'warning')}"
    return f"fit to train, with {plural(warnings, 'warning')}" if warnings else "fit to train"


def plural(count: int, one: str, more: str = "") -> str:
    """A number and its noun.

    >>> plural(1, "patch", "patches"), plural(1200, "box", "boxes")
    ('1 patch', '1,200 boxes')
    """
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def of_records(folder: str, data: Dataset, seen: Inspection) -> list[Check]:
    """Whether the records are what they should be, in the order in which trouble is best mended."""
    return [
        shards(data, seen),
        decoder(seen),
        image_size(data, seen),
        ids(folder, seen),
        label_ids(data, seen),
        label_map(folder, data, seen),
        boxes(data, seen),
    ]


def shards(data: Dataset, seen: Inspection) -> Check:
    """Are the shards the bytes that the manifest promises?"""
    total = sum(len(shards) for shards in data.splits.values())
    why = "training reads what is there: a lost or damaged shard ends it with DataLossError, hours in, or quietly thins the data"
    problem = seen.problems["shards"]
    if not problem.count:
        return Check("shards", OK, f"{plural(total, 'file')}, {plural(len(seen), 'record')}: every byte is the manifest's", why)
    remedy = "copy the files again from where they were made, or delete the folder and run the same `rookery shard`"
    return Check(
        "shards", ERROR, f"{plural(problem.count, 'fault')} in {plural(total, 'file')}", why, remedy, tuple(problem.cases)
    )


def decoder(seen: Inspection) -> Check:
    """Does training's decoder take every record?"""
    why = "one record that cannot be decoded ends the training when its turn comes, which may be hours in"
    problem = seen.problems["decoder"]
    if not problem.count:
        looked = int(seen.seen.sum())
        found = f"{plural(looked, 'record')} passed through the decoder of training"
        if looked < len(seen):
            found += f"; of {plural(len(seen) - looked, 'other')} all but the picture was read"
        return Check("decoder", OK, found, why)
    remedy = "write the records as `rookery shard` does: tpu_train/input.py lists the keys"
    return Check("decoder", ERROR, f"{plural(problem.count, 'record')} cannot be decoded", why, remedy, tuple(problem.cases))


def image_size(data: Dataset, seen: Inspection) -> Check:
    """Has every picture the one size?"""
    side = data.patch_size
    why = "a TPU compiles its step for one shape; another one stops the input"
    problem = seen.problems["image_size"]
    looked = int(seen.seen.sum())
    if not problem.count:
        return Check("image size", OK, f"{plural(looked, 'picture')} of {side} × {side} px, as in the manifest", why)
    return Check(
        "image size", ERROR, f"{plural(problem.count, 'record')} not of {side} × {side} px", why,
        "shard again: `rookery shard` pads and snaps every patch to --patch_size", tuple(problem.cases),
    )  # fmt: skip


def ids(folder: str, seen: Inspection) -> Check:
    """Are patch numbers decimal, unique, known to the ledger, and small enough?"""
    why = (
        "Model Garden turns image/source_id into a number (tf.strings.to_number), hashes an empty one into 2²² buckets, and its "
        "COCO evaluation takes two patches of one number for one"
    )
    cases = list(seen.problems["source_id"].cases)
    count = seen.problems["source_id"].count
    order = np.argsort(seen.patch_id, kind="stable")
    ranked = seen.patch_id[order]
    twice = np.flatnonzero(ranked[1:] == ranked[:-1])
    count += len(twice)
    cases += [f"patch {ranked[i]} stands in {seen.place(order[i])} and in {seen.place(order[i + 1])}" for i in twice[:5]]
    path = os.path.join(folder, dataset.LEDGER)
    try:
        known = files.read_table(path, ["patch_id"])["patch_id"].to_numpy()
        unknown = np.flatnonzero(~np.isin(seen.patch_id, known))
        count += len(unknown)
        cases += [f"patch {seen.patch_id[i]} ({seen.place(i)}) is not in {dataset.LEDGER}" for i in unknown[:5]]
    except (OSError, ValueError) as error:
        count += 1
        cases.append(f"{dataset.LEDGER} cannot be read: {str(error).splitlines()[0]}")
    if count:
        remedy = "number the patches from 0 and write the number as a decimal string to image/source_id, as `rookery shard` does"
        return Check("ids", ERROR, f"{plural(count, 'fault')} in {plural(len(seen), 'number')}", why, remedy, tuple(cases), (1,))
    largest = int(ranked[-1]) if len(ranked) else 0
    if largest >= EXACT_IDS:
        return Check(
            "ids", WARNING, f"numbers go up to {largest:,}, beyond 2²⁴ = {EXACT_IDS:,}",
            "float32 tells whole numbers apart only below 2²⁴; Model Garden parses to int64 but keeps its own numbers below 2²² "
            "for this reason (official/vision/dataloaders/tf_example_decoder.py:26)",
            "split the survey into several datasets where numbers pass through float32; `rookery train` does not need it",
            traps=(1,),
        )  # fmt: skip
    found = f"{plural(len(seen), 'number')}, each once, decimal, in the ledger, at most {largest:,}"
    return Check("ids", OK, found, why, traps=(1,))


def label_ids(data: Dataset, seen: Inspection) -> Check:
    """Are labels 1 to the number of classes?"""
    known = len(data.classes)
    why = (
        f"0 is the background. RetinaNet takes labels from 1 with num_classes = classes + 1 = {known + 1}; YOLO takes labels "
        f"from 0 with num_classes = {known}, so subtract 1. One off, and the loss falls while AP stays 0"
    )
    low, high = seen.labels < 1, seen.labels > known
    wrong = np.flatnonzero(low | high)
    if not len(wrong):
        return Check("labels", OK, f"{plural(len(seen.labels), 'label')}, all from 1 to {known}", why, traps=(2, 3))
    cases = [f"label {seen.labels[i]} in {seen.place(seen.owner[i])} (patch {seen.patch_id[seen.owner[i]]})" for i in wrong[:10]]
    parts = [f"{plural(int(low.sum()), 'label')} below 1"] * bool(low.any())
    parts += [f"{plural(int(high.sum()), 'label')} above {known}"] * bool(high.any())
    if low.any() and not high.any() and not (seen.labels == known).any():
        remedy = f"the labels look as if counted from 0, YOLO's way: add 1 to each, so that they run from 1 to {known}"
    else:
        remedy = f"labels must be the ids of {dataset.LABELS}, 1 to {known}: shard again from the annotations"
    return Check("labels", ERROR, " and ".join(parts), why, remedy, tuple(cases), (2, 3))


def label_map(folder: str, data: Dataset, seen: Inspection) -> Check:
    """Do the label map, the manifest and the records name classes alike?"""
    why = "labels are numbers: with another list of names, every count goes to the wrong species and nothing else tells"
    problem = seen.problems["class_text"]
    cases = list(problem.cases)
    try:
        written = labels.read(os.path.join(folder, dataset.LABELS))
    except InputError as error:
        written, cases = data.classes, [str(error), *cases]
    if written != data.classes:
        cases.insert(0, f"{dataset.LABELS} has {', '.join(written)}; {dataset.MANIFEST} has {', '.join(data.classes)}")
    if not cases:
        return Check("label map", OK, f"{plural(len(data.classes), 'class', 'classes')}: map, manifest and records agree", why)
    found = f"{dataset.LABELS}, {dataset.MANIFEST} and the records disagree"
    remedy = f"restore {dataset.LABELS} and {dataset.MANIFEST} as `rookery shard` wrote them, or shard again with --label_map"
    return Check("label map", ERROR, found, why, remedy, tuple(cases), (2,))


def boxes(data: Dataset, seen: Inspection) -> Check:
    """Are boxes finite, upright and inside?"""
    why = "a NaN spreads to all weights in one step; Model Garden's converters drop boxes that leave the picture, without a word"
    box = seen.boxes
    finite = np.isfinite(box).all(axis=1)
    upright = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    inside = (box >= -TOLERANCE).all(axis=1) & (box <= 1 + TOLERANCE).all(axis=1)
    kinds = (("not a number", ~finite), ("without area", finite & ~upright), ("outside the patch", finite & upright & ~inside))
    parts, cases = [], []
    for what, flags in kinds:
        if flags.any():
            parts.append(f"{int(flags.sum()):,} {what}")
        for i in np.flatnonzero(flags)[:5]:
            at = seen.owner[i]
            corners = ", ".join(f"{side:.4g}" for side in box[i].tolist())
            cases.append(f"{what}: ({corners}) in {seen.place(at)} (patch {seen.patch_id[at]})")
    if parts:
        remedy = "clip boxes to the patch and leave out empty ones, as `rookery shard` does; coordinates are shares of the side"
        found = f"of {plural(len(box), 'box', 'boxes')}: {', '.join(parts)}"
        return Check("boxes", ERROR, found, why, remedy, tuple(cases), (11,))
    sides = np.sqrt(box_ops.area(box)) * data.patch_size
    tiny = int((sides < TINY_PX).sum())
    found = f"{plural(len(box), 'box', 'boxes')}, all inside, all with area"
    if tiny:
        found += f"; {plural(tiny, 'box', 'boxes')} smaller than {TINY_PX:g} px"
        remedy = "check that annotations and mosaic have the same resolution; resample the mosaic to larger objects"
        return Check("boxes", NOTE, found, f"a side below {TINY_PX:g} px is a handful of pixels", remedy, traps=(11,))
    return Check("boxes", OK, found, why, traps=(11,))
