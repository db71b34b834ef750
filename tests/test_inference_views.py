import csv
import io
import json

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from inference import views
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic
from survey.raster import Raster

CLASSES = ("bird", "tree")


def mosaic_of(path, *, name="reef", crs="EPSG:32617", transform=None, **changes) -> Mosaic:
    """Writes a GeoTIFF of 50 x 100 px and describes it by its header, as `predict` does."""
    # 0.1 m a pixel, north up, the upper left corner at (500000, 4000000).
    transform = Affine(0.1, 0, 500000, 0, -0.1, 4000000) if transform is None else transform
    kwargs = {"driver": "GTiff", "height": 50, "width": 100, "count": 3, "dtype": "uint8", "transform": transform}
    with rasterio.open(path, "w", crs=crs, **kwargs) as file:
        file.write(np.zeros((3, 50, 100), np.uint8))
    with Raster(str(path)) as raster:
        info = raster.info()
    return Mosaic(name, str(path), info.height, info.width, info.bands, info.crs, info.transform, info.gsd_m)


def plain(name="photo") -> Mosaic:
    return Mosaic(name, f"data/{name}.jpg", 50, 100)


def manifest_of(*mosaics: Mosaic) -> Manifest:
    return Manifest("model", "", CLASSES, 0.5, mosaics, {}, {}, {}, {})


FOUND = Detections(
    np.array([[10, 20, 30, 60], [0, 0, 5, 8], [1, 1, 2, 2]], np.float32),
    np.array([0.9, 0.5, 0.49], np.float32),  # the last one does not count
    np.array([2, 1, 1], np.int32),
    np.array([3, 4, 5], np.int64),
)


def written(tmp_path, *mosaics: Mosaic) -> dict[str, str]:
    views.write(str(tmp_path / "out"), manifest_of(*mosaics), {mosaic.name: FOUND for mosaic in mosaics})
    return {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}


def test_geojson_on_the_map(tmp_path):
    value = json.loads(written(tmp_path, mosaic_of(tmp_path / "reef.tif"))[views.GEOJSON])
    assert value["name"] == "map coordinates, EPSG:32617"
    assert value["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32617"}}
    assert CRS.from_user_input(value["crs"]["properties"]["name"]) == CRS.from_epsg(32617)  # GDAL and so QGIS read it
    assert len(value["features"]) == 2
    first = value["features"][0]
    assert first["properties"] == {"mosaic": "reef", "class": "tree", "score": 0.9}
    # Columns 20 and 60 are 2 m and 6 m east of the corner, rows 10 and 30 are 1 m and 3 m south. Counterclockwise: upper left,
    # lower left, lower right, upper right, and back.
    ring = [[500002, 3999999], [500002, 3999997], [500006, 3999997], [500006, 3999999], [500002, 3999999]]
    assert first["geometry"]["type"] == "Polygon"
    np.testing.assert_allclose(first["geometry"]["coordinates"], [ring], atol=1e-6)


def test_geojson_rings_turn_counterclockwise_also_on_a_mirrored_map(tmp_path):
    south_up = Affine(0.1, 0, 500000, 0, 0.1, 4000000)
    value = json.loads(written(tmp_path, mosaic_of(tmp_path / "reef.tif", transform=south_up))[views.GEOJSON])
    x, y = np.array(value["features"][0]["geometry"]["coordinates"][0]).T
    assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0
    assert (y.min(), y.max()) == (4000001, 4000003)


def test_geojson_in_pixels(tmp_path):
    value = json.loads(written(tmp_path, plain())[views.GEOJSON])
    assert value["name"] == "pixels (x right, y down)"
    assert "crs" not in value
    ring = value["features"][0]["geometry"]["coordinates"][0]
    assert sorted(ring[:4]) == [[20, 10], [20, 30], [60, 10], [60, 30]]
    assert ring[0] == ring[4]


def test_geojson_of_mixed_frames_says_so_per_feature(tmp_path):
    value = json.loads(written(tmp_path, mosaic_of(tmp_path / "reef.tif"), plain())[views.GEOJSON])
    assert value["name"].startswith("mixed")
    assert "crs" not in value
    frames = [feature["properties"]["frame"] for feature in value["features"]]
    assert frames == ["map coordinates, EPSG:32617"] * 2 + ["pixels (x right, y down)"] * 2


def test_csv(tmp_path):
    files = written(tmp_path, mosaic_of(tmp_path / "reef.tif"), plain('odd, "name"'))
    rows = list(csv.DictReader(io.StringIO(files[views.CSV])))
    assert len(rows) == 4
    # The centre (20, 40) lies 4 m east and 2 m south of the corner.
    assert rows[0] == {
        "mosaic": "reef",
        "class": "tree",
        "score": "0.9000",
        **{"y0": "10.00", "x0": "20.00", "y1": "30.00", "x1": "60.00"},
        **{"map_x": "500004", "map_y": "3999998", "crs": "EPSG:32617"},
    }
    assert (rows[2]["mosaic"], rows[2]["map_x"], rows[2]["map_y"], rows[2]["crs"]) == ('odd, "name"', "", "", "")


def test_coco(tmp_path):
    value = json.loads(written(tmp_path, plain("a"), plain("b"))[views.COCO])
    assert value["images"][1] == {"id": 2, "file_name": "b.jpg", "width": 100, "height": 50}
    assert value["categories"] == [{"id": 1, "name": "bird"}, {"id": 2, "name": "tree"}]
    assert [one["id"] for one in value["annotations"]] == [1, 2, 3, 4]
    first = value["annotations"][2]
    assert (first["image_id"], first["category_id"], first["bbox"], first["area"]) == (2, 2, [20, 10, 40, 20], 800)
    assert first["score"] == pytest.approx(0.9)


def test_counts(tmp_path):
    assert written(tmp_path, plain("a"))[views.COUNTS] == "mosaic,class,count\na,bird,1\na,tree,1\n"
    # A score of exactly the threshold counts, also where the threshold is no float32 number.
    scores = np.array([0.7, 0.7, 0.69], np.float32)
    one = Detections(np.zeros((3, 4), np.float32), scores, np.array([1, 1, 2], np.int32), np.zeros(3, np.int64))
    assert views.count({"a": one}, CLASSES, 0.7) == {"a": {"bird": 2, "tree": 0}}


def test_nothing_found(tmp_path):
    none = FOUND.take(np.zeros(3, bool))
    views.write(str(tmp_path), manifest_of(plain()), {"photo": none})
    assert json.loads((tmp_path / views.GEOJSON).read_text())["features"] == []
    assert (tmp_path / views.COUNTS).read_text() == "mosaic,class,count\nphoto,bird,0\nphoto,tree,0\n"
