"""Objects in map coordinates: read by `vector`, brought to pixels by `placing`."""

import json
import math

import numpy as np
import pyogrio
import pytest
import shapely

from survey import truth
from survey.annotations import every
from survey.annotations.reading import ReadOptions
from survey.errors import InputError
from survey.geometry import Mosaic

UTM17 = "EPSG:32617"
# 20 x 20 pixels of 1 m whose middle, pixel (10, 10), lies on the zone's central meridian at 30 degrees north. There UTM is easy:
# x is 500,000 m, and y is 0.9996 times the meridian's arc from the equator to 30 degrees, 3,320,113.398 m on WGS 84.
MIDDLE = (500_000.0, 0.9996 * 3_320_113.398)
ZONE = Mosaic("zone", "zone.tif", 20, 20, crs=UTM17, transform=(1, 0, MIDDLE[0] - 10, 0, -1, MIDDLE[1] + 10), gsd_m=1.0)
# North up, 0.1 m, 100 rows and 200 columns: x 1000 to 1020, y 2000 down to 1990.
NORTH = Mosaic("north", "north.tif", 100, 200, crs=UTM17, transform=(0.1, 0, 1000, 0, -0.1, 2000), gsd_m=0.1)
# The 50 columns to the right of column 150 again, and 150 more.
EAST = Mosaic("east", "east.tif", 100, 200, crs=UTM17, transform=(0.1, 0, 1015, 0, -0.1, 2000), gsd_m=0.1)


def polygon(*corners):
    return {"type": "Polygon", "coordinates": [[*map(list, corners), list(corners[0])]]}


def rectangle(x0, y0, x1, y1):
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


@pytest.fixture
def geojson(tmp_path):
    """`geojson((class, geometry), ..., crs="EPSG:n")` writes a file; returns its path."""

    def write(*features, crs=None, **members):
        value = {"type": "FeatureCollection", **members}
        if crs is not None:
            value["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{crs.replace(':', '::')}"}}
        value["features"] = [{"type": "Feature", "properties": {"label": n}, "geometry": g} for n, g in features]
        path = tmp_path / "objects.geojson"
        path.write_text(json.dumps(value))
        return str(path)

    return write


def read(path, **options):
    return every.read([path], "vector", ReadOptions.parse(**options))


def marked(found, *mosaics):
    classes = tuple(sorted({one.class_name for one in found.annotations}))
    return truth.by_mosaic(found.annotations, mosaics, classes, named_in="the test", images=found.images)


def boxes(path, *mosaics, **options):
    """{mosaic: boxes rounded to a thousandth of a pixel}."""
    return {
        name: objects.boxes_mosaic_px.round(3).tolist()
        for name, objects in marked(read(path, **options), *mosaics).objects.items()
    }


def test_polygons_by_hand(geojson):
    # x 1001 to 1003 are columns 10 to 30; y 1999 to 1996 are rows 10 to 40. The diamond reaches from (1010, 1995) 1 m each way.
    diamond = polygon((1010, 1996), (1011, 1995), (1010, 1994), (1009, 1995))
    path = geojson(("tern", rectangle(1001, 1996, 1003, 1999)), ("seal", diamond), crs=UTM17)
    found = read(path)
    assert [(one.class_name, one.image, one.crs) for one in found.annotations] == [("tern", "", UTM17), ("seal", "", UTM17)]
    assert boxes(path, NORTH) == {"north": [[10, 10, 40, 30], [40, 90, 60, 110]]}


def test_geojson_without_crs_is_wgs84(geojson):
    """UTM against WGS 84, with the projection worked out by hand on the central meridian."""
    # A degree of longitude at 30 degrees north is N cos(30) pi / 180 metres long, N = a / sqrt(1 - e2 sin2(30)).
    radius = 6_378_137 / math.sqrt(1 - 0.00669437999 * math.sin(math.radians(30)) ** 2)
    degree = 0.9996 * radius * math.cos(math.radians(30)) * math.pi / 180  # 0.9996 is the zone's scale
    # And one of latitude is M pi / 180 long, M = a (1 - e2) / (1 - e2 sin2(30))^1.5.
    meridian = 0.9996 * radius**3 / 6_378_137**2 * (1 - 0.00669437999) * math.pi / 180
    east, north = 4 / degree, 3 / meridian
    path = geojson(("seal", rectangle(-81 - east, 30 - north, -81 + east, 30 + north)))
    assert read(path).annotations[0].crs == "EPSG:4326"
    [[y0, x0, y1, x1]] = boxes(path, ZONE)["zone"]
    assert (y0, x0, y1, x1) == pytest.approx((7, 6, 13, 14), abs=0.002)


