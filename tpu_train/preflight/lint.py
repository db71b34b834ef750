"""What can be told of a step in seconds, before it is compiled: what no TPU runs, and what one runs badly. No TensorFlow here."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SEVERITIES = ("error", "warning")
ITEM_BYTES = {"float64": 8, "int64": 8, "uint64": 8, "complex128": 16}
# A TPU computes with 32 bits and has 64 emulated by pairs. Patch numbers and counters, a few bytes each, cost nothing that shows.
WIDE_BYTES = 64 << 10
CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2dNative"})
# Memory is laid out in tiles of 8 x 128 numbers of two dimensions, and what does not fill a tile is padded (Google, Cloud TPU
# performance guide, https://cloud.google.com/tpu/docs/performance-guide).
SUBLANES, LANES = 8, 128
PADDING = 1 / 3  # share of padding from which it is worth a word; ResNet-50 with a pyramid of 256 features has 0.13 at batch 8
UNEVEN = 1.2  # records of the fullest host over those of the emptiest


@dataclass(frozen=True, slots=True)
class Tensor:
    """What an operation gives.

    Attributes:
      dtype: TensorFlow's name of it.
      shape: None where nothing is known, with None for a side that is not.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def known(self) -> tuple[int, ...] | None:
        """The shape, if all of it is known."""
        sides = tuple(side for side in self.shape or () if side is not None)
        return sides if self.shape is not None and len(sides) == len(self.shape) else None

    def __str__(self) -> str:
        sides = "of unknown rank" if self.shape is None else str([side if side is not None else "?" for side in self.shape])
        return f"{self.dtype} {sides}".replace("'", "")


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a TensorFlow graph.

    Attributes:
      name: unique in the graph.
      kind: what it does, such as "Conv2D".
      source: line of ours or of Model Garden's that it comes from, "tpu_train/augment.py:71", or "".
      outputs: of it.
      compiles: whether XLA has this kind of operation.
    """

    name: str
    kind: str
    source: str
    outputs: tuple[Tensor, ...]
    compiles: bool = True

    @property
    def place(self) -> str:
        """Where to look, for people."""
        return f"{self.source} ({self.name})" if self.source else self.name


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to change.

    Attributes:
      severity: one of SEVERITIES; an error ends the job, or keeps it from starting.
      what: is the matter.
      where: it is: a line of code, a configuration's field, a dataset.
      remedy: what to do.
    """

    severity: str
    what: str
    where: str
    remedy: str

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.where}: {self.what}: {self.remedy}"


def check(operations: Sequence[Operation], *, hosts: int, batch_size: int = 0, records: Sequence[int] = ()) -> list[Finding]:
    """All findings, errors first.

    Args:
      operations: of a step (`lowering.Lowered.operations`).
      hosts: machines that feed it.
      batch_size: images a step, over all replicas; needed with `records`.
      records: in each file of the training split; empty where there is no dataset yet.
    """
    findings = [*check_step(operations), *check_padding(operations)]
    if records:
        findings += check_files(records, hosts=hosts, batch_size=batch_size)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def check_step(operations: Sequence[Operation]) -> list[Finding]:
    """Operations that XLA lacks, shapes that are not static, numbers of 64 bits; one finding for each kind and line of code."""
    findings = []
    for (kind, _), group in _grouped(each for each in operations if not each.compiles):
        findings.append(
            Finding(
                "error",
                f"XLA cannot compile {kind}{_times(group)}: a chip would wait for its host in every step",
                group[0].place,
                "compute it from what TensorFlow's XLA compiles, or in the input, which runs on the host",
            )
        )
    compiled = [each for each in operations if each.compiles]
    for (kind, _), group in _grouped(each for each in compiled if _is_open(each)):
        shape = next(output for output in group[0].outputs if _is_unknown(output))
        if kind == "Placeholder":
            findings.append(
                Finding(
                    "error", f"the step's input is {shape}", group[0].place, "give it a static shape: pad, and drop remainders"
                )
            )
        else:
            findings.append(
                Finding(
                    "warning",
                    f"the result of {kind} is {shape}{_times(group)}: its shape seems to depend on values",
                    group[0].place,
                    "write it with a mask, or tf.math.top_k of a fixed number: a chip computes all that there can be",
                )
            )
    for (kind, _), group in _grouped(each for each in compiled if any(_is_wide(output) for output in each.outputs)):
        wide = next(output for output in group[0].outputs if _is_wide(output))
        narrow = {"float64": "float32", "complex128": "complex64"}.get(wide.dtype, "int32")
        findings.append(
            Finding(
                "warning",
                f"the result of {kind} is {wide}{_times(group)}: a TPU emulates 64 bits, at several times the work and memory",
                group[0].place,
                f"cast what it is made of to {narrow}",
            )
        )
    return findings


