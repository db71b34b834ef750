"""SAHI on one mosaic, for `survey_inference.py`: run by the Python of SAHI's own environment, prints one line of JSON.

    python sahi_peer.py IMAGE --size 512 --overlap_px 64 [--model FOLDER --main SITE_PACKAGES --repository ROOT]

The clock runs from the call of `get_sliced_prediction` to its return: imports, loading and one warm-up patch are before it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.predict import POSTPROCESS_NAME_TO_CLASS, get_sliced_prediction
from sahi.prediction import ObjectPrediction

# What `survey_inference.stub` finds in every patch of 512 px: 20 boxes of 40 px in the cells of 64 px, away from the edges.
STUB_CELLS = [(row, column) for row in (1, 2, 3, 4) for column in (1, 2, 3, 4, 5)]
STUB_BOXES = [[c * 64 + 12, r * 64 + 12, c * 64 + 52, r * 64 + 52] for r, c in STUB_CELLS]


class Peer(DetectionModel):
    """What SAHI asks of a model; subclasses give (boxes xyxy, scores) of each image."""

    def find(self, images: list[np.ndarray]) -> list[tuple[list[list[float]], list[float]]]:
        """Boxes and scores of each image."""
        raise NotImplementedError

    def load_model(self) -> None:
        """Nothing more to load."""

    def perform_inference(self, image: np.ndarray) -> None:
        """One image."""
        self._original_predictions = self.find([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Several at once, as SAHI's own models with batches do."""
        self._original_predictions = self.find(images)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box, category_id=0, category_name="object", score=score, shift_amount=shift, full_shape=shape
                )
                for box, score in zip(boxes, scores, strict=True)
            ]
            for (boxes, scores), shift, shape in zip(self._original_predictions, shift_amount_list, full_shape_list, strict=True)
        ]


class Stub(Peer):
    """Costs nothing."""

    def find(self, images: list[np.ndarray]) -> list[tuple[list[list[float]], list[float]]]:
        """The same for each."""
        return [(STUB_BOXES, [0.9] * len(STUB_BOXES)) for _ in images]


class Exported(Peer):
    """The SavedModel that Rookery exported, decoded as Rookery does."""

    def __init__(self, folder: str, batch_size: int) -> None:
        from inference.decode import Decoder
        from inference.model_runner import ModelRunner
        from survey import model

        spec = model.read(folder)
        self._runner, self._decoder = ModelRunner(folder, spec, batch_size), Decoder(spec)
        super().__init__(confidence_threshold=spec.score_floor)

    def find(self, images: list[np.ndarray]) -> list[tuple[list[list[float]], list[float]]]:
        """Decoded boxes of each image."""
        found = self._decoder(self._runner(np.stack(images)))
        return [(one.boxes_patch_px[:, [1, 0, 3, 2]].tolist(), one.scores.tolist()) for one in found]


def clocked_joining(name: str) -> list[float]:
    """Has SAHI note the seconds that it takes to join the boxes of slices; the list grows with each time."""
    taken: list[float] = []

    class Clocked(POSTPROCESS_NAME_TO_CLASS[name]):
        def __call__(self, predictions: list[ObjectPrediction]) -> list[ObjectPrediction]:
            begun = time.perf_counter()
            joined: list[ObjectPrediction] = super().__call__(predictions)
            taken.append(time.perf_counter() - begun)
            return joined

    POSTPROCESS_NAME_TO_CLASS[name] = Clocked
    return taken


def main() -> None:
    """Runs SAHI once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--overlap_px", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--model")
    parser.add_argument("--main", help="site-packages that have TensorFlow")
    parser.add_argument("--repository")
    parser.add_argument("--found", help="file for the boxes, as JSON")
    parser.add_argument("--postprocess", default="GREEDYNMM", help="how SAHI joins the boxes of slices; this is its default")
    parser.add_argument("--metric", default="IOS", help="by which overlap it does; this is its default")
    options = parser.parse_args()
    if options.model:
        sys.path += [options.repository, options.main]  # behind SAHI's own packages
    peer = Exported(options.model, options.batch_size) if options.model else Stub()
    peer.find([np.zeros((options.size, options.size, 3), np.uint8)])
    joining = clocked_joining(options.postprocess)
    Image.MAX_IMAGE_PIXELS = None
    wall, cpu = time.perf_counter(), time.process_time()
    result = get_sliced_prediction(
        options.image,
        peer,
        slice_height=options.size,
        slice_width=options.size,
        overlap_height_ratio=options.overlap_px / options.size,
        overlap_width_ratio=options.overlap_px / options.size,
        perform_standard_pred=False,
        postprocess_type=options.postprocess,
        postprocess_match_metric=options.metric,
        batch_size=options.batch_size,
        verbose=0,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rows = [[*one.bbox.to_xyxy(), one.score.value] for one in result.object_prediction_list]
    if options.found:
        Path(options.found).write_text(json.dumps(rows, default=float))
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "joining_s": sum(joining), "boxes": len(rows), "peak_mib": peak}))


if __name__ == "__main__":
    main()
