"""Traffic of loops and branches: how often the compiler's control flow runs, worked out by hand."""

import pytest
from test_tpu_train_preflight_hlo import SCALAR, entry
from test_tpu_train_preflight_traffic import BIG, MIB, measure

STATE = f"(s32[]{{:T(128)}}, {BIG}, s32[]{{:T(128)}})"


def loop(compare: str, start: int, by: str, limit: str = "constant(10)", notes: str = "") -> str:
    """A loop that negates 4 MiB in place in each turn."""
    before = f"""%body (s: ()) -> () {{
  %s = {STATE} parameter(0)
  %one = s32[]{{:T(128)}} constant(2)
  %k = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  %next = s32[]{{:T(128)S(6)}} {by}
  %x = {BIG} get-tuple-element(%s), index=1
  %y = {BIG} negate(%x)
  %n = s32[]{{:T(128)}} get-tuple-element(%s), index=2
  ROOT %t = {STATE} tuple(%next, %y, %n)
}}

%test (s.1: ()) -> pred[] {{
  %s.1 = {STATE} parameter(0)
  %k.1 = s32[]{{:T(128)}} get-tuple-element(%s.1), index=0
  %n.1 = s32[]{{:T(128)}} get-tuple-element(%s.1), index=2
  ROOT %c = pred[]{{:T(512)S(6)}} {compare}
}}"""
    lines = [
        f"%start = s32[]{{:T(128)}} constant({start})", f"%limit = s32[]{{:T(128)}} {limit}", f"%x0 = {BIG} parameter(0)",
        f"%state = {STATE} tuple(%start, %x0, %limit)", f"%w = {STATE} while(%state), condition=%test, body=%body{notes}",
    ]  # fmt: skip
    return entry(*lines, before=before)


ADD = "add(%k, %one)"


@pytest.mark.parametrize(
    ("compare", "start", "by", "turns"),
    [
        ("compare(%k.1, %n.1), direction=LT", 0, ADD, 5),  # 0 2 4 6 8
        ("compare(%k.1, %n.1), direction=LE", 0, ADD, 6),
        ("compare(%k.1, %n.1), direction=LT", 1, ADD, 5),  # 1 3 5 7 9
        ("compare(%n.1, %k.1), direction=GT", 3, ADD, 4),  # 3 5 7 9
        ("compare(%k.1, %n.1), direction=GT", 15, "subtract(%k, %one)", 3),  # 15 13 11
        ("compare(%k.1, %n.1), direction=LT", 12, ADD, 0),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(compare: str, start: int, by: str, turns: int) -> None:
    found = measure(loop(compare, start, by))
    assert [(row.bytes, row.times) for row in found.rows if row.name == "y"] == ([(8 * MIB * turns, turns)] if turns else [])
    # The counter and its step are read in each turn, the counter and the limit in each test, one of which ends the loop.
    assert found.total_bytes == turns * (8 * MIB + 2 * SCALAR) + (turns + 1) * 2 * SCALAR
    assert found.uncounted_loops == ()


def test_the_known_trip_count_goes_first() -> None:
    text = loop(
        "compare(%k.1, %n.1), direction=LT", 0, ADD, "parameter(1)", ', backend_config={"known_trip_count":{"n":"7"}}'
    )  # fmt: skip
    assert measure(text).rows[0].times == 7


@pytest.mark.parametrize(
    ("compare", "by", "limit"),
    [
        ("compare(%k.1, %n.1), direction=LT", ADD, "parameter(1)"),  # until a number that the data gives
        ("compare(%k.1, %n.1), direction=LT", "multiply(%k, %one)", "constant(10)"),
        ("compare(%k.1, %n.1), direction=GT", ADD, "constant(10)"),  # moves away
        ("compare(%k.1, %n.1), direction=NE", ADD, "constant(10)"),
    ],
)
def test_a_loop_that_hangs_on_data_counts_once_and_is_named(compare: str, by: str, limit: str) -> None:
    found = measure(loop(compare, 0, by, limit))
    assert found.rows[0].times == 1
    assert found.uncounted_loops == ("w",)


def test_a_conditional_counts_its_dearest_branch() -> None:
    before = f"""%cheap (p: f32[]) -> f32[] {{
  %p = {BIG} parameter(0)
  ROOT %n = {BIG} negate(%p)
}}

%dear (q: f32[]) -> f32[] {{
  %q = {BIG} parameter(0)
  %m = {BIG} negate(%q)
  ROOT %o = {BIG} negate(%m)
}}"""
    lines = [
        "%i = s32[]{:T(128)S(6)} parameter(0)", f"%a = {BIG} parameter(1)",
        f"%b = {BIG} conditional(%i, %a, %a), branch_computations={{%cheap, %dear}}",
    ]  # fmt: skip
    found = measure(entry(*lines, before=before))
    assert found.total_bytes == 16 * MIB
    assert {row.computation for row in found.rows} == {"dear"}
