"""Weights to start from: ImageNet's for EfficientNet-Lite0, or any checkpoint that Model Garden's trainer wrote, ours included.

A checkpoint of TensorFlow holds a graph of objects. Its backbone must be ours to the last variable. Of decoder and heads we take
what means the same here: their layers have names that say level and place, so a pyramid of other levels gives the levels that
both have, and a detector of other classes gives all but its last layer. `tf.train.Checkpoint.read` goes by the position of a
layer in its network, which is another layer where there are other levels.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import tensorflow as tf
import tf_keras
from official.core import train_utils
from tensorflow.core.protobuf import trackable_object_graph_pb2

from survey.errors import InputError
from tpu_train.models import backbones, darknet, yolo_networks
from tpu_train.models.lite0_weights import WHEEL, lite0_weights_path, load_lite0
from tpu_train.run_folder import BEST

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # tensorflow/python/checkpoint/checkpoint.py
_SHOWN = 3  # differences in a message
_AUTOMATIC = re.compile(r"(conv2d|batch_normalization)(_\d+)?/")  # Keras numbers such layers as they are made
_TOWER = re.compile(r"-conv_\d")  # a convolution of the heads: classnet-conv_0, boxnet-conv_0, with a level if not shared


@dataclass(frozen=True, slots=True)
class Filled:
    """What a model started from.

    Attributes:
      source: where the values came from.
      parts: variables filled and variables there are, for each part of the model.
      notes: why some were not.
    """

    source: str
    parts: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for people."""
        if not self.parts:
            return f"initialised from {self.source}"
        counts = ", ".join(f"{part} {taken} of {total}" for part, (taken, total) in self.parts.items())
        return f"initialised from {self.source}: {counts} variables" + (f" ({'; '.join(self.notes)})" if self.notes else "")


def initialize(model: tf_keras.Model, init: str) -> Filled:
    """Fills a detector with the weights that --init names.

    Args:
      model: with `checkpoint_items`, as all of Model Garden's detectors, and its heads built.
      init: "imagenet", "scratch", or the path of a checkpoint or a folder with one, local or gs://.

    Raises:
      InputError: no such weights, or they are of another backbone.
    """
    if init == "scratch":
        return Filled("scratch", {})
    if init == "imagenet":
        known = _known(model)
        known.check_init(known.named(len(model.backbone.weights)) or "this one", init)
        return Filled(f"ImageNet ({WHEEL})", {"backbone": (load_lite0(model.backbone, lite0_weights_path()),) * 2})
    return load_checkpoint(model, init)


def load_checkpoint(model: tf_keras.Model, path: str) -> Filled:
    """Fills a detector's backbone from a checkpoint, and its decoder and heads as far as they are the same.

    The heads' towers and box regressor are taken when both towers are as deep and wide as here; the classifier, too, when it has
    as many outputs, else it stays as it was built. Averaged weights are taken where there are any.

    Args:
      model: as for `initialize`.
      path: of a checkpoint, or of a folder: then the best of a training run of ours, else the latest.

    Raises:
      InputError: no checkpoint, none of a detector or backbone, or one of another backbone.
    """
    held = _Held(path, _resolve(path))
    items = model.checkpoint_items
    if held.part("backbone") is None:
        raise InputError(
            f"--init={path} holds {', '.join(held.top)}: a backbone is needed, as Model Garden's trainer saves it; "
            "give a checkpoint of its image classification, RetinaNet or YOLO experiments"
        )
    values = _backbone(items["backbone"], held, path, _known(model).named)
    parts, notes = {"backbone": (len(values), len(items["backbone"].weights))}, []
    for name in ("decoder", "head"):
        if name in items:
            found, note = _same(items[name], held, name)
            values += found
            parts[name] = (len(found), len(items[name].weights))
            notes += [note] if note else []
    tf_keras.backend.batch_set_value([(variable, held.value(saved)) for variable, saved in values])
    return Filled(path + (" (averaged weights)" if held.averaged else ""), parts, tuple(notes))


def _resolve(path: str) -> str:
    """The prefix of the checkpoint that a path means."""
    try:
        if not tf.io.gfile.isdir(path):
            return path
        # The best of a run was saved while its averaged weights were in the model (official/core/base_trainer.py, eval_end).
        found = tf.train.latest_checkpoint(os.path.join(path, BEST)) or tf.train.latest_checkpoint(path)
    except tf.errors.OpError as error:
        raise InputError(f"--init={path} cannot be read: {error.message}") from error
    if found is None:
        raise InputError(f"--init={path} is a folder without a checkpoint: name one by its path, without .index")
    return str(found)


@dataclass(frozen=True, slots=True)
class _Saved:
    """A variable in a checkpoint: its key, the last two parts of its name (layer and variable), its shape."""

    key: str
    name: str
    shape: tuple[int, ...]


