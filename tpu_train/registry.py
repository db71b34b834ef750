"""Every experiment, by the name that --model selects. Importing this registers them, and their backbones, with Model Garden."""

from official.core import config_definitions, exp_factory

from tpu_train.experiments import retinanet, yolo

EXPERIMENTS = {"retinanet": retinanet, "yolo": yolo}


def experiment(model: str) -> config_definitions.ExperimentConfig:
    """The default configuration of a model."""
    return exp_factory.get_exp_config(EXPERIMENTS[model].NAME)


def model_of(config: config_definitions.ExperimentConfig) -> str:
    """The model whose configuration this is."""
    return next(model for model, module in EXPERIMENTS.items() if isinstance(config.task, module.Task))