def test_the_box_is_tight_on_a_turned_mosaic(geojson):
    # Columns run along (0.6, 0.8), rows along (-0.8, 0.6), 1 m each. The box of rows 10 to 20, columns 30 to 50 has the corners
    # (row 10, column 30): x 18 - 8 = 10, y 24 + 6 = 30; (10, 50): 22, 46; (20, 50): 14, 52; (20, 30): 2, 36.
    turned = Mosaic("turned", "turned.tif", 100, 100, crs=UTM17, transform=(0.6, -0.8, 0, 0.8, 0.6, 0), gsd_m=1.0)
    path = geojson(("seal", polygon((10, 30), (22, 46), (14, 52), (2, 36))), crs=UTM17)
    assert boxes(path, turned) == {"turned": [[10, 30, 20, 50]]}


def test_an_object_belongs_to_every_mosaic_that_shows_it(geojson):
    path = geojson(
        ("a", rectangle(1001, 1996, 1003, 1999)),  # north only
        ("b", rectangle(1016, 1996, 1018, 1999)),  # columns 160 to 180 of north, 10 to 30 of east
        ("c", rectangle(1014, 1996, 1016, 1999)),  # columns 140 to 160 of north, -10 to 10 of east: clipped there
        ("d", rectangle(1050, 1996, 1051, 1999)),  # on none
        crs=UTM17,
    )
    assert boxes(path, NORTH, EAST) == {
        "north": [[10, 10, 40, 30], [10, 160, 40, 180], [10, 140, 40, 160]],
        "east": [[10, 10, 40, 30], [10, 0, 40, 10]],
    }
    found = marked(read(path), NORTH, EAST)
    assert found.counts == {
        "objects_read": 4,
        "objects_clipped_to_mosaic": 1,
        "objects_empty_or_outside_mosaic": 1,
        "objects_on_several_mosaics": 2,
    }
    assert found.offenders["objects_empty_or_outside_mosaic"] == [
        f"{path}: d at yxyx (1996.0, 1050.0, 1999.0, 1051.0) in EPSG:32617"
    ]


def test_points_need_a_size_in_pixels_or_metres(geojson):
    point = ("seal", {"type": "Point", "coordinates": [1010, 1995]})  # row 50, column 100
    both = ("pup", {"type": "MultiPoint", "coordinates": [[1001, 1999], [1020.2, 1999]]})  # rows 10; columns 10 and 202
    path = geojson(point, both, crs=UTM17)
    # A pup of 10 px at column 202 still shows columns 197 to 200: found although its point lies outside.
    expected = {"north": [[40, 90, 60, 110], [5, 5, 15, 15], [5, 197, 15, 200]]}
    assert boxes(path, NORTH, box_size="seal=20,pup=10") == expected
    assert boxes(path, NORTH, box_size="seal=2m,pup=1m") == expected
    with pytest.raises(InputError, match="marks 'seal' by points, and --box_size gives no size"):
        read(path)


def test_metres_need_a_ground_resolution(geojson):
    path = geojson(("seal", {"type": "Point", "coordinates": [10, 20]}))
    degrees = Mosaic("degrees", "degrees.tif", 100, 100, crs="EPSG:4326", transform=(0.001, 0, 9.95, 0, -0.001, 20.05))
    assert boxes(path, degrees, box_size="8") == {"degrees": [[46, 46, 54, 54]]}
    with pytest.raises(InputError, match=r"--box_size gives 2 m, but degrees\.tif has no ground resolution"):
        boxes(path, degrees, box_size="2m")


def write(path, layer, geometries, values, *, crs=UTM17, column="species", append=False):
    kinds = {geometry.geom_type for geometry in geometries}
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(geometries)),
        [np.array(values, object)],
        [column],
        layer=layer,
        geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown",
        crs=crs,
        append=append,
    )


BOX_A, BOX_B = (
    shapely.box(1001, 1996, 1003, 1999),
    shapely.box(1010, 1994, 1011, 1995),
)  # rows 10-40, 50-60; columns 10-30, 100-110


@pytest.mark.parametrize("ending", ["gpkg", "shp", "geojson"])
def test_the_same_objects_in_every_map_format(tmp_path, ending):
    path = str(tmp_path / f"a b é.{ending}")
    write(path, None, [BOX_A, shapely.MultiPolygon([BOX_B])], ["tern", "goéland"])
    found = read(path)
    assert [one.class_name for one in found.annotations] == ["tern", "goéland"]
    assert boxes(path, NORTH) == {"north": [[10, 10, 40, 30], [50, 100, 60, 110]]}


def test_all_layers_are_read_and_may_be_the_classes(tmp_path):
    path = str(tmp_path / "survey.gpkg")
    write(path, "terns", [BOX_A], ["common"])
    write(path, "seals", [BOX_B, shapely.LineString([(1001, 1996), (1002, 1996)])], ["grey", "grey"], append=True)
    found = read(path)
    assert [one.class_name for one in found.annotations] == ["common", "grey"]
    assert found.skipped == {"features_left_out": 1}
    assert [one.class_name for one in read(path, class_column="layer").annotations] == ["terns", "seals"]
    assert boxes(path, NORTH) == {"north": [[10, 10, 40, 30], [50, 100, 60, 110]]}


