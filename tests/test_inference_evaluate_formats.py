"""rookery evaluate with other formats than VOC, through run(argv)."""

import json

import numpy as np
import pytest

from inference.evaluate import run
from survey import detections
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic

# North up, 1 m: pixel (row 10, column 20) is at x 1020, y 1990.
MOSAICS = tuple(
    Mosaic(name, f"{name}.tif", 100, 200, crs="EPSG:32617", transform=(1, 0, x, 0, -1, 2000), gsd_m=1.0)
    for name, x in (("north", 1000), ("south", 5000))
)


@pytest.fixture
def folder(tmp_path):
    """Detections: in north one of rows 10 to 30, columns 20 to 40, in south one."""
    one = Detections(
        np.array([[10, 20, 30, 40]], np.float32), np.array([0.9], np.float32), np.ones(1, np.int32), np.zeros(1, np.int64)
    )
    manifest = Manifest("model", "0" * 64, ("seal",), 0.3, MOSAICS, {}, {}, {}, {})
    detections.write(str(tmp_path), manifest, {"north": one, "south": one})
    return tmp_path


def write(folder, name, text):
    (folder / name).write_text(text)
    return f"--annotations={folder / name}"


def outcome(folder, *argv):
    """(right, false, missed, mosaics left out) at IoU 0.5."""
    assert run([f"--detections={folder}", "--iou=0.5", *argv]) == 0
    result = json.loads((folder / "evaluation.json").read_text())
    at = result["overall"]["at_iou"][0]["at_score_threshold"]
    return at["tp"], at["fp"], at["fn"], result["unannotated"]


COCO = {
    "images": [{"id": 1, "file_name": "north.tif"}, {"id": 2, "file_name": "south.tif"}],
    "categories": [{"id": 1, "name": "seal"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [20, 10, 20, 20]},
        {"image_id": 1, "category_id": 1, "bbox": [0] * 4},
    ],
}


def test_an_image_without_annotations_makes_its_detections_false(folder):
    argv = write(folder, "a.json", json.dumps(COCO)), "--annotation_format=coco"
    assert outcome(folder, *argv) == (1, 1, 0, [])


def test_points(folder):
    text = "file,x,y,layer name\nnorth.tif,30,80,seal\n"  # 80 from below is row 20
    argv = write(folder, "a.csv", text), "--annotation_format=csv_points", "--origin=bottom_left"
    assert outcome(folder, *argv, "--box_size=seal=20m") == (1, 0, 0, ["south"])
    with pytest.raises(InputError, match="--box_size gives no size"):
        run([f"--detections={folder}", *argv])
    with pytest.raises(InputError, match="--box_size=big: 'big' is no size"):
        run([f"--detections={folder}", *argv, "--box_size=big"])


def test_a_map_layer(folder):
    corners = [[1020, 1970], [1040, 1970], [1040, 1990], [1020, 1990], [1020, 1970]]
    feature = {"type": "Feature", "properties": {"kind": "seal"}, "geometry": {"type": "Polygon", "coordinates": [corners]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32617"}}
    text = json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]})
    argv = write(folder, "a.geojson", text), "--annotation_format=vector", "--class_column=kind"
    assert outcome(folder, *argv) == (1, 0, 0, ["south"])


def test_what_was_left_out_is_told(folder, capsys):
    crowd = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1}
    text = json.dumps({**COCO, "annotations": [*COCO["annotations"], crowd]})
    outcome(folder, write(folder, "a.json", text), "--annotation_format=coco")
    assert "note: 1 crowd annotations left out" in capsys.readouterr().out
