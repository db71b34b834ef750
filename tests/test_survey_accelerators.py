"""What --accelerator may name, and what the chips are."""

import pytest

from survey import accelerators
from survey.errors import InputError

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "name", "generation", "chips", "replicas", "hosts", "topology"),
    [
        # v5e and v6e count chips, one replica each; up to 8 of them stand at one host, then four at each: 16 / 4 = 4 hosts
        ("v5litepod-1", "v5litepod-1", "v5e", 1, 1, 1, "1x1"),
        ("v5litepod-8", "v5litepod-8", "v5e", 8, 8, 1, "2x4"),
        ("v5e-16", "v5litepod-16", "v5e", 16, 16, 4, "4x4"),
        ("V6E-256", "v6e-256", "v6e", 256, 256, 64, "16x16"),
        # v4 and v5p count cores, two a chip that work as one replica: 8 cores are 4 chips, which are one host
        ("v4-8", "v4-8", "v4", 4, 4, 1, "2x2x1"),
        ("v5p-128", "v5p-128", "v5p", 64, 64, 16, "4x4x4"),
        # v2 and v3 count cores, each a replica
        ("v3-8", "v3-8", "v3", 4, 8, 1, "2x2"),
        ("v2-32", "v2-32", "v2", 16, 32, 4, "4x4"),
    ],
)
def test_slices_by_the_names_people_use(
    text: str, name: str, generation: str, chips: int, replicas: int, hosts: int, topology: str
) -> None:
    found = accelerators.parse(text)
    assert (found.accelerator_type, found.chip.generation, found.topology) == (name, generation, topology)
    assert (found.chips, found.replicas, found.hosts) == (chips, replicas, hosts)


@pytest.mark.parametrize("text", ["v7x-8", "a100", "", "8", "v5", "-8"])
def test_an_unknown_accelerator_lists_the_known(text: str) -> None:
    with pytest.raises(InputError, match=f"--accelerator={text}: unknown.* v2, v3, v4, v5e, v5p, v6e") as error:
        accelerators.parse(text)
    assert "v5litepod-256" in str(error.value)


def test_a_size_that_is_not_cut_names_those_next_to_it() -> None:
    with pytest.raises(InputError, match=r"v5litepod-12: v5e is not cut into slices of 12; nearest v5litepod-8 and v5litepod-16"):
        accelerators.parse("v5litepod-12")
    with pytest.raises(InputError, match=r"v3-4: .* nearest v3-8; .* v3-8 to v3-2048 in sizes 8, 32, 64, 128, .* \(TensorCores"):
        accelerators.parse("v3-4")
    with pytest.raises(InputError, match=r"nearest v6e-256; it is rented as"):
        accelerators.parse("v6e-512")


@pytest.mark.parametrize("text", ["v5litepod", "v5litepod-", "v5e-x", "v5e-0x8", "v5e-2x4"])
def test_a_missing_size_is_said_to_be_missing(text: str) -> None:
    with pytest.raises(
        InputError, match=r"the size is missing; v5e is rented as v5litepod-1 to v5litepod-256 in sizes 1, 4, 8, 16"
    ):
        accelerators.parse(text)


def test_every_slice_is_whole_hosts_and_every_chip_has_a_source() -> None:
    for generation, chip in accelerators.CHIPS.items():
        assert chip.generation == generation
        assert chip.topology.startswith(f"{generation}:")
        assert "libtpu" in chip.source
        for size, topology in accelerators._topologies(generation):
            found = accelerators.parse(f"{generation}-{size}")
            assert found.topology == topology
            assert found.hosts * (8 if found.hosts == 1 else chip.chips_per_host) >= found.chips


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("v5e-1", 24),
        ("v5e-4", 112),
        ("v5e-8", 224),
        ("v5e-16", 112),
        ("v6e-16", 180),
        ("v3-8", 96),
        ("v3-32", 48),
        ("v5p-16", 208),
    ],
)
def test_the_cores_of_a_host_go_with_its_chips(text: str, cores: int) -> None:
    assert accelerators.parse(text).host_cores == cores


def test_figures_are_those_of_a_device() -> None:
    """A core of v3 has half of the chip's 32 GiB, 123 TFLOP/s and 900 GB/s; the chip's two cores of v4 are one device."""
    v3, v4, v5e = (accelerators.CHIPS[name] for name in ("v3", "v4", "v5e"))
    assert (v3.devices, v3.peak_flops, v3.hbm_bytes_per_s) == (2, 61.5e12, 450e9)
    assert 15 * GIB < v3.hbm_bytes < 16 * GIB
    assert (v4.devices, v4.peak_flops, v4.hbm_bytes_per_s, v4.ici_bytes_per_s) == (1, 275e12, 1200e9, 300e9)
    assert v5e.hbm_bytes == 63 * GIB // 4  # 15.75 GiB
    assert v5e.ici_bytes_per_s == 200e9  # 1,600 Gbit/s
