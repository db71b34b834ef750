"""Bounds of a step and of a job, worked out by hand."""

import dataclasses

import pytest

from survey import accelerators
from survey.accelerators import Slice
from survey.errors import InputError
from tpu_train.preflight import roofline

GRADIENTS = 160_000_000  # bytes: 40 million parameters in float32


def slice_of(text: str, **chip: float) -> Slice:
    """A slice whose chip has round figures: 200 TFLOP/s, 800 GB/s of HBM, and 40 GB/s a link (ICI: all links together)."""
    found = accelerators.parse(text)
    links = 2 * len(found.topology.split("x"))
    figures = {"peak_flops": 200e12, "hbm_bytes_per_s": 800e9, "ici_bytes_per_s": 40e9 * links, **chip}
    return dataclasses.replace(found, chip=dataclasses.replace(found.chip, **figures))


V5E_8 = slice_of("v5litepod-8")
STEP = roofline.Step(batch=8, compute_s=0.02, memory_s=0.016)  # 400 images/s
FREE = roofline.AllReduce(0, 2, 0.0)


def test_the_longer_of_compute_and_memory_bounds_a_step() -> None:
    step = roofline.step(flops=4e12, traffic_bytes=12.8e9, batch=8, chip=V5E_8.chip)
    assert (step.compute_s, step.memory_s) == pytest.approx((0.02, 0.016))  # 4e12 / 200e12, 12.8e9 / 800e9
    assert (step.bound_s, step.limit) == (step.compute_s, "compute")
    assert step.images_per_s == pytest.approx(400)  # 8 / 0.02
    step = roofline.step(flops=2e12, traffic_bytes=12.8e9, batch=8, chip=V5E_8.chip)
    assert (step.bound_s, step.limit) == (step.memory_s, "memory")
    assert step.images_per_s == pytest.approx(500)  # 8 / 0.016


@pytest.mark.parametrize(
    ("topology", "links"),
    [
        ("1x1", 0),
        ("2x2", 2),
        ("2x4", 2),  # two lines: the chip at a corner has one link along each
        ("8x16", 3),  # the axis of 16 is a ring
        ("16x16", 4),
        ("2x2x1", 2),
        ("2x2x4", 3),  # no whole cube: no rings
        ("4x4x4", 6),
        ("4x4x8", 6),
        ("4x4x2", 3),
    ],
)
def test_links_of_the_chip_at_a_corner(topology: str, links: int) -> None:
    assert roofline.corner_links(dataclasses.replace(V5E_8, topology=topology)) == links


def test_a_pod_of_v3_closes_its_rings_at_32() -> None:
    chip = dataclasses.replace(V5E_8.chip, generation="v3")
    assert roofline.corner_links(dataclasses.replace(V5E_8, chip=chip, topology="16x16")) == 2
    assert roofline.corner_links(dataclasses.replace(V5E_8, chip=chip, topology="32x32")) == 4


def test_all_reduce_on_lines() -> None:
    # 8 replicas: 2 * 7/8 * 160 MB = 280 MB; a corner of 2x4 has 2 links of 40 GB/s: 3.5 ms.
    found = roofline.all_reduce(GRADIENTS, V5E_8)
    assert (found.bytes, found.links) == (280_000_000, 2)
    assert found.seconds == pytest.approx(0.0035)


def test_all_reduce_on_rings() -> None:
    # 256 replicas: 2 * 255/256 * 160 MB = 318.75 MB over 4 links of 40 GB/s.
    found = roofline.all_reduce(GRADIENTS, slice_of("v5litepod-256"))
    assert (found.bytes, found.links) == (318_750_000, 4)
    assert found.seconds == pytest.approx(318.75e6 / 160e9)


def test_cores_of_a_chip_add_their_own_first() -> None:
    # v3-8: 4 chips of 2 cores. Each replica's share is 2 * 7/8, but between chips go 2 * 3/4 * 160 MB = 240 MB, over 2 links.
    v3 = slice_of("v3-8")
    assert (v3.chips, v3.replicas, v3.topology) == (4, 8, "2x2")
    found = roofline.all_reduce(GRADIENTS, v3)
    assert found.bytes == 280_000_000
    assert found.seconds == pytest.approx(240e6 / 80e9)


