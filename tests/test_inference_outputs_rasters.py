"""Density maps and crops."""

import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from small_survey import FOUND, NORTH_UP, described, detections_at, manifest_of, on_map, placed, plain, scattered

from inference.outputs import crops, density, writing
from inference.outputs.job import Settings
from survey.errors import InputError
from survey.geometry import Mosaic, Window
from survey.raster import Raster


def map_of(folder: Path, mosaic: Mosaic, found, **settings) -> tuple[rasterio.DatasetReader, np.ndarray, list[str]]:
    notes: list[str] = []
    names = writing.write(
        str(folder), manifest_of(mosaic), {mosaic.name: found}, ["density"], settings=Settings(**settings), notes=notes
    )
    assert names == [f"density/{mosaic.name}.tif"]
    with rasterio.open(folder / names[0]) as file:
        assert file.units == (file.units[0],) * 2
        assert file.descriptions == ("bird", "tree")
        assert file.dtypes == ("float32",) * 2
        return file, file.read(), [file.units[0], *notes]


def test_density_per_hectare(tmp_path):
    # 50 x 100 px of 0.1 m, cells of 2 m = 20 px: 3 rows (the last of 10 px) and 5 columns. A full cell is 4 m2 = 0.0004 ha.
    found = detections_at((10, 20, 30, 60), (0, 0, 5, 8), (2, 2, 4, 4), (45, 95, 50, 100), class_ids=(2, 1, 1, 1))
    file, values, notes = map_of(tmp_path, on_map(tmp_path / "reef.tif"), found, density_cell_m=2.0)
    assert (file.shape, file.crs.to_epsg(), notes) == ((3, 5), 32617, ["objects per hectare"])
    assert file.transform.almost_equals(Affine(2, 0, 500000, 0, -2, 4000000))
    assert np.isnan(file.nodata)
    expected = np.zeros((2, 3, 5))
    expected[0, 0, 0] = 2 / 0.0004
    expected[0, 2, 4] = 1 / 0.0002  # the mosaic shows 10 x 20 px of that cell
    expected[1, 1, 2] = 1 / 0.0004  # its centre is (20, 40): on the border of two cells, and the far one has it
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_density_per_megapixel_without_a_pixel_size(tmp_path):
    file, values, notes = map_of(tmp_path, plain(), detections_at((10, 20, 30, 60)), density_cell_px=50)
    assert notes[0] == "objects per megapixel"
    assert (file.crs, file.transform) == (None, Affine.scale(50))
    np.testing.assert_allclose(values[0], [[1 / 0.0025, 0]])  # 50 x 50 px are 0.0025 megapixels
    assert "takes borders of the mosaic that show nothing for surveyed ground: data/photo.jpg is not there" in notes[1]


@pytest.mark.parametrize("transform", [Affine(0.1, 0, 5e5, 0, 0.1, 4e6), Affine(0.08, 0.06, 5e5, 0.06, -0.08, 4e6)])
def test_a_map_lies_on_its_mosaic_also_where_that_is_south_up_or_turned(tmp_path, transform):
    mosaic = on_map(tmp_path / "reef.tif", transform=transform)
    file, values, _ = map_of(tmp_path, mosaic, detections_at((10, 60, 14, 64)), density_cell_m=1.0)
    [(row, column)] = np.argwhere(values[0] > 0)
    # The object's centre (12, 62) lies in that cell: 10 px a cell.
    assert (row, column) == (1, 6)
    x, y = transform @ (62, 12)
    assert file.index(x, y) == (1, 6)


def test_what_a_mosaic_does_not_show_has_no_density(tmp_path, write_raster, monkeypatch):
    monkeypatch.setattr(density, "MASK_PX", 37)  # several pieces, which do not end where cells do
    path = tmp_path / "reef.tif"
    image = np.full((50, 100, 3), 9, np.uint8)
    image[:, :45] = 0
    write_raster(path, image, nodata=0, crs="EPSG:32617", transform=NORTH_UP)
    found = detections_at((0, 50, 10, 60), (0, 0, 10, 10))
    _, values, notes = map_of(tmp_path, described(path), found, density_cell_m=2.0)
    assert np.isnan(values[0, :, :2]).all()  # columns 0 to 40
    # Columns 40 to 60 are shown from 45 on: 20 x 15 px of 0.01 m2.
    assert values[0, 0, 2] == pytest.approx(1 / (300 * 0.01 / 1e4))
    assert (values[0, :, 3:] == 0).all()
    assert notes[1:] == ["density/reef.tif leaves out 1 objects in cells of which the mosaic shows too little"]


