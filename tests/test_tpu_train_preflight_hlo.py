"""Texts of compiled modules are read as XLA means them; sizes in memory are worked out by hand."""

import pytest

from tpu_train.preflight import hlo
from tpu_train.preflight.hlo import Array

SCALAR = 512  # a 4-byte scalar lies in a tile of 128: {:T(128)}


def entry(*lines: str, before: str = "", result: str = "f32[]") -> str:
    """A module whose entry computation has these instructions, the last its root."""
    body = "\n".join(f"  {line}" for line in (*lines[:-1], f"ROOT {lines[-1]}"))
    return f"HloModule m, is_scheduled=true\n\n{before}\n\nENTRY %main (x: f32[]) -> {result} {{\n{body}\n}}\n"


def shape(text: str) -> Array:
    found = hlo.parse_shape(text)
    assert isinstance(found, Array)
    return found


@pytest.mark.parametrize(
    ("text", "logical", "padded"),
    [
        ("f32[16,256]{1,0:T(8,128)}", 16 * 256 * 4, 16 * 256 * 4),
        ("f32[100,3]{1,0:T(8,128)}", 1200, 104 * 128 * 4),  # 100 rows to 104, 3 columns to 128
        ("f32[1000000,3]{0,1:T(4,128)}", 12_000_000, 4 * 1_000_064 * 4),  # the minor dimension comes first in {0,1}
        ("bf16[2,7,7,200]{3,2,1,0:T(8,128)(2,1)}", 2 * 49 * 400, 2 * 7 * 8 * 256 * 2),
        ("pred[16]{0:T(512)(128)(4,1)}", 16, 512),
        ("s32[]{:T(128)}", 4, SCALAR),
        ("f32[3,5]", 60, 60),  # no layout: packed
        ("s4[10,128]{1,0:T(8,128)(8,1)E(4)}", 640, 16 * 128 // 2),
        ("u4[9]", 5, 5),
        ("f8e4m3fn[8,128]{1,0:T(8,128)(4,1)}", 1024, 1024),
        ("c64[4]{0:T(128)}", 32, 1024),
        ("pred[<=4]", 4, 4),
        ("f32[0,128]{1,0:T(8,128)}", 0, 0),
        ("token[]", 0, 0),
        ("f32[6,10]{1,0:T(*,128)}", 240, 128 * 4),  # 6 x 10 joined to 60, padded to 128
    ],
)
def test_bytes_are_padded_to_tiles(text: str, logical: int, padded: int) -> None:
    assert (shape(text).logical_bytes, shape(text).bytes) == (logical, padded)


def test_memory_spaces() -> None:
    assert shape("f32[8,128]{1,0:T(8,128)S(1)}").space == hlo.VMEM
    assert shape("f32[8,128]{1,0:T(8,128)}").space == hlo.HBM
    assert shape("f32[8,128]{1,0:S(5)}").space == hlo.HOST
    assert shape("u32[]{:S(2)}").space == hlo.FLAGS


def test_tuples_nest() -> None:
    found = hlo.parse_shape("((f32[4,4]{1,0:T(8,128)}), f32[1,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)})")
    assert isinstance(found, tuple)
    assert isinstance(found[0], tuple)
    assert [array.dims for array in hlo.leaves(found)] == [(4, 4), (1, 4), ()]
    assert list(hlo.leaves(hlo.parse_shape("()"))) == []


@pytest.mark.parametrize("text", ["f32", "f32[4", "what[4]{0"])
def test_what_is_no_shape_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no shape"):
        hlo.parse_shape(text)


# Instructions

METADATA = (
    "%conv = bf16[8,8]{1,0:T(8,128)(2,1)} convolution(%a, /*index=1*/%b), window={size=3x3 pad=1_1x1_1}, "
    'metadata={op_type="Conv2D" op_name="model/conv2d/Conv2D \\"q\\"" source_file="layers/net.py" source_line=12}, '
    'backend_config={"flag_configs":[],"aliasing_operands":{"lists":[{"indices":["0","2"]}]}}'
)


def test_an_instruction() -> None:
    operands = ["%a = bf16[8,8]{1,0} parameter(0)", "%b = bf16[8,8]{1,0} parameter(1)"]
    module = hlo.parse(entry(*operands, METADATA))
    root = module.entry.root
    assert (module.name, root.name, root.opcode, root.operands) == ("m", "conv", "convolution", ("a", "b"))
    assert (root.op_name, root.source) == ('model/conv2d/Conv2D "q"', "layers/net.py:12")
    assert root.backend()["aliasing_operands"] == {"lists": [{"indices": ["0", "2"]}]}
    assert [user.name for user in module.entry.users["a"]] == ["conv"]
    assert {number: each.name for number, each in module.entry.parameters().items()} == {0: "a", 1: "b"}


def test_other_printing_options_are_read() -> None:
    text = "ENTRY main (x: f32[4]) -> f32[4] {\n  x = f32[4]{0} parameter(0)\n  ROOT y = f32[4]{0} negate(f32[4]{0} x)\n}"
    assert hlo.parse(text).entry.root.operands == ("x",)


def test_constants_may_hold_anything() -> None:
    lines = [
        '%c = s8[3]{0} constant({1, 2, 3})', "%d = c64[] constant((1, 2))",
        '%s = f32[] custom-call(), custom_call_target="A", metadata={op_name="a)(b"}',
    ]  # fmt: skip
    module = hlo.parse(entry(*lines))
    assert [each.operands for each in module.entry.instructions.values()] == [(), (), ()]
    assert module.entry.instructions["c"].inside == "{1, 2, 3}"
    assert module.entry.root.op_name == "a)(b"


def test_called_computations() -> None:
    branches = hlo.parse(entry("%p = pred[] parameter(0)", "%c = () conditional(%p), branch_computations={%one, %two.1}"))
    assert branches.entry.root.called == ("one", "two.1")
    loop = hlo.parse(entry("%p = () parameter(0)", "%w = () while(%p), condition=%c.1, body=%b.2")).entry.root
    assert (loop.attribute("condition"), loop.attribute("body")) == ("c.1", "b.2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no complete ENTRY"),
        ("HloModule m\n\nENTRY %main () -> f32[] {\n  ROOT %a = f32[] constant(1)\n", "no complete ENTRY"),
        (entry("what is this"), "is no instruction"),
        (entry("%a = f32[] add(%b, %c"), "stays open"),
    ],
)
def test_what_is_no_module_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hlo.parse(text)
