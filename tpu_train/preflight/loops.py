"""How often the loops of a compiled module run."""

import math
import re
from typing import NamedTuple

from tpu_train.preflight.hlo import Computation, Instruction, Module


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a while loop runs.

    The TPU compiler does not write it down, so it is read from the loop: the state element that the condition compares, where it
    starts, and what the body adds to it.

    Args:
      module: that holds the loop.
      computation: in which it stands.
      loop: the `while` instruction.

    Returns:
      The count, or None where it hangs on data.
    """
    known = loop.backend().get("known_trip_count")
    if isinstance(known, dict) and str(known.get("n", "")).isdigit():
        return int(known["n"])
    condition, body = (module.computations[loop.attribute(name)] for name in ("condition", "body"))
    start = computation.instructions[loop.operands[0]]
    test, arguments = condition.root, None
    while test.opcode == "fusion":
        arguments = [_trace(module, condition, name, arguments) for name in test.operands]
        condition = module.computations[test.called[0]]
        test = condition.root
    if test.opcode != "compare" or body.root.opcode != "tuple" or start.opcode != "tuple":
        return None
    courses: list[tuple[int, int]] = []  # of both sides of the comparison: where it starts, and its step
    for name in test.operands:
        value = _trace(module, condition, name, arguments)
        if value is None:
            return None
        if value.element is None:
            courses.append((value.offset, 0))
            continue
        first = _trace(module, computation, start.operands[value.element])
        after = _trace(module, body, body.root.operands[value.element])
        if first is None or first.element is not None or after is None or after.element != value.element:
            return None
        courses.append((first.offset + value.offset, after.offset))
    direction = test.attribute("direction")
    (low, low_step), (high, high_step) = courses if direction in ("LT", "LE") else reversed(courses)
    closing = low_step - high_step
    if direction not in ("LT", "LE", "GT", "GE") or closing <= 0:
        return None
    return max(0, math.ceil((high - low + (direction in ("LE", "GE"))) / closing))


class _Value(NamedTuple):
    """An integer: element `element` of a loop's state plus `offset`, or a constant where `element` is None."""

    element: int | None
    offset: int


def _trace(module: Module, computation: Computation, name: str, arguments: list[_Value | None] | None = None) -> _Value | None:
    """What an integer is made of; `arguments` are a fusion's, None in a loop's own computation."""
    at = computation.instructions[name]
    if at.opcode == "constant":
        return _Value(None, int(at.inside)) if re.fullmatch(r"-?\d+", at.inside) else None
    if at.opcode == "parameter":
        return arguments[at.index] if arguments is not None else None
    if at.opcode == "get-tuple-element":
        source = computation.instructions[at.operands[0]]
        if source.opcode == "tuple":
            return _trace(module, computation, source.operands[at.index], arguments)
        return _Value(at.index, 0) if source.opcode == "parameter" else None
    if at.opcode in ("copy", "copy-start", "copy-done", "bitcast", "reshape", "convert"):
        return _trace(module, computation, at.operands[0], arguments)
    if at.opcode == "fusion":
        inner = module.computations[at.called[0]]
        return _trace(module, inner, inner.root.name, [_trace(module, computation, each, arguments) for each in at.operands])
    if at.opcode in ("add", "subtract"):
        a, b = (_trace(module, computation, each, arguments) for each in at.operands)
        if a and b and b.element is None:
            return _Value(a.element, a.offset + (b.offset if at.opcode == "add" else -b.offset))
        if a and b and a.element is None and at.opcode == "add":
            return _Value(b.element, a.offset + b.offset)
    return None
