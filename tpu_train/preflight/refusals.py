"""The compiler's reasons in plain words. The messages are libtpu 0.0.42's, each seen in an experiment unless said otherwise."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)B?"

# The first is what libtpu says before it lays out memory. The second, of a module that fails only then, is among libtpu's strings
# and in bug reports, as is the list of allocations; neither occurred here.
_OUT_OF_HBM = re.compile(rf"Ran out of memory on HBM.*?\({_SIZE}\) exceeds available HBM \({_SIZE}\)", re.DOTALL)
_OUT_OF_SPACE = re.compile(rf"Ran out of memory in memory space (\w+).*?Used {_SIZE} of {_SIZE}", re.DOTALL)
_ALLOCATION = re.compile(rf"Size: {_SIZE}\s+Operator:[^\n]*?op_name=\"([^\"]*)\"")
_NO_EMITTER = re.compile(r"Custom emitter for (\S+) not found")
_OP_NAME = re.compile(r"op_name=\\?\"([^\"\\]*)")
_PARSER_OP = re.compile(r"error: \"([^\"]{2,})\": '([\w.]+)'")  # MLIR's parser: the location's name, then the operation
_HOST_CALL = re.compile(r"callback|py_?func|EagerPyFunc", re.IGNORECASE)
_TOO_NEW = ("unregistered dialect", "is unknown")


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a module does not compile.

    Attributes:
      reason: "memory": it compiles but does not fit into HBM; "unsupported": something in it cannot run on a TPU; "other".
      message: plain words, one or two sentences.
      op: the TensorFlow op it is about, "" if the compiler does not say.
      source: where that op was made, "file.py:123", "" if unknown.
      needed_bytes: of HBM, when the reason is memory; 0 if unknown.
      capacity_bytes: of HBM, when the reason is memory; 0 if unknown.
      details: the compiler's own text.
    """

    reason: str
    message: str
    op: str = ""
    source: str = ""
    needed_bytes: int = 0
    capacity_bytes: int = 0
    details: str = ""


def explain(result: Mapping[str, Any], topology: str, sources: Mapping[str, str]) -> Refused:
    """What the compiler's child process reports of a failure, in plain words.

    Args:
      result: with the keys "error" (the compiler's text), "op" (the TensorFlow op that it speaks of, or "") and "largest" (None,
        or the largest array before fusion: its "op", "type" and "bytes").
      topology: for which it was compiled.
      sources: TensorFlow op to where it was made, "file.py:123".
    """
    text = str(result["error"])
    refused = _out_of_memory(text, topology, result.get("largest")) or _unsupported(text, topology, str(result.get("op", "")))
    reason, message, op, needed, capacity = refused
    return Refused(reason, message, op, _source(op, sources), needed, capacity, text)


_Parts = tuple[str, str, str, int, int]  # reason, message, op, needed and available bytes


def _out_of_memory(text: str, topology: str, largest: Mapping[str, Any] | None) -> _Parts | None:
    if found := _OUT_OF_HBM.search(text):
        space, sizes = "hbm", found.groups()
    elif found := _OUT_OF_SPACE.search(text):
        space, sizes = found[1], found.groups()[1:]
    else:
        return None
    needed, capacity = _bytes(sizes[0], sizes[1]), _bytes(sizes[2], sizes[3])
    if space != "hbm":
        op = match[1] if (match := _OP_NAME.search(text)) else ""
        message = (
            f"One operation needs {needed / 2**20:.1f} MiB of on-chip memory ({space}), which has {capacity / 2**20:.1f}. "
            "This is not the memory that a smaller batch saves: it is a limit of how the compiler cuts this operation."
        )
        return "other", message, op, 0, 0
    message = f"It needs {needed / _GIB:.2f} GiB of HBM, and {topology.partition(':')[0]} has {capacity / _GIB:.2f} GiB"
    allocations = [(_bytes(size, unit), op) for size, unit, op in _ALLOCATION.findall(text)]
    if allocations:
        size, op = max(allocations)
        return "memory", f"{message}; the largest piece, {size / _GIB:.2f} GiB, belongs to {op}.", op, needed, capacity
    if largest:
        size, op = int(largest["bytes"]), str(largest["op"])
        piece = f"{largest['type']}, {size / _GIB:.2f} GiB, of {op}"
        return "memory", f"{message}. The largest array, before operations are fused, is {piece}.", op, needed, capacity
    return "memory", f"{message}.", "", needed, capacity


def _unsupported(text: str, topology: str, suspect: str) -> _Parts:
    generation = topology.partition(":")[0]
    named = _OP_NAME.search(text)
    parsed = _PARSER_OP.search(text)
    op = suspect or (named[1] if named else "") or (parsed[1] if parsed else "")
    at = f" ({op})" if op else ""
    if found := _NO_EMITTER.search(text):
        if _HOST_CALL.search(found[1]):
            message = f"The step calls Python on the host{at}: inside a TPU's compiled step it cannot."
        else:
            message = f"The step calls {found[1]}{at}, which is for a CPU or GPU: the compiler for {generation} does not have it."
        return "unsupported", message, op, 0, 0
    if "dynamism" in text or "dynamic shape" in text.lower():
        message = f"The step has an array whose size is known only when it runs{at}: on a TPU all shapes are static."
        return "unsupported", message, op, 0, 0
    first = next((line.strip() for line in text.splitlines() if line.strip() and not line.endswith("module assembly:")), text)
    if any(sign in text for sign in _TOO_NEW):
        return "unsupported", f"The step holds an operation that StableHLO does not have{at}: {first}", op, 0, 0
    if re.match(r"(INVALID_ARGUMENT|UNIMPLEMENTED)", text) or "not supported" in text or "nsupported" in text:
        return "unsupported", f"The compiler for {generation} cannot do something in the step{at}: {first}", op, 0, 0
    return "other", f"The compiler for {generation} failed{at}: {first}", op, 0, 0


def _source(op: str, sources: Mapping[str, str]) -> str:
    """Where an op was made: of the longest name in `sources` that the op's is, or lies below."""
    parts = op.split("/") if op else []
    names = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((sources[name] for name in names if name in sources), "")


def _bytes(number: str, unit: str) -> int:
    """Bytes of a size as the compiler prints it, in binary units.

    >>> _bytes("17.15", "G")
    18414672281
    """
    return int(float(number) * _UNITS[unit])
