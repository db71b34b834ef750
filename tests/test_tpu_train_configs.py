"""Every shipped configuration loads, strictly, and says how it is run."""

from pathlib import Path

import pytest

from survey.anchors import AnchorSpec
from tpu_train import loop, plan, train

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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads(path: Path) -> None:
    config = loop.configure(train.Options(dataset="d", model_dir="m", config=str(path)), PLAN)
    assert config.task.model.num_classes == 4  # the background is Model Garden's first class
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
        config = loop.configure(train.Options(dataset="d", model_dir="m", config=str(file), **flags), PLAN)
        assert config.task.freeze_level == 1
        return config.trainer.optimizer_config.learning_rate.cosine.initial_learning_rate

    assert rate() == 0.5
    assert rate(learning_rate=0.25) == 0.25
    override = "trainer.optimizer_config.learning_rate.cosine.initial_learning_rate=0.125"
    assert rate(learning_rate=0.25, params_override=override) == 0.125
