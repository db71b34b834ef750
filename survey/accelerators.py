"""Cloud TPU chips and slices as data: what a program may use of a chip, and what `--accelerator` may name. No TensorFlow here.

Chip and slice are Google's words: a slice is what one rents (`v5litepod-8`), chips are what it is made of. The names of v5e's and
v6e's slices count chips; those of the others count TensorCores, two a chip.
"""

import re
from dataclasses import dataclass

from survey.errors import InputError

_DOCS = "cloud.google.com/tpu/docs"
_COMPILER = "HBM: what libtpu 0.0.42.1 says is available when it refuses a module"


@dataclass(frozen=True, slots=True)
class Chip:
    """One generation. Rates and memory are those of a device: what the compiler compiles for and TensorFlow calls a replica.

    The two cores of a v2 or v3 chip are two devices, each with half of the chip's memory, arithmetic and bandwidth. The two cores
    of v4 and v5p work as one device ("megacore").

    Attributes:
      generation: "v5e".
      hbm_bytes: of a device, what the compiler lets a program use: the chip's HBM without what the system keeps. The compiler
        prints it with two decimals of a GiB, so it is known to 5 MiB.
      peak_flops: of a device, bfloat16 with float32 sums, per second; a multiplication and an addition are two.
      hbm_bytes_per_s: of a device.
      ici_bytes_per_s: of a chip, to its neighbours in the slice, all links together in one direction. Google's pages give both
        directions together for v5e, v5p and v6e: half of that. A slice that is not closed to a torus has fewer links in use.
      cores_per_chip: TensorCores.
      devices: of a chip.
      chips_per_host: in slices of several hosts.
      topology: the smallest that the compiler takes, "v5e:2x2".
      source: of each figure.
    """

    generation: str
    hbm_bytes: int
    peak_flops: float
    hbm_bytes_per_s: float
    ici_bytes_per_s: float
    cores_per_chip: int
    devices: int
    chips_per_host: int
    topology: str
    source: str


@dataclass(frozen=True, slots=True)
class Slice:
    """What one rents.

    Attributes:
      accelerator_type: as gcloud calls it, "v5litepod-8".
      chip: of which it is made.
      chips: how many.
      replicas: of the model in TensorFlow: one a core on v2 and v3, one a chip later.
      hosts: machines that feed it.
      host_cores: virtual processors of one of them.
      topology: of its chips, "2x4".
    """

    accelerator_type: str
    chip: Chip
    chips: int
    replicas: int
    hosts: int
    host_cores: int
    topology: str


def _gib(number: float) -> int:
    return int(number * 2**30)


CHIPS = {
    chip.generation: chip
    for chip in (
        Chip(
            generation="v2",
            hbm_bytes=_gib(7.48),
            peak_flops=46e12 / 2,
            hbm_bytes_per_s=700e9 / 2,
            ici_bytes_per_s=4 * 496e9 / 8,
            cores_per_chip=2,
            devices=2,
            chips_per_host=4,
            topology="v2:2x2",
            source=f"{_COMPILER}; peak, bandwidth, links (4 of 496 Gbit/s): Jouppi et al., A Domain-Specific Supercomputer for "
            "Training Deep Neural Networks, CACM 2020; a core has half of the chip",
        ),
        Chip(
            generation="v3",
            hbm_bytes=_gib(15.48),
            peak_flops=123e12 / 2,
            hbm_bytes_per_s=900e9 / 2,
            ici_bytes_per_s=4 * 656e9 / 8,
            cores_per_chip=2,
            devices=2,
            chips_per_host=4,
            topology="v3:2x2",
            source=f"{_COMPILER}; peak, bandwidth: {_DOCS}/v3; links (4 of 656 Gbit/s): Jouppi et al., A Domain-Specific "
            "Supercomputer for Training Deep Neural Networks, CACM 2020; a core has half of the chip",
        ),
        Chip(
            generation="v4",
            hbm_bytes=_gib(30.75),
            peak_flops=275e12,
            hbm_bytes_per_s=1200e9,
            ici_bytes_per_s=6 * 50e9,
            cores_per_chip=2,
            devices=1,
            chips_per_host=4,
            topology="v4:2x2x1",
            source=f"{_COMPILER}; peak, bandwidth: {_DOCS}/v4; links (6 of 50 GB/s): Jouppi et al., TPU v4: An Optically "
            "Reconfigurable Supercomputer for Machine Learning, ISCA 2023",
        ),
        Chip(
            generation="v5e",
            hbm_bytes=_gib(15.75),
            peak_flops=197e12,
            hbm_bytes_per_s=819e9,
            ici_bytes_per_s=400e9 / 2,
            cores_per_chip=1,
            devices=1,
            chips_per_host=4,
            topology="v5e:2x2",
            source=f"{_COMPILER}; peak, bandwidth, links (400 GB/s both ways): {_DOCS}/v5e",
        ),
        Chip(
            generation="v5p",
            hbm_bytes=_gib(95.74),
            peak_flops=459e12,
            hbm_bytes_per_s=2765e9,
            ici_bytes_per_s=1200e9 / 2,
            cores_per_chip=2,
            devices=1,
            chips_per_host=4,
            topology="v5p:2x2x1",
            source=f"{_COMPILER}; peak, bandwidth, links (1,200 GB/s both ways): {_DOCS}/v5p",
        ),
        Chip(
            generation="v6e",
            hbm_bytes=_gib(31.25),
            peak_flops=918e12,
            hbm_bytes_per_s=1640e9,
            ici_bytes_per_s=800e9 / 2,
            cores_per_chip=1,
            devices=1,
            chips_per_host=4,
            topology="v6e:2x2",
            source=f"{_COMPILER}; peak, bandwidth (1,640 GB/s; later editions say 1,600), links (800 GB/s both ways): "
            f"{_DOCS}/v6e",
        ),
    )
}

