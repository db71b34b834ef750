"""Runs an exported model: the one file of `inference/` that knows TensorFlow."""

import functools
import gc
import os
from collections.abc import Collection
from typing import Any

# Before TensorFlow is imported: a SavedModel of Model Garden is a Keras 2 model, and nobody wants TensorFlow's start-up banner
# between the lines of a progress report, nor its complaint that a machine without a GPU has none.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from inference.decode import Decoder
from inference.search import ALIGNMENT
from survey.errors import InputError
from survey.model import SAVED_MODEL, ModelSpec

SIGNATURE = "raw"
DEVICES = ("TPU", "GPU", "CPU")  # the best first


class ModelRunner:
    """An exported model, loaded once, that turns pixels into raw heads in batches of one static shape.

    On a worker with a Cloud TPU every core has a copy of the model and takes an equal share of a batch, in one program that XLA
    compiles for the one shape. Otherwise TensorFlow puts it on the worker's GPU when there is one, on the CPU if not.

    Args:
      folder: of the model, with `saved_model/` in it; local, or gs://, which TensorFlow reads by itself.
      spec: its `model.json`.
      batch_size: patches per call of the model, on each core of a TPU; a model exported for a fixed batch keeps its own.
      strategy: copies of the model to run at once; by default those of the worker's TPU, if it has one.

    Attributes:
      batch_size: patches that are run together, on all cores.

    Raises:
      InputError: there is no SavedModel, it lacks the signature `raw` or arrays that the spec asks for, it was made for
        another image size, or the worker's TPU does not answer.
    """

    def __init__(self, folder: str, spec: ModelSpec, batch_size: int, *, strategy: tf.distribute.Strategy | None = None) -> None:
        path = os.path.join(folder, SAVED_MODEL)
        if not tf.saved_model.contains_saved_model(path):
            raise InputError(f"{path} is not a SavedModel: write it with `rookery export`")
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # several worker processes may share one
        if strategy is None and best_device({device.device_type for device in tf.config.list_physical_devices()}) == "TPU":
            strategy = tpu_strategy()
        self._model = _loaded(path, strategy)  # kept: its variables die with it
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
        self._cores: int = strategy.num_replicas_in_sync if strategy else 1
        self._each: int = shape[0] or batch_size
        self.batch_size = self._each * self._cores
        self._strategy = strategy
        self._step: Any = _replicated(self._call, strategy) if strategy else None
        # TensorFlow's objects stay as long as the process: each full collection would walk through them for a quarter second.
        gc.freeze()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Raw heads of any number of patches.

        Args:
          images: uint8 [n, image_size, image_size, 3], RGB; fastest where it starts at a multiple of `search.ALIGNMENT`.

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
        count = self.batch_size - missing
        if self._strategy is None:
            out = self._call(images=_tensor(images))
            return {name: out[name].numpy()[:count].astype(np.float32, copy=False) for name in self._outputs}
        shares = images.reshape(self._cores, self._each, *images.shape[1:])
        out = self._step(
            self._strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(shares[context.replica_id_in_sync_group])
            )
        )
        results = {name: self._strategy.experimental_local_results(out[name]) for name in self._outputs}
        return {
            name: np.concatenate([part.numpy() for part in parts])[:count].astype(np.float32, copy=False)
            for name, parts in results.items()
        }


def best_device(kinds: Collection[str]) -> str:
    """The kind of device to run on, of those that a worker has, in TensorFlow's words.

    What TensorFlow lists is what it could reach when it was imported: a TPU through PJRT only if the environment said so
    (`survey.tpu_environment`).

    Args:
      kinds: "CPU", "GPU", "TPU" and any that are of no use here, such as "TPU_SYSTEM" or "XLA_CPU".
    """
    return next((kind for kind in DEVICES if kind in kinds), "CPU")


@functools.cache
def tpu_strategy() -> tf.distribute.Strategy:
    """All cores of this machine's TPU, started once in a process: to start it anew would wipe the models that it holds.

    Raises:
      InputError: it does not answer.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(
            f"this worker's TPU does not answer ({str(error).partition(chr(10))[0]}): one process can use it at a time; end "
            "other programs that do, and run one worker process a machine (docs/predict.md)"
        ) from error


def _tensor(images: np.ndarray) -> tf.Tensor:
    """The array as a tensor of the CPU: the same memory where TensorFlow can read it there, a copy otherwise."""
    if images.flags.c_contiguous and images.flags.writeable and images.ctypes.data % ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(images.__dlpack__())
    return tf.constant(images)


def _loaded(path: str, strategy: tf.distribute.Strategy | None) -> Any:
    """The SavedModel, with a copy of each variable on every core of the strategy."""
    if strategy is None:
        return tf.saved_model.load(path)
    with strategy.scope():
        return tf.saved_model.load(path)


def _replicated(signature: Any, strategy: tf.distribute.Strategy) -> Any:
    """Runs a signature on every core, each with its own images; traced once, since the shapes never change.

    A TPUStrategy makes one XLA program of it, as `jit_compile=True` would for one device.
    """

    @tf.function(autograph=False)
    def step(images: Any) -> Any:
        return strategy.run(lambda share: signature(images=share), args=(images,))

    return step
