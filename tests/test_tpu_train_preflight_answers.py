"""What preflight says of a step whose numbers are round: every figure of the tables is worked out here by hand."""

import json
from pathlib import Path

import pytest
from PIL import Image

from survey import accelerators
from survey.errors import InputError
from tpu_train.preflight import feed, roofline, sweep
from tpu_train.preflight.answers import Answers
from tpu_train.preflight.compiler import Compiled, Refused
from tpu_train.preflight.examine import Examined
from tpu_train.preflight.fit import Largest, Tried
from tpu_train.preflight.lint import Finding
from tpu_train.preflight.lowering import Lowered
from tpu_train.preflight.traffic import Row, Traffic

WHERE = accelerators.parse("v5litepod-8")
GIB = 2**30
REFUSED = Refused(
    "memory", "It needs 17.15 GiB of HBM, and v5e has 15.75 GiB.", "a/conv", "tpu_train/augment.py:71", int(17.15 * GIB), 0
)


def lowered(batch: int = 16) -> Lowered:
    return Lowered("train", "", (), 1_000_000, 250_000, batch, {"image": ((batch, 64, 64, 3), "uint8")}, 1.0)


def examined(batch: int = 16, outcome: Compiled | Refused | None = None) -> Examined:
    """A step of 394 GFLOP and 8.19 GB: 2 ms at 197 TFLOP/s, 10 ms at 819 GB/s."""
    if isinstance(outcome, Refused):
        return Examined("train", lowered(batch), outcome, None, None)
    compiled = Compiled(
        topology="v5e:2x2",
        seconds=34.0,
        placed_bytes=1 * GIB + GIB // 2 + 2 * GIB,
        argument_bytes=1 * GIB,
        output_bytes=1 * GIB,
        alias_bytes=GIB // 2,
        code_bytes=GIB // 4,
        flops=394e9,
        versions={"jax": "1", "jaxlib": "1", "libtpu": "2"},
        hlo="",
        cached=False,
    )
    rows = [Row(8_190_000_000, "fusion", "fusion.1", "res_net/conv", "main", 1, "", 4_095_000_000)]
    moved = Traffic(8_190_000_000, 4_095_000_000, rows, {0: 8_190_000_000}, ())
    bound = roofline.step(flops=394e9, traffic_bytes=8.19e9, batch=batch, chip=WHERE.chip)
    return Examined("train", lowered(batch), compiled, moved, bound)


def answers(
    step: Examined, rate: feed.Rate | None = None, findings: tuple[Finding, ...] = (), largest: Largest | None = None
) -> Answers:
    reduction = roofline.all_reduce(step.lowered.trainable_bytes, WHERE)
    host = job = None
    if step.bound is not None:
        if rate:
            host = roofline.host(step.bound, WHERE, decode_images_per_s=rate.at(320), cores=WHERE.host_cores)
        job = roofline.job(step.bound, reduction, WHERE, steps=360_000, feed=host, price_per_chip_hour=1.5)
    return Answers("a job", WHERE, {"train": step}, findings, reduction, host, rate, job, 360_000, 1.5, largest)


def test_table_of_a_step_that_fits() -> None:
    text = answers(examined()).text()
    for line in (
        "HBM                      3.75 of 15.75 GiB, 12.00 free",  # 1 + 1 - 1/2 + 2 + 1/4
        "  results of their own   536.87 MB",
        "FLOPs an image           24.6 GFLOP",  # 394 / 16
        "HBM traffic an image     511.88 MB",  # 8,190 / 16
        "  without padding        255.94 MB",
        "step at least            10.00 ms (compute 2.00, memory 10.00)",
        "images/s a chip at most  1,600 (memory-bound)",
        "input: the host must decode 12,800 images/s",  # eight chips, one host
        "360,000 steps of 128 images take 1.0 h at least, memory being the limit",  # 360,000 x 10 ms
        # All-reduce: 2 x 7/8 x 1 MB over the two links of a corner of 2x4, 50 GB/s each, 17.5 us: 6.3 s in all, 0.014 chip-hours.
        "8.01 chip-hours, 12.02 at 1.5 a chip-hour",
        "good: this step runs on this chip, and fits",
    ):
        assert line in text


def test_table_of_a_step_that_does_not_fit() -> None:
    found = answers(examined(outcome=REFUSED))
    text = found.text()
    assert not found.good
    assert "HBM         17.15 GiB of 15.75 GiB" in text
    assert "compiles    no, does not fit" in text
    assert (
        "error: the train step does not compile: It needs 17.15 GiB of HBM, and v5e has 15.75 GiB (at tpu_train/augment.py:71). "
        in text
    )
    assert "--max_batch" in text
    assert text.endswith("not good: see the errors above")
    assert "job:" not in text