# Arrangements of the chips of the slices that Cloud TPU rents, smallest first: the tables of its page on each generation. Of v4
# and v5p only the common ones; both also come in other multiples of 4x4x4.
_LITE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_TOPOLOGIES = {
    "v2": ("2x2", "4x4", "8x8", "8x16", "16x16"),
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": _CUBES,
    "v5e": _LITE,
    "v5p": (*_CUBES, "16x16x16", "16x16x24"),
    "v6e": _LITE,
}
# Virtual processors of a host by the number of its chips; 0 stands for the hosts of a slice that has several, where they differ.
# From the machine types of "Plan TPUs in GKE" (ct3-hightpu-4t, ct3p-hightpu-4t, ct4p-hightpu-4t, ct5lp-hightpu-1t, ...), for v2
# the size of the v2-8 TPU VM, from memory.
_HOST_CORES = {
    "v2": {4: 96},
    "v3": {4: 96, 0: 48},
    "v4": {4: 240},
    "v5e": {1: 24, 4: 112, 8: 224},
    "v5p": {4: 208},
    "v6e": {1: 44, 4: 180, 8: 180},
}
_NAMES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e"}  # what else people call them
_PREFIXES = {"v5e": "v5litepod"}  # gcloud's word where it is not the generation's
_COUNTED_IN_CHIPS = ("v5e", "v6e")
_ONE_HOST_CHIPS = 8  # v5e and v6e come with up to 8 chips at one host; larger slices have machines of four


def parse(text: str) -> Slice:
    """The slice of that name.

    >>> found = parse("v5e-16")
    >>> found.accelerator_type, found.chips, found.hosts, found.topology
    ('v5litepod-16', 16, 4, '4x4')

    Args:
      text: what gcloud calls `--accelerator-type`: v5litepod-8, v6e-4, v4-8; v5e-8 is understood.

    Raises:
      InputError: no such generation, or it is not rented in this size.
    """
    found = re.fullmatch(r"(v\d+[a-z]*|trillium)(?:-(\w*))?", text.strip().lower())
    generation = _NAMES.get(found[1], found[1]) if found else ""
    if found is None or generation not in CHIPS:
        known = ", ".join(_name(generation, _topologies(generation)[-1][0]) for generation in CHIPS)
        raise InputError(
            f"--accelerator={text}: unknown; known are the generations {', '.join(CHIPS)}, each by its name and size as gcloud "
            f"writes them, up to {known}: v5litepod-8 is eight chips of v5e"
        )
    sizes = dict(_topologies(generation))
    size = int(found[2]) if found[2] and found[2].isdecimal() else None
    if size not in sizes:
        raise InputError(f"--accelerator={text}: {_no_size(generation, size, list(sizes))}")
    chip = CHIPS[generation]
    chips = _chips(sizes[size])
    on_one_host = generation in _COUNTED_IN_CHIPS and chips <= _ONE_HOST_CHIPS
    hosts = 1 if on_one_host else chips // chip.chips_per_host
    cores = _HOST_CORES[generation]
    return Slice(
        accelerator_type=_name(generation, size),
        chip=chip,
        chips=chips,
        replicas=chips * chip.devices,
        hosts=hosts,
        host_cores=cores[0] if hosts > 1 and 0 in cores else cores[chips // hosts],
        topology=sizes[size],
    )


def _no_size(generation: str, size: int | None, sizes: list[int]) -> str:
    """What is wrong with a size, for the error: the sizes next to it where it is a number, and all."""
    unit = "chips" if generation in _COUNTED_IN_CHIPS else "TensorCores, two a chip"
    every = f"{_name(generation, sizes[0])} to {_name(generation, sizes[-1])} in sizes {', '.join(map(str, sizes))} ({unit})"
    if size is None:
        return f"the size is missing; {generation} is rented as {every}"
    near = [_name(generation, other) for other in (*[s for s in sizes if s < size][-1:], *[s for s in sizes if s > size][:1])]
    return f"{generation} is not cut into slices of {size}; nearest {' and '.join(near)}; it is rented as {every}"


def _topologies(generation: str) -> list[tuple[int, str]]:
    """Pairs of the size that a slice's name says and the arrangement of its chips."""
    unit = 1 if generation in _COUNTED_IN_CHIPS else CHIPS[generation].cores_per_chip
    return [(_chips(topology) * unit, topology) for topology in _TOPOLOGIES[generation]]


def _chips(topology: str) -> int:
    """Chips of an arrangement.

    >>> _chips("2x4")
    8
    """
    product = 1
    for side in topology.split("x"):
        product *= int(side)
    return product


def _name(generation: str, size: int) -> str:
    return f"{_PREFIXES.get(generation, generation)}-{size}"
