"""`rookery preflight`: compiles the steps of a training run for its TPU, without the TPU, and says what they will take."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from survey import accelerators, dataset, files, flags
from survey.errors import InputError
from survey.flags import flag
from tpu_train import doctor, hparams, plan
from tpu_train.options import RETINANET
from tpu_train.options import Options as TrainOptions
from tpu_train.preflight import compiler, feed, fit, lint, roofline, sweep
from tpu_train.preflight.answers import Answers
from tpu_train.preflight.inquiry import Inquiry, default_cache

PROG = "rookery preflight"
GOOD, NOT_GOOD = 0, 3  # exit codes; 2 is a wrong command line
STEPS = ("train", "predict", "both")


@dataclass(frozen=True, slots=True)
class Options:
    """Compiles the steps of a training run with the TPU's own compiler, on this machine: do they fit, how fast can they be?

    Takes the flags of `rookery train`, too: give those of the run, without --model_dir. Where there is no dataset yet, say
    --image_size and --num_classes. Exit code: 0 good, 3 something does not compile, does not fit, or is an error of the dataset,
    2 a wrong command line.

    rookery preflight --accelerator v5litepod-8 --dataset survey/ --batch_size 64 --steps 20000 --price_per_chip_hour 1.2
    """

    accelerator: str = flag("slice to run on, as gcloud names its type: v5litepod-8")
    dataset: str | None = flag("folder written by `rookery shard` (default: none yet)", default=None)
    patch_size: int | None = flag("side of the patches in px, without a dataset (default: --image_size)", default=None)
    global_batch_size: int | None = flag("images per step, over all replicas; the same as --batch_size", default=None)
    step: str = flag("what to compile: the training step, that of an exported model, or both", default="both", choices=STEPS)
    max_batch: bool = flag("also search the largest batch of the training step that HBM holds: some minutes", default=False)
    max_batch_limit: int = flag("images a replica, from which --max_batch searches downwards", default=fit.MOST)
    sweep: str | None = flag("compile the training step for several sizes instead: image_size=416,512,608,800", default=None)
    output: str = flag("folder for the table and the picture of --sweep", default="preflight")
    json: str | None = flag("also write all answers to this file", default=None)
    input_rate: str | None = flag(
        "what `benchmarks/input_pipeline.py --json` wrote here: says whether hosts can feed it", default=None
    )
    price_per_chip_hour: float | None = flag("of the slice, in any currency: says what the job costs", default=None)
    doctor: bool = flag("also read the dataset as `rookery doctor` does", default=True)
    timeout: float = flag("seconds for one compile", default=3600.0)
    cache: str | None = flag("folder of compiles already done (default: rookery/preflight in the user's cache)", default=None)

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise InputError(f"--timeout={self.timeout}: must be above 0 seconds")
        if self.max_batch_limit < 1:
            raise InputError(f"--max_batch_limit={self.max_batch_limit}: must be at least 1 image a replica")
        if self.price_per_chip_hour is not None and not 0 <= self.price_per_chip_hour < float("inf"):
            raise InputError(f"--price_per_chip_hour={self.price_per_chip_hour}: must be 0 or more")
        if self.dataset is not None and self.patch_size is not None:
            raise InputError(f"--patch_size={self.patch_size}: the patches of --dataset have their size; drop the flag")
        if self.sweep is not None and (self.max_batch or self.json):
            raise InputError("--sweep compiles the training step alone, into --output: drop --max_batch and --json, or --sweep")


def run(argv: Sequence[str]) -> int:
    """Answers for a run; returns the exit code."""
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    training = _of_training(options, rest)
    if options.dataset:
        training = plan.sized(training, dataset.read(options.dataset))
    where = accelerators.parse(options.accelerator)
    rate = feed.read(options.input_rate) if options.input_rate else None
    swept = sweep.parse(options.sweep) if options.sweep else None
    compiler.versions()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no lines about absent GPUs between ours
    inquiry = Inquiry(where, cache=Path(options.cache) if options.cache else default_cache(), timeout_s=options.timeout)
    if swept:
        return _sweep(options, training, inquiry, swept)
    answers = _answers(options, training, inquiry, rate)
    print(answers.text())
    if options.json:
        files.write_json(options.json, answers.as_dict())
    return GOOD if answers.good else NOT_GOOD


def _of_training(options: Options, rest: Sequence[str]) -> TrainOptions:
    """The options of the run in question.

    Raises:
      InputError: a flag that neither verb has, or a value that training refuses.
    """
    ours = [f"--dataset={options.dataset or ''}", "--model_dir="]
    if options.global_batch_size is not None:
        ours.append(f"--batch_size={options.global_batch_size}")
    known = flags.names(TrainOptions)
    training, unknown = flags.parse(TrainOptions, [*hparams.expanded(rest, known), *ours], prog=PROG, passthrough=True)
    flags.refuse_unknown(unknown, [*flags.names(Options), *known], prog=PROG)
    return training


def _settled(options: Options, training: TrainOptions) -> plan.Plan:
    if options.dataset:
        return plan.make(training, dataset.read(options.dataset))
    return plan.without_dataset(training, options.patch_size)


def _answers(options: Options, training: TrainOptions, inquiry: Inquiry, rate: feed.Rate | None) -> Answers:
    settled, where = _settled(options, training), inquiry.slice
    inquiry.configured(training, settled)  # refuses what cannot be before anything is read
    records: list[int] = []
    if options.dataset:
        records = [shard.records for shard in dataset.read(options.dataset).splits[training.train_split]]
        inquiry.say(_of_doctor(options))
    names = ("train", "predict") if options.step == "both" else (options.step,)
    steps = {name: inquiry.ask(training, settled, name, records=records) for name in names}
    largest = inquiry.largest_batch(training, settled, options.max_batch_limit) if options.max_batch else None
    job = reduction = host = None
    trained = steps.get("train")
    if trained is not None:
        reduction = roofline.all_reduce(trained.lowered.trainable_bytes, where)
        if trained.bound is not None:
            if rate is not None:
                decode = rate.at(settled.patch_size)
                host = roofline.host(trained.bound, where, decode_images_per_s=decode, cores=where.host_cores)
            price = options.price_per_chip_hour
            job = roofline.job(trained.bound, reduction, where, steps=training.steps, feed=host, price_per_chip_hour=price)
    return Answers(
        title=_title(training, settled, where),
        slice=where,
        steps=steps,
        findings=tuple(inquiry.findings),
        reduction=reduction,
        host=host,
        rate=rate,
        job=job,
        training_steps=training.steps,
        currency_per_chip_hour=options.price_per_chip_hour,
        largest=largest,
    )


def _title(training: TrainOptions, settled: plan.Plan, where: accelerators.Slice) -> str:
    crops = f"{settled.image_size} px"
    if settled.image_size != settled.patch_size:
        crops += f" crops of {settled.patch_size} px patches"
    per_replica = training.batch_size / where.replicas
    chips = f"{where.chips} chip{'s' * (where.chips > 1)} {where.chip.generation}"
    return (
        f"{training.model}, {training.backbone}, {crops}, {settled.num_classes} classes, {training.batch_size} images a step "
        f"({per_replica:g} a replica), on {where.accelerator_type}: {chips}"
    )


def _of_doctor(options: Options) -> list[lint.Finding]:
    """What `rookery doctor` finds in the dataset that is more than a note; it reads local ones only."""
    if not options.dataset or not options.doctor or "://" in options.dataset:
        return []
    verdicts = doctor.examine(options.dataset, dataset.read(options.dataset)).verdicts
    return [
        lint.Finding(check.severity, check.found, f"doctor, {check.name}", check.remedy)
        for check in verdicts
        if check.severity in lint.SEVERITIES
    ]


def _sweep(options: Options, training: TrainOptions, inquiry: Inquiry, swept: sweep.Sweep) -> int:
    """Compiles the training step for every value; writes table and picture."""
    if swept.name == "image_size" and options.dataset is None and training.max_level is None and training.model == RETINANET:
        level = sweep.common_level(swept.values, plan.GARDEN_ANCHORS.max_level)
        training = dataclasses.replace(training, max_level=level)
    field = {"image_size": "image_size", "global_batch_size": "batch_size"}[swept.name]
    changes: list[dict[str, Any]] = [{field: value} for value in swept.values]
    runs = [dataclasses.replace(training, **change) for change in changes]
    plans = [_settled(options, each) for each in runs]
    for each, settled in zip(runs, plans, strict=True):
        inquiry.configured(each, settled)  # all of them before any work starts
    found = {}
    for value, each, settled in zip(swept.values, runs, plans, strict=True):
        found[value] = inquiry.ask(each, settled, "train")
    levels = f"levels {plans[0].anchors.levels[0]} to {plans[0].anchors.levels[-1]}"
    title = f"{training.model}, {training.backbone}, {levels}, the training step on {inquiry.slice.accelerator_type}"
    picture = os.path.join(options.output, sweep.PICTURE)
    files.write(os.path.join(options.output, sweep.TABLE), sweep.as_csv(swept.name, found))
    files.write(picture, sweep.picture(swept.name, found, inquiry.slice, title))
    print(f"preflight: {title}\n\n{sweep.text(swept.name, found, inquiry.slice)}\n\nopen {picture}")
    broken = [each for each in found.values() if isinstance(each.outcome, compiler.Refused) and each.outcome.reason != "memory"]
    return NOT_GOOD if broken else GOOD


if __name__ == "__main__":
    flags.exit_with(run)
