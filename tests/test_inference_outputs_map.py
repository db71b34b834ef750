"""GeoJSON and GeoPackage: positions checked by formulas that are not PROJ's."""

import contextlib
import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.transform import Affine
from small_survey import CLASSES, FOUND, NORTH_UP, detections_at, manifest_of, on_map, placed, plain, scattered

from inference.outputs import geojson, geopackage, writing
from survey import truth
from survey.annotations import every
from survey.annotations.reading import ReadOptions

# One ten-millionth of a degree is 11 mm on the ground.
DEGREES = 1e-7


def utm(longitude: float, latitude: float, central: float) -> tuple[float, float]:
    """(Easting, northing) in the northern half of a UTM zone on WGS 84.

    Krueger's series to the fourth order of n: Karney, Transverse Mercator with an accuracy of a few nanometers, J. Geod. 85
    (2011), equations 7 to 11 and 35; the error is below a micron.
    """
    a, f = 6378137.0, 1 / 298.257223563
    e, n = math.sqrt(f * (2 - f)), f / (2 - f)
    alpha = (
        n / 2 - 2 / 3 * n**2 + 5 / 16 * n**3 + 41 / 180 * n**4,
        13 / 48 * n**2 - 3 / 5 * n**3 + 557 / 1440 * n**4,
        61 / 240 * n**3 - 103 / 140 * n**4,
        49561 / 161280 * n**4,
    )
    radius = a / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    sine, east = math.sin(math.radians(latitude)), math.radians(longitude - central)
    t = math.sinh(math.atanh(sine) - e * math.atanh(e * sine))
    xi, eta = math.atan2(t, math.cos(east)), math.asinh(math.sin(east) / math.hypot(t, math.cos(east)))
    x = eta + sum(al * math.cos(2 * j * xi) * math.sinh(2 * j * eta) for j, al in enumerate(alpha, start=1))
    y = xi + sum(al * math.sin(2 * j * xi) * math.cosh(2 * j * eta) for j, al in enumerate(alpha, start=1))
    return 500000 + 0.9996 * radius * x, 0.9996 * radius * y


def collection(folder: Path, *mosaics, found=FOUND) -> dict:
    notes: list[str] = []
    writing.write(str(folder), manifest_of(*mosaics), {one.name: found for one in mosaics}, ["geojson"], notes=notes)
    return json.loads((folder / geojson.FILE).read_text()) | {"notes": notes}


def ring_of(feature: dict) -> np.ndarray:
    assert feature["geometry"]["type"] == "Polygon"
    [ring] = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    return np.array(ring)


def twice_area(ring: np.ndarray) -> float:
    x, y = (ring - ring[0]).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def test_the_series_itself():
    # The meridian from the equator to 45 degrees is 4,984,944.378 m long on WGS 84 (GRS 80 differs in no digit of that); times
    # 0.9996 that is 4,982,950.4002.
    assert utm(-81, 45, -81) == (pytest.approx(500000, abs=1e-9), pytest.approx(4982950.4002, abs=1e-3))


