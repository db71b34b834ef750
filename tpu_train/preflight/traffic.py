"""Bytes that a compiled TPU module moves to and from HBM, counted by memory space.

XLA's own "bytes accessed" counts buffers in on-chip memory too, and a prefetch of a part at the size of the whole. Here:

* Each instruction reads its operands and writes its results once; only what lies in HBM counts. A convolution or matrix product
  whose operands exceed the on-chip memory reads some of them again, and a window its borders: that is not counted.
* Arrays count with the padding of their tiles. The compiler's own sizes of arguments include it (tested), and its cost analysis
  counts it; that a transfer never leaves padding out cannot be seen without a TPU. `logical_bytes` is the figure without.
* Where only a part is touched, the part counts: slices and gathers, also as the first use in a fusion; updates in place.
* An asynchronous copy or slice counts where it starts, once for each of its sides that lies in HBM.
* A loop's body counts as often as it runs, a conditional as its dearest branch.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tpu_train.preflight import hlo, loops
from tpu_train.preflight.hlo import Array, Computation, Instruction, Module

# They name, pair or wait for buffers and move nothing.
FREE = {
    "add-dependency", "after-all", "bitcast", "constant", "domain", "get-dimension-size", "get-tuple-element",
    "opt-barrier", "optimization-barrier", "parameter", "partition-id", "replica-id", "tuple",
}  # fmt: skip
FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding", "SPMDFullToShardShape"}

# Inside a fusion they pass their operand on, element for element, so that a slice after them still reads a part only.
SEE_THROUGH = {"bitcast", "reshape", "transpose", "copy", "convert"}


class Row(NamedTuple):
    """What one instruction moves.

    Attributes:
      bytes: to and from HBM, all its runs together.
      opcode: of the instruction, for example "fusion".
      name: of the instruction.
      op_name: of the TensorFlow op that it comes from, of its user or source where it has none itself, or "".
      computation: in which it stands.
      times: how often it runs in one step.
      source: "file.py:123", or "".
      logical_bytes: what `bytes` would be without padding.
    """

    bytes: int
    opcode: str
    name: str
    op_name: str
    computation: str
    times: int
    source: str
    logical_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a module moves in one run.

    Attributes:
      total_bytes: to and from HBM.
      logical_bytes: the same without the padding of tiles, what a layout without waste would move.
      rows: one for each instruction that touches HBM, the largest first.
      by_space: bytes by memory space (`hlo.HBM`, `hlo.VMEM`, ...), counted in the same way.
      uncounted_loops: while loops whose length depends on data; their bodies are counted once.
    """

    total_bytes: int
    logical_bytes: int
    rows: list[Row]
    by_space: Mapping[int, int]
    uncounted_loops: tuple[str, ...]

    def by_part(self, rule: Callable[[str], str] | None = None) -> dict[str, int]:
        """Bytes of each part, the largest first.

        Args:
          rule: from an op name to the name of its part; `part_of` by default.
        """
        parts: Counter[str] = Counter()
        for row in self.rows:
            parts[(rule or part_of)(row.op_name)] += row.bytes
        return dict(parts.most_common())

    def by_opcode(self) -> dict[str, int]:
        """Bytes of each kind of instruction, the largest first."""
        kinds: Counter[str] = Counter()
        for row in self.rows:
            kinds[row.opcode] += row.bytes
        return dict(kinds.most_common())


# Parts of a training step by op name; the first that fits. Model Garden's gradient ops repeat the layer's name after
# `gradient_tape/`, so that "forward" and "backward" are told apart by that prefix alone.
PARTS = (
    ("optimizer", r"(?:^|/)(?:sgd|adam\w*|lars|lamb|rmsprop|exponentialmovingaverage|clip_by_\w+|global_norm)(?:/|$)"),
    ("head", r"head|classnet|boxnet"),
    ("fpn", r"(?:^|/)fpn|decoder"),
    ("backbone", r"res_?net|mobilenet|efficientnet|backbone|darknet|stem|bottleneck"),
    ("augmentation", r"augment|random_crop|normali[sz]e_image|colou?r|jitter"),
    ("targets", r"target|assign_anchors|anchor|matcher|iou|one_hot"),
    ("loss", r"loss|focal|huber|logistic|softmax|sigmoid|l2_regulari"),
)  # fmt: skip


def part_of(op_name: str) -> str:
    """The part of a training step that an op belongs to.

    Returns:
      "head forward", "fpn backward", "backbone backward", ...; "optimizer", "augmentation", "targets", "loss", "other" or
      "unnamed", where the compiler kept no name.
    """
    if not op_name:
        return "unnamed"
    part = next((part for part, pattern in PARTS if re.search(pattern, op_name, re.IGNORECASE)), "other")
    if part in ("head", "fpn", "backbone"):
        return f"{part} {'backward' if 'gradient_tape/' in op_name else 'forward'}"
    return part


