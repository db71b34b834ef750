"""HBM traffic of compiled modules, against figures worked out by hand; some of them compiled here by the real TPU compiler."""

import importlib.util
from pathlib import Path

import pytest
from test_tpu_train_preflight_hlo import SCALAR, entry

from tpu_train.preflight import hlo, traffic

KIB, MIB = 2**10, 2**20
INSTALLED = all(importlib.util.find_spec(name) for name in ("jax", "libtpu"))
needs_compiler = pytest.mark.skipif(not INSTALLED, reason="the TPU compiler is not installed: extra `preflight`")


def measure(text: str) -> traffic.Traffic:
    return traffic.measure(hlo.parse(text))


# Traffic of texts, as the compiler writes them

BIG = "f32[1024,1024]{1,0:T(8,128)}"  # 4 MiB
VMEM_BIG = "f32[1024,1024]{1,0:T(8,128)S(1)}"


def test_operands_and_result_once() -> None:
    found = measure(entry(f"%a = {BIG} parameter(0)", f"%b = {BIG} parameter(1)", f"%c = {BIG} add(%a, %b)"))
    assert (found.total_bytes, found.logical_bytes) == (12 * MIB, 12 * MIB)
    assert [(row.bytes, row.opcode, row.name, row.computation, row.times) for row in found.rows] == [
        (12 * MIB, "add", "c", "main", 1)
    ]


def test_padding_moves_too() -> None:
    # 100 x 3 in tiles of 8 x 128: 104 x 128 floats, of which 300 are data. Read and written.
    narrow = "f32[100,3]{1,0:T(8,128)}"
    found = measure(entry(f"%a = {narrow} parameter(0)", f"%b = {narrow} negate(%a)"))
    assert (found.total_bytes, found.logical_bytes) == (2 * 104 * 128 * 4, 2 * 1200)
    assert found.rows[0].logical_bytes == 2 * 1200


def test_the_same_operand_twice_is_read_once() -> None:
    assert measure(entry(f"%a = {BIG} parameter(0)", f"%b = {BIG} multiply(%a, %a)")).total_bytes == 8 * MIB


def test_what_lies_in_vmem_does_not_count() -> None:
    found = measure(entry(f"%a = {BIG} parameter(0)", f"%b = {VMEM_BIG} negate(%a)", f"%c = {BIG} negate(%b)"))
    assert found.total_bytes == 8 * MIB  # one read, one write
    assert found.by_space == {hlo.HBM: 8 * MIB, hlo.VMEM: 8 * MIB}


def test_an_asynchronous_copy_counts_once_for_each_side_in_hbm() -> None:
    fetch = [
        f"%a = {BIG} parameter(0)",
        f"%s = ({VMEM_BIG}, {BIG}, u32[]{{:S(2)}}) copy-start(%a), cross_program_prefetch_index=0",
        f"%d = {VMEM_BIG} copy-done(%s)",
    ]
    assert measure(entry(*fetch)).total_bytes == 4 * MIB
    within = [
        f"%a = {BIG} parameter(0)", f"%s = ({BIG}, {BIG}, u32[]{{:S(2)}}) copy-start(%a)", f"%d = {BIG} copy-done(%s)"
    ]  # fmt: skip
    assert measure(entry(*within)).total_bytes == 8 * MIB


def test_an_asynchronous_slice_counts_the_slice() -> None:
    lines = [
        f"%a = {BIG} parameter(0)",
        f"%s = (({BIG}), f32[256,1024]{{1,0:T(8,128)S(1)}}, s32[]{{:S(2)}}) slice-start(%a), slice={{[256:512], [0:1024]}}",
        "%d = f32[256,1024]{1,0:T(8,128)S(1)} slice-done(%s)",
        '%e = f32[256,1024]{1,0:T(8,128)S(1)} custom-call(%d), custom_call_target="ConcatBitcast"',
    ]
    assert measure(entry(*lines)).total_bytes == 1 * MIB


def test_a_strided_slice_reads_whole_tiles_of_the_source() -> None:
    # Every 4th row, from tiles of 8 rows: all tiles are read. Every 4th matrix of a stack: a quarter of them is.
    rows = entry(f"%a = {BIG} parameter(0)", "%b = f32[256,1024]{1,0:T(8,128)S(1)} slice(%a), slice={[0:1024:4], [0:1024]}")
    assert measure(rows).total_bytes == 4 * MIB
    stack = "f32[8,1024,1024]{2,1,0:T(8,128)}"
    part = "f32[2,1024,1024]{2,1,0:T(8,128)S(1)}"
    matrices = entry(f"%a = {stack} parameter(0)", f"%b = {part} slice(%a), slice={{[0:8:4], [0:1024], [0:1024]}}")
    assert measure(matrices).total_bytes == 8 * MIB