class _Held:
    """The objects of a checkpoint."""

    def __init__(self, path: str, prefix: str) -> None:
        try:
            self._reader = tf.train.load_checkpoint(prefix)
            self._shapes = self._reader.get_variable_to_shape_map()
        except (ValueError, tf.errors.OpError) as error:
            raise InputError(f"--init={path} is not a checkpoint that TensorFlow can read: {error}") from error
        if _GRAPH not in self._shapes:
            raise InputError(f"--init={path} is a checkpoint of TensorFlow 1: one of TensorFlow 2 is needed")
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(self._reader.get_tensor(_GRAPH))
        self._nodes = graph.nodes
        averages = {
            slot.original_variable_node_id: slot.slot_variable_node_id
            for node in self._nodes
            for slot in node.slot_variables
            if slot.slot_name == "average"  # official/modeling/optimization/ema_optimizer.py
        }
        if os.path.basename(prefix).startswith(train_utils.BEST_CHECKPOINT_NAME):
            averages = {}  # there the variables hold the averages, and the slots what was trained
        self._averages = {
            original.key: average.key
            for one, other in averages.items()
            if (original := self._variable(one)) and (average := self._variable(other))
        }
        self.averaged = bool(self._averages)
        self.top = sorted({child.local_name for child in self._nodes[0].children})

    def part(self, name: str) -> int | None:
        """The node of a detector's part: an item of its own, or held by the whole model."""
        for names in ((name,), ("model", f"_{name}"), (f"_{name}",)):
            node: int | None = 0
            for local in names:
                node = None if node is None else self._children(node).get(local)
            if node is not None:
                return node
        return None

    def below(self, node: int) -> list[_Saved]:
        """Every variable under a node."""
        seen, stack = {node}, [node]
        while stack:
            for child in self._children(stack.pop()).values():
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return [saved for each in sorted(seen) if (saved := self._variable(each))]

    def placed(self, part: Any, node: int) -> dict[Any, _Saved]:
        """Variables of a part of ours and of a node that are in the same place of both graphs, by `Variable.ref()`."""
        view = tf.train.TrackableView(part)
        found, seen, stack = {}, {node}, [(part, node)]
        while stack:
            ours, theirs = stack.pop()
            saved = self._variable(theirs)
            if saved and isinstance(ours, tf.Variable):
                found[ours.ref()] = saved
            children = view.children(ours)
            for local, child in self._children(theirs).items():
                if local in children and child not in seen:
                    seen.add(child)
                    stack.append((children[local], child))
        return found

    def value(self, saved: _Saved) -> Any:
        """What a variable holds, averaged if it was."""
        return self._reader.get_tensor(self._averages.get(saved.key, saved.key))

    def _children(self, node: int) -> dict[str, int]:
        return {child.local_name: child.node_id for child in self._nodes[node].children}

    def _variable(self, node: int) -> _Saved | None:
        for attribute in self._nodes[node].attributes:
            if attribute.name == "VARIABLE_VALUE":
                key = attribute.checkpoint_key
                return _Saved(key, _short(attribute.full_name), tuple(self._shapes[key]))
        return None


def _short(name: str) -> str:
    return "/".join(name.split(":")[0].split("/")[-2:])


def _known(model: tf_keras.Model) -> ModuleType:
    """The facts about networks such as the model's."""
    return yolo_networks if isinstance(model, darknet.Yolo) else backbones


def _backbone(
    part: tf_keras.Model, held: _Held, path: str, named: Callable[[int], str | None]
) -> list[tuple[tf.Variable, _Saved]]:
    """All variables of the backbone, each with what it takes.

    Args:
      part: the backbone.
      held: the checkpoint.
      path: as it was given.
      named: tells backbones by how many variables they have.

    Raises:
      InputError: one of them, or of the checkpoint's, finds no counterpart of its shape.
    """
    node = held.part("backbone")
    assert node is not None
    placed, there = held.placed(part, node), held.below(node)
    pairs = [(variable, placed.get(variable.ref())) for variable in part.weights]
    wrong = [_difference(variable, saved) for variable, saved in pairs if saved is None or saved.shape != tuple(variable.shape)]
    if not wrong and len(there) == len(pairs):
        return [(variable, saved) for variable, saved in pairs if saved]
    theirs, ours = named(len(there)), named(len(pairs))
    shown = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
    if theirs and theirs != ours:
        remedy = f"it looks like {theirs}: give --backbone {theirs}"
    else:
        remedy = "give one that was trained with this backbone and the same task.model.backbone, or --init scratch"
    raise InputError(
        f"--init={path} is of another architecture than --backbone {ours or 'of this model'}: {len(there)} variables there, "
        f"{len(pairs)} here ({shown}); {remedy}"
    )


def _same(part: Any, held: _Held, name: str) -> tuple[list[tuple[tf.Variable, _Saved]], str]:
    """Variables of decoder or heads that the checkpoint has in the same shape, and why others are not among them."""
    node = held.part(name)
    if node is None:
        return [], f"it has no {name}"
    there = held.below(node)
    by_name = {saved.name: saved for saved in there}
    automatic = any(_AUTOMATIC.match(_short(variable.name)) for variable in part.weights)
    if not automatic and len(by_name) == len(there) and any(_short(variable.name) in by_name for variable in part.weights):
        pairs = [(variable, by_name.get(_short(variable.name))) for variable in part.weights]
    else:
        # Layers that were never named, as in older releases of Model Garden: their places mean the same only if all of them do.
        placed = held.placed(part, node)
        pairs = [(variable, placed.get(variable.ref())) for variable in part.weights]
        if len(there) != len(pairs) or any(saved is None or saved.shape != tuple(variable.shape) for variable, saved in pairs):
            return [], f"its {name} has unnamed layers and other shapes or levels"
    fit = [(variable, saved) for variable, saved in pairs if saved and saved.shape == tuple(variable.shape)]
    unfit = [(variable, saved) for variable, saved in pairs if not saved or saved.shape != tuple(variable.shape)]
    towers = [(variable, saved) for variable, saved in unfit if _TOWER.search(_short(variable.name))]
    deeper = {saved.name for saved in there if _TOWER.search(saved.name)} - {_short(variable.name) for variable, _ in fit}
    if name == "head" and (towers or deeper):
        # What follows a tower learned from that tower's features.
        why = _difference(*towers[0]) if towers else f"{min(deeper)} is only there"
        return [], f"heads start anew: {why}"
    return fit, _difference(*unfit[0]) if unfit else ""


def _difference(variable: tf.Variable, saved: _Saved | None) -> str:
    there = _shape(saved.shape) if saved else "absent"
    return f"{_short(variable.name)} is {there} there, {_shape(tuple(variable.shape))} here"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
