"""Reads the text of an optimised TPU module: computations, instructions, arrays with layout and memory space.

The format is XLA's own (openxla.org/xla/shapes and /tiled_layout), as `hlo_modules()[0].to_string()` prints it; a layout such as
`bf16[8,100,3]{2,1,0:T(8,128)(2,1)S(1)}` names the order of dimensions (minor first), tiles, and the memory space.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Memory spaces of the TPU compiler. CMEM is v4's on-chip memory; S(6) holds scalars, S(2) the flags of asynchronous copies.
HBM, VMEM, FLAGS, CMEM, HOST, SMEM = 0, 1, 2, 3, 5, 6

# Bits of an element where the type's name does not end in them.
BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclass(frozen=True, slots=True)
class Array:
    """One array in memory.

    Attributes:
      dtype: as XLA writes it: "bf16", "pred", "s4", "f8e4m3fn".
      dims: logical shape.
      order: dimensions, minor first; empty where the text has no layout, which means row major.
      tiles: of the tiled layout, outermost first; -1 stands for `*`, a dimension joined with the next minor one.
      space: memory space: HBM, VMEM, ...
      element_bits: as stored, 0 for what the type takes.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tiles: tuple[tuple[int, ...], ...] = ()
    space: int = HBM
    element_bits: int = 0

    @property
    def logical_bytes(self) -> int:
        """Without padding."""
        return math.ceil(math.prod(self.dims) * bits_of(self.dtype) / 8)

    @property
    def bytes(self) -> int:
        """What the array takes in its memory: each tiled dimension is padded to a whole number of tiles."""
        sizes = [self.dims[i] for i in reversed(self.order or tuple(reversed(range(len(self.dims)))))]  # major first
        for tile in self.tiles:
            sizes = _tiled(sizes, tile)
        return math.ceil(math.prod(sizes) * (self.element_bits or bits_of(self.dtype)) / 8)

    def resized(self, dims: tuple[int, ...]) -> "Array":
        """An array of `dims` in the same layout."""
        return dataclasses.replace(self, dims=dims)


