"""Does the content of a dataset suit training? Sizes, caps, balance and leaks, from what was read (`inspection`) to verdicts."""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from survey import anchors as anchor_fit
from survey import boxes as box_ops
from survey import dataset, files
from survey.anchors import AnchorSpec
from survey.dataset import Dataset
from survey.errors import InputError
from tpu_train import plan
from tpu_train.checks import ERROR, NOTE, OK, WARNING, Check, plural
from tpu_train.duplicates import Search
from tpu_train.inspection import Inspection
from tpu_train.options import Options
from tpu_train.plan import GARDEN_ANCHORS

YOLO_TILE = 50  # official/projects/yolo/ops/loss_utils.py: TILE_SIZE


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit on objects per patch.

    Attributes:
      where: whose, by its configuration key.
      limit: objects.
      patches: that hold more.
      objects: that are lost.
    """

    where: str
    limit: int
    patches: int
    objects: int


@dataclass(frozen=True)
class Anchors:
    """How well anchors fit the training boxes.

    Attributes:
      spec: the anchors that training would use.
      sides_px: [M] sqrt(area) of the boxes of all splits.
      best: [M] IoU with the best anchor.
      best_garden: [M] the same for Model Garden's default anchors.
      match, unmatched: IoU from which training calls an anchor positive, and below which negative.
    """

    spec: AnchorSpec
    sides_px: np.ndarray
    best: np.ndarray
    best_garden: np.ndarray
    match: float = 0.5
    unmatched: float = 0.4


def of_content(folder: str, data: Dataset, seen: Inspection, search: Search, fit: Anchors) -> list[Check]:
    """Whether the content suits training."""
    return [
        training(folder, data),
        anchors(fit),
        objects_per_patch(data, seen),
        classes(data, seen),
        empty(data, seen),
        shared_pixels(folder),
        near_duplicates(seen, search),
        black(seen),
    ]


def training(folder: str, data: Dataset) -> Check:
    """Would `rookery train` take it, with default flags?"""
    why = "a refusal now costs nothing; on a TPU it costs the queue"
    try:
        settled = plan.make(Options(dataset=folder, model_dir=""), data)
    except InputError as error:
        return Check("training", ERROR, "`rookery train` refuses this dataset", why, "see the message", (str(error),), (9,))
    spec = settled.anchors
    found = (
        f"crops of {settled.image_size} px, levels {spec.levels[0]} to {spec.levels[-1]}, "
        f"room for {plural(settled.max_boxes, 'object')}"
    )
    padded = _round_up(data.patch_size, 2**7)
    if data.patch_size % 32:
        why = (
            "`rookery train` takes it with the levels that these boxes ask for, but backbones end at stride 32: YOLO refuses it, "
            f"and Model Garden's RetinaNet pads it to {padded} px"
        )
        remedy = f"shard with --patch_size {_round_up(data.patch_size, 32)}"
        return Check("training", WARNING, f"{found}; {data.patch_size} px is no multiple of 32", why, remedy, traps=(9,))
    if padded != data.patch_size:
        waste = padded**2 / data.patch_size**2 - 1
        found += f" (Model Garden's own level 7 would pad to {padded} px, {waste:.0%} more work)"
    return Check("training", OK, found, why, traps=(9,))


def fit_anchors(folder: str, data: Dataset, seen: Inspection) -> Anchors:
    """Compares the boxes with the anchors that training would use."""
    try:
        spec = plan.make(Options(dataset=folder, model_dir=""), data).anchors
        assert isinstance(spec, AnchorSpec)  # a RetinaNet's, which is the default
    except InputError:
        spec = anchor_fit.fit(data.statistics.box_sides_px)
    good = np.isfinite(seen.boxes).all(axis=1) & (box_ops.area(seen.boxes) > 0)
    px = seen.boxes[good] * np.float32(data.patch_size)
    return Anchors(
        spec,
        np.sqrt(box_ops.area(px)),
        best_anchor_iou(px, spec, data.patch_size),
        best_anchor_iou(px, GARDEN_ANCHORS, _round_up(data.patch_size, 2**GARDEN_ANCHORS.max_level)),
    )


def best_anchor_iou(boxes_px: np.ndarray, spec: AnchorSpec, image_size: int) -> np.ndarray:
    """IoU of each box with the best of all anchors at all their positions.

    For one shape of anchor the shared area falls with the distance of the centres along each axis alone, so the best one of a
    shape is at the nearest centre of its grid: 3 * 3 shapes a level instead of tens of thousands of anchors.

    Args:
      boxes_px: [M, 4] yxyx.
      spec: the anchors.
      image_size: side of the picture in px.

    Returns:
      [M], in [0, 1].
    """
    best = np.zeros(len(boxes_px))
    centre = box_ops.centers(boxes_px)
    for level in spec.levels:
        stride = 2**level
        cells = max(1, image_size // stride)
        nearest = (np.clip(np.floor(centre / stride), 0, cells - 1) + 0.5) * stride  # [M, 2]
        for half in spec.sides_px(level) / 2:
            best = np.maximum(best, box_ops.paired_iou(boxes_px, np.concatenate([nearest - half, nearest + half], axis=1)))
    return best


def anchors(fit: Anchors) -> Check:
    """Do the anchors reach the boxes?"""
    why = (
        f"only anchors with IoU of {fit.match:g} or more learn a box, besides the one best anchor of each; a box that none "
        "reaches gets a single weak example a step, and detectors miss its kind"
    )
    if not len(fit.best):
        return Check("anchors", OK, "no box to compare with", why, traps=(9,))
    below, far, garden = (float((iou < at).mean()) for iou, at in
                          ((fit.best, fit.match), (fit.best, fit.unmatched), (fit.best_garden, fit.match)))  # fmt: skip
    found = f"{below:.1%} of the boxes have no anchor with IoU ≥ {fit.match:g}, {far:.1%} none with {fit.unmatched:g}"
    found += (
        f" (Model Garden's default anchors, from 32 px: {garden:.1%} and {float((fit.best_garden < fit.unmatched).mean()):.1%})"
    )
    if far > 0.05 or below > 0.2:
        missed = np.median(fit.sides_px[fit.best < fit.match])
        own = np.median(fit.sides_px)
        remedy = (
            f"those boxes have a median side of {missed:.0f} px, all boxes {own:.0f} px: "
            + ("try a smaller --anchor_size in training, or a finer resolution" if missed < own else "try a larger --anchor_size")
            + "; where boxes are long and thin, add aspect ratios: --params_override task.model.anchor.aspect_ratios=[...]"
        )
        return Check("anchors", WARNING, found, why, remedy, traps=(9,))
    return Check("anchors", OK, found, why, traps=(9,))


def caps(data: Dataset, seen: Inspection) -> list[Cap]:
    """Every limit on objects per patch, the stock ones of Model Garden first."""
    largest = max(1, data.statistics.max_objects_per_patch)
    limits = [
        ("Model Garden RetinaNet: train_data.parser.max_num_instances", 100),
        ("Model Garden RetinaNet: detection_generator.max_num_detections", 100),
        ("Model Garden RetinaNet: max_num_eval_detections", 100),
        ("Model Garden YOLO: parser.max_num_instances", 200),
        ("Model Garden YOLO: detection_generator.max_boxes", 200),
        ("Model Garden YOLO: max_num_eval_detections", 100),
        ("Model Garden YOLO: ignore search, (200 // 50 − 1) tiles of 50", (200 // YOLO_TILE - 1) * YOLO_TILE),
        ("rookery train: max_boxes, from the manifest", largest),
        ("rookery train: max_num_detections", max(100, math.ceil(2 * largest / 100) * 100)),
    ]
    over = [np.maximum(seen.objects - limit, 0) for _, limit in limits]
    return [Cap(where, limit, int((o > 0).sum()), int(o.sum())) for (where, limit), o in zip(limits, over, strict=True)]


def objects_per_patch(data: Dataset, seen: Inspection) -> Check:
    """Do all objects of a patch fit under every cap?"""
    why = "objects beyond a cap are cut off without a word, and what the detector then finds of them counts as false"
    most = int(seen.objects.max(initial=0))
    stated = data.statistics.max_objects_per_patch
    fullest = tuple(
        f"{seen.objects[i]} objects in {seen.place(i)} (patch {seen.patch_id[i]})"
        for i in np.argsort(-seen.objects, kind="stable")[:5]
        if seen.objects[i] > min(stated, 100)
    )
    if most > stated:
        found = f"a patch holds {most} objects, the manifest says at most {stated}: `rookery train` would cut {most - stated} off"
        remedy = f"shard again, so that the manifest is true; or train with --max_boxes {most}"
        return Check("objects per patch", ERROR, found, why, remedy, fullest, (4, 5))
    hit = [cap for cap in caps(data, seen)[:7] if cap.patches]
    if hit:
        over = plural(hit[0].patches, "patch", "patches")
        found = f"up to {most} objects a patch; {over} over Model Garden's default of {hit[0].limit}"
        spare = _round_up(most, YOLO_TILE) + YOLO_TILE
        remedy = (
            f"nothing to do for `rookery train`, which makes room for {stated}. In a configuration of your own set RetinaNet's "
            f"max_num_instances={most} and max_num_detections={max(100, 2 * most)} (other than 100, pycocotools' headline AP is "
            f"−1; AP50 stays right), YOLO's max_num_instances={spare}, a multiple of 50 with 50 to spare; or shard smaller "
            "patches"
        )
        return Check("objects per patch", WARNING, found, why, remedy, fullest, (4, 5))
    return Check("objects per patch", OK, f"at most {most}, below every cap of Model Garden and ours", why, traps=(4, 5))


def class_table(data: Dataset, seen: Inspection) -> np.ndarray:
    """Boxes by class and split, int [classes, splits]."""
    known = (seen.labels >= 1) & (seen.labels <= len(data.classes))
    split = seen.split[seen.owner]
    table = np.zeros((len(data.classes), len(seen.splits)), int)
    np.add.at(table, (seen.labels[known] - 1, split[known]), 1)
    return table


def classes(data: Dataset, seen: Inspection) -> Check:
    """Has every class examples in every split?"""
    why = "a class without examples in train is never learned; without examples elsewhere nothing tells how well it was"
    table = class_table(data, seen)
    cases = [
        f"{name} has no box in {split}{', but ' + format(table[i].sum(), ',') + ' elsewhere' if table[i].sum() else ''}"
        for i, name in enumerate(data.classes)
        for j, split in enumerate(seen.splits)
        if not table[i, j]
    ]
    total = table.sum(axis=1)
    shares = ", ".join(f"{name} {number:,}" for name, number in list(zip(data.classes, total.tolist(), strict=True))[:6])
    shares += f" and {len(total) - 6} more" if len(total) > 6 else ""
    if cases:
        remedy = "annotate more of it, move a mosaic to the other split, or leave the class out of the label map"
        return Check("classes", WARNING, f"{plural(len(cases), 'gap')}: {cases[0]}", why, remedy, tuple(cases))
    ratio = max(total) / min(total)  # no class is without boxes here
    if ratio > 100:
        return Check(
            "classes", NOTE, f"{shares}: {ratio:,.0f} times between most and least", why, "look at AP by class, not the mean"
        )
    return Check("classes", OK, shares, why)


def empty(data: Dataset, seen: Inspection) -> Check:
    """How much of each split is background?"""
    why = "patches without objects teach what is not an object; too many of them drown the rest"
    parts, worst_share, none = [], 0.0, False
    for i, name in enumerate(seen.splits):
        mine = seen.objects[seen.split == i]
        share = float((mine == 0).mean()) if len(mine) else 0.0
        parts.append(f"{name} {share:.0%}")
        if i == 0:
            worst_share, none = share, len(mine) > 0 and share == 0.0
    found = "without objects: " + ", ".join(parts)
    if worst_share > 0.9:
        return Check(
            "empty patches", WARNING, found, why, "leave empty patches out of the first split until objects are in a tenth of it"
        )
    if none:
        remedy = "where the survey has ground without objects, let some of it into the dataset: it teaches what to pass by"
        return Check("empty patches", NOTE, found, why, remedy)
    return Check("empty patches", OK, found, why)


def shared_pixels(folder: str) -> Check:
    """Do splits share pixels, by the ledger's windows?"""
    why = "an object that is in train and in val is remembered, not found: validation then praises a model that fails elsewhere"
    try:
        columns = ["mosaic", "split", "patch_id", "y0", "x0", "y1", "x1"]
        table = files.read_table(os.path.join(folder, dataset.LEDGER), columns).to_pydict()
    except (OSError, ValueError) as error:
        return Check(
            "splits", ERROR, f"{dataset.LEDGER} cannot be read", why, "restore it, or shard again", (str(error).splitlines()[0],)
        )
    pairs = list(_overlaps({name: np.array(column) for name, column in table.items()}))
    if pairs:
        cases = tuple(f"patches {a} ({s}) and {b} ({t}) of {m} overlap" for m, s, a, t, b in pairs[:10])
        remedy = "shard again: `rookery shard` leaves out the patches between splits"
        return Check(
            "splits", ERROR, f"{plural(len(pairs), 'pair')} of patches of different splits share pixels", why, remedy, cases
        )
    names = sorted(set(table["split"]))
    return Check("splits", OK, f"{', '.join(names)} share no pixel: {plural(len(table['split']), 'window')} compared", why)