def test_an_all_reduce_reads_and_writes() -> None:
    lines = [f"%a = {BIG} parameter(0)", f"%b = {BIG} all-reduce-start(%a), to_apply=%sum", f"%c = {BIG} all-reduce-done(%b)"]
    assert measure(entry(*lines)).total_bytes == 8 * MIB


def test_buffers_are_allocated_for_nothing() -> None:
    assert measure(entry(f'%a = {BIG} custom-call(), custom_call_target="AllocateBuffer"')).total_bytes == 0
    assert (
        measure(entry(f"%a = {BIG} parameter(0)", f'%b = {BIG} custom-call(%a), custom_call_target="TopK"')).total_bytes
        == 8 * MIB
    )


STACK = "f32[64,1024,1024]{2,1,0:T(8,128)}"  # 256 MiB
ONE = "f32[1,1024,1024]{2,1,0:T(8,128)}"  # 4 MiB
UPDATE = f"""%update (p0: f32[], p1: f32[], p2: s32[], p3: f32[]) -> f32[] {{
  %p0 = {STACK} parameter(0)
  %p3 = {STACK} parameter(3)
  %p2 = s32[]{{:T(128)S(6)}} parameter(2)
  %zero = s32[]{{:T(128)}} constant(0)
  %part = {ONE} dynamic-slice(%p3, %p2, %zero, %zero), dynamic_slice_sizes={{1,1024,1024}}
  %p1 = {BIG} parameter(1)
  %new = {ONE} bitcast(%p1)
  %sum = {ONE} add(%new, %part)
  ROOT %put = {STACK} dynamic-update-slice(%p0, %sum, %p2, %zero, %zero)
}}"""


def update(notes: str) -> traffic.Traffic:
    lines = [
        f"%a = {STACK} parameter(0)",
        f"%b = {BIG} parameter(1)",
        "%i = s32[]{:T(128)S(6)} parameter(2)",
        f"%c = {STACK} parameter(3)",
        f"%d = {STACK} fusion(%a, %b, %i, %c), kind=kLoop, calls=%update{notes}",
    ]  # fmt: skip
    return measure(entry(*lines, before=UPDATE))


def test_a_fusion_counts_the_parts_that_it_touches() -> None:
    # In place: reads b (4 MiB) and one matrix of c (4 MiB), writes one of a (4 MiB).
    in_place = ', backend_config={"aliasing_operands":{"lists":[{"indices":["0","4"]}]}}'
    assert update(in_place).total_bytes == 12 * MIB
    assert update("").total_bytes == 12 * MIB  # nothing noted: an update is in place


def test_an_update_that_is_not_in_place_moves_all() -> None:
    assert update(', backend_config={"aliasing_operands":{"lists":[]}}').total_bytes == (256 + 4 + 4 + 256) * MIB


def test_a_slice_of_a_slice_of_a_nested_fusion() -> None:
    before = f"""%inner (q: f32[]) -> f32[] {{
  %q = {STACK} parameter(0)
  ROOT %cut = {ONE} slice(%q), slice={{[3:4], [0:1024], [0:1024]}}
}}

%outer (p: f32[]) -> f32[] {{
  %p = {STACK} parameter(0)
  %turned = {STACK} bitcast(%p)
  ROOT %f = {ONE} fusion(%turned), kind=kLoop, calls=%inner
}}"""
    lines = [f"%a = {STACK} parameter(0)", f"%b = {ONE} fusion(%a), kind=kLoop, calls=%outer"]
    assert measure(entry(*lines, before=before)).total_bytes == 8 * MIB


def test_a_fusion_that_also_reads_the_whole_reads_the_whole() -> None:
    before = f"""%both (p: f32[]) -> f32[] {{
  %p = {STACK} parameter(0)
  %cut = {ONE} slice(%p), slice={{[3:4], [0:1024], [0:1024]}}
  %none = f32[] constant(0)
  %sum = {BIG} reduce(%p, %none), dimensions={{0}}, to_apply=%add
  ROOT %t = ({ONE}, {BIG}) tuple(%cut, %sum)
}}"""
    lines = [f"%a = {STACK} parameter(0)", f"%b = ({ONE}, {BIG}) fusion(%a), kind=kLoop, calls=%both"]
    assert measure(entry(*lines, before=before)).total_bytes == (256 + 4 + 4) * MIB


def test_a_scatter_reads_and_writes_where_the_updates_go() -> None:
    lines = [
        f"%a = {BIG} parameter(0)", "%i = s32[16]{0:T(128)S(1)} parameter(1)", "%u = f32[16,1024]{1,0:T(8,128)} parameter(2)",
        f"%b = {BIG} scatter(%a, %i, %u), update_window_dims={{1}}, to_apply=%add",
    ]  # fmt: skip
    assert measure(entry(*lines)).total_bytes == 3 * 64 * KIB  # the updates, and their rows twice