def measure(module: Module) -> Traffic:
    """Counts what one run of a module moves."""
    walk = _Walk(module)
    rows, spaces = walk.computation(module.entry, 1)
    rows.sort(key=lambda row: row.bytes, reverse=True)
    total, logical = sum(row.bytes for row in rows), sum(row.logical_bytes for row in rows)
    return Traffic(total, logical, rows, dict(spaces), tuple(walk.uncounted_loops))


class _Walk:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.uncounted_loops: list[str] = []

    def computation(self, computation: Computation, times: int) -> tuple[list[Row], Counter[int]]:
        """Rows and bytes by space of a computation that runs `times` times."""
        rows: list[Row] = []
        spaces: Counter[int] = Counter()
        for each in computation.instructions.values():
            inner = self._inner(computation, each, times)
            if inner is not None:
                rows += inner[0]
                spaces += inner[1]
                continue
            moved: Counter[int] = Counter()
            logical = 0
            for array, size in self._accesses(computation, each):
                moved[array.space] += size * times
                if array.space == hlo.HBM and size:
                    logical += round(size * times * array.logical_bytes / array.bytes)
            spaces += moved
            if moved[hlo.HBM]:
                op_name, source = self._origin(computation, each)
                rows.append(Row(moved[hlo.HBM], each.opcode, each.name, op_name, computation.name, times, source, logical))
        return rows, spaces

    def _inner(self, computation: Computation, at: Instruction, times: int) -> tuple[list[Row], Counter[int]] | None:
        """What an instruction moves that only runs other computations; None for any other."""
        if at.opcode == "while":
            count = loops.trip_count(self.module, computation, at)
            if count is None:
                self.uncounted_loops.append(at.name)
                count = 1
            rows, spaces = self.computation(self.module.computations[at.attribute("body")], times * count)
            more, moved = self.computation(self.module.computations[at.attribute("condition")], times * (count + 1))
            return rows + more, spaces + moved
        if at.opcode == "conditional":
            branches = [self.computation(self.module.computations[name], times) for name in at.called]
            return max(branches, key=lambda branch: branch[1][hlo.HBM])
        if at.opcode == "call" or (at.opcode == "async-start" and at.called):
            return self.computation(self.module.computations[at.called[0]], times)
        return None

    def _accesses(self, computation: Computation, at: Instruction) -> Iterator[tuple[Array, int]]:
        """Arrays that an instruction reads or writes, and how many bytes of each."""
        if at.opcode in FREE or at.opcode.endswith(("-done", "-update")) or at.attribute("custom_call_target") in FREE_CALLS:
            return
        if at.opcode == "fusion":
            yield from self._fusion(computation, at)
            return
        opcode = at.opcode.removesuffix("-start")
        result = at.shape
        if opcode != at.opcode and isinstance(at.shape, tuple) and opcode != "all-reduce":
            # A copy gives destination, source, flags; any other the operands, the result, flags.
            result = at.shape[0 if opcode == "copy" else 1]
        results = list(hlo.leaves(result))
        names = list(at.operands)
        if opcode in ("slice", "dynamic-slice", "gather"):
            (whole,) = _arrays(computation, names.pop(0))
            yield whole, _part(whole, at, results[0])
        elif opcode == "dynamic-update-slice":
            (update,) = _arrays(computation, names[1])
            yield results[0], min(results[0].bytes, results[0].resized(update.dims).bytes)
            names, results = names[1:], []
        elif opcode == "scatter":
            for target, update_name in zip(results, names[len(results) + 1 :], strict=True):
                (update,) = _arrays(computation, update_name)
                yield target, 2 * min(target.bytes, update.bytes)  # it reads what it adds to
            names, results = names[len(results) :], []
        for name in dict.fromkeys(names):
            yield from ((array, array.bytes) for array in _arrays(computation, name))
        yield from ((array, array.bytes) for array in results)

    def _fusion(self, computation: Computation, at: Instruction) -> Iterator[tuple[Array, int]]:
        inside = self.module.computations[at.called[0]]
        in_place = _in_place(at)
        written: set[int] = set()  # parameters that an update leaves where they are
        roots = [inside.instructions[name] for name in inside.root.operands] if inside.root.opcode == "tuple" else [inside.root]
        for number, (root, array) in enumerate(zip(roots, hlo.leaves(at.shape), strict=False)):
            update = self._update(inside, root)
            if update is None or (in_place is not None and (update.parameter, number) not in in_place):
                yield array, array.bytes
                continue
            written.add(update.parameter)
            yield array, min(array.bytes, update.bytes)
        parameters = inside.parameters()
        for name in dict.fromkeys(at.operands):
            places = [number for number, operand in enumerate(at.operands) if operand == name]
            for array in _arrays(computation, name):
                size = sum(self._read(inside, parameters[number], array, number in written) for number in places)
                yield array, min(array.bytes, size)

    def _read(self, inside: Computation, at: Instruction, array: Array, in_place: bool) -> int:
        """Bytes of `array`, which is `at` inside a fusion, that the fusion reads: not the target of an update in place."""
        size = 0
        for user in inside.users.get(at.name, ()):
            first = user.operands[0] == at.name and user.operands.count(at.name) == 1
            if user.opcode in ("slice", "dynamic-slice", "gather") and first:
                size += _part(array, user, next(hlo.leaves(user.shape)))
            elif user.opcode in ("dynamic-update-slice", "scatter") and first and in_place:
                continue
            elif user.opcode in SEE_THROUGH and user is not inside.root:
                # What lies behind may have another layout or element size: the same share of it is read.
                seen = next(hlo.leaves(user.shape))
                size += math.ceil(self._read(inside, user, seen, in_place) / max(1, seen.bytes) * array.bytes)
            elif user.opcode == "fusion" and user.called:
                nested = self.module.computations[user.called[0]]
                parameters = nested.parameters()
                for number, name in enumerate(user.operands):
                    if name == at.name:
                        size += self._read(nested, parameters[number], array, in_place)
            else:
                return array.bytes
        return min(array.bytes, size)

    def _update(self, inside: Computation, at: Instruction) -> "_Update | None":
        """The update in place that makes a result of a fusion, if one does."""
        while at.opcode == "bitcast":
            at = inside.instructions[at.operands[0]]
        if at.opcode == "fusion":
            nested = self.module.computations[at.called[0]]
            found = self._update(nested, nested.root)
            parameter = _parameter(inside, at.operands[found.parameter]) if found else None
            return found._replace(parameter=parameter) if found and parameter is not None else None
        if at.opcode not in ("dynamic-update-slice", "scatter"):
            return None
        parameter = _parameter(inside, at.operands[0])
        if parameter is None or (at.opcode == "scatter" and len(at.operands) != 3):
            return None
        whole = next(hlo.leaves(at.shape))
        if at.opcode == "scatter":  # it reads what it adds to
            return _Update(parameter, 2 * next(hlo.leaves(inside.instructions[at.operands[2]].shape)).bytes)
        return _Update(parameter, whole.resized(next(hlo.leaves(inside.instructions[at.operands[1]].shape)).dims).bytes)

    def _origin(self, computation: Computation, at: Instruction) -> tuple[str, str]:
        """Op name and source; what the compiler added (copies, prefetches) has those of what it serves."""
        if _has_name(at):
            return at.op_name, at.source
        if at.opcode == "fusion":
            for each in reversed(list(self.module.computations[at.called[0]].instructions.values())):
                if _has_name(each):
                    return each.op_name, each.source
        seen, users, operands = {at.name}, [at], [at]
        while users or operands:
            users = [user for each in users for user in computation.users.get(each.name, ()) if user.opcode != "tuple"]
            operands = [computation.instructions[name] for each in operands for name in each.operands]
            users, operands = ([each for each in found if each.name not in seen] for found in (users, operands))
            for each in (*users, *operands):
                if _has_name(each):
                    return each.op_name, each.source
            seen.update(each.name for each in (*users, *operands))
        return "", ""