def test_all_objects_are_in_the_map(tmp_path):
    mosaic = placed("reef", "EPSG:32617", NORTH_UP, (990, 1310))
    found = scattered(5000, 990, 1310)
    counts = density.count(found, mosaic, 2, side_px=33.3)
    assert counts.shape == (2, 30, 40)  # 990 / 33.3 = 29.7, 1310 / 33.3 = 39.3
    assert counts.sum(axis=(1, 2)).tolist() == np.bincount(found.class_ids)[1:].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # The longer side is 100 px of 0.1 m: 10 m, a fiftieth is 0.2.
        ({}, "give --density_cell_m, for instance 0.2 for mosaic reef, whose longer side is 10 m"),
        ({"density_cell_px": 10}, "give --density_cell_m"),
        ({"density_cell_m": 0.01}, "--density_cell_m=0.01: must be at least a pixel of mosaic reef"),
        ({"density_cell_m": float("nan")}, "--density_cell_m=nan: must be"),
        ({"density_cell_m": -1.0}, "--density_cell_m=-1: must be"),
    ],
)
def test_a_density_needs_a_size(tmp_path, settings, message):
    mosaic = on_map(tmp_path / "reef.tif")
    with pytest.raises(InputError, match=message):
        writing.write(str(tmp_path), manifest_of(mosaic), {"reef": FOUND}, ["density"], settings=Settings(**settings))


@pytest.fixture
def photo(tmp_path, pixels, write_raster) -> Mosaic:
    path = tmp_path / "photo.png"
    write_raster(path, pixels(300, 400))
    return described(path)


def index_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / crops.INDEX).read_text().splitlines()))


def test_crops(tmp_path, photo):
    found = detections_at((100, 100, 140, 120), (290, 0, 300, 10), (20, 200, 180, 300))
    names = writing.write(str(tmp_path / "out"), manifest_of(photo), {"photo": found}, ["crops"])
    assert names == ["crops/000001.jpg", "crops/000002.jpg", "crops/000003.jpg", "crops/index.csv"]
    rows = index_of(tmp_path / "out")
    places = [[int(row[f"crop_{name}"]) for name in ("y0", "x0", "height", "width")] for row in rows]
    # From the top: the third is 160 high, so 320 px, of which the mosaic has 300 rows: centre (100, 250), columns 90 to 410,
    # moved to 80 to 400. The first is 40 high: 80 px about (120, 110). The second is 10: at least 64 px, moved into the corner.
    assert places == [[0, 80, 300, 320], [80, 70, 80, 80], [236, 0, 64, 64]]
    assert rows[1] == {
        **{"file": "000002.jpg", "mosaic": "photo", "class": "bird", "score": "0.9"},
        **{"y0": "100.0", "x0": "100.0", "y1": "140.0", "x1": "120.0"},
        **{"crop_y0": "80", "crop_x0": "70", "crop_height": "80", "crop_width": "80"},
    }
    with Raster(photo.path) as whole, Raster(str(tmp_path / "out/crops/000002.jpg")) as crop:
        expected = whole.read(Window(80, 70, 160, 150)).astype(int)
        assert np.abs(crop.read(Window(0, 0, 80, 80)).astype(int) - expected).max() <= 12  # JPEG at 90


@pytest.mark.parametrize(
    ("of", "number", "expected"), [("best", 2, "0.99 0.9 0.8 0.7"), ("worst", 1, "0.6 0.55"), ("all", 1, "all")]
)
def test_which_crops(tmp_path, photo, of, number, expected):
    found = scattered(6, 300, 400)
    scores = np.array([0.99, 0.9, 0.6, 0.8, 0.7, 0.55], np.float32)
    found = type(found)(found.boxes_mosaic_px, scores, np.array([1, 1, 1, 2, 2, 2], np.int32), found.patch_ids)
    settings = Settings(crops=number, crops_of=of)
    writing.write(str(tmp_path / "out"), manifest_of(photo), {"photo": found}, ["crops"], settings=settings)
    got = sorted((float(row["score"]) for row in index_of(tmp_path / "out")), reverse=True)
    assert got == (
        sorted((float(str(s)) for s in scores), reverse=True) if expected == "all" else [float(s) for s in expected.split()]
    )


def test_crops_of_nothing(tmp_path, photo):
    assert writing.write(str(tmp_path), manifest_of(photo), {"photo": FOUND.take(np.zeros(3, bool))}, ["crops"]) == [crops.INDEX]
    assert index_of(tmp_path) == []


def test_crops_are_refused(tmp_path, photo, monkeypatch):
    def refused(message: str, mosaic: Mosaic = photo, **settings) -> None:
        with pytest.raises(InputError, match=message):
            writing.write(
                str(tmp_path / "out"), manifest_of(mosaic), {mosaic.name: FOUND}, ["crops"], settings=Settings(**settings)
            )
        assert not (tmp_path / "out/crops/index.csv").exists()

    refused("--crops=0: must be from 1 to 100,000", crops=0)
    refused("--crops_of=some: must be one of best, worst, all", crops_of="some")
    refused("data/gone.jpg is not there any more", plain("gone"))
    refused("photo.png is 400 x 300 px, but photo was 100 x 50 px", Mosaic("photo", photo.path, 50, 100))
    monkeypatch.setattr(crops, "MAX_CROPS", 1)
    refused("would write 2 crops: at most 1 are written; raise --score_threshold", crops_of="all", crops=1)
    monkeypatch.undo()
    (tmp_path / "out/crops").mkdir(parents=True)
    (tmp_path / "out/crops/old.jpg").touch()
    refused("out/crops is not empty: remove it", crops=1)
