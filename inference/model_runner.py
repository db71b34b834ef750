"""Runs an exported model: the one file of `inference/` that knows TensorFlow."""

import os

# Before TensorFlow is imported: a SavedModel of Model Garden is a Keras 2 model, and nobody wants TensorFlow's start-up banner
# between the lines of a progress report, nor its complaint that a machine without a GPU has none.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from inference.decode import Decoder
from survey.errors import InputError
from survey.model import SAVED_MODEL, ModelSpec

SIGNATURE = "raw"


class ModelRunner:
    """An exported model, loaded once, that turns pixels into raw heads in batches of one static shape.

    TensorFlow puts it on the worker's GPU when there is one, on the CPU otherwise.

    Args:
      folder: of the model, with `saved_model/` in it; local, or gs://, which TensorFlow reads by itself.
      spec: its `model.json`.
      batch_size: patches per call of the model; a model exported for a fixed batch keeps its own.

    Raises:
      InputError: there is no SavedModel, it lacks the signature `raw` or arrays that the spec asks for, or it was made for
        another image size.
    """

    def __init__(self, folder: str, spec: ModelSpec, batch_size: int) -> None:
        path = os.path.join(folder, SAVED_MODEL)
        if not tf.saved_model.contains_saved_model(path):
            raise InputError(f"{path} is not a SavedModel: write it with `rookery export`")
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # several worker processes may share one
        self._model = tf.saved_model.load(path)  # kept: its variables die with it
        if SIGNATURE not in self._model.signatures:
            known = ", ".join(self._model.signatures) or "none"
            raise InputError(f"{path} has no signature {SIGNATURE!r} (it has: {known}): write it with `rookery export`")
        self._call = self._model.signatures[SIGNATURE]
        inputs = self._call.structured_input_signature[1]
        shape = inputs["images"].shape.as_list() if "images" in inputs else None
        side = spec.image_size
        if shape is None or shape[1:] not in ([side, side, 3], [None, None, 3]):
            raise InputError(
                f"{path}: signature {SIGNATURE!r} takes {sorted(inputs)} of shape {shape}, but model.json asks for images "
                f"[batch, {side}, {side}, 3]; export the model again with `rookery export`"
            )
        self._outputs = Decoder(spec).outputs
        lacking = sorted(set(self._outputs) - set(self._call.structured_outputs))
        if lacking:
            raise InputError(
                f"{path}: signature {SIGNATURE!r} gives {', '.join(sorted(self._call.structured_outputs))}, but the heads in "
                f"model.json also ask for {', '.join(lacking)}; export the model again with `rookery export`"
            )
        self.batch_size: int = shape[0] or batch_size

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Raw heads of any number of patches.

        Args:
          images: uint8 [n, image_size, image_size, 3], RGB.

        Returns:
          The arrays that the spec's decoder needs, by name, each float32 [n, ...].
        """
        parts = [self._batch(images[i : i + self.batch_size]) for i in range(0, len(images), self.batch_size)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _batch(self, images: np.ndarray) -> dict[str, np.ndarray]:
        missing = self.batch_size - len(images)
        if missing:
            # One static shape, also for the last batch: a new shape would compile the model anew.
            images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        out = self._call(images=tf.constant(images))
        count = self.batch_size - missing
        return {name: out[name].numpy()[:count].astype(np.float32, copy=False) for name in self._outputs}
