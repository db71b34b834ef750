"""Every shipped configuration loads, strictly, and says how it is run."""

import dataclasses
from pathlib import Path

import pytest
from official.modeling import hyperparams

from survey.anchors import AnchorSpec
from survey.errors import InputError
from tpu_train import configure, plan, train
from tpu_train.models import yolo_networks

CONFIGS = sorted((Path(train.__file__).parent / "configs").glob("*.yaml"))
PLAN = plan.Plan(
    image_size=256,
    patch_size=416,
    num_classes=3,
    anchors=AnchorSpec(3, 5, num_scales=3, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=2.0),
    max_boxes=50,
    max_detections=100,
    validate_every=10,
)


YOLO_PLAN = dataclasses.replace(
    PLAN, anchors=yolo_networks.heads("efficientnet_lite0", "yolo3_dense_2", "v3", [(8 * i, 8 * i) for i in range(1, 7)])
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads(path: Path) -> None:
    model = path.stem.split("_")[0]
    head = {"head": "yolo3_dense_2"} if model == "yolo" else {}
    options = train.Options(dataset="d", model_dir="m", model=model, config=str(path), **head)
    config = configure.experiment(options, YOLO_PLAN if model == "yolo" else PLAN)
    assert config.task.model.num_classes == (3 if model == "yolo" else 4)  # RetinaNet's first class is the background
    opening = path.read_text().splitlines()[:6]
    for word in ("command:", "hardware:", "time:", "reached:"):
        assert any(line.startswith("#") and word in line for line in opening), f"{path.name} does not say {word}"


def test_there_are_configs() -> None:
    assert CONFIGS


def test_flags_outrank_the_file_and_overrides_outrank_flags(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "trainer: {optimizer_config: {learning_rate: {cosine: {initial_learning_rate: 0.5}}}}\ntask: {freeze_level: 1}\n"
    )

    def rate(**flags: object) -> float:
        config = configure.experiment(train.Options(dataset="d", model_dir="m", config=str(file), **flags), PLAN)
        assert config.task.freeze_level == 1
        return config.trainer.optimizer_config.learning_rate.cosine.initial_learning_rate

    assert rate() == 0.5
    assert rate(learning_rate=0.25) == 0.25
    override = "trainer.optimizer_config.learning_rate.cosine.initial_learning_rate=0.125"
    assert rate(learning_rate=0.25, params_override=override) == 0.125


def test_a_file_may_repeat_what_the_flags_say(tmp_path: Path) -> None:
    """The params.yaml of a run, which has all keys, is such a file."""
    first = experiment(steps=70, batch_size=4, seed=3)
    hyperparams.save_params_dict_to_yaml(first, str(tmp_path / "params.yaml"))
    flags = {"steps": 70, "batch_size": 4, "seed": 3, "config": str(tmp_path / "params.yaml")}
    assert experiment(**flags).as_dict() == first.as_dict()
    with pytest.raises(InputError, match=r"task.seed=3 in --config or --params_override: --seed, given or by default, says 0"):
        experiment(**{**flags, "seed": 0})


def experiment(**flags: object):
    return configure.experiment(train.Options(dataset="d", model_dir="m", **flags), PLAN)


def test_flags_of_fine_tuning_reach_the_experiment() -> None:
    config = experiment(backbone_rate=0.1, freeze_steps=7, schedule="onecycle", learning_rate=0.5, steps=100)
    assert (config.task.backbone_rate, config.task.freeze_steps) == (0.1, 7)
    rate, warmup = config.trainer.optimizer_config.learning_rate, config.trainer.optimizer_config.warmup
    # A quarter of 100 steps upwards from 0.5 / 25.
    assert (rate.type, rate.cosine.initial_learning_rate, rate.cosine.offset) == ("cosine", 0.5, 25)
    assert (warmup.linear.warmup_steps, warmup.linear.warmup_learning_rate) == (25, 0.02)


def test_a_schedule_keeps_the_peak_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("trainer: {optimizer_config: {learning_rate: {cosine: {initial_learning_rate: 0.5}}}}")
    config = experiment(config=str(file), schedule="step", steps=120)
    assert config.trainer.optimizer_config.learning_rate.stepwise.values == [0.5, 0.05, 0.005]
    file.write_text("trainer: {optimizer_config: {learning_rate: {type: exponential}}}")
    assert experiment(config=str(file)).trainer.optimizer_config.learning_rate.type == "exponential"
    with pytest.raises(InputError, match="type exponential, which the flags cannot change: give --schedule and --learning_rate"):
        experiment(config=str(file), learning_rate=0.5)


def test_a_backbone_brings_its_pixels_and_its_activation() -> None:
    config = experiment(backbone="resnet50", init="scratch")
    assert config.task.model.backbone.type == "resnet"
    assert config.task.model.backbone.resnet.model_id == 50
    assert config.task.pixel_offset == pytest.approx([123.675, 116.28, 103.53])  # 255 * (0.485, 0.456, 0.406)
    assert config.task.pixel_scale == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"params_override": "task.model.max_level=6"}, r"task.model.input_size=416: must be a multiple of the coarsest stride"),
        ({"params_override": "task.freeze_level=9"}, r"task.freeze_level=9: --backbone efficientnet_lite0 computes levels 1"),
        ({"params_override": "task.nothing=1"}, r"--params_override: .*nothing"),
        ({"params_override": "task.4=1"}, r"--params_override=task.4=1: neither a.b=1,a.c=2, nor a YAML file that exists"),
        (
            {"params_override": "trainer.train_steps=7", "steps": 100},
            r"trainer.train_steps=7 in --config or --params_override: --steps, .* says 100; .* give --steps=7, or drop the key",
        ),
        ({"params_override": "task.train_data.global_batch_size=64"}, r"give --batch_size=64, or drop the key"),
        ({"config": "no/such.yaml"}, r"--config=no/such.yaml: neither"),
        ({"backbone": "resnet18"}, r"--init=imagenet installs weights for efficientnet_lite0 only, not for resnet18"),
    ],
)
def test_overrides_are_judged_too(flags: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiment(**flags)