def test_a_corner_on_the_central_meridian_at_45_degrees(tmp_path):
    mosaic = placed("north", "EPSG:32617", Affine(0.1, 0, 500000, 0, -0.1, 4982950.4002))
    value = collection(tmp_path, mosaic, found=detections_at((0, 0, 10, 20)))
    ring = ring_of(value["features"][0])
    np.testing.assert_allclose(ring[0], (-81, 45), rtol=0, atol=DEGREES)
    # 2 m east, 1 m south. At 45 degrees a degree of latitude is 111,131.7 m and of longitude 78,846.8 m; the scale is 0.9996.
    np.testing.assert_allclose(ring[2] - ring[0], (2 / 78846.8 / 0.9996, -1 / 111131.7 / 0.9996), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(NORTH_UP, id="north up"),
        pytest.param(Affine(0.1, 0, 612000, 0, 0.1, 4000000), id="south up"),
        # 0.1 m pixels, the rows 30 degrees from the east: (cos 30, sin 30) / 10 and (sin 30, -cos 30) / 10.
        pytest.param(Affine(0.0866025403784, 0.05, 707000, 0.05, -0.0866025403784, 7300000), id="turned"),
    ],
)
def test_geojson_is_where_the_formula_says(tmp_path, transform):
    mosaic = placed("reef", "EPSG:32617", transform)
    boxes = [(10, 20, 30, 60), (500, 900, 520.5, 999.25)]
    value = collection(tmp_path, mosaic, found=detections_at(*boxes))
    for feature, (y0, x0, y1, x1) in zip(value["features"], boxes, strict=True):
        ring = ring_of(feature)
        assert twice_area(ring) > 0  # counterclockwise
        here = np.array([utm(longitude, latitude, -81) for longitude, latitude in ring[:4]])
        corners = np.array([transform @ (x, y) for x, y in ((x0, y0), (x0, y1), (x1, y1), (x1, y0))])
        # The same four corners, whichever comes first and whichever way round: each within a millimetre of one.
        distance = np.linalg.norm(here[:, None] - corners[None], axis=2)
        assert distance.min(axis=0).max() < 1e-3
        assert distance.min(axis=1).max() < 1e-3


def test_a_feature_collection_by_rfc_7946(tmp_path):
    value = collection(tmp_path, on_map(tmp_path / "reef.tif"))
    assert set(value) == {"type", "features", "bbox", "notes"}  # no `crs`
    assert (value["type"], value["notes"]) == ("FeatureCollection", [])
    assert [one["properties"] for one in value["features"]] == [
        {"mosaic": "reef", "class": "tree", "score": 0.9},
        {"mosaic": "reef", "class": "bird", "score": 0.5},
    ]
    rings = np.concatenate([ring_of(one) for one in value["features"]])
    assert value["bbox"] == [*rings.min(axis=0), *rings.max(axis=0)]
    info = pyogrio.read_info(tmp_path / geojson.FILE)
    assert (info["crs"], info["features"]) == ("EPSG:4326", 2)


def test_mosaics_without_a_place_are_left_out_and_named(tmp_path):
    local = placed("pool", 'LOCAL_CS["pool",UNIT["metre",1]]', NORTH_UP)  # a CRS, but nobody knows where
    value = collection(tmp_path, on_map(tmp_path / "reef.tif"), plain(), local)
    assert {one["properties"]["mosaic"] for one in value["features"]} == {"reef"}
    assert value["not_on_the_map"] == ["photo", "pool"]
    assert value["notes"] == ["detections.geojson lacks the mosaics that have no place on the earth: photo, pool"]
    notes: list[str] = []
    assert writing.write(str(tmp_path / "x"), manifest_of(plain()), {"photo": FOUND}, ["geojson", "gpkg"], notes=notes) == []
    assert [note.split(":")[0] for note in notes] == ["detections.geojson was not written", "detections.gpkg was not written"]
    assert not (tmp_path / "x").exists()


def test_a_mosaic_with_nothing_found(tmp_path):
    value = collection(tmp_path, on_map(tmp_path / "reef.tif"), found=FOUND.take(np.zeros(3, bool)))
    assert value["features"] == []
    assert "bbox" not in value


