"""How long a training step must take at least: compute, HBM, links, host; and what a job then costs. Pure arithmetic.

Every figure is a bound, not a forecast: units at their peak, memory and links at full bandwidth, nothing lost between kernels.
The model is that of Williams, Waterman, Patterson, "Roofline" (CACM 52(4), 2009); the formulas for links are those of "How to
Scale Your Model" (jax-ml.github.io/scaling-book), chapters "TPUs" and "Sharding".
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from survey.errors import InputError

if TYPE_CHECKING:
    from survey.accelerators import Chip, Slice

# An axis of at least so many chips is a ring; a shorter one is a line. v5e, v6e: "smaller topologies can be requested without
# wraps on dims < 16" (scaling book, "TPUs"). Of v2 and v3 it is taken to hold alike, for the sides of their full pods.
RING_SIDES = {"v2": 16, "v3": 32, "v5e": 16, "v6e": 16}
CUBE_SIDE = 4  # v4, v5p: optical switches close the rings of slices made of whole 4x4x4 cubes, and of these only


@dataclass(frozen=True, slots=True)
class Step:
    """Bounds of one replica's step, alone.

    Attributes:
      batch: images of one replica.
      compute_s: seconds of arithmetic at peak.
      memory_s: seconds of HBM traffic at full bandwidth.
    """

    batch: int
    compute_s: float
    memory_s: float

    @property
    def bound_s(self) -> float:
        """The step takes at least the longer of both: they can overlap."""
        return max(self.compute_s, self.memory_s)

    @property
    def limit(self) -> str:
        """What bounds it: "compute" or "memory"."""
        return "compute" if self.compute_s >= self.memory_s else "memory"

    @property
    def images_per_s(self) -> float:
        """Of one replica, at most."""
        return self.batch / self.bound_s


@dataclass(frozen=True, slots=True)
class AllReduce:
    """The sum of the gradients over the replicas.

    Attributes:
      bytes: that each replica sends, and receives, in a step.
      links: of the chip that has the fewest, in use within the slice.
      seconds: at full bandwidth of those links.
    """

    bytes: int
    links: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Host:
    """What the hosts can feed, beside what the chips could eat.

    Attributes:
      needed_images_per_s: of each host, for the chips to run at their bound.
      images_per_s: that one host decodes.
    """

    needed_images_per_s: float
    images_per_s: float

    @property
    def bound(self) -> bool:
        """Whether the chips wait for the hosts, even if they run no faster than their own bound."""
        return self.images_per_s < self.needed_images_per_s


@dataclass(frozen=True, slots=True)
class Job:
    """A whole training run on a slice, at the bounds.

    Attributes:
      step_s: the bound of a step, if nothing of the all-reduce hides behind the computation.
      overlapped_step_s: the same if all of it hides.
      limit: what binds `step_s`: "compute", "memory" or "host"; "links" where the all-reduce takes longer than the computation.
      images_per_s_per_chip: at `overlapped_step_s`, an upper bound.
      hours: of all steps at `step_s`; starting, compiling, validation and checkpoints come on top.
      chip_hours: hours times chips, what is billed.
      money: chip hours times the price, None without a price.
    """

    step_s: float
    overlapped_step_s: float
    limit: str
    images_per_s_per_chip: float
    hours: float
    chip_hours: float
    money: float | None


def step(*, flops: float, traffic_bytes: float, batch: int, chip: "Chip") -> Step:
    """The roofline of one replica's step.

    compute_s = flops / peak, memory_s = bytes / bandwidth, bound_s = max of both (Williams et al. 2009, eq. 1).

    Args:
      flops: of the cost analysis, which counts a multiply-add as 2, as the peaks of chips do.
      traffic_bytes: to and from HBM, of `traffic.measure`.
      batch: images of one replica.
      chip: peak and bandwidth of what one replica runs on.

    Raises:
      InputError: `batch`, or the work, is not above zero.
    """
    _above_zero("batch", batch)
    if flops < 0 or traffic_bytes < 0 or flops + traffic_bytes <= 0:
        raise InputError(f"flops={flops}, traffic_bytes={traffic_bytes}: a step has work to do; give what the compiler counted")
    return Step(batch, flops / chip.peak_flops, traffic_bytes / chip.hbm_bytes_per_s)


def all_reduce(gradient_bytes: int, slice_: "Slice") -> AllReduce:
    """The all-reduce of data parallel training: a reduce-scatter, then an all-gather.

    Each of n replicas sends, and receives, 2 (n - 1) / n x gradient bytes (Patarasuk and Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", JPDC 69(2), 2009). The cores of one chip (v2, v3) add theirs in its own memory
    first, so between c chips go 2 (c - 1) / c x gradient bytes a chip.

    A chip has two links along each axis of its mesh (2 axes for v2, v3, v5e, v6e, 3 for v4, v5p), and a part of the gradient can
    travel along each axis at once. An axis that is closed to a ring has both links in use; on a line the chip at its end has one;
    an axis of length 1 has none. All wait for the chip at a corner, so

      seconds = 2 (c - 1) / c x gradient bytes / (links of a corner chip x bandwidth of a link in one direction).

    On closed rings this is the scaling book's 2 V / (W_ici x axes) ("Sharding", W_ici for both directions of an axis) but for
    its (c - 1) / c; on a line it is that book's worked example: 3/4 x 34 MB / 45 GB/s = 560 us for an all-gather, of which
    a profile there showed 680 us. The microsecond that a hop takes is left out.

    Args:
      gradient_bytes: of all trainable variables, as they are summed (float32: 4 bytes a parameter).
      slice_: the slice.

    Raises:
      InputError: `gradient_bytes` is negative.
    """
    if gradient_bytes < 0:
        raise InputError(f"gradient_bytes={gradient_bytes} must be 0 or more: 4 for each trainable parameter")
    links = corner_links(slice_)
    if slice_.replicas <= 1:
        return AllReduce(0, links, 0.0)
    sent = round(2 * (slice_.replicas - 1) / slice_.replicas * gradient_bytes)
    if slice_.chips <= 1:
        return AllReduce(sent, links, 0.0)
    link_bytes_per_s = slice_.chip.ici_bytes_per_s / (2 * len(_sides(slice_)))
    seconds = 2 * (slice_.chips - 1) / slice_.chips * gradient_bytes / (links * link_bytes_per_s)
    return AllReduce(sent, links, seconds)


def corner_links(slice_: "Slice") -> int:
    """Links in use of the chip that has the fewest: 2 on a ring, 1 at the end of a line, 0 on an axis of length 1."""
    sides = _sides(slice_)
    if len(sides) == 3:
        closed = [all(side % CUBE_SIDE == 0 for side in sides)] * 3
    else:
        closed = [side >= RING_SIDES.get(slice_.chip.generation, 16) for side in sides]
    return sum(0 if side == 1 else 1 + ring for side, ring in zip(sides, closed, strict=True))


def host(step_: Step, slice_: "Slice", *, decode_images_per_s: float, cores: int) -> Host:
    """Whether the hosts can decode what the chips could train on.

    needed = replica's images/s x replicas / hosts; supply = images/s of a core x cores of a host. Decoding is one image a core
    at a time, so cores count in full.

    Args:
      step_: the bound of a replica.
      slice_: the slice.
      decode_images_per_s: of one core, as `benchmarks/input_pipeline.py` measures it for this image size.
      cores: of one host that are free to decode.

    Raises:
      InputError: the rate or the cores are not above zero.
    """
    _above_zero("decode_images_per_s", decode_images_per_s)
    _above_zero("cores", cores)
    return Host(step_.images_per_s * slice_.replicas / slice_.hosts, decode_images_per_s * cores)


def job(
    step_: Step,
    reduction: AllReduce,
    slice_: "Slice",
    *,
    steps: int,
    feed: Host | None = None,
    price_per_chip_hour: float | None = None,
) -> Job:
    """Time and money of `steps` steps at the bounds.

    step_s = max(bound_s + all-reduce, host_s); overlapped_step_s = max(bound_s, all-reduce, host_s), where host_s = images a step
    and host / images/s of a host. The true bound lies between both; XLA overlaps some of the all-reduce with the backward pass.

    Args:
      step_: of one replica.
      reduction: of the gradients.
      slice_: the slice.
      steps: of the run.
      feed: of the hosts; None where the decode rate is not known, then hosts are taken to be fast enough.
      price_per_chip_hour: in any currency.

    Raises:
      InputError: `steps` is not above zero, or the price is negative.
    """
    _above_zero("steps", steps)
    if price_per_chip_hour is not None and not (price_per_chip_hour >= 0 and math.isfinite(price_per_chip_hour)):
        raise InputError(f"--price_per_chip_hour={price_per_chip_hour} must be 0 or more")
    images = step_.batch * slice_.replicas
    host_s = images / slice_.hosts / feed.images_per_s if feed else 0.0
    alone, hidden = step_.bound_s + reduction.seconds, max(step_.bound_s, reduction.seconds)
    step_s, overlapped = max(alone, host_s), max(hidden, host_s)
    if host_s > alone:
        limit = "host"
    elif reduction.seconds > step_.bound_s:
        limit = "links"
    else:
        limit = step_.limit
    hours = steps * step_s / 3600
    chip_hours = hours * slice_.chips
    return Job(
        step_s=step_s,
        overlapped_step_s=overlapped,
        limit=limit,
        images_per_s_per_chip=images / overlapped / slice_.chips,
        hours=hours,
        chip_hours=chip_hours,
        money=None if price_per_chip_hour is None else chip_hours * price_per_chip_hour,
    )


def _sides(slice_: "Slice") -> list[int]:
    """Chips along each axis: "2x4" is [2, 4]."""
    return [int(side) for side in slice_.topology.split("x")]


def _above_zero(field: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{field}={value} must be above zero")
