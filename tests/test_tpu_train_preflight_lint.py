"""What lint finds in made-up steps, and what it passes over."""

import re

import pytest

from tpu_train.preflight import lint
from tpu_train.preflight.lint import Operation, Tensor


def operation(kind: str, *outputs: Tensor, name: str = "", source: str = "", compiles: bool = True) -> Operation:
    return Operation(name or kind.lower(), kind, source, outputs, compiles)


def convolutions(batch: int, *sizes: tuple[int, int]) -> list[Operation]:
    """Convolutions with results of (side in pixels, features)."""
    return [
        operation("Conv2D", Tensor("bfloat16", (batch, side, side, features)), name=f"conv{i}")
        for i, (side, features) in enumerate(sizes)
    ]


SOUND = [
    operation("Placeholder", Tensor("uint8", (8, 640, 640, 3)), name="image"),
    operation("Placeholder", Tensor("resource", ()), name="kernel"),
    operation("Placeholder", Tensor("int64", (8,)), name="patch_id"),
    operation("Cast", Tensor("float32", (8, 640, 640, 3))),
    operation("TensorListReserve", Tensor("variant", None)),  # a handle has no shape to speak of
    *convolutions(8, (160, 256), (80, 512)),
]


def test_a_sound_step_passes() -> None:
    assert lint.check(SOUND, hosts=1) == []
    assert lint.check(SOUND, hosts=2, batch_size=16, records=[10, 10]) == []
    assert lint.check([], hosts=1) == []


@pytest.mark.parametrize(
    ("bad", "severity", "what", "where", "remedy"),
    [
        (
            operation("EagerPyFunc", Tensor("float32", (8,)), source="tpu_train/augment.py:7", compiles=False),
            "error",
            "XLA cannot compile EagerPyFunc: ",
            "tpu_train/augment.py:7 (eagerpyfunc)",
            "or in the input, which runs on the host",
        ),
        (
            operation("Placeholder", Tensor("uint8", (None, 640, 640, 3)), name="image"),
            "error",
            "the step's input is uint8 [?, 640, 640, 3]",
            "image",
            "give it a static shape",
        ),
        (
            operation("Where", Tensor("int64", (None, 2)), source="tpu_train/targets.py:3"),
            "warning",
            "the result of Where is int64 [?, 2]: its shape",
            "tpu_train/targets.py:3 (where)",
            "write it with a mask",
        ),
        (
            operation("Reshape", Tensor("float32", None)),
            "warning",
            "the result of Reshape is float32 of unknown rank",
            "reshape",
            "a mask",
        ),
        (
            # 8193 numbers of 8 bytes are 8 bytes more than 64 KiB.
            operation("Sum", Tensor("float64", (8193,))),
            "warning",
            "the result of Sum is float64 [8193]: a TPU emulates 64 bits",
            "sum",
            "to float32",
        ),
        (operation("ArgMax", Tensor("int64", (8, 76725))), "warning", "int64 [8, 76725]", "argmax", "to int32"),
    ],
)
def test_what_a_tpu_cannot_do_or_does_badly(bad: Operation, severity: str, what: str, where: str, remedy: str) -> None:
    findings = lint.check([*SOUND, bad], hosts=1)
    assert len(findings) == 1
    assert findings[0].severity == severity
    assert what in findings[0].what
    assert findings[0].where == where
    assert remedy in findings[0].remedy
    assert findings[0].line().startswith(f"{where}: ")


def test_a_small_tensor_of_64_bits_is_fine() -> None:
    assert lint.check([operation("Sum", Tensor("int64", (8192,)))], hosts=1) == []


def test_one_line_of_code_is_one_finding_and_errors_come_first() -> None:
    wide = Tensor("int64", (100_000,))
    same = [operation("ArgMax", wide, name=f"a{i}", source="tpu_train/targets.py:5") for i in range(3)]
    other = operation("ArgMax", wide, name="b", source="tpu_train/targets.py:9")
    lacking = operation("PyFunc", Tensor("float32", None), compiles=False)
    findings = lint.check([*same, other, lacking], hosts=1)
    assert [finding.severity for finding in findings] == ["error", "warning", "warning"]
    assert "int64 [100000], 3 times" in findings[1].what
    assert findings[1].where == "tpu_train/targets.py:5 (a0)"


@pytest.mark.parametrize(
    ("batch", "side", "features", "padding"),
    [
        (8, 80, 128, 0),  # features fill the lanes, images the sublanes
        (8, 80, 64, 8 * 80 * 80 * 64),  # lanes half full
        (8, 80, 192, 8 * 80 * 80 * 64),  # 192 of 2 x 128 lanes
        (3, 80, 128, 0),  # 80 rows fill sublanes as well
        # Rows as lanes, 80 of 128, waste less than 64 features: (128 - 80) x 64 numbers for each column.
        (3, 80, 64, 3 * 80 * 64 * 48),
        # 25 rows to 32 sublanes and 64 features to 128 lanes, rather than 25 rows to 128 lanes.
        (3, 25, 64, 3 * 25 * (32 * 128 - 25 * 64)),
    ],
)
def test_padding_by_hand(batch: int, side: int, features: int, padding: int) -> None:
    numbers = batch * side * side * features
    assert lint.padding(convolutions(batch, (side, features))) == {features: (numbers, padding)}


def test_narrow_layers_and_odd_batches_are_named() -> None:
    """64 features: half is padding. 3 images of 5 x 5 x 256: 5 rows to 8, so 3/8 is."""
    (narrow,) = lint.check(convolutions(8, (80, 64), (20, 128)), hosts=1)
    # 6,400 places x 64 numbers of padding beside 6,400 x 64 + 400 x 128 numbers: 409,600 of 870,400.
    assert (narrow.severity, narrow.where) == ("warning", "task.model")
    assert "about 47% of the memory" in narrow.what
    assert "(100% by 64 features)" in narrow.what
    assert "fpn.num_filters" in narrow.remedy
    assert "images a replica" not in narrow.remedy
    (odd,) = lint.check(convolutions(3, (5, 256)), hosts=1)
    assert "about 38% of the memory" in odd.what
    assert "so do 8 images a replica in place of 3" in odd.remedy
    # 64 features in few places are not worth a word: 1/9 of the memory is theirs, half of that padding.
    assert lint.check(convolutions(8, (80, 64), (80, 512)), hosts=1) == []


@pytest.mark.parametrize(
    ("records", "hosts", "batch_size", "severity", "message"),
    [
        ([100, 0], 2, 8, "error", r"task.dataset: 1 TFRecord files with records for 2 hosts.*--records_per_shard"),
        # Hosts take files in turn: 100 + 100 and 50.
        ([100, 50, 100], 2, 8, "warning", r"one host gets 200 records and another 50: training sees the latter's 4.0 times"),
        ([10, 10], 2, 64, "warning", r"a host has 10 records and takes 32 for a step: some are in a batch twice: 20 or less"),
    ],
)
def test_files_against_hosts(records: list[int], hosts: int, batch_size: int, severity: str, message: str) -> None:
    findings = lint.check([], hosts=hosts, batch_size=batch_size, records=records)
    assert [finding.severity for finding in findings] == [severity]
    assert re.search(message, findings[0].line())


def test_shares_that_differ_little_are_fine() -> None:
    assert lint.check([], hosts=2, batch_size=8, records=[120, 100]) == []
