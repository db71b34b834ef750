"""COCO JSON twice: as a dataset, which annotation tools and trainers open, and as results, which COCO's evaluation loads.

The dataset holds the detections that count. The results are all detections that Parquet holds, because average precision is
measured over every score; `COCO(dataset).loadRes(results)` of pycocotools takes them. Boxes are [x, y, width, height] in pixels.
"""

import json
import os
from collections.abc import Callable

import numpy as np

from inference.outputs import lines
from inference.outputs.job import Job
from inference.outputs.publishing import stream

DATASET = "detections.coco.json"
RESULTS = "detections.coco_results.json"


def check(job: Job) -> None:
    """Nothing can be wrong with it."""


def write(job: Job) -> list[str]:
    """Writes DATASET and RESULTS, one annotation a line: a text tool can look into a survey of a million objects."""
    manifest = job.manifest
    value = {
        "info": {
            "description": f"Detections with a score of {manifest.score_threshold:g} or more, model {manifest.model_digest}"
        },
        "images": [
            {"id": i, "file_name": os.path.basename(mosaic.path), "width": mosaic.width, "height": mosaic.height}
            for i, mosaic in enumerate(manifest.mosaics, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(manifest.classes, start=1)],
    }
    with stream(job.path(DATASET)) as out:
        out(json.dumps(value, ensure_ascii=False, allow_nan=False)[:-1].encode() + b', "annotations": [')
        _annotations(job, out, dataset=True)
        out(b"\n]}\n")
    with stream(job.path(RESULTS)) as out:
        out(b"[")
        _annotations(job, out, dataset=False)
        out(b"\n]\n")
    return [DATASET, RESULTS]


def _annotations(job: Job, out: Callable[[bytes], None], *, dataset: bool) -> None:
    written = 0
    for block in job.blocks(counted=dataset):
        y0, x0, y1, x1 = (lines.decimals(side) for side in block.found.boxes_mosaic_px.T)
        # Nine decimals take away what the subtraction of two decimals leaves: 30.3 - 10.1 is 20.200000000000003.
        height, width = (y1 - y0).round(9), (x1 - x0).round(9)
        head: list[lines.Column] = [',\n{"image_id": ']
        tail: list[lines.Column] = ["}"]
        if dataset:
            ids = np.arange(written + 1, written + 1 + len(block.found))
            head = [',\n{"id": ', lines.numbers(ids), ', "image_id": ']
            tail = [', "area": ', lines.numbers((height * width).round(6)), ', "iscrowd": 0, "segmentation": []}']
        box: list[lines.Column] = [', "bbox": [']
        for number, side in enumerate((x0, y0, width, height)):
            box += [", " if number else "", lines.numbers(side)]
        rows = lines.joined(
            *head,
            f'{block.image_id}, "category_id": ',
            lines.numbers(block.found.class_ids),
            *box,
            '], "score": ',
            lines.numbers(block.found.scores),
            *tail,
        )
        out(lines.encoded(rows)[0 if written else 1 :])
        written += len(block.found)