def test_a_box_across_the_antimeridian_is_cut(tmp_path):
    # In degrees: 0.01 a pixel from 179.9 E, 17 S. Columns 5 to 20 are 179.95 to 180.1, which is 179.9 W.
    mosaic = placed("fiji", "EPSG:4326", Affine(0.01, 0, 179.9, 0, -0.01, -17))
    value = collection(tmp_path, mosaic, found=detections_at((0, 5, 10, 20), (0, 0, 10, 5), (0, 20, 10, 30)))
    cut, west, east = (feature["geometry"] for feature in value["features"])
    assert cut["type"] == "MultiPolygon"
    pieces = [np.array(polygon[0]) for polygon in cut["coordinates"]]
    assert all(twice_area(piece) > 0 for piece in pieces)
    bounds = sorted((*piece.min(axis=0).tolist(), *piece.max(axis=0).tolist()) for piece in pieces)
    assert bounds == [(-180, -17.1, -179.9, -17), (179.95, -17.1, 180, -17)]
    assert np.ptp(np.array(west["coordinates"][0])[:, 0]) == pytest.approx(0.05)
    # Wholly beyond 180: 180.1 to 180.2 is 179.9 W to 179.8 W.
    x = np.array(east["coordinates"][0])[:, 0]
    assert (x.min(), x.max()) == pytest.approx((-179.9, -179.8))
    # The collection runs from 179.9 E over the antimeridian to 179.8 W: west is the larger number.
    assert value["bbox"] == pytest.approx([179.9, -17.1, -179.8, -17])


def test_a_utm_mosaic_across_the_antimeridian(tmp_path):
    # Zone 1 N ends at 180 W, its central meridian is 177 W. (180 W, 52 N) is 3 degrees west of it: easting 500000 - d.
    easting, northing = utm(-180, 52, -177)
    mosaic = placed("amchitka", "EPSG:32601", Affine(1, 0, round(easting) - 500, 0, -1, round(northing) + 500))
    value = collection(tmp_path, mosaic, found=detections_at((480, 480, 520, 520), (490, 100, 510, 120), (490, 800, 510, 820)))
    kinds = [feature["geometry"]["type"] for feature in value["features"]]
    assert kinds == ["MultiPolygon", "Polygon", "Polygon"]
    assert ring_of(value["features"][1])[:, 0].min() > 179.99  # 390 m west of it
    assert ring_of(value["features"][2])[:, 0].max() < -179.99
    west, south, east, north = value["bbox"]
    assert 179.99 < west < 180
    assert -180 < east < -179.99
    assert 51.99 < south < north < 52.01


@pytest.mark.parametrize(
    ("extents", "bbox"),
    [
        ([[10, 1, 20, 2]], [10, 1, 20, 2]),
        ([[10, 1, 20, 2], [-30, 0, -20, 1]], [-30, 0, 20, 2]),
        ([[170, 1, 190, 2]], [170, 1, -170, 2]),
        ([[-190, 1, -175, 2]], [170, 1, -175, 2]),
        # Fiji's islands, as in section 5.2: the 3 degrees over the antimeridian, not the 357 the other way.
        ([[177, -20, 178, -18], [-179, -17, -178, -16]], [177, -20, -178, -16]),
        ([[-180, -90, 180, 90]], [-180, -90, 180, 90]),
        ([[0, 0, 130, 1], [120, 0, 250, 1], [-120, 0, 10, 1]], [-180, 0, 180, 1]),  # all round the globe
        ([[0, 0, 40, 1], [10, 0, 20, 1]], [0, 0, 40, 1]),  # one in the other
    ],
)
def test_bbox(extents, bbox):
    assert geojson.bbox(np.array(extents, float)) == bbox


@pytest.mark.parametrize(
    "transform", [NORTH_UP, Affine(0.1, 0, 500000, 0, 0.1, 4000000), Affine(0.08, 0.06, 5e5, 0.06, -0.08, 4e6)]
)
@pytest.mark.parametrize(("format", "name", "tolerance_px"), [("geojson", geojson.FILE, 2e-3), ("gpkg", geopackage.FILE, 1e-6)])
def test_what_is_written_is_read_back(tmp_path, transform, format, name, tolerance_px):
    """GeoJSON's nine decimals of a degree are 0.1 mm: a thousandth of these pixels of 0.1 m."""
    mosaic = placed("reef", "EPSG:32617", transform, (2000, 3000))
    found = scattered(500, 2000, 3000)
    writing.write(str(tmp_path), manifest_of(mosaic), {"reef": found}, [format])
    read = every.read([str(tmp_path / name)], "vector", ReadOptions())
    here = truth.by_mosaic(read.annotations, [mosaic], CLASSES, named_in="x").objects["reef"]
    np.testing.assert_array_equal(here.class_ids, found.class_ids)
    np.testing.assert_allclose(here.boxes_mosaic_px, found.boxes_mosaic_px, rtol=0, atol=tolerance_px)