def _overlaps(ledger: dict[str, np.ndarray]) -> Iterator[tuple[str, str, int, str, int]]:
    for mosaic in np.unique(ledger["mosaic"]):
        here = {name: column[ledger["mosaic"] == mosaic] for name, column in ledger.items()}
        windows = np.stack([here[side] for side in ("y0", "x0", "y1", "x1")], axis=1).astype(float)
        for one, other in itertools.combinations(np.unique(here["split"]), 2):
            a, b = (np.flatnonzero(here["split"] == split) for split in (one, other))
            i, j, _ = box_ops.overlapping_pairs(windows[a], windows[b])
            ids_ = here["patch_id"]
            yield from ((str(mosaic), str(one), ids_[a[m]], str(other), ids_[b[n]]) for m, n in zip(i, j, strict=True))


def near_duplicates(seen: Inspection, search: Search) -> Check:
    """Do patches of different splits show the same?"""
    why = "a mosaic delivered twice, or a photo under two names, puts what is learned into what is validated"
    found = f"{plural(search.compared, 'patch', 'patches')} compared by fingerprint, candidates by their pixels"
    found += f"; {search.even:,} too even to tell" if search.even else ""
    if not search.pairs:
        return Check("near-duplicates", OK, f"none between splits: {found}", why)
    cases = tuple(
        f"patch {seen.patch_id[p.first]} ({seen.splits[seen.split[p.first]]}) and patch {seen.patch_id[p.second]} "
        f"({seen.splits[seen.split[p.second]]}): correlation {p.correlation:.3f}"
        for p in search.pairs[:10]
    )
    more = f"; {search.unverified:,} more look alike" if search.unverified else ""
    pairs = f"{plural(len(search.pairs), 'pair')} of patches in different splits show the same{more}"
    return Check("near-duplicates", ERROR, pairs, why, "take one of the two mosaics out, or put both into one split", cases)


def black(seen: Inspection) -> Check:
    """How much is padding or nodata?"""
    why = "padding is paid for like pixels, and its border looks like an edge to a detector"
    share = seen.black[seen.seen]
    if not len(share):
        return Check("black", OK, "no picture was decoded", why)
    mostly = int((share > 0.5).sum())
    found = f"{float(share.mean()):.1%} of the pixels are black, {plural(mostly, 'patch', 'patches')} for more than half"
    if mostly > 0.1 * len(share) or share.mean() > 0.2:
        remedy = "crop mosaics to their content; pick a --patch_size below the size of the mosaics"
        return Check("black", WARNING, found, why, remedy)
    return Check("black", OK, found, why)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
