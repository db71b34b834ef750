"""How fast raw heads become boxes, beside Model Garden's detection generator on the same tensors.

    python benchmarks/decode.py [--seconds 5] [--repeats 3]

640 px, 76,725 anchors, 9 classes, batches of 8, the heads per level as Model Garden's model gives them, 100 detections an image,
score floor 0.05, NMS at IoU 0.5. Four kinds of heads:

    prior     independent logits N(-4.6, 0.5): what the focal loss starts from, a score of 0.01; some 300 candidates an image
    objects   logits of a trained model: 60 objects an image, each seen by the anchors around it, and a dark background
    noise     independent logits N(-5, 1): about 13,600 candidates an image, fewer than Model Garden's cap of 5,000 a class
    all pass  independent logits N(0, 1): every other anchor is a candidate of every class, as an untrained head can be

Before anything is timed, ours must equal `v2` box by box. Contenders take turns; the best of the repeats is printed, for a
machine that does other things too. Ours runs on one core, TensorFlow on all.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import tensorflow as tf
from official.vision.modeling.layers.detection_generator import MultilevelDetectionGenerator

from inference.decode import Decoder, DecodeSpec, encode_boxes
from survey import boxes
from survey.anchors import AnchorSpec
from survey.heads import LEVELS, RetinaNetHeads

SIZE, CLASSES, BATCH, MOST = 640, 9, 8, 100
ANCHORS = AnchorSpec(3, 7, 3, (0.5, 1.0, 2.0), 4.0)
SPEC = DecodeSpec(
    image_size=SIZE,
    classes=tuple(f"class_{i}" for i in range(CLASSES)),
    heads=RetinaNetHeads(ANCHORS, (1.0, 1.0, 1.0, 1.0), LEVELS, background=True),
    score_floor=0.05,
    nms_iou=0.5,
)
# Mean and standard deviation of the background's logits.
KINDS = {"prior": (-4.6, 0.5), "objects": (-7.0, 1.0), "noise": (-5.0, 1.0), "all pass": (0.0, 1.0)}
OBJECTS = 60


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="timed, of each contender in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{SIZE} px, {CLASSES} classes, batch {BATCH}, {os.cpu_count()} cores; images a second, and times Model Garden's v2")
    print(f"{'heads':10}{'candidates':>12}{'MG v2':>10}{'MG batched':>12}{'rookery':>16}{'rookery, no cap':>18}  the same as v2")
    for kind in KINDS:
        print(row(kind, options.seconds, options.repeats), flush=True)


def row(kind: str, seconds: float, repeats: int) -> str:
    """One line of the table."""
    raw = heads(kind)
    contenders: dict[str, Callable[[], Any]] = {
        "v2": garden("v2", raw),
        "batched": garden("batched", raw),
        "ours": ours(raw, MOST),
        "all": ours(raw, None),
    }
    checked = compare(contenders["ours"](), contenders["v2"]())
    if kind == "all pass":
        del contenders["all"]  # a detector with 340,000 candidates an image has nothing to say
    rates = dict.fromkeys(contenders, 0.0)
    for _ in range(repeats):
        for name, contender in contenders.items():
            rates[name] = max(rates[name], rate(contender, seconds))
    cells = [f"{rates[name]:.0f} ({rates[name] / rates['v2']:.1f}x)" if name in rates else "" for name in ("ours", "all")]
    logits = [value for name, value in raw.items() if name.startswith("cls")]
    passing = sum(int((v.reshape(BATCH, -1, CLASSES + 1)[..., 1:] > np.log(0.05 / 0.95)).sum()) for v in logits) / BATCH
    return f"{kind:10}{passing:12,.0f}{rates['v2']:10.0f}{rates['batched']:12.0f}{cells[0]:>16}{cells[1]:>18}  {checked}"


def heads(kind: str) -> dict[str, np.ndarray]:
    """Raw arrays by name."""
    rng = np.random.default_rng(0)
    anchors = ANCHORS.boxes(SIZE)
    raw_boxes = rng.normal(0, 0.3, (BATCH, len(anchors), 4)).astype(np.float32)
    raw_scores = rng.normal(*KINDS[kind], (BATCH, len(anchors), CLASSES + 1)).astype(np.float32)
    if kind == "objects":
        for i in range(BATCH):
            sides = rng.uniform(24, 96, (OBJECTS, 2))
            low = rng.uniform(0, SIZE - sides)
            truth = np.concatenate([low, low + sides], axis=1)
            a, b, iou = boxes.overlapping_pairs(truth, anchors)
            near = iou > 0.4
            a, b, iou = a[near], b[near], iou[near]
            # A trained head is the surer the more anchor and object overlap, and its boxes are a few per cent off.
            raw_scores[i, b, rng.integers(1, CLASSES + 1, OBJECTS)[a]] = 12 * (iou - 0.6) + rng.normal(0, 1, len(a))
            raw_boxes[i, b] = encode_boxes(truth[a], anchors[b], (1.0,) * 4) + rng.normal(0, 0.05, (len(a), 4))
    arrays, start = {}, 0
    for level, count in ANCHORS.counts(SIZE).items():
        side = SIZE >> level
        arrays[f"box_outputs_{level}"] = raw_boxes[:, start : start + count].reshape(BATCH, side, side, -1)
        arrays[f"cls_outputs_{level}"] = raw_scores[:, start : start + count].reshape(BATCH, side, side, -1)
        start += count
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def garden(version: str, raw: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Model Garden's generator on the heads, in a graph."""
    generator = MultilevelDetectionGenerator(
        pre_nms_score_threshold=SPEC.score_floor, nms_iou_threshold=SPEC.nms_iou, max_num_detections=MOST, nms_version=version
    )
    by_level: dict[str, dict[str, tf.Tensor]] = {"box": {}, "cls": {}, "anchor": {}}
    start, everything = 0, ANCHORS.boxes(SIZE)
    for level, count in ANCHORS.counts(SIZE).items():
        side = SIZE >> level
        by_level["box"][str(level)] = tf.constant(raw[f"box_outputs_{level}"])
        by_level["cls"][str(level)] = tf.constant(raw[f"cls_outputs_{level}"])
        anchors = everything[start : start + count].reshape(1, side, side, -1)
        by_level["anchor"][str(level)] = tf.constant(np.repeat(anchors, BATCH, axis=0))
        start += count
    frame = tf.constant([[float(SIZE), float(SIZE)]] * BATCH)

    @tf.function
    def step(box: dict[str, tf.Tensor], cls: dict[str, tf.Tensor], anchor: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = generator(box, cls, anchor, frame)
        return {name: found[name] for name in ("num_detections", "detection_boxes", "detection_scores", "detection_classes")}

    return lambda: {name: value.numpy() for name, value in step(**by_level).items()}


def ours(raw: dict[str, np.ndarray], most: int | None) -> Callable[[], Any]:
    """The reference, from TensorFlow's tensors too."""
    decoder = Decoder(SPEC, most, threads=os.cpu_count() or 1)
    tensors = {name: tf.constant(value) for name, value in raw.items()}
    return lambda: decoder({name: value.numpy() for name, value in tensors.items()})


def compare(found: list[Any], theirs: dict[str, np.ndarray]) -> str:
    """Says how far ours is from `v2`; ends the program where it is another answer.

    Boxes are matched, not taken in order: two logits that differ in the last bit may have equal sigmoids in one library only, and
    boxes of equal scores change places, also about the last place of all. Boxes that lie beyond the image are left out: v2 keeps
    them as lines on its edge, ours drops them and has room for others.
    """
    worst, count = 0.0, 0
    for i, one in enumerate(found):
        number = int(theirs["num_detections"][i])
        solid = boxes.area(theirs["detection_boxes"][i, :number]) > 0
        wanted, scores, classes = (theirs[f"detection_{name}"][i, :number][solid] for name in ("boxes", "scores", "classes"))
        kept = len(wanted)
        if kept > len(one.scores) or (number < MOST and kept != len(one.scores)):
            raise SystemExit(f"image {i}: {len(one.scores)} detections, v2 has {kept}")
        if not kept:
            continue
        certain = one.scores[:kept] - scores[-1] > 1e-6
        apart = np.abs(one.boxes_patch_px[:kept, None] - wanted[None]).max(axis=2)
        apart[one.class_ids[:kept, None] != classes[None]] = np.inf
        apart[np.abs(one.scores[:kept, None] - scores[None]) > 1e-6] = np.inf
        nearest, misses = apart.argmin(axis=1)[certain], apart.min(axis=1)[certain]
        if len(set(nearest)) != len(nearest) or misses.max(initial=0) > SIZE * 1e-5:
            raise SystemExit(f"image {i}: boxes differ by {misses.max(initial=0)} px")
        worst, count = max(worst, float(misses.max(initial=0))), count + kept
    return f"yes: {count} boxes, max |difference| {worst / SIZE:.1e} of the image"


def rate(contender: Callable[[], Any], seconds: float) -> float:
    """Images a second."""
    contender()
    begun, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        contender()
        calls += 1
    return calls * BATCH / spent


if __name__ == "__main__":
    main()
