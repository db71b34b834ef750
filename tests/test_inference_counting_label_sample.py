"""inference.counting.label_sample: the design of a sample, and the folder that people label."""

import csv

import numpy as np
import pytest
from PIL import Image

from inference.counting import expected, label_sample
from survey.annotations import voc
from survey.annotations.reading import ReadOptions
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic

CLASSES = ("a < b",)


def test_uncertainty_by_hand():
    # Recall .8: a quarter of an object missed for each one expected; a fifth of the mean of 2, and .02.
    deviations = label_sample.uncertainty(np.array([0.0, 4.0]), np.array([0.0, 0.5]), 0.8)
    assert deviations**2 == pytest.approx([0.4 + 0.02, 0.5 + 1.0 + 0.4 + 0.02])


def test_strata_of_equal_uncertainty():
    # Six at 1 and two at 3: total 12, two strata of 6 each; three labels each but the second has only two units.
    planned = label_sample.design(np.array([1.0, 3, 1, 1, 1, 3, 1, 1]), 6)
    assert planned.strata.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert planned.sizes.tolist() == [6, 2]
    assert planned.counts.tolist() == [4, 2]
    # Only the first stratum errs: 6^2 (1 - 4/6) / 4 * 1 = 3.
    assert planned.error() == pytest.approx(np.sqrt(3))


def test_neyman_allocation():
    # One stratum would be 3 labels; sums 8 and 16 of 24 at 9 labels: three strata of 8 each, so equal numbers.
    planned = label_sample.design(np.array([1.0] * 8 + [2.0] * 8), 9)
    assert planned.sizes.tolist() == [8, 4, 4]
    assert planned.counts.tolist() == [3, 3, 3]
    assert label_sample.design(np.ones(50), 50).counts.sum() == 50


def test_draw_is_random_within_strata():
    planned = label_sample.design(np.linspace(0.1, 2, 40), 12)
    times = np.zeros(40)
    for seed in range(400):
        chosen = label_sample.draw(planned, seed)
        assert np.bincount(planned.strata[chosen], minlength=len(planned.sizes)).tolist() == planned.counts.tolist()
        times[chosen] += 1
    # As often as its probability says; the standard deviation of a frequency of 400 is at most .025.
    assert times / 400 == pytest.approx((planned.counts / planned.sizes)[planned.strata], abs=0.11)
    assert label_sample.draw(planned, 3).tolist() == label_sample.draw(planned, 3).tolist()


@pytest.fixture
def written(tmp_path, pixels):
    image = pixels(40, 60)
    Image.fromarray(image).save(tmp_path / "north.png")
    mosaic = Mosaic("north", str(tmp_path / "north.png"), 40, 60)
    # Six cores of 20 x 20. One detection of 8 x 4 px counts, one does not.
    found = {
        "north": Detections(
            np.array([[16, 18, 24, 22], [0, 0, 8, 8]], np.float32),
            np.array([0.9, 0.3], np.float32),
            np.ones(2, np.int32),
            np.zeros(2),
        )
    }
    manifest = Manifest("model", "0" * 64, CLASSES, 0.5, (mosaic,), {}, {}, {"overlap_px": 0}, {})
    worth = expected.Worth((), 0.5, 0.8)
    units = expected.in_cores(manifest, found, worth, 20, 0)
    planned = label_sample.design(np.ones(6), 6)
    sample = label_sample.write(str(tmp_path / "s"), manifest, found, units, planned, 0, {"detections.json": "d"})
    return tmp_path / "s", sample, units, image


def test_units_take_what_is_in_their_core(written):
    _, _, units, _ = written
    # The centre (20, 20) belongs to the second row and column of cores.
    assert units.numbers[:, 0].tolist() == [0, 0, 0, 0, 1, 0]
    assert units.variances[4, 0] == pytest.approx(0.75 * 0.25)


def test_the_folder(written):
    folder, sample, _, image = written
    # The halo is .75 of 8 px: 6, cut at the edge of the mosaic.
    assert sample.halo_px == 6
    last = sample.patches[5]
    assert (last.window, last.core) == ((14, 34, 40, 60), (20, 40, 40, 60))
    assert last.probability == 1
    assert np.array_equal(np.array(Image.open(folder / last.image)), image[14:40, 34:60])
    # The model's box, in pixels of a patch that shows it: window of the first patch starts at 0, 0 and ends at 26, 26.
    read = voc.read(str(folder / "patch_000000.xml"), ReadOptions())
    assert [(one.class_name, one.box, one.image_size) for one in read.annotations] == [("a < b", (16, 18, 24, 22), (26, 26))]
    assert label_sample.in_core(sample.patches[0], np.array([[16.0, 18, 24, 22], [10, 10, 20, 20]])).tolist() == [False, True]
    with open(folder / "sample.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [patch.image for patch in sample.patches]
    assert rows[5]["core_x0"] == "40"
    paths = [str(folder / patch.annotation) for patch in sample.patches]
    assert label_sample.untouched(sample, paths) == 6
    (folder / "patch_000000.xml").write_text("<annotation/>")
    assert label_sample.untouched(sample, paths) == 5


def test_reading_back(written):
    folder, sample, _, _ = written
    assert label_sample.read(str(folder), {"detections.json": "d"}) == sample
    with pytest.raises(InputError, match="drawn from other detections"):
        label_sample.read(str(folder), {"detections.json": "e"})


def test_a_mosaic_that_changed_is_refused(written, tmp_path, pixels):
    _, _, units, _ = written
    Image.fromarray(pixels(30, 60)).save(tmp_path / "north.png")
    manifest = Manifest("model", "0" * 64, CLASSES, 0.5, units.mosaics, {}, {}, {}, {})
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0))
    with pytest.raises(InputError, match="is 60 x 30 px, but was 60 x 40 px"):
        label_sample.write(str(tmp_path / "t"), manifest, {"north": none}, units, label_sample.design(np.ones(6), 6), 0, {})