def indexed(path):
    """Objects in the spatial index: its own table can be read without R-trees."""
    with contextlib.closing(sqlite3.connect(path)) as table:
        return table.execute("SELECT count(*) FROM rtree_detections_geom_rowid").fetchone()[0]


def test_geopackage(tmp_path):
    found = FOUND
    writing.write(str(tmp_path), manifest_of(on_map(tmp_path / "reef.tif")), {"reef": found}, ["gpkg"])
    path = tmp_path / geopackage.FILE
    assert [list(row) for row in pyogrio.list_layers(path)] == [["detections", "Polygon"]]
    info, _, shapes, columns = pyogrio.raw.read(path)
    assert info["crs"] == "EPSG:32617"
    assert info["fields"].tolist() == ["mosaic", "class", "score", "y0", "x0", "y1", "x1", "patch_id"]
    assert [column[0] for column in columns] == ["reef", "tree", np.float32(0.9), 10, 20, 30, 60, 3]
    # Columns 20 to 60 are 2 m to 6 m east of the corner, rows 10 to 30 are 1 m to 3 m south.
    assert shapely.bounds(shapely.from_wkb(shapes[0])) == pytest.approx((500002, 3999997, 500006, 3999999))
    # The spatial index: https://www.geopackage.org/spec/#extension_rtree
    # Read in another process, as by QGIS: sqlite may be TensorFlow's in this one, which knows no R-trees.
    code = "import sys, pyogrio; print(*pyogrio.raw.read(sys.argv[1], bbox=(500000, 3999999.6, 500000.9, 4000000))[3][1])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["bird"]  # rows 0 to 5 and columns 0 to 8
    assert indexed(path) == 2


def test_geopackage_has_a_layer_for_each_crs(tmp_path):
    mosaics = [
        on_map(tmp_path / "a.tif"),
        placed("b", "EPSG:32618", NORTH_UP),
        plain(),
        placed("c", "EPSG:32617", NORTH_UP),
    ]
    notes: list[str] = []
    found = {one.name: FOUND for one in mosaics}
    writing.write(str(tmp_path), manifest_of(*mosaics), found, ["gpkg"], notes=notes)
    path = tmp_path / geopackage.FILE
    layers = {name: pyogrio.read_info(path, layer=name) for name, _ in pyogrio.list_layers(path)}
    assert {name: (info["crs"], info["features"]) for name, info in layers.items()} == {
        "detections_EPSG_32617": ("EPSG:32617", 4),
        "detections_EPSG_32618": ("EPSG:32618", 2),
    }
    assert notes == ["detections.gpkg lacks the mosaics that have no place on a map: photo"]


def test_geopackage_of_nothing_found_has_its_layer(tmp_path):
    mosaic = on_map(tmp_path / "reef.tif")
    writing.write(str(tmp_path), manifest_of(mosaic), {"reef": FOUND.take(np.zeros(3, bool))}, ["gpkg"])
    info = pyogrio.read_info(tmp_path / geopackage.FILE, layer="detections")
    assert (info["features"], info["crs"]) == (0, "EPSG:32617")


def test_geopackage_has_its_index_after_tensorflow(tmp_path):
    """TensorFlow's sqlite knows no R-trees, and whoever imports it first gives it to GDAL."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "import tensorflow\n"
        "import test_inference_outputs_map as here\n"
        "from pathlib import Path\n"
        "manifest = here.manifest_of(here.on_map(Path(sys.argv[1]) / 'reef.tif'))\n"
        "here.writing.write(sys.argv[1], manifest, {'reef': here.FOUND}, ['gpkg'])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), os.path.dirname(__file__)], check=True, capture_output=True)
    assert indexed(tmp_path / geopackage.FILE) == 2