def test_an_update_may_be_seen_in_another_shape() -> None:
    # 2 of 64 matrices are updated, and the whole goes on as rows; then 16 single values of a table are added to.
    rows = "f32[65536,1024]{1,0:T(8,128)}"
    two = "f32[2,1024,1024]{2,1,0:T(8,128)}"
    before = f"""%put (p: f32[]) -> f32[] {{
  %p = {rows} parameter(0)
  %stack = {STACK} bitcast(%p)
  %q = {two} parameter(1)
  %zero = s32[] constant(0)
  %put.1 = {STACK} dynamic-update-slice(%stack, %q, %zero, %zero, %zero)
  ROOT %back = {rows} bitcast(%put.1)
}}

%spread (r: f32[]) -> f32[] {{
  %r = {rows} parameter(0)
  %i = s32[16,2]{{0,1:T(2,128)S(1)}} parameter(1)
  %v = f32[16]{{0:T(128)}} parameter(2)
  ROOT %s = {rows} scatter(%r, %i, %v), inserted_window_dims={{0,1}}, to_apply=%add
}}"""
    lines = [
        f"%a = {rows} parameter(0)", f"%b = {two} parameter(1)",
        "%i = s32[16,2]{0,1:T(2,128)S(1)} parameter(2)", "%v = f32[16]{0:T(128)} parameter(3)",
        f"%c = {rows} fusion(%a, %b), kind=kLoop, calls=%put",
        f"%d = {rows} fusion(%c, %i, %v), kind=kCustom, calls=%spread",
    ]  # fmt: skip
    found = measure(entry(*lines, before=before))
    assert {row.name: row.bytes for row in found.rows} == {"c": 16 * MIB, "d": 3 * 512}


# Names and parts


def test_what_the_compiler_adds_is_named_after_what_it_serves() -> None:
    lines = [
        f'%a = {BIG} parameter(0), metadata={{op_name="XLA_Args"}}',
        f'%s = ({VMEM_BIG}, {BIG}, u32[]{{:S(2)}}) copy-start(%a), metadata={{op_name="XLA_Args"}}',
        f"%d = {VMEM_BIG} copy-done(%s)",
        f'%c = {BIG} negate(%d), metadata={{op_name="model/fpn/Neg" source_file="fpn.py" source_line=7}}',
        f"%e = {BIG} copy(%c)",
    ]
    found = measure(entry(*lines))
    assert {row.name: (row.op_name, row.source) for row in found.rows} == dict.fromkeys("sce", ("model/fpn/Neg", "fpn.py:7"))
    assert found.by_part() == {"fpn forward": 16 * MIB}
    assert found.by_part(lambda name: name.split("/")[0]) == {"model": 16 * MIB}
    assert found.by_opcode() == {"copy": 8 * MIB, "copy-start": 4 * MIB, "negate": 4 * MIB}


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("retina_net_model/res_net/bottleneck_block_3/conv2d_9/Conv2D", "backbone forward"),
        ("gradient_tape/retina_net_model/res_net/conv2d/Conv2D/Conv2DBackpropFilter", "backbone backward"),
        ("retina_net_model/fpn/conv2d_58/Conv2D", "fpn forward"),
        ("gradient_tape/retina_net_model/retina_net_head/classnet-conv_1/BiasAdd_2/BiasAddGrad", "head backward"),
        ("SGD/AssignAddVariableOp_3", "optimizer"),
        ("while/body/Adam/update/mul", "optimizer"),
        ("clip_by_global_norm/mul_3", "optimizer"),
        ("focal_loss/sub", "loss"),
        ("gradient_tape/focal_loss/mul", "loss"),
        ("Reshape_3", "other"),
        ("", "unnamed"),
    ],
)
def test_parts(op_name: str, part: str) -> None:
    assert traffic.part_of(op_name) == part


# Modules that the real compiler makes, here and now

BIGGER = "tensor<4096x4096xf32>"  # 64 MiB
TABLE = "tensor<65536x1024xf32>"  # 256 MiB, more than the 128 MiB of on-chip memory of a v5e