def test_one_replica_sends_nothing() -> None:
    assert roofline.all_reduce(GRADIENTS, slice_of("v5litepod-1")) == roofline.AllReduce(0, 0, 0.0)


def test_hosts_keep_up_or_not() -> None:
    # 8 chips at 400 images/s: 3200, of one host.
    assert V5E_8.hosts == 1
    slow = roofline.host(STEP, V5E_8, decode_images_per_s=300, cores=10)
    assert (slow.needed_images_per_s, slow.images_per_s, slow.bound) == (pytest.approx(3200), 3000, True)
    assert not roofline.host(STEP, V5E_8, decode_images_per_s=330, cores=10).bound


def test_two_hosts_share_the_images() -> None:
    two = dataclasses.replace(V5E_8, hosts=2)
    assert roofline.host(STEP, two, decode_images_per_s=300, cores=10).needed_images_per_s == pytest.approx(1600)


def test_hours_and_money() -> None:
    # 90,000 steps of 20 ms: 0.5 h; 8 chips: 4 chip hours at 1.20.
    found = roofline.job(STEP, FREE, V5E_8, steps=90_000, price_per_chip_hour=1.2)
    assert (found.step_s, found.overlapped_step_s, found.limit) == (0.02, 0.02, "compute")
    assert (found.hours, found.chip_hours, found.money) == pytest.approx((0.5, 4.0, 4.8))
    assert found.images_per_s_per_chip == pytest.approx(400)
    assert roofline.job(STEP, FREE, V5E_8, steps=1).money is None


def test_the_all_reduce_hides_or_does_not() -> None:
    found = roofline.job(STEP, roofline.AllReduce(1, 2, 0.005), V5E_8, steps=3600)
    assert (found.step_s, found.overlapped_step_s, found.limit) == (pytest.approx(0.025), 0.02, "compute")
    assert found.hours == pytest.approx(0.025)
    assert found.images_per_s_per_chip == pytest.approx(400)  # an upper bound: as if all of it hid
    found = roofline.job(STEP, roofline.AllReduce(1, 2, 0.03), V5E_8, steps=1)
    assert (found.step_s, found.overlapped_step_s, found.limit) == (pytest.approx(0.05), 0.03, "links")


def test_slow_hosts_make_the_step_longer() -> None:
    # 64 images a step, one host of 1280 images/s: 50 ms, and 1280 / 8 images/s of each chip.
    feed = roofline.Host(needed_images_per_s=3200, images_per_s=1280)
    found = roofline.job(STEP, FREE, V5E_8, steps=72_000, feed=feed)
    assert (found.step_s, found.overlapped_step_s, found.limit) == (pytest.approx(0.05), pytest.approx(0.05), "host")
    assert (found.hours, found.images_per_s_per_chip) == (pytest.approx(1.0), pytest.approx(160))


def test_a_core_is_a_replica_on_v3() -> None:
    # 2 cores a chip at 400 images/s each; 4 chips are billed.
    found = roofline.job(STEP, FREE, slice_of("v3-8"), steps=180_000)
    assert found.images_per_s_per_chip == pytest.approx(800)
    assert (found.hours, found.chip_hours) == pytest.approx((1.0, 4.0))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="batch=0 must be above zero"):
        roofline.step(flops=1, traffic_bytes=1, batch=0, chip=V5E_8.chip)
    with pytest.raises(InputError, match="a step has work to do"):
        roofline.step(flops=-1, traffic_bytes=1, batch=1, chip=V5E_8.chip)  # older compilers say -1 for what they do not know
    with pytest.raises(InputError, match="gradient_bytes=-4"):
        roofline.all_reduce(-4, V5E_8)
    with pytest.raises(InputError, match="cores=0"):
        roofline.host(STEP, V5E_8, decode_images_per_s=1, cores=0)
    with pytest.raises(InputError, match="decode_images_per_s=nan"):
        roofline.host(STEP, V5E_8, decode_images_per_s=float("nan"), cores=1)
    with pytest.raises(InputError, match="steps=0"):
        roofline.job(STEP, FREE, V5E_8, steps=0)
    with pytest.raises(InputError, match="price_per_chip_hour=-1 must be 0 or more"):
        roofline.job(STEP, FREE, V5E_8, steps=1, price_per_chip_hour=-1)
