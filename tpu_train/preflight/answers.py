"""What preflight answers: one value for people's tables and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from survey.accelerators import Slice
from tpu_train.preflight import feed, roofline
from tpu_train.preflight.compiler import Compiled, Refused
from tpu_train.preflight.examine import Examined
from tpu_train.preflight.fit import Largest
from tpu_train.preflight.lint import Finding

GIB = 2**30
LINE = 118  # width of what people read


@dataclass(frozen=True, slots=True)
class Answers:
    """All that is known of a job before it starts.

    Attributes:
      title: what was examined, for people.
      slice: that it would run on.
      steps: examined, by name.
      findings: of lint on all of them and on the dataset's files, and of `rookery doctor`; people have seen them already.
      reduction: of the gradients; None without a training step.
      host: what the hosts must decode; None where the training step does not compile, or no rate was given.
      rate: that was measured here.
      job: of all training steps; None where the training step does not compile.
      training_steps: of the job.
      currency_per_chip_hour: price, None if none was given.
      largest: batch that fits; None if it was not asked for.
    """

    title: str
    slice: Slice
    steps: dict[str, Examined]
    findings: tuple[Finding, ...]
    reduction: roofline.AllReduce | None
    host: roofline.Host | None
    rate: feed.Rate | None
    job: roofline.Job | None
    training_steps: int
    currency_per_chip_hour: float | None
    largest: Largest | None

    @property
    def good(self) -> bool:
        """Whether the job can start: all steps compile and fit, and nothing found is an error."""
        return all(step.compiles for step in self.steps.values()) and not any(each.severity == "error" for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, seconds, images; rates a second."""
        where = self.slice
        return {
            "good": self.good,
            "title": self.title,
            "accelerator": {
                "type": where.accelerator_type,
                "generation": where.chip.generation,
                "chips": where.chips,
                "replicas": where.replicas,
                "hosts": where.hosts,
                "topology": where.topology,
                "hbm_bytes": where.chip.hbm_bytes,
                "peak_flops": where.chip.peak_flops,
                "hbm_bytes_per_s": where.chip.hbm_bytes_per_s,
                "ici_bytes_per_s": where.chip.ici_bytes_per_s,
                "source": where.chip.source,
            },
            "steps": {name: step.as_dict() for name, step in self.steps.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "all_reduce": asdict(self.reduction) if self.reduction else None,
            "host": {**asdict(self.host), "host_bound": self.host.bound} if self.host else None,
            "job": asdict(self.job) if self.job else None,
            "training_steps": self.training_steps,
            "price_per_chip_hour": self.currency_per_chip_hour,
            "largest_batch_per_replica": asdict(self.largest) if self.largest else None,
        }

    def text(self) -> str:
        """A table for people: a line for each fact, a column for each step."""
        columns = [column(step, self.slice) for step in self.steps.values()]
        names = list(dict.fromkeys(name for each in columns for name in each))
        rows = [[name, *(each.get(name, "") for each in columns)] for name in names]
        chip = self.slice.chip
        peaks = f"{chip.peak_flops / 1e12:g} TFLOP/s in bfloat16, {chip.hbm_bytes_per_s / 1e9:,.0f} GB/s of HBM"
        lines = [f"preflight: {self.title}", f"{chip.generation}: {peaks} ({chip.source})"]
        lines += ["", *table(["", *self.steps], rows)]
        lines += ["", *self._job()]
        lines += [f"error: {refusal(step)}" for step in self.steps.values() if not step.compiles]
        verdict = "good: this step runs on this chip, and fits" if self.good else "not good: see the errors above"
        return "\n".join([*lines, verdict])

    def _job(self) -> list[str]:
        lines = []
        if self.largest:
            tried = len(self.largest.tried)
            lines.append(f"largest batch: {self.largest.line()} (memory was laid out for {tried}, no code made)")
        training = self.steps.get("train")
        if self.job is None or training is None or training.bound is None or self.reduction is None:
            return lines
        where, job = self.slice, self.job
        if where.replicas > 1:
            lines.append(
                f"all-reduce: {size(self.reduction.bytes)} a replica and step, {1e3 * self.reduction.seconds:.2f} ms at least on "
                f"the links of {where.topology}"
            )
        needed = training.bound.images_per_s * where.replicas / where.hosts
        hosts = "the host" if where.hosts == 1 else f"each of {where.hosts} hosts"
        if self.host and self.rate:
            verdict = "the job would wait for its hosts" if self.host.bound else "the chips are the limit"
            lines.append(
                f"input: {hosts} must decode {needed:,.0f} images/s for chips at that bound; by what was measured here "
                f"({self.rate.images_per_core_s:.0f} images/s a core at {self.rate.image_size} px) its {where.host_cores} vCPUs "
                f"decode {self.host.images_per_s:,.0f}: {verdict}"
            )
        else:
            lines.append(
                f"input: {hosts} must decode {needed:,.0f} images/s for chips at that bound; --input_rate FILE says whether it "
                f"can ({feed.MEASURE})"
            )
        images = training.lowered.batch * where.replicas
        lines.append(
            f"job: {self.training_steps:,} steps of {images} images take {duration(job.hours)} at least, {job.limit} being the "
            f"limit, and {job.chip_hours:.2f} chip-hours"
            + (f", {job.money:,.2f} at {self.currency_per_chip_hour:g} a chip-hour" if job.money is not None else "")
            + "; compiling, validation and checkpoints come on top"
        )
        return lines


def column(step: Examined, where: Slice) -> dict[str, str]:
    """Facts of a step."""
    capacity = where.chip.hbm_bytes
    facts = {"batch": f"{step.lowered.batch} images a replica", "parameters": f"{step.lowered.parameters / 1e6:.1f} million"}
    if isinstance(step.outcome, Refused):
        if step.outcome.reason == "memory":
            needed = f"{step.outcome.needed_bytes / GIB:.2f} GiB" if step.outcome.needed_bytes else "more"
            return facts | {"compiles": "no, does not fit", "HBM": f"{needed} of {capacity / GIB:.2f} GiB"}
        return facts | {"compiles": f"no, {step.outcome.reason}"}
    outcome, bound = step.outcome, step.bound
    assert isinstance(outcome, Compiled)
    assert bound is not None
    assert step.traffic is not None
    batch = step.lowered.batch
    slower = f"compute {1e3 * bound.compute_s:.2f}, memory {1e3 * bound.memory_s:.2f}"
    return facts | {
        "compiles": f"yes, {'remembered' if outcome.cached else f'{outcome.seconds:.0f} s'}",
        "HBM": f"{outcome.hbm_bytes / GIB:.2f} of {capacity / GIB:.2f} GiB, {(capacity - outcome.hbm_bytes) / GIB:.2f} free",
        "  arguments": size(outcome.argument_bytes),
        "  temporaries": size(outcome.temporary_bytes),
        "  results of their own": size(outcome.output_bytes - outcome.alias_bytes),
        "  code": size(outcome.code_bytes),
        "FLOPs an image": f"{outcome.flops / batch / 1e9:.1f} GFLOP",
        "HBM traffic an image": size(step.traffic.total_bytes / batch),
        "  without padding": size(step.traffic.logical_bytes / batch),
        "step at least": f"{1e3 * bound.bound_s:.2f} ms ({slower})",
        "images/s a chip at most": f"{bound.images_per_s * where.chip.devices:,.0f} ({bound.limit}-bound)",
    }


def refusal(step: Examined) -> str:
    """Why a step does not compile."""
    assert isinstance(step.outcome, Refused)
    at = f" (at {step.outcome.source})." if step.outcome.source else "."
    remedy = ""
    if step.outcome.reason == "memory":
        remedy = " Smaller batches and more chips take less of each: --max_batch says how many images fit."
    return f"the {step.step} step does not compile: {step.outcome.message.removesuffix('.')}{at}{remedy}"


def size(count: float) -> str:
    """Bytes for people, in decimal units as bandwidths are.

    >>> [size(n) for n in (12_345, 3.85e9, 260_655_104)]
    ['0.01 MB', '3.85 GB', '260.66 MB']
    """
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def duration(hours: float) -> str:
    """Time for people.

    >>> [duration(hours) for hours in (0.004, 0.5, 1.25, 30)]
    ['14 s', '30 min', '1.2 h', '30.0 h']
    """
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