def padding(operations: Iterable[Operation]) -> dict[int, tuple[int, int]]:
    """Numbers that forward convolutions give, and those with which they fill up tiles, both by width in features.

    A tile takes features as its lanes and images as its sublanes where 8 divides the images; otherwise those two of features,
    rows and columns that waste least. So libtpu 0.0.42 was seen to do for v5e, in chains of 3 x 3 convolutions. It is an
    estimate: in the compiled step of ResNet-50 at 640 px 14.4 % of bfloat16 results [8, h, w, c] is padding, this says 13.4 %.

    Returns:
      {features: (numbers, numbers of padding)}.
    """
    by_width: dict[int, tuple[int, int]] = {}
    for operation in operations:
        shape = operation.outputs[0].known if operation.kind in CONVOLUTIONS else None
        if shape is None or len(shape) != 4:
            continue
        features = shape[-1]
        numbers, padded = by_width.get(features, (0, 0))
        by_width[features] = numbers + math.prod(shape), padded + _laid_out(*shape) - math.prod(shape)
    return by_width


def check_padding(operations: Sequence[Operation]) -> list[Finding]:
    """Whether the widths of layers and the batch of a replica fill the tiles in which a TPU lays out memory."""
    by_width = padding(operations)
    numbers, padded = (sum(column) for column in zip(*by_width.values(), strict=True)) if by_width else (0, 0)
    if padded <= PADDING * (numbers + padded):
        return []
    worst = [width for width in sorted(by_width, key=lambda width: -by_width[width][1]) if by_width[width][1]][:3]
    shares = ", ".join(f"{by_width[width][1] / padded:.0%} by {width} features" for width in worst)
    batches = {shape[0] for each in operations if each.kind in CONVOLUTIONS and (shape := each.outputs[0].known)}
    uneven = sorted(batch for batch in batches if batch % SUBLANES)
    what = (
        f"about {padded / (numbers + padded):.0%} of the memory of convolutions' results is padding to tiles of "
        f"{SUBLANES} x {LANES} ({shares})"
    )
    remedy = (
        f"widths that are multiples of {LANES} fill them: those of another --backbone, and for RetinaNet "
        "task.model.decoder.fpn.num_filters and task.model.head.num_filters"
    )
    if uneven:
        remedy += f"; so do {math.ceil(uneven[0] / SUBLANES) * SUBLANES} images a replica in place of {uneven[0]}"
    return [Finding("warning", what, "task.model", remedy)]


def check_files(records: Sequence[int], *, hosts: int, batch_size: int) -> list[Finding]:
    """Whether the files of a split can be shared out among the hosts, which take them in turn (`tpu_train.input.read`).

    Args:
      records: in each file, in the order in which they are read.
      hosts: machines that read.
      batch_size: images a step, over all of them.
    """
    filled = [count for count in records if count]
    if len(filled) < hosts:
        return [
            Finding(
                "error",
                f"{len(filled)} TFRecord files with records for {hosts} hosts, each needs one",
                "task.dataset",
                "shard again with a smaller --records_per_shard",
            )
        ]
    shares = [sum(filled[host::hosts]) for host in range(hosts)]
    findings = []
    if max(shares) > UNEVEN * min(shares):
        findings.append(
            Finding(
                "warning",
                f"of {len(filled)} TFRecord files one host gets {max(shares)} records and another {min(shares)}: training sees "
                f"the latter's {max(shares) / min(shares):.1f} times as often",
                "task.dataset",
                f"shard again with a smaller --records_per_shard, or use files in multiples of {hosts}",
            )
        )
    if min(shares) * hosts < batch_size:
        findings.append(
            Finding(
                "warning",
                f"a host has {min(shares)} records and takes {batch_size // hosts} for a step: some are in a batch twice",
                "task.train_data.global_batch_size",
                f"{min(shares) * hosts} or less",
            )
        )
    return findings


def _grouped(operations: Iterable[Operation]) -> list[tuple[tuple[str, str], list[Operation]]]:
    """Operations of one kind from one line of code; those of unknown origin each by itself."""
    groups: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for operation in operations:
        groups[operation.kind, operation.source or operation.name].append(operation)
    return list(groups.items())


def _times(group: Sequence[Operation]) -> str:
    return f", {len(group)} times" if len(group) > 1 else ""


def _is_open(operation: Operation) -> bool:
    return any(_is_unknown(output) for output in operation.outputs)


def _is_unknown(output: Tensor) -> bool:
    return output.known is None and output.dtype not in ("resource", "variant")


def _is_wide(output: Tensor) -> bool:
    return output.known is not None and ITEM_BYTES.get(output.dtype, 0) * math.prod(output.known) > WIDE_BYTES


def _laid_out(images: int, rows: int, columns: int, features: int) -> int:
    """Numbers that a result takes in memory."""

    def tiled(lanes: int, sublanes: int, *others: int) -> int:
        return math.ceil(lanes / LANES) * LANES * math.ceil(sublanes / SUBLANES) * SUBLANES * math.prod(others)

    if images % SUBLANES == 0:
        return tiled(features, images, rows, columns)
    return min(
        tiled(features, rows, images, columns),
        tiled(features, columns, images, rows),
        tiled(rows, features, images, columns),
        tiled(columns, features, images, rows),
    )
