"""docs/data.md: its excerpts are read as it says, its commands parse, and what `rookery predict` writes is read back."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import rookery
from inference.outputs import coco, geojson, geopackage, tables, writing
from survey import flags, truth
from survey.annotations import FORMATS, every
from survey.annotations.reading import ReadOptions
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic

TEXT = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def blocks(section: str) -> list[tuple[str, str]]:
    """[(language, text), ...] of the fenced blocks of a section."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for language, text in blocks(TEXT) if language == "bash" for line in text.splitlines()]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    _, verb, *argv = shlex.split(command)
    flags.parse(importlib.import_module(rookery.VERBS[verb]).Options, argv, prog=f"rookery {verb}")


def test_every_format_has_a_section_with_an_example_and_a_command():
    assert set(FORMATS) <= set(SECTIONS)
    for name in FORMATS:
        shown = [line for line in commands() if f"--annotation_format {name}" in line]
        assert shown or name == "voc"
        assert [language for language, _ in blocks(SECTIONS[name])] in ([kind, "bash"] for kind in ("", "xml", "json"))


@pytest.mark.parametrize(
    ("name", "objects"),
    [
        ("voc", [("tern", 10, 20, 30, 40)]),
        ("coco", [("tern", 10, 20, 30, 40)]),
        ("cvat", [("tern", 10, 20, 30, 40), ("pup", 108, 228, 132, 252), ("pup", 119, 238.5, 143, 262.5)]),
        ("yolo", [("tern", 10, 20, 30, 40)]),
        ("csv_boxes", [("tern", 10, 20, 30, 40)]),
        ("csv_points", [("adult seal", 160, 220, 200, 260), ("pup", 278, 18.5, 300, 42.5)]),
        ("labelme", [("tern", 10, 20, 30, 40)]),
    ],
)
def test_excerpts_are_read(tmp_path, name, objects):
    (tmp_path / "classes.txt").write_text("seal\ntern\n")
    path = tmp_path / "north.txt"
    path.write_text(blocks(SECTIONS[name])[0][1])
    found = every.read([str(path)], name, ReadOptions.parse(box_size="40,pup=24"))
    classes = tuple(sorted({one.class_name for one in found.annotations}))
    here = truth.by_mosaic(found.annotations, [Mosaic("north", "north.tif", 300, 500)], classes, named_in="x").objects["north"]
    assert [classes[i - 1] for i in here.class_ids] == [name for name, *_ in objects]
    np.testing.assert_allclose(here.boxes_mosaic_px, [box for _, *box in objects], atol=1e-5)


def test_the_map_excerpt_is_read(tmp_path):
    path = tmp_path / "marks.geojson"
    path.write_text(blocks(SECTIONS["vector"])[0][1])
    [one] = every.read([str(path)], "vector", ReadOptions()).annotations
    assert (one.class_name, one.crs, one.box) == ("tern", "EPSG:4326", (29.68, -81.99, 29.69, -81.98))


@pytest.mark.parametrize(
    ("file", "name"),
    [(tables.CSV, "csv_boxes"), (coco.DATASET, "coco"), (geojson.FILE, "vector"), (geopackage.FILE, "vector")],
)
def test_detections_are_read_back_as_annotations(tmp_path, file, name):
    mosaic = Mosaic("north", "x/north.tif", 300, 500, crs="EPSG:32617", transform=(0.1, 0, 404000, 0, -0.1, 3285000), gsd_m=0.1)
    boxes = np.array([[10, 20, 30, 40], [100, 200, 140.5, 280.25]], np.float32)
    found = {"north": Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([2, 1], np.int32), np.zeros(2, np.int64))}
    manifest = Manifest("model", "0" * 64, ("seal", "tern"), 0.3, (mosaic,), {}, {}, {}, {})
    writing.write(str(tmp_path), manifest, found)
    read = every.read([str(tmp_path / file)], name, ReadOptions())
    here = truth.by_mosaic(read.annotations, [mosaic], manifest.classes, named_in="x").objects["north"]
    assert here.class_ids.tolist() == [2, 1]
    np.testing.assert_allclose(here.boxes_mosaic_px, boxes, rtol=0, atol=2e-3)  # nine decimals of a degree are 0.1 mm