def test_another_crs_than_the_mosaics_is_transformed(tmp_path):
    # Written in the next zone, whose grid is turned by 3 degrees against this one, the object comes back to the same pixels.
    from rasterio.warp import transform_geom

    corners = {
        "type": "Polygon",
        "coordinates": [list(shapely.box(499_996, MIDDLE[1] - 3, 500_004, MIDDLE[1] + 3).exterior.coords)],
    }
    path = str(tmp_path / "zone16.gpkg")
    write(path, None, [shapely.geometry.shape(transform_geom(UTM17, "EPSG:32616", corners))], ["seal"], crs="EPSG:32616")
    x = read(path).annotations[0].box[1]
    assert x > 1_000_000  # far outside its zone
    [box] = boxes(path, ZONE)["zone"]
    assert box == pytest.approx([7, 6, 13, 14], abs=0.001)


def test_class_columns(tmp_path):
    path = str(tmp_path / "survey.gpkg")
    write(path, "birds", [BOX_A, BOX_B], [3, 4], column="code")
    with pytest.raises(
        InputError, match=r"layer birds has no class column \(one of label, class, .*\): it has code; name one with"
    ):
        read(path)
    with pytest.raises(InputError, match="has no column 'kind': it has code"):
        read(path, class_column="kind")
    assert [one.class_name for one in read(path, class_column="CODE").annotations] == ["3", "4"]
    write(path, "birds", [BOX_A, BOX_B], ["tern", None], column="label")
    with pytest.raises(InputError, match="feature 2 has no class in column 'label'"):
        read(path)


def test_files_that_do_not_say_where_they_are(tmp_path, geojson):
    path = str(tmp_path / "noprj.shp")
    with pytest.warns(UserWarning, match="crs"):
        write(path, None, [BOX_A], ["tern"], crs=None)
    with pytest.raises(InputError, match=r"names no CRS, .*keep the \.prj beside a Shapefile"):
        read(path)
    path = geojson(("tern", rectangle(404_000, 3_285_000, 404_010, 3_285_010)))  # metres without saying so
    with pytest.raises(InputError, match=r"is in degrees .* has coordinates up to 404010, 3285010: write its real CRS"):
        read(path)


@pytest.mark.parametrize("text", ["{", '{"type": "FeatureCollection", "features": 3}', "tern,seal\n"])
def test_no_map_layer(tmp_path, text):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.geojson"):
        read(str(path))


@pytest.mark.filterwarnings("ignore:Non closed ring")  # GDAL's own, before it hands the ring on
def test_damaged_and_empty_shapes(geojson):
    open_ring = {"type": "Polygon", "coordinates": [[[1000, 2000], [1001, 2000], [1001, 1999]]]}
    with pytest.raises(InputError, match="layer objects: feature 1 has a shape that is damaged or curved: repair it"):
        read(geojson(("tern", rectangle(1001, 1996, 1003, 1999)), ("tern", open_ring), crs=UTM17))
    nothing = ("tern", None), ("tern", {"type": "Polygon", "coordinates": []})
    found = read(geojson(*nothing, ("tern", rectangle(1001, 1996, 1003, 1999)), crs=UTM17))
    assert (len(found.annotations), found.skipped) == (1, {"features_left_out": 2})


def test_a_mosaic_without_a_place_on_the_map_is_refused(geojson):
    path = geojson(("tern", rectangle(1001, 1996, 1003, 1999)), crs=UTM17)
    for plain, lacks in ((Mosaic("p", "p.png", 9, 9), "CRS"), (Mosaic("p", "p.png", 9, 9, crs=UTM17), "affine transform")):
        with pytest.raises(
            InputError, match=rf"is in map coordinates \(EPSG:32617\), but p\.png has no {lacks}: georeference it"
        ):
            boxes(path, NORTH, plain)


def test_objects_that_are_all_elsewhere_are_refused(geojson):
    path = geojson(("tern", rectangle(-81.001, 30, -81, 30.001)))
    with pytest.raises(
        InputError, match=r"none of the 1 objects .* x -81\.001 to -81, .* EPSG:4326; north\.tif reaches from \(1000,"
    ):
        boxes(path, NORTH)


def test_far_places_that_the_mosaics_crs_cannot_express_are_outside(geojson):
    path = geojson(("a", rectangle(99, 89.9, 99.1, 90)), ("b", rectangle(-81.00001, 29.99999, -80.99999, 30.00001)))
    assert marked(read(path), ZONE).counts["objects_empty_or_outside_mosaic"] == 1
