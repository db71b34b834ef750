"""From a detector's raw heads to boxes: the reference, in numpy, that every other path must equal. docs/decoding.md explains it.

RetinaNet. For each anchor a (centre ya, xa; sides ha, wa) there are four regressions and one logit per class. The box is (Faster
R-CNN, Ren et al. 2015, https://arxiv.org/abs/1506.01497, eq. 2; Model Garden's official/vision/ops/box_ops.py, decode_boxes)

    y = ty / sy * ha + ya        h = ha * exp(min(th / sh, log(1000 / 16)))
    x = tx / sx * wa + xa        w = wa * exp(min(tw / sw, log(1000 / 16)))

with (y, x) its centre and (sy, sx, sh, sw) the box coder's scales. The score is the logit's sigmoid, one class at a time, without
a background class (focal loss, Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 4). The TensorFlow-1 RetinaNet of
Cloud TPU (tensorflow/tpu, models/official/retinanet/anchors.py, decode_box_outputs) is the same without scales and limit.

YOLO. The cell (i, j) of a level of stride d px has, for each anchor (wa, ha) px, the numbers tx, ty, tw, th, to and one logit per
class. With S the sigmoid and s the level's scale_xy (Model Garden's official/projects/yolo/ops/loss_utils.py)

    x = (j + s S(tx) - (s - 1) / 2) d        w = wa exp(tw)        or, "scaled",  w = wa (2 S(tw))^2
    y = (i + s S(ty) - (s - 1) / 2) d        h = ha exp(th)                       h = ha (2 S(th))^2

(YOLOv3, https://arxiv.org/abs/1804.02767, section 2.1; scale_xy from YOLOv4, https://arxiv.org/abs/2004.10934, "grid
sensitivity"; "scaled" from Scaled-YOLOv4, https://arxiv.org/abs/2011.08036). The score is S(to) S(class logit).
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from inference import suppression
from survey import boxes
from survey.errors import InputError
from survey.heads import FLAT, LARGEST_LOG_RATIO, SCALED, RetinaNetHeads, YoloHeads
from survey.labels import LabelMap
from survey.model import ModelSpec

# How far below the floor a logit may lie and still get its sigmoid computed: more than float32 rounding, less than any work.
_LOGIT_SLACK = 1e-3

# Where there are 50 times as many candidates as detections are wanted, the best 8 times as many are looked at first.
_MANY, _SOME = 50, 8
_STRIDE = 16  # of the anchors by which that is judged

# Candidates of several images that are suppressed together, at most: more do not fit the processor's cache.
_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class DecodeSpec:
    """The part of a model's spec that decoding needs; `inference.decode_verb` reads one from a file.

    Attributes:
      image_size: side of the square input in pixels.
      classes: the label map, without a background.
      heads: what the raw arrays are.
      score_floor: detections below are not kept.
      nms_iou: boxes of one class that overlap more than this are the same object.
      suppression: "class", "agnostic", "soft_linear" or "soft_gaussian"; see `inference.suppression`.
    """

    image_size: int
    classes: LabelMap
    heads: RetinaNetHeads | YoloHeads
    score_floor: float
    nms_iou: float
    suppression: str = suppression.CLASS


class Found(NamedTuple):
    """What one patch shows, best score first.

    Attributes:
      boxes_patch_px: float32 [M, 4], yxyx, clipped to the patch.
      scores: float32 [M], in [score_floor, 1].
      class_ids: int32 [M], from 1.
    """

    boxes_patch_px: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


class Decoder:
    """Turns a batch of raw heads into the boxes of each image; made once, used for every batch.

    Scores come first and only survivors are decoded: of the tens of thousands of anchors of a patch, all but some hundreds are
    background, and their boxes need not exist.

    Args:
      spec: of the model that gives the arrays.
      most: keep so many detections an image, the best ones; None for all. What it keeps is the same as the first of all.
      threads: that share the images of a batch; one where the model works on the same cores meanwhile.

    Raises:
      InputError: the spec contradicts itself.
    """

    def __init__(self, spec: ModelSpec | DecodeSpec, most: int | None = None, threads: int = 1) -> None:
        self._spec = spec
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._heads = spec.heads
        self._method = spec.suppression if isinstance(spec, DecodeSpec) else suppression.CLASS
        self._most = most
        if self._method not in suppression.METHODS:
            raise InputError(f"suppression={self._method!r}: must be one of {', '.join(suppression.METHODS)}")
        if not 0 <= spec.nms_iou <= 1:
            raise InputError(f"nms_iou={spec.nms_iou}: must be from 0 to 1")
        if not spec.classes:
            raise InputError("classes is empty: must name the classes in the order of the score columns")
        self._least = _least_logit(spec.score_floor)
        self._shapes = spec.heads.shapes(spec.image_size, len(spec.classes))
        self._anchors: dict[str, np.ndarray] = {}  # by the name of the array of boxes
        if isinstance(spec.heads, RetinaNetHeads):
            anchors, counts = spec.heads.anchors.boxes(spec.image_size), spec.heads.anchors.counts(spec.image_size)
            if spec.heads.layout == FLAT:
                self._anchors["raw_boxes"] = anchors
            else:
                bounds = np.cumsum(list(counts.values()))[:-1]
                for level, part in zip(counts, np.split(anchors, bounds), strict=True):
                    self._anchors[f"box_outputs_{level}"] = part

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the raw arrays that it needs."""
        return tuple(self._shapes)

    def check(self, raw: Mapping[str, np.ndarray]) -> None:
        """Refuses arrays that cannot belong to the spec; further arrays are ignored.

        Args:
          raw: arrays by name.

        Raises:
          InputError: one is missing, has another shape, or is not a number everywhere; prints all shapes.
        """
        self._check_shapes(raw)
        for name in self._shapes:
            if raw[name].size and np.isnan(raw[name].min()):  # the smallest is NaN where any is
                count = int(np.isnan(raw[name]).sum())
                raise InputError(f"{name} holds {count} values that are not a number: the model diverged; use another checkpoint")

    def _check_shapes(self, raw: Mapping[str, np.ndarray]) -> None:
        batches = {raw[name].shape[0] for name in self._shapes if name in raw and raw[name].ndim}
        fits = all(name in raw and raw[name].shape[1:] == shape and raw[name].ndim for name, shape in self._shapes.items())
        if not fits or len(batches) != 1:
            wanted = "; ".join(f"{name} [B, {', '.join(map(str, shape))}]" for name, shape in self._shapes.items())
            found = "; ".join(f"{name} {list(value.shape)}" for name, value in raw.items()) or "nothing"
            raise InputError(
                f"the raw arrays do not fit the spec: image_size={self._spec.image_size} with its {self._heads.kind} heads and "
                f"{len(self._spec.classes)} classes asks for {wanted}, one B for all; found {found}: export the model again with "
                "`rookery export`, or correct image_size, classes or heads (docs/decoding.md)"
            )

    def __call__(self, raw: Mapping[str, np.ndarray]) -> list[Found]:
        """What each image of a batch shows; there is no cap on the number of objects.

        Args:
          raw: arrays by name, with the shapes of `survey.heads`; float32, or float16 or bfloat16, which are widened first.

        Returns:
          One `Found` per image.

        Raises:
          InputError: the arrays contradict the spec.
        """
        raw = {name: np.asarray(value) for name, value in raw.items()}
        self._check_shapes(raw)
        arrays = {name: np.ascontiguousarray(raw[name], np.float32) for name in self._shapes}
        if self._pool is None:
            return self._batch(arrays, self._most)
        images = len(arrays[self.outputs[0]])
        bounds = [images * k // self._threads for k in range(self._threads + 1)]
        shares = [{name: array[low:high] for name, array in arrays.items()} for low, high in pairwise(bounds) if low < high]
        return [one for share in self._pool.map(lambda share: self._batch(share, self._most), shares) for one in share]

    def _batch(self, raw: dict[str, np.ndarray], most: int | None) -> list[Found]:
        """All images at once, since most calls into numpy cost more than what they do for one image."""
        images = len(raw[self.outputs[0]])
        if isinstance(self._heads, RetinaNetHeads):
            parts, complete = self._retinanet(raw, self._heads, most)
        else:
            parts, complete = self._yolo(raw, self._heads), np.ones(images, bool)
        if images > 1 and sum(len(part.scores) for part in parts) > _AT_ONCE:
            return [one for i in range(images) for one in self._batch({n: a[i : i + 1] for n, a in raw.items()}, most)]
        found = self._suppressed(_Candidates(*(np.concatenate(part) for part in zip(*parts, strict=True))), images)
        for i in range(images):
            # Suppression goes from the best down, so that the first `most` of the best candidates are the first of all.
            if most is not None and not complete[i] and len(found[i].scores) < most:
                found[i : i + 1] = self._batch({name: array[i : i + 1] for name, array in raw.items()}, None)
        return [Found(*(part[: self._most] for part in one)) for one in found]

    def _suppressed(self, given: "_Candidates", images: int) -> list[Found]:
        """What of the candidates each image shows."""
        spec = self._spec
        clipped = boxes.clip(given.boxes, spec.image_size, spec.image_size)
        # A box beyond the patch shows nothing. The floor is compared with the score itself, after the generous look at logits.
        alive = (boxes.area(clipped) > 0) & (given.scores >= np.float32(spec.score_floor))
        image, found, scores, columns = (part[alive] for part in (given.image, clipped, given.scores, given.columns))
        if self._method in (suppression.CLASS, suppression.AGNOSTIC):
            groups = image * len(spec.classes) + columns if self._method == suppression.CLASS else image
            kept = suppression.hard(found, scores, groups, spec.nms_iou)
            scores = scores[kept]
        else:
            pieces = []
            for i in range(images):
                mine = np.flatnonzero(image == i)
                chosen, lowered = suppression.soft(
                    found[mine], scores[mine], columns[mine], spec.nms_iou, spec.score_floor, self._method
                )
                pieces.append((mine[chosen], lowered))
            kept, scores = (np.concatenate(part) for part in zip(*pieces, strict=True))
        by_image = np.argsort(image[kept], kind="stable")
        kept, scores = kept[by_image], scores[by_image]
        bounds = np.searchsorted(image[kept], np.arange(1, images))
        parts = found[kept], scores, (columns[kept] + 1).astype(np.int32)
        return [Found(*one) for one in zip(*(np.split(part, bounds) for part in parts), strict=True)]

    def _retinanet(
        self, raw: dict[str, np.ndarray], heads: RetinaNetHeads, most: int | None
    ) -> tuple[list["_Candidates"], np.ndarray]:
        """The candidates of each array; whether these are all, bool [B]."""
        width, images = len(self._spec.classes) + heads.background, len(raw[self.outputs[0]])
        names = {name: "raw_scores" if heads.layout == FLAT else name.replace("box_", "cls_") for name in self._anchors}
        least = np.full((images, 1), self._least, np.float32)
        if most is not None and self._method in (suppression.CLASS, suppression.AGNOSTIC):
            some = [raw[name].reshape(images, -1, width)[:, ::_STRIDE, heads.background :] for name in names.values()]
            for i in range(images):
                least[i] = max(self._least, _least_of_best([part[i].ravel() for part in some], self._least, most))
        parts = []
        for name, anchors in self._anchors.items():
            logits = raw[names[name]].reshape(images, -1)
            chosen = _not_below(logits, least)
            values = logits.reshape(-1)
            self._check_numbers(raw, values[chosen])
            if heads.background:
                chosen = chosen[chosen % width > 0]
            rows = chosen // width
            image = rows // len(anchors)
            regressions = raw[name].reshape(-1, 4)[rows]
            self._check_numbers(raw, regressions)
            found = decode_boxes(regressions, anchors[rows - image * len(anchors)], heads.box_scales, heads.largest_log_ratio)
            parts.append(_Candidates(image, found, sigmoid(values[chosen]), chosen - rows * width - heads.background))
        return parts, least[:, 0] <= np.float32(self._least)

    def _yolo(self, raw: dict[str, np.ndarray], heads: YoloHeads) -> list["_Candidates"]:
        """The candidates of each level."""
        parts = []
        scales = heads.scale_xy or (1.0,) * len(heads.levels)
        for level, anchors_px, scale_xy in zip(heads.levels, heads.anchors_px, scales, strict=True):
            side = self._spec.image_size >> level
            values = raw[f"raw_output_{level}"].reshape(-1, 5 + len(self._spec.classes))
            # A product of sigmoids is below each of them.
            likely = _not_below(values[None, :, 4], np.full((1, 1), self._least, np.float32))
            values = values[likely]
            self._check_numbers(raw, values)
            scores = sigmoid(values[:, 4:5]) * sigmoid(values[:, 5:])
            rows, columns = np.nonzero(scores >= np.float32(self._spec.score_floor))
            cells, which = np.divmod(likely[rows], len(anchors_px))
            image, cells = np.divmod(cells, side * side)
            grid = np.stack(np.divmod(cells, side), axis=1)  # (row, column)
            sides = np.array(anchors_px, np.float32)[which, ::-1]  # (height, width)
            found = decode_yolo(values[rows, :4], grid, sides, 2**level, scale_xy, heads.box_type)
            parts.append(_Candidates(image, found, scores[rows, columns], columns))
        return parts

    def _check_numbers(self, raw: dict[str, np.ndarray], candidates: np.ndarray) -> None:
        """Refuses candidates that are not numbers: a look at these costs nothing, at whole arrays a tenth of all."""
        if np.isnan(candidates).any():
            self.check(raw)


class _Candidates(NamedTuple):
    """What may be objects, before suppression.

    Attributes:
      image: int [M], number in the batch.
      boxes: float32 [M, 4], yxyx in patch pixels, not clipped.
      scores: float32 [M].
      columns: int [M], class from 0.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    columns: np.ndarray


def _not_below(values: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Where values [B, N] reach least [B, 1] or are not a number, as ascending flat indices; few do: eight at a time."""
    chosen = np.less(values, least).reshape(-1)
    np.logical_not(chosen, out=chosen)
    whole = len(chosen) // 8 * 8
    eights = np.flatnonzero(chosen[:whole].view(np.uint64))
    places = np.flatnonzero(chosen[:whole].reshape(-1, 8)[eights])
    return np.concatenate([eights[places >> 3] * 8 + (places & 7), whole + np.flatnonzero(chosen[whole:])])


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow: exp is only taken of numbers that are not positive.

    Args:
      logits: any shape, float.

    Returns:
      The same shape and type, in [0, 1].
    """
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype)


def decode_boxes(
    raw_boxes: np.ndarray,
    anchors: np.ndarray,
    box_scales: tuple[float, float, float, float],
    largest_log_ratio: float = LARGEST_LOG_RATIO,
) -> np.ndarray:
    """Boxes of a RetinaNet's regressions; the formula stands at the top of this module.

    Args:
      raw_boxes: float [..., 4], (ty, tx, th, tw).
      anchors: float32 [..., 4], yxyx in patch pixels.
      box_scales: the box coder's (sy, sx, sh, sw).
      largest_log_ratio: limit of th / sh and tw / sw.

    Returns:
      float32 [..., 4], yxyx in patch pixels, not clipped to the patch.
    """
    scaled = raw_boxes.astype(np.float32) / np.array(box_scales, np.float32)
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = scaled[..., :2] * sides + (anchors[..., :2] + np.float32(0.5) * sides)
    sides = np.exp(np.minimum(scaled[..., 2:], np.float32(largest_log_ratio))) * sides
    low = centers - np.float32(0.5) * sides
    return np.concatenate([low, low + sides], axis=-1)


def encode_boxes(boxes_px: np.ndarray, anchors: np.ndarray, box_scales: tuple[float, float, float, float]) -> np.ndarray:
    """Regressions of boxes, the inverse of `decode_boxes` for sides up to 62.5 times the anchor's.

    Args:
      boxes_px: float [..., 4], yxyx, with sides above 0.
      anchors: float [..., 4], yxyx in the same pixels.
      box_scales: the box coder's (sy, sx, sh, sw).

    Returns:
      float32 [..., 4], (ty, tx, th, tw).
    """
    sides, anchor_sides = boxes_px[..., 2:] - boxes_px[..., :2], anchors[..., 2:] - anchors[..., :2]
    offsets = ((boxes_px[..., :2] + boxes_px[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / 2 / anchor_sides
    raw = np.concatenate([offsets, np.log(sides / anchor_sides)], axis=-1)
    return (raw * np.array(box_scales)).astype(np.float32)


def decode_yolo(
    raw: np.ndarray, cells: np.ndarray, anchor_sides_px: np.ndarray, stride: int, scale_xy: float, box_type: str
) -> np.ndarray:
    """Boxes of a YOLO's regressions; the formula stands at the top of this module.

    Args:
      raw: float32 [M, 4], (tx, ty, tw, th): x comes first in YOLO.
      cells: int [M, 2], (row, column) of the cell.
      anchor_sides_px: float32 [M, 2], (height, width).
      stride: pixels a cell.
      scale_xy: of the level.
      box_type: "original" or "scaled".

    Returns:
      float32 [M, 4], yxyx in patch pixels, not clipped to the patch.
    """
    t_center, t_side = raw[:, 1::-1], raw[:, 3:1:-1]  # (y, x), (h, w)
    scale = np.float32(scale_xy)
    centers = (cells.astype(np.float32) + sigmoid(t_center) * scale - np.float32(0.5) * (scale - 1)) * np.float32(stride)
    with np.errstate(over="ignore"):  # an untrained head may say e^100; an infinite side is clipped to the patch like a long one
        factor = np.square(2 * sigmoid(t_side)) if box_type == SCALED else np.exp(t_side)
        half = factor * anchor_sides_px / 2
    return np.concatenate([centers - half, centers + half], axis=1)


def _least_of_best(some: list[np.ndarray], least: float, most: int) -> float:
    """The logit from which a candidate is worth a look when `most` detections are wanted; -inf where all are.

    Judged by every `_STRIDE`-th anchor: where that misleads, too few are found, and the caller looks at all.
    """
    sample = np.concatenate(some)
    if np.count_nonzero(sample >= least) * _STRIDE <= _MANY * most:
        return -math.inf
    last = len(sample) - max(_SOME * most // _STRIDE, 1)
    return float(np.partition(sample, last)[last])


def _least_logit(score_floor: float) -> float:
    """A logit such that every score of the floor or more lies above it."""
    if not 0 <= score_floor < 1:
        raise InputError(f"score_floor={score_floor}: must be from 0 to below 1")
    return -math.inf if score_floor == 0 else math.log(score_floor / (1 - score_floor)) - _LOGIT_SLACK
