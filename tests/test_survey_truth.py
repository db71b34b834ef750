"""Annotations and mosaics brought together. The frames of single formats are in test_survey_annotations."""

import unicodedata

import numpy as np
import pytest

from survey import truth
from survey.annotations.annotation import Annotation, Length
from survey.errors import InputError
from survey.geometry import Mosaic

NORTH = Mosaic("north", "x/north.tif", 300, 500, gsd_m=0.5)
SOUTH = Mosaic("south", "x/south.tif", 100, 100)


def annotation(box, image="north.tif", name="tern", size=None, **more):
    return Annotation(image, size, name, box, "a.csv", **more)


def by_mosaic(annotations, mosaics=(NORTH, SOUTH), **more):
    return truth.by_mosaic(annotations, mosaics, ("seal", "tern"), named_in="labels.pbtxt", **more)


def test_every_frame_by_hand():
    found = by_mosaic(
        iter(
            [
                annotation((10, 20, 30, 40)),
                annotation((10, 20, 30, 40), frame="pixels_from_bottom"),  # 300 - 30, 300 - 10
                annotation((0.1, 0.2, 0.5, 0.4), frame="normalised"),  # of 300 and 500
                annotation((50, 60, 50, 60), side=Length(8)),
                annotation((50, 70, 50, 70), side=Length(8, "m")),  # 8 m / 0.5 m = 16 px
                annotation((50, 60, 50, 60), side=Length(8), frame="pixels_from_bottom", name="seal"),
            ]
        )
    ).objects["north"]
    assert found.boxes_mosaic_px.tolist() == [
        [10, 20, 30, 40],
        [270, 20, 290, 40],
        [30, 100, 150, 200],
        [46, 56, 54, 64],
        [42, 62, 58, 78],
        [246, 56, 254, 64],
    ]
    assert found.class_ids.tolist() == [2, 2, 2, 2, 2, 1]
    assert found.class_ids.dtype == np.int32


def test_clipped_dropped_and_doubled_objects_are_counted_with_their_first_cases():
    found = by_mosaic(
        [
            annotation((90, 90, 110, 95), "south.tif"),  # clipped to row 100
            annotation((-5, 0, 5, 5)),  # clipped to row 0
            annotation((300, 0, 310, 5)),  # below
            annotation((9, 9, 9, 20)),  # a line
            annotation((20, 0, 10, 5)),  # upside down
            annotation((float("nan"), 0, 10, 5)),
            annotation((1, 1, 2, 2)),
            annotation((1, 1, 2, 2)),  # again
            annotation((1, 1, 2, 2), name="seal"),  # another class is another object
            annotation((0.5, 0.5, 0.5, 0.5), "south", frame="normalised", side=Length(300)),
        ]
    )
    assert found.counts == {
        "objects_read": 10,
        "objects_clipped_to_mosaic": 3,
        "objects_empty_or_outside_mosaic": 4,
        "objects_given_twice": 1,
    }
    assert found.objects["north"].boxes_mosaic_px.tolist() == [[0, 0, 5, 5], [1, 1, 2, 2], [1, 1, 2, 2]]
    assert found.objects["south"].boxes_mosaic_px.tolist() == [[90, 90, 100, 95], [0, 0, 100, 100]]
    assert found.offenders == {
        # In the order of the annotations, whatever mosaic they are on; pixels where the file has another frame.
        "objects_clipped_to_mosaic": [
            "a.csv: tern at yxyx (90, 90, 110, 95)",
            "a.csv: tern at yxyx (-5, 0, 5, 5)",
            "a.csv: tern at yxyx (-100.0, -100.0, 200.0, 200.0)",
        ],
        "objects_empty_or_outside_mosaic": [
            "a.csv: tern at yxyx (300, 0, 310, 5)",
            "a.csv: tern at yxyx (9, 9, 9, 20)",
            "a.csv: tern at yxyx (20, 0, 10, 5)",
        ],
        "objects_given_twice": ["a.csv: tern at yxyx (1, 1, 2, 2)"],
    }


def test_images_without_objects_are_empty_mosaics():
    found = by_mosaic([annotation((1, 1, 2, 2))], images=["north.tif", "south.tif", "west.tif"])
    assert list(found.objects) == ["north", "south"]
    assert found.objects["south"].boxes_mosaic_px.shape == (0, 4)
    assert found.counts["images_without_objects_not_among_mosaics"] == 1
    assert list(by_mosaic([annotation((1, 1, 2, 2))]).objects) == ["north"]


@pytest.mark.parametrize(
    "image", ["north.tif", "north", "NORTH/../north.jpg", "C:\\my survey\\north.tif", "/etc/north.xml", "gs://b/é/north.tiff"]
)
def test_images_are_matched_by_stem_and_never_opened(image):
    assert list(by_mosaic([annotation((1, 1, 2, 2), image)]).objects) == ["north"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_the_same_however_they_are_stored(form):
    mosaic = Mosaic(unicodedata.normalize(form, "Île d'Yeu 2"), "x.tif", 10, 10)
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "Île d'Yeu 2.tif")
    assert list(by_mosaic([annotation((1, 1, 2, 2), other)], [mosaic]).objects) == [mosaic.name]


@pytest.mark.parametrize("image", ["west.tif", "..", "../..", "", "North.tif"])
def test_an_unknown_image_is_refused(image):
    with pytest.raises(InputError, match=r"a\.csv annotates image .*, which is not among the 2 mosaics \(nearest: x/"):
        by_mosaic([annotation((1, 1, 2, 2), image)])


def test_another_image_size_is_refused():
    good = annotation((1, 1, 2, 2), size=(300, 500))
    with pytest.raises(InputError, match=r"for an image of \(height, width\) \(500, 300\), but x/north\.tif has \(300, 500\)"):
        by_mosaic([good, annotation((1, 1, 2, 2), size=(500, 300))])


def test_an_unknown_class_is_refused():
    with pytest.raises(InputError, match=r"class 'turn', which labels\.pbtxt lacks \(it has seal, tern\).* correct it to 'tern'"):
        by_mosaic([annotation((1, 1, 2, 2), name="turn")])


def test_the_first_mistake_is_reported():
    mistakes = [annotation((1, 1, 2, 2), name="turn"), annotation((1, 1, 2, 2), "west.tif")]
    with pytest.raises(InputError, match="turn"):
        by_mosaic(mistakes)
    with pytest.raises(InputError, match="west"):
        by_mosaic(mistakes[::-1])


def test_many_annotations_over_many_mosaics():
    """20,000 objects over 100 mosaics agree with one at a time; the figure for a million is in the benchmarks."""
    rng = np.random.default_rng(0)
    mosaics = [Mosaic(f"m{i}", f"m{i}.tif", 1000, 1000) for i in range(100)]
    corners = rng.uniform(-20, 1000, (20_000, 2))
    where = rng.integers(0, 100, 20_000)
    annotations = [annotation((y, x, y + 30, x + 20), f"m{i}.tif") for (y, x), i in zip(corners.tolist(), where, strict=True)]
    found = by_mosaic(annotations, mosaics)
    for i in (0, 57, 99):
        alone = np.array([one.box for one, j in zip(annotations, where, strict=True) if i == j]).clip(0, 1000)
        shown = (alone[:, 2] > alone[:, 0]) & (alone[:, 3] > alone[:, 1])
        assert found.objects[f"m{i}"].boxes_mosaic_px.tolist() == alone[shown].tolist()
    total = sum(len(objects.class_ids) for objects in found.objects.values())
    assert total + found.counts["objects_empty_or_outside_mosaic"] == 20_000