Shape = Array | tuple["Shape", ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
      name: without `%`.
      opcode: "fusion", "copy-start", ...
      shape: of the result; tuples nest.
      operands: names of instructions of the same computation.
      called: names of the computations it calls: a fusion's, a loop's body and condition, a reducer, branches.
      attributes: the rest of the line, as the compiler wrote it.
      inside: text between the parentheses: a constant's value, a parameter's number, else the operands.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    called: tuple[str, ...]
    attributes: str
    inside: str

    @property
    def op_name(self) -> str:
        """Name of the TensorFlow op it comes from, or ""."""
        found = re.search(r'\bop_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return re.sub(r"\\(.)", r"\1", found[1]) if found else ""

    @property
    def source(self) -> str:
        """Where the op was made, "file.py:123", or ""."""
        file, line = self._find(r'\bsource_file="([^"]*)"'), self.attribute("source_line")
        return f"{file}:{line}" if file and line else file

    @property
    def index(self) -> int:
        """Of get-tuple-element and parameter, else -1."""
        found = self.inside if self.opcode == "parameter" else self.attribute("index")
        return int(found) if found.isdigit() else -1

    @property
    def slices(self) -> list[tuple[int, int, int]]:
        """Of a slice: start, limit and stride of each dimension; else empty."""
        found = self._find(r"\bslice=\{([^}]*)\}")
        return [(int(a), int(b), int(c or 1)) for a, b, c in re.findall(r"\[(\d+):(\d+)(?::(\d+))?\]", found)]

    def attribute(self, name: str) -> str:
        """One plain attribute: "body" of a loop, "direction", "custom_call_target"; "" if there is none."""
        return self._find(rf'\b{name}=[%"]?([\w.\-]+)')

    def backend(self) -> dict[str, Any]:
        """The compiler's own notes on the instruction, {} if there are none or they are not JSON."""
        text = self.attributes.partition("backend_config=")[2]
        try:
            notes, _ = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError:
            return {}
        return notes if isinstance(notes, dict) else {}

    def _find(self, pattern: str) -> str:
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Computation:
    """A list of instructions in the order in which they run, of which `root` is the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction
    users: Mapping[str, list[Instruction]]

    def parameters(self) -> dict[int, Instruction]:
        """Number to instruction."""
        return {each.index: each for each in self.instructions.values() if each.opcode == "parameter"}


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module; a run of it is a run of `entry`."""

    name: str
    entry: Computation
    computations: Mapping[str, Computation]


def parse(text: str) -> Module:
    """Parses the text of an optimised module.

    Args:
      text: as `to_string()` gives it; also without `%`, or with the shapes of operands.

    Raises:
      ValueError: no entry computation, or a line that is none of XLA's.
    """
    name = re.match(r"\s*HloModule ([^\s,]+)", text)
    computations: dict[str, Computation] = {}
    entry, header = "", ""
    block: list[str] = []
    for line in text.splitlines():
        if line == "}":
            computations[header] = _computation(header, block)
            header = ""
        elif header:
            block.append(line)
        elif line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
            header, block = found[2], []
            entry = header if found[1] else entry
    if entry not in computations:
        raise ValueError("HLO text: no complete ENTRY computation; give the whole output of to_string()")
    return Module(name[1] if name else "", computations[entry], computations)


def leaves(shape: Shape) -> Iterator[Array]:
    """The arrays of a shape, depth first."""
    if isinstance(shape, Array):
        yield shape
    else:
        for each in shape:
            yield from leaves(each)


@lru_cache(maxsize=100_000)  # most shapes of a module occur many times
def parse_shape(text: str) -> Shape:
    """Parses `f32[8,128]{1,0:T(8,128)}` or a tuple of such.

    Raises:
      ValueError: it is neither.
    """
    if text.startswith("("):
        return tuple(parse_shape(part) for part in _split(text[1:-1]) if part)
    found = re.fullmatch(r"([a-z]\w*)\[([^\]]*)\](?:\{(.*)\})?", text)
    if not found:
        raise ValueError(f"HLO text: {text[:80]!r} is no shape")
    dtype, dims, layout = found[1], found[2], found[3] or ""
    order, _, properties = layout.partition(":")
    tiles = re.match(r"T((?:\([\d,*]*\))+)", properties)
    space = re.search(r"S\((\d+)\)", properties)
    stored = re.search(r"E\((\d+)\)", properties)
    return Array(
        dtype,
        tuple(int(size.lstrip("<=")) for size in dims.split(",") if size),
        tuple(int(i) for i in order.split(",") if i),
        tuple(
            tuple(-1 if size == "*" else int(size) for size in tile.split(",") if size)
            for tile in re.findall(r"\(([\d,*]*)\)", tiles[1] if tiles else "")
        ),
        int(space[1]) if space else HBM,
        int(stored[1]) if stored else 0,
    )


def bits_of(dtype: str) -> int:
    """Bits of one element: "bf16" 16, "u4" 4, "f8e4m3fn" 8.

    Raises:
      ValueError: no such type.
    """
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    if not found:
        raise ValueError(f"{dtype!r} is no type of XLA's")
    return int(found[1])


def _tiled(sizes: list[int], tile: tuple[int, ...]) -> list[int]:
    """Sizes, major first, after one level of tiling: how many tiles, then the tile. As in openxla.org/xla/tiled_layout."""
    sizes = [1] * (len(tile) - len(sizes)) + sizes
    outer, inner = sizes[: len(sizes) - len(tile)], sizes[len(sizes) - len(tile) :]
    tile_sizes, joined = [], 1
    for size, side in zip(inner, tile, strict=True):
        if side == -1:
            joined *= size
            continue
        outer.append(math.ceil(joined * size / side))
        tile_sizes.append(side)
        joined = 1
    return outer + tile_sizes


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = None
    for line in lines:
        if line := line.strip():
            instruction = _instruction(line.removeprefix("ROOT "))
            instructions[instruction.name] = instruction
            root = instruction if line.startswith("ROOT ") or root is None else root
    if root is None:
        raise ValueError("it has no instruction")
    users: dict[str, list[Instruction]] = {}
    for instruction in instructions.values():
        for operand in dict.fromkeys(instruction.operands):
            users.setdefault(operand, []).append(instruction)
    return Computation(name, instructions, root, users)


def _instruction(line: str) -> Instruction:
    head, equals, rest = line.partition(" = ")
    if not equals:
        raise ValueError(f"HLO text: {line[:80]!r} is no instruction")
    rest = re.sub(r"/\*[^*]*\*/", "", rest)  # /*index=5*/
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    found = re.match(r" ?([\w\-]+)\(", rest[end:])
    if not found:
        raise ValueError(f"HLO text: {line[:80]!r} has no opcode")
    start = end + found.end() - 1
    close = _closing(rest, start)
    inside, attributes = rest[start + 1 : close], rest[close + 1 :]
    operands: tuple[str, ...] = ()
    if found[1] not in ("constant", "parameter"):
        operands = tuple(part.split(" ")[-1].lstrip("%") for part in _split(inside) if part)
    return Instruction(
        head.lstrip("%"), found[1], parse_shape(rest[:end]), operands, tuple(_called(attributes)), attributes, inside
    )


def _called(attributes: str) -> Iterator[str]:
    plain = attributes.partition("backend_config=")[0]
    for found in re.finditer(
        r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations|true_computation|false_computation|select"
        r"|scatter)=(?:\{([^}]*)\}|(%?[\w.\-]+))",
        plain,
    ):
        for name in (found[1] if found[2] is None else found[2]).split(","):
            if name.strip():
                yield name.strip().lstrip("%")


def _closing(text: str, start: int) -> int:
    """Where the parenthesis opened at `start` closes."""
    depth, quoted = 0, False
    for found in re.finditer(r'[()]|\\.|"', text[start:]):
        if found[0] == '"':
            quoted = not quoted
        elif not quoted and found[0] == "(":
            depth += 1
        elif not quoted and found[0] == ")":
            depth -= 1
            if not depth:
                return start + found.start()
    raise ValueError(f"{text[start : start + 80]!r}: a parenthesis stays open")


def _split(text: str) -> Iterator[str]:
    """Splits at commas that no bracket encloses."""
    depth, begin = 0, 0
    for found in re.finditer(r"[(\[{]|[)\]}]|,", text):
        if found[0] in "([{":
            depth += 1
        elif found[0] != ",":
            depth -= 1
        elif not depth:
            yield text[begin : found.start()].strip()
            begin = found.end()
    yield text[begin:].strip()