def _has_name(at: Instruction) -> bool:
    """TensorFlow's bridge names all that it does with arguments after these: that says nothing."""
    return at.opcode != "parameter" and at.op_name not in ("", "XLA_Args")


class _Update(NamedTuple):
    """An update in place: of which parameter of a fusion, and how many bytes of it move."""

    parameter: int
    bytes: int


def _arrays(computation: Computation, name: str) -> list[Array]:
    return list(hlo.leaves(computation.instructions[name].shape))


def _parameter(inside: Computation, name: str) -> int | None:
    at = inside.instructions[name]
    while at.opcode == "bitcast":
        at = inside.instructions[at.operands[0]]
    return at.index if at.opcode == "parameter" else None


def _part(whole: Array, at: Instruction, result: Array) -> int:
    """Bytes of `whole` that a slice, dynamic slice or gather reads: whole tiles, as memory is read."""
    if at.opcode == "gather" or len(whole.dims) != len(result.dims):
        return min(whole.bytes, result.bytes)
    dims = list(result.dims)
    tiled = (whole.order or tuple(reversed(range(len(dims)))))[: len(whole.tiles[0]) if whole.tiles else 1]
    for i, (start, limit, _) in enumerate(at.slices):
        if i in tiled:
            dims[i] = limit - start  # a stride leaves no tile out
    return min(whole.bytes, whole.resized(tuple(dims)).bytes)


def _in_place(at: Instruction) -> set[tuple[int, int]] | None:
    """Pairs of operand and result that share their memory, as the compiler notes them; None where it notes nothing."""
    notes = at.backend().get("aliasing_operands")
    if not isinstance(notes, dict):
        return None
    # The lists number the operands first, then the results.
    groups = [sorted(int(i) for i in each.get("indices", ())) for each in notes.get("lists", ())]
    count = len(at.operands)
    return {(i, j - count) for group in groups for i in group if i < count for j in group if j >= count}