@pytest.mark.parametrize(
    ("per_core", "verdict"), [(10.0, "the job would wait for its hosts"), (1000.0, "the chips are the limit")]
)
def test_whether_hosts_keep_up(per_core: float, verdict: str) -> None:
    """Measured at 640 px, needed at 320 px, a quarter of the pixels: 224 vCPUs decode 4 x 10 x 224 = 8,960 of 12,800 a second."""
    found = answers(examined(), feed.Rate(per_core, 640, 2))
    assert verdict in found.text()
    assert found.host is not None
    assert found.host.images_per_s == pytest.approx(4 * per_core * 224)
    assert found.as_dict()["host"]["host_bound"] == (per_core == 10)


def test_json_holds_everything(tmp_path: Path) -> None:
    largest = Largest(24, 32, (Tried(24, 15, True), Tried(32, 17, False)))
    finding = Finding("warning", "what", "where", "remedy")
    found = json.loads(json.dumps(answers(examined(), findings=(finding,), largest=largest).as_dict()))
    assert found["good"]
    assert found["steps"]["train"]["hbm_bytes"] == int(3.75 * GIB)
    assert found["steps"]["train"]["largest"][0]["op_name"] == "res_net/conv"
    assert found["steps"]["train"]["hbm_traffic_bytes_by_part"] == {"backbone forward": 8_190_000_000}
    assert found["accelerator"]["hosts"] == 1
    assert found["largest_batch_per_replica"]["batch"] == 24
    assert found["findings"][0]["remedy"] == "remedy"
    assert found["job"]["money"] == pytest.approx(1.5 * 8 * (1 + 6.3 / 3600))
    refused = answers(examined(outcome=REFUSED)).as_dict()
    assert (refused["good"], refused["steps"]["train"]["reason"], refused["job"]) == (False, "memory", None)


def test_an_error_of_lint_is_not_good() -> None:
    finding = Finding("error", "1 TFRecord file for 2 hosts", "task.dataset", "shard again")
    found = answers(examined(), findings=(finding,))
    assert not found.good
    assert found.text().endswith("not good: see the errors above")


def test_sweep_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    found = {416: examined(16), 512: examined(16), 800: examined(16, REFUSED)}
    lines = sweep.as_csv("image_size", found).decode().splitlines()
    assert lines[0].startswith("image_size,batch_per_replica,compiles,hbm_bytes,argument_bytes")
    assert lines[1].startswith(f"416,16,True,{int(3.75 * GIB)},{GIB},{2 * GIB},394000000000.0,8190000000,0.002,0.01,1600")
    assert lines[3].startswith(f"800,16,False,{int(17.15 * GIB)},,")
    text = sweep.text("image_size", found, WHERE)
    assert "416         16     3.75 GiB          yes   128 MiB            24.6 GFLOP" in text
    assert "800         16     17.15 GiB         no" in text
    (tmp_path / "a.png").write_bytes(sweep.picture("image_size", found, WHERE, "a title"))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1200, 480)


@pytest.mark.parametrize(
    "text", ["image_size", "image_size=416", "image_size=416,416", "image_size=416,x", "learning_rate=1,2", "image_size=0,4"]
)
def test_what_is_no_sweep(text: str) -> None:
    with pytest.raises(InputError, match=r"--sweep=.* must be image_size or global_batch_size, an equals sign, and two or more"):
        sweep.parse(text)


def test_measured_rates(tmp_path: Path) -> None:
    path = tmp_path / "rate.json"
    path.write_text(json.dumps({"cores": 2, "image_size": 640, "boxes": 50, "images_per_s": {"rookery": 610.0}}))
    assert feed.read(str(path)) == feed.Rate(305.0, 640, 2)
    with pytest.raises(InputError, match=r"no such file; measure it here: python benchmarks/input_pipeline.py --json FILE"):
        feed.read(str(tmp_path / "none.json"))
    path.write_text(json.dumps({"cores": 2}))
    with pytest.raises(InputError, match="holds no 'image_size' of a measurement"):
        feed.read(str(path))
    path.write_text(json.dumps({"cores": 0, "image_size": 640, "images_per_s": {"rookery": 610.0}}))
    with pytest.raises(InputError, match="must be above 0"):
        feed.read(str(path))