PROGRAMS = {
    # Two reads and one write of 64 MiB.
    "add": (
        f"""func.func public @main(%a: {BIGGER}, %b: {BIGGER}) -> {BIGGER} {{
          %0 = stablehlo.add %a, %b : {BIGGER}
          return %0 : {BIGGER} }}""",
        3 * 64 * MIB,
        0,
    ),
    # 16384 x 4096 times 4096 x 16384 in bfloat16: 128 + 128 read, 512 MiB written.
    "matmul": (
        """func.func public @main(%a: tensor<16384x4096xbf16>, %b: tensor<4096x16384xbf16>) -> tensor<16384x16384xbf16> {
          %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]
            : (tensor<16384x4096xbf16>, tensor<4096x16384xbf16>) -> tensor<16384x16384xbf16>
          return %0 : tensor<16384x16384xbf16> }""",
        768 * MIB,
        0,
    ),
    # 512 MiB read, 32 KiB written.
    "reduce": (
        """func.func public @main(%a: tensor<16384x8192xf32>) -> tensor<8192xf32> {
          %z = stablehlo.constant dense<0.0> : tensor<f32>
          %0 = stablehlo.reduce(%a init: %z) applies stablehlo.add across dimensions = [0]
            : (tensor<16384x8192xf32>, tensor<f32>) -> tensor<8192xf32>
          return %0 : tensor<8192xf32> }""",
        512 * MIB + 32 * KIB,
        1,
    ),
    # Ten turns that read and write 256 MiB, after a copy of the argument, which may not be overwritten. In each turn the counter
    # and a constant are read and the counter is written; the test, which runs once more, reads two and writes a flag.
    "loop": (
        """func.func public @main(%x: tensor<8192x8192xf32>) -> tensor<8192x8192xf32> {
          %i = stablehlo.constant dense<0> : tensor<i32>
          %r:2 = stablehlo.while(%k = %i, %y = %x) : tensor<i32>, tensor<8192x8192xf32>
            cond {
              %n = stablehlo.constant dense<10> : tensor<i32>
              %c = stablehlo.compare LT, %k, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
              stablehlo.return %c : tensor<i1>
            } do {
              %one = stablehlo.constant dense<1> : tensor<i32>
              %j = stablehlo.add %k, %one : tensor<i32>
              %z = stablehlo.multiply %y, %y : tensor<8192x8192xf32>
              stablehlo.return %j, %z : tensor<i32>, tensor<8192x8192xf32>
            }
          return %r#1 : tensor<8192x8192xf32> }""",
        11 * 512 * MIB,
        10 * 3 + 11 * 3 + 2,
    ),
    # 128 of 65,536 rows into a donated table: 512 KiB read, 512 KiB written.
    "update": (
        f"""func.func public @main(
            %a: {TABLE} {{tf.aliasing_output = 0 : i32}}, %u: tensor<128x1024xf32>, %i: tensor<i32>) -> {TABLE} {{
          %z = stablehlo.constant dense<0> : tensor<i32>
          %0 = stablehlo.dynamic_update_slice %a, %u, %i, %z
            : ({TABLE}, tensor<128x1024xf32>, tensor<i32>, tensor<i32>) -> {TABLE}
          return %0 : {TABLE} }}""",
        2 * 512 * KIB,
        10,
    ),
    # 128 rows of it, squared: 512 KiB read, 512 KiB written.
    "slice": (
        f"""func.func public @main(%a: {TABLE}, %i: tensor<i32>) -> tensor<128x1024xf32> {{
          %z = stablehlo.constant dense<0> : tensor<i32>
          %0 = stablehlo.dynamic_slice %a, %i, %z, sizes = [128, 1024]
            : ({TABLE}, tensor<i32>, tensor<i32>) -> tensor<128x1024xf32>
          %1 = stablehlo.multiply %0, %0 : tensor<128x1024xf32>
          return %1 : tensor<128x1024xf32> }}""",
        2 * 512 * KIB,
        10,
    ),
    # 3 columns lie in rows of 4: 1,000,064 x 4 x 4 bytes, read and written.
    "narrow": (
        """func.func public @main(%a: tensor<1000000x3xf32>) -> tensor<1000000x3xf32> {
          %0 = stablehlo.multiply %a, %a : tensor<1000000x3xf32>
          return %0 : tensor<1000000x3xf32> }""",
        2 * 1_000_064 * 16,
        0,
    ),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", PROGRAMS)
def test_traffic_of_what_the_compiler_makes(name: str, tmp_path: Path) -> None:
    from tpu_train.preflight import compiler

    program, expected, scalars = PROGRAMS[name]
    found = compiler.compile(f"module @m {{ {program} }}", "v5e:2x2", cache=tmp_path, timeout_s=120, progress=None)
    assert isinstance(found, compiler.Compiled), found
    measured = measure(found.hlo)
    # Beside the arrays, so many scalars at most: loop counters and indices.
    assert expected <= measured.total_bytes <= expected + scalars * SCALAR
    assert measured.uncounted_loops == ()
    # What the compiler itself says of its arguments includes the padding, and agrees with ours.
    sizes = [array.bytes for each in hlo.parse(found.hlo).entry.parameters().values() for array in hlo.leaves(each.shape)]
    assert found.argument_bytes == sum(sizes)
