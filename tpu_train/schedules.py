"""Learning rate schedules, as overrides of Model Garden's optimizer configuration."""

from typing import Any

NAMES = ("cosine", "onecycle", "step", "constant")
PEAK = 1e-3  # of AdamW at batch 8, for fine-tuning a detector on a survey
WARMUP_STEPS = 50  # Adam's second moments, and statistics of new layers, have settled by then
# Where Model Garden's RetinaNet drops its rate by ten, in twelve epochs: after the eighth and the eleventh
# (Detectron's 1x schedule, https://arxiv.org/abs/1708.02002, section 5).
DROPS = (8 / 12, 11 / 12)
# Smith 2018, https://arxiv.org/abs/1803.09820, with fastai's shares: a quarter of the run upwards, from a 25th of the peak.
ONECYCLE_RISE, ONECYCLE_START = 0.25, 1 / 25


def _cosine(peak: float, steps: int, offset: int = 0) -> dict[str, Any]:
    return {"type": "cosine", "cosine": {"initial_learning_rate": peak, "decay_steps": steps - offset, "offset": offset}}


def overrides(schedule: str, *, peak: float, steps: int) -> dict[str, Any]:
    """A schedule for a run.

    Args:
      schedule: "cosine" falls to 0; "onecycle" rises for a quarter of the run and falls to 0; "step" drops by ten twice;
        "constant" stays. All but "onecycle" begin with a short linear warm-up.
      peak: largest learning rate.
      steps: length of the run.

    Returns:
      Overrides of `trainer.optimizer_config`.
    """
    warmup_steps, start = min(WARMUP_STEPS, steps // 10), 0.0
    if schedule == "onecycle":
        warmup_steps, start = int(ONECYCLE_RISE * steps), ONECYCLE_START * peak
        rate = _cosine(peak, steps, warmup_steps)
    elif schedule == "step":
        boundaries = [int(share * steps) for share in DROPS]
        rate = {"type": "stepwise", "stepwise": {"boundaries": boundaries, "values": [peak, peak / 10, peak / 100]}}
    elif schedule == "constant":
        rate = {"type": "constant", "constant": {"learning_rate": peak}}
    else:
        rate = _cosine(peak, steps)
    return {
        "learning_rate": rate,
        "warmup": {"type": "linear", "linear": {"warmup_steps": warmup_steps, "warmup_learning_rate": start}},
    }
