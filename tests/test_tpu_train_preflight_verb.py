"""`rookery preflight` through its command line: a small step that fits, one that does not, and what is refused at once."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from survey import flags
from survey.errors import InputError
from tpu_train import plan, train
from tpu_train.preflight import compiler, verb

try:
    compiler.versions()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

# A detector of 64 px images with few and narrow layers.
SMALL = [
    "--image_size=64",
    "--num_classes=1",
    "--backbone=resnet18",
    "--init=scratch",
    "--min_level=3",
    "--max_level=4",
    "--params_override=task.model.head.num_convs=1,task.model.head.num_filters=16,task.model.decoder.fpn.num_filters=16",
]
FITS, TOO_MANY = 8, 65536  # images


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[int, dict]]:
    """Exit code and answers for a batch that fits and one that does not, compiled side by side."""
    folder = tmp_path_factory.mktemp("preflight")

    def answers(batch: int) -> tuple[int, dict]:
        path = folder / f"{batch}.json"
        argv = ["--accelerator=v5litepod-1", *SMALL, f"--global_batch_size={batch}", "--step=train", f"--json={path}"]
        search = ["--max_batch", f"--max_batch_limit={2 * FITS}"] if batch == FITS else []
        code = verb.run([*argv, *search, f"--cache={folder / 'cache'}"])
        return code, json.loads(path.read_text())

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((FITS, TOO_MANY), pool.map(answers, (FITS, TOO_MANY)), strict=True))


def test_a_step_that_fits(found: dict[int, tuple[int, dict]]) -> None:
    code, answers = found[FITS]
    step = answers["steps"]["train"]
    assert code == verb.GOOD
    assert answers["good"]
    assert step["compiles"]
    assert step["parameters"] > 11e6  # of ResNet-18
    assert step["argument_bytes"] > 4 * step["parameters"]  # float32 weights, and what the optimizer keeps of those that train
    assert 0 < step["temporary_bytes"] < 0.1e9
    assert step["hbm_bytes"] < answers["accelerator"]["hbm_bytes"]
    assert step["inputs"]["image"] == {"shape": [FITS, 64, 64, 3], "dtype": "uint8"}
    assert step["bound_s"] == max(step["compute_s"], step["memory_s"]) > 0
    assert {"augmentation", "targets"} <= set(step["hbm_traffic_bytes_by_part"])
    assert answers["all_reduce"]["bytes"] == 0  # one replica


def test_the_largest_batch(found: dict[int, tuple[int, dict]]) -> None:
    """The batch itself, which was compiled, and the limit, of which memory was laid out."""
    _, answers = found[FITS]
    step, largest = answers["steps"]["train"], answers["largest_batch_per_replica"]
    assert (largest["batch"], largest["refused"]) == (2 * FITS, 0)
    (first, taken, _), (last, taken_last, _) = (each.values() for each in largest["tried"])
    assert (first, last) == (FITS, 2 * FITS)
    assert taken + step["code_bytes"] == step["hbm_bytes"]
    assert taken < taken_last < answers["accelerator"]["hbm_bytes"]


def test_a_step_that_does_not_fit(found: dict[int, tuple[int, dict]]) -> None:
    code, answers = found[TOO_MANY]
    step = answers["steps"]["train"]
    assert code == verb.NOT_GOOD
    assert not answers["good"]
    assert (step["compiles"], step["reason"]) == (False, "memory")
    assert step["needed_bytes"] > step["capacity_bytes"] > 15 * 2**30
    assert step["op"].startswith("retina_net_model/")
    assert step["source"].startswith(("official/", "tpu_train/"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--accelerator=v5litepod-3", *SMALL], r"--accelerator=v5litepod-3: v5e is not cut into slices of 3; nearest"),
        (["--accelerator=h100", *SMALL], "--accelerator=h100: unknown; known are the generations v2, v3, v4, v5e, v5p, v6e"),
        (["--accelerator=v5litepod-1"], "--image_size is missing: give it, or --dataset, which knows it"),
        (["--accelerator=v5litepod-1", "--image_size=64"], "--num_classes is missing"),
        (["--accelerator=v5litepod-1", *SMALL, "--patch_size=32"], "--patch_size=32: must be at least --image_size=64"),
        (["--accelerator=v5litepod-8", *SMALL, "--batch_size=12"], r"--batch_size=12: must be a multiple of the 8 replicas"),
        (
            ["--accelerator=v5litepod-1", *SMALL, "--image_sise=3"],
            "--image_sise is not a flag of rookery preflight: did you mean",
        ),
        (["--accelerator=v5litepod-1", *SMALL, "--timeout=0"], "--timeout=0.0: must be above 0 seconds"),
        (
            ["--accelerator=v5litepod-1", *SMALL, "--max_batch", "--max_batch_limit=0"],
            "--max_batch_limit=0: must be at least 1 image",
        ),
        (["--accelerator=v5litepod-1", *SMALL, "--sweep=image_size=64,128", "--max_batch"], "drop --max_batch and --json"),
        (["--accelerator=v5litepod-1", *SMALL, "--sweep=image_size=64,72"], r"--image_size=72: must be a multiple of"),
        (["--accelerator=v5litepod-1", *SMALL, "--input_rate=nowhere.json"], "--input_rate=nowhere.json: there is no such file"),
    ],
)
def test_bad_input(argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        verb.run(argv)
    assert os.listdir(tmp_path) == []


def test_plan_without_a_dataset() -> None:
    """Model Garden's pyramid, 9 anchors a cell, and room for 100 objects and a tenth, in eights: 112."""
    options, _ = flags.parse(train.Options, ["--dataset=", "--model_dir=", "--image_size=640", "--num_classes=8"], prog="x")
    found = plan.without_dataset(options, 896)
    assert (found.patch_size, found.image_size, found.num_classes, found.max_boxes) == (896, 640, 8, 112)
    assert sum(found.anchors.counts(640).values()) == 76_725
