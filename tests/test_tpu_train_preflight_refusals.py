"""What the compiler refuses, in plain words: its texts as libtpu gives them, explained without a compiler."""

from typing import Any

import pytest

from tpu_train.preflight import refusals
from tpu_train.preflight.refusals import Refused

GIB = 2**30
TOPOLOGY = "v5e:2x2"


def explained(error: str, **named: Any) -> Refused:
    return refusals.explain({"error": error, "op": "", "largest": None, **named}, TOPOLOGY, {})


def test_the_largest_allocation_is_named() -> None:
    """The report that the compiler gives when memory runs out after it has laid it out."""
    found = explained(
        """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm.
Exceeded hbm capacity by 1.50G.

  Largest program allocations in hbm:

  1. Size: 512.00M
     Operator: op_type="Add" op_name="model/add" source_file="x.py" source_line=3
     Shape: f32[134217728]
  2. Size: 2.50G
     Operator: op_name="model/block/conv2d"
     Shape: bf16[8,320,320,1638]
"""
    )
    assert (found.reason, found.op) == ("memory", "model/block/conv2d")
    assert (found.needed_bytes, found.capacity_bytes) == (69 * GIB // 4, 63 * GIB // 4)
    assert (
        "needs 17.25 GiB of HBM, and v5e has 15.75 GiB; the largest piece, 2.50 GiB, belongs to model/block/conv2d"
        in found.message
    )


def test_memory_on_the_chip_is_not_hbm() -> None:
    found = explained(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.50M of 16.00M vmem. Exceeded by 4.50M."
    )
    assert (found.reason, found.needed_bytes, found.capacity_bytes) == ("other", 0, 0)
    assert "20.5 MiB of on-chip memory (vmem), which has 16.0" in found.message


@pytest.mark.parametrize(
    ("error", "op", "message"),
    [  # texts of libtpu 0.0.42.1 and its parser
        ("INVALID_ARGUMENT: Custom emitter for xla_python_cpu_callback not found\n\t\n", "", "The step calls Python on the host"),
        ("INVALID_ARGUMENT: during context [pre-optimization]: Unexpected operand type for FFT: c128[8,128]", "", "c128[8,128]"),
        (
            'Unable to parse module assembly:\nerror: "-":4:26: operation being parsed with an unregistered dialect. If this',
            "",
            "holds an operation that StableHLO does not have",
        ),
        (
            "Unable to parse module assembly:\nerror: \"model/top_k\": 'mhlo.topk' op expected 2 results",
            "model/top_k",
            "'mhlo.topk' op expected 2 results",
        ),
    ],
)
def test_other_reasons(error: str, op: str, message: str) -> None:
    found = explained(error)
    assert message in found.message
    assert found.op == op
    assert found.reason == ("other" if "expected 2 results" in error else "unsupported")
    assert found.details == error


def test_an_internal_error_is_the_compilers_own() -> None:
    found = explained("INTERNAL: RET_CHECK failure (hlo_computation.cc:1761)\nmore")
    assert found.reason == "other"
    assert found.message == "The compiler for v5e failed: INTERNAL: RET_CHECK failure (hlo_computation.cc:1761)"
