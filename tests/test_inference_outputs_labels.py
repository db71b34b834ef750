"""YOLO, VOC and CVAT labels: read back by our own readers; and the tiles of large mosaics."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_survey import CLASSES, FOUND, described, detections_at, manifest_of, plain, scattered

from inference.outputs import relabelling, writing
from inference.outputs.job import Job, Settings
from survey import truth
from survey.annotations import every
from survey.annotations.reading import ReadOptions
from survey.detections import Detections
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.raster import Raster

LABELS = {"yolo": "relabel/labels/*.txt", "voc": "relabel/voc/*.xml", "cvat": "relabel/annotations.cvat.xml"}


def read_back(folder: Path, format: str, mosaics: list[Mosaic]) -> dict[str, truth.Objects]:
    reading = every.read([str(path) for path in sorted(folder.glob(LABELS[format]))], format, ReadOptions())
    return truth.by_mosaic(reading.annotations, mosaics, CLASSES, named_in="x", images=reading.images).objects


@pytest.fixture
def large(tmp_path, pixels, write_raster) -> Mosaic:
    """A mosaic of 250 x 430 px: 2 rows of tiles of 125 px, and 3 columns that begin at 0, 143 (143.33) and 287 (286.67)."""
    path = tmp_path / "large.png"
    write_raster(path, pixels(250, 430))
    return described(path)


@pytest.mark.parametrize("format", LABELS)
def test_what_is_written_is_read_back(tmp_path, format):
    mosaics = [plain("north.1", (3000, 4000)), plain("empty"), plain("süd & <west>", (4096, 700))]
    found = {
        "north.1": scattered(1000, 3000, 4000),
        "empty": FOUND.take(np.zeros(3, bool)),
        "süd & <west>": scattered(500, 4096, 700, seed=1),
    }
    names = writing.write(str(tmp_path), manifest_of(*mosaics), found, [format])
    assert sorted(names) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    objects = read_back(tmp_path, format, mosaics)
    assert set(objects) == set(found)  # also the one in which nothing was found
    for name, one in found.items():
        np.testing.assert_array_equal(objects[name].class_ids, one.class_ids)
        # YOLO's shares of the image are turned to pixels by its reader, which keeps a millionth of a pixel.
        tolerance = {"rtol": 0, "atol": 1e-6 if format == "yolo" else 0}
        read = objects[name].boxes_mosaic_px.astype(np.float32)
        np.testing.assert_allclose(read, one.boxes_mosaic_px, **tolerance)


def test_names_of_classes_for_each_tool(tmp_path):
    writing.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND}, ["yolo", "voc", "cvat"])
    data = yaml.safe_load((tmp_path / "relabel/data.yaml").read_text())
    assert data == {"path": ".", "train": "images", "val": "images", "names": {0: "bird", 1: "tree"}}
    assert (tmp_path / "relabel/labels/classes.txt").read_text() == "bird\ntree\n"
    assert "<label><name>tree</name></label>" in (tmp_path / "relabel/annotations.cvat.xml").read_text()
    # Box (10, 20, 30, 60) of an image of 50 x 100: centre (40, 20), 40 wide and 20 high.
    assert (tmp_path / "relabel/labels/photo.txt").read_text().splitlines()[0] == "1 0.4 0.4 0.4 0.4"


def test_tiles_cover_the_mosaic_once(large):
    images = relabelling.images(large, 200)
    assert [(one.window.y0, one.window.x0) for one in images] == [(0, 0), (0, 143), (0, 287), (125, 0), (125, 143), (125, 287)]
    covered = np.zeros((250, 430), int)
    for one in images:
        covered[one.window.y0 : one.window.y1, one.window.x0 : one.window.x1] += 1
        assert max(one.window.height, one.window.width) <= 200
    assert (covered == 1).all()
    [whole] = relabelling.images(large, 430)
    assert (whole.name, whole.tile) == ("large.png", False)


@pytest.mark.parametrize("format", LABELS)
def test_a_tile_is_labelled_with_what_it_shows(tmp_path, large, format):
    found = detections_at(
        (10, 20, 30, 60),  # inside the first tile
        (100, 130, 150, 150),  # on the corner of four: rows 100 to 125 and to 150, columns 130 to 143 and to 150
        (200, 280, 220, 300),  # 7 columns left of 287 and 13 right: 35 % and 65 %
        (200, 285, 220, 305),  # 2 columns left, 18 right: 10 % is too little
        class_ids=(2, 1, 2, 1),
    )
    out = tmp_path / "out"
    writing.write(str(out), manifest_of(large), {"large": found}, [format], settings=Settings(tile_px=200))
    tiles = [Mosaic(one.name.removesuffix(".jpg"), one.name, one.window.height, one.window.width) for one in tiles_of(large)]
    objects = read_back(out, format, tiles)
    read = {
        name: [(CLASSES[i - 1], *np.round(box, 5).tolist()) for i, box in zip(one.class_ids, one.boxes_mosaic_px, strict=True)]
        for name, one in objects.items()
    }
    # The box on the corner has 50 x 20 px: upper left 25 x 13 is 32.5 %, upper right 25 x 7 is 17.5 %, lower left 32.5 %, lower
    # right 17.5 %. Its centre, (125, 140), is in the lower left.
    assert read == {
        "large_y0_x0": [("tree", 10, 20, 30, 60), ("bird", 100, 130, 125, 143)],
        "large_y0_x143": [],
        "large_y0_x287": [],
        "large_y125_x0": [("bird", 0, 130, 25, 143)],
        "large_y125_x143": [("tree", 75, 137, 95, 144)],
        "large_y125_x287": [("tree", 75, 0, 95, 13), ("bird", 75, 0, 95, 18)],
    }


def tiles_of(mosaic: Mosaic) -> list[relabelling.Image]:
    return relabelling.images(mosaic, 200)


def test_an_object_larger_than_tiles_is_on_all_that_it_fills(tmp_path, large):
    found = detections_at((0, 0, 250, 430))
    job_labels = labels_of(large, found)
    # Each tile shows a sixth: less than MIN_SHARE, so it is only on the one with its centre, (125, 215).
    assert [len(one.boxes_px) for one in job_labels] == [0, 0, 0, 0, 1, 0]
    assert job_labels[4].cut.tolist() == [True]


def labels_of(mosaic: Mosaic, found: Detections) -> list[relabelling.Labels]:
    everything = {mosaic.name: found}
    return list(relabelling.labels(Job("", manifest_of(mosaic), everything, everything, Settings(tile_px=200))))


def test_every_detection_is_on_a_tile(large):
    found = scattered(2000, 250, 430)
    labels = labels_of(large, found)
    assert sum(len(one.boxes_px) for one in labels) > 2000  # some on two
    for one in labels:
        assert (one.boxes_px >= 0).all()
        assert (one.boxes_px <= [one.image.window.height, one.image.window.width] * 2).all()
    whole = {(i, *box) for one in labels for i, box in zip(one.class_ids, moved(one)[~one.cut].tolist(), strict=False)}
    assert len(whole) > 1000
    # Centres: every detection is on the tile that holds its own.
    for one in labels:
        y, x = (found.boxes_mosaic_px[:, :2] + found.boxes_mosaic_px[:, 2:]).T / 2
        w = one.image.window
        inside = (y >= w.y0) & (y < w.y1) & (x >= w.x0) & (x < w.x1)
        clipped = np.clip(found.boxes_mosaic_px[inside], [w.y0, w.x0] * 2, [w.y1, w.x1] * 2)
        here = {tuple(box) for box in moved(one).round(3).tolist()}
        assert all(tuple(box) in here for box in clipped.astype(np.float32).round(3).tolist())


def moved(one: relabelling.Labels) -> np.ndarray:
    return one.boxes_px + np.array([one.image.window.y0, one.image.window.x0] * 2, np.float32)


def test_tiles_show_their_pixels_and_the_index_says_where(tmp_path, large):
    out = tmp_path / "out"
    names = writing.write(str(out), manifest_of(large), {"large": FOUND}, ["voc", "yolo"], settings=Settings(tile_px=200))
    assert len(names) == len(set(names))
    rows = list(csv.DictReader((out / "relabel/images.csv").read_text().splitlines()))
    assert rows[4] == {
        "image": "large_y125_x143.jpg",
        "mosaic": "large",
        "y0": "125",
        "x0": "143",
        "height": "125",
        "width": "144",
    }
    with Raster(large.path) as whole, Raster(str(out / "relabel/images/large_y125_x143.jpg")) as tile:
        expected = whole.read(tiles_of(large)[4].window).astype(int)
        got = tile.read(relabelling.Window(0, 0, 125, 144)).astype(int)
    assert np.abs(got - expected).max() <= 6  # JPEG at 95


def test_labels_that_somebody_may_have_corrected_are_not_overwritten(tmp_path, large):
    out = tmp_path / "out"
    found = {"large": FOUND}
    writing.write(str(out), manifest_of(large), found, ["voc"], settings=Settings(tile_px=200))
    with pytest.raises(InputError, match="relabel/voc is there already, and somebody may have corrected"):
        writing.write(str(out), manifest_of(large), found, ["csv", "voc"], settings=Settings(tile_px=200))
    assert not (out / "detections.csv").exists()
    with pytest.raises(InputError, match=r"images.csv is of other tiles or mosaics: give the same --tile_px=100 as before"):
        writing.write(str(out), manifest_of(large), found, ["yolo"], settings=Settings(tile_px=100))
    writing.write(str(out), manifest_of(large), found, ["yolo", "cvat"], settings=Settings(tile_px=200))


def test_a_large_mosaic_that_moved(tmp_path):
    with pytest.raises(InputError, match=r"data/photo.jpg is not there any more.*--mosaics"):
        writing.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND}, ["voc"], settings=Settings(tile_px=80))
    with pytest.raises(InputError, match="--tile_px=0: must be at least 1"):
        writing.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND}, ["voc"], settings=Settings(tile_px=0))


def test_names_that_would_be_confused(tmp_path, large):
    with pytest.raises(InputError, match=r"names of the classes in classes.txt; rename the mosaic"):
        writing.write(str(tmp_path / "a"), manifest_of(plain("classes")), {"classes": FOUND}, ["yolo"])
    twin = plain("large_y0_x143")
    with pytest.raises(InputError, match="would both be labelled as 'large_y0_x143'"):
        writing.write(
            str(tmp_path / "b"),
            manifest_of(large, twin),
            {"large": FOUND, twin.name: FOUND},
            ["cvat"],
            settings=Settings(tile_px=200),
        )
