"""`rookery convert` through its `run(argv)`."""

import csv
import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from small_survey import CLASSES, FOUND, described, manifest_of, on_map, plain, scattered

from inference import convert, moved
from inference.outputs.writing import FORMATS
from survey import detections
from survey.detections import Manifest
from survey.errors import InputError


@pytest.fixture
def folder(tmp_path) -> str:
    """Detections of one mosaic on the map and of one photo."""
    mosaics = (on_map(tmp_path / "reef.tif"), plain())
    detections.write(str(tmp_path / "detections"), manifest_of(*mosaics), {mosaic.name: FOUND for mosaic in mosaics})
    return str(tmp_path / "detections")


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_default_formats_into_the_folder_itself(folder, capsys):
    assert convert.run([f"--detections={folder}"]) == 0
    assert {path.name for path in Path(folder).iterdir()} == {
        *("detections.json", "detections.parquet", "detections.csv", "counts.csv"),
        *("detections.coco.json", "detections.coco_results.json", "detections.geojson", "detections.gpkg"),
    }
    said = capsys.readouterr().out
    assert f"6 files in {folder}, detections with a score of 0.5 or more:\n  detections.csv\n" in said
    assert "note: detections.geojson lacks the mosaics that have no place on the earth: photo\n" in said
    assert len(lines_of(Path(folder) / "detections.csv")) == 4


def test_every_format_of_a_real_survey_on_the_map(tmp_path, pixels, write_raster, capsys):
    path = tmp_path / "reef.tif"
    transform = rasterio.Affine(0.1, 0, 500000, 0, -0.1, 4000000)
    write_raster(path, pixels(600, 800), crs="EPSG:32617", transform=transform)
    found = scattered(200, 600, 800)
    detections.write(str(tmp_path / "detections"), manifest_of(described(path)), {"reef": found})
    out = tmp_path / "out"
    flags = ["--tile_px=500", "--density_cell_m=10", "--crops=3"]
    assert convert.run([f"--detections={tmp_path}/detections", f"--output={out}", f"--formats={','.join(FORMATS)}", *flags]) == 0
    assert len(lines_of(out / "detections.csv")) == 200
    assert len(json.loads((out / "detections.geojson").read_text())["features"]) == 200
    assert pyogrio.read_info(out / "detections.gpkg")["features"] == 200
    assert len(list((out / "relabel/images").iterdir())) == len(list((out / "relabel/voc").iterdir())) == 4
    assert len(lines_of(out / "crops/index.csv")) == 6
    with rasterio.open(out / "density/reef.tif") as file:
        # A cell is 100 m2: 0.01 hectares. 6 x 8 cells.
        assert file.read().sum() * 0.01 == pytest.approx(200)
    said = capsys.readouterr().out
    assert "  detections.gpkg\n" in said
    assert "note" not in said


def test_another_threshold_goes_to_another_folder(folder, tmp_path):
    with pytest.raises(InputError, match=r"--score_threshold=0.8: .* counts from 0.5 on.*give another --output"):
        convert.run([f"--detections={folder}", "--score_threshold=0.8"])
    assert convert.run([f"--detections={folder}", "--score_threshold=0.8", f"--output={tmp_path}/high", "--formats=csv"]) == 0
    assert [row["score"] for row in lines_of(tmp_path / "high/detections.csv")] == ["0.9", "0.9"]
    assert convert.run([f"--detections={folder}", "--score_threshold=0", f"--output={tmp_path}/low", "--formats=csv"]) == 0
    assert len(lines_of(tmp_path / "low/detections.csv")) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--formats=geopackage"], "--formats has 'geopackage': did you mean"),
        (["--formats="], "--formats has ''"),
        (["--format=csv"], "--format is not a flag of rookery convert: did you mean --formats"),
        (["--score_threshold=2"], "--score_threshold=2.0: must be from 0 to 1"),
        (["--detections=/nowhere"], "/nowhere/detections.json does not exist: a detections manifest"),
        (["--formats=crops"], "data/photo.jpg is not there any more.*--mosaics"),
        (["--formats=density", "--density_cell_m=1"], "give --density_cell_px, for instance 2 for mosaic photo"),
        (["--mosaics=/nowhere/*"], "--mosaics='/nowhere/.*' matches no file"),
    ],
)
def test_bad_input(folder, flags, message):
    before = sorted(Path(folder).iterdir())
    with pytest.raises(InputError, match=message):
        convert.run([f"--detections={folder}", *flags])
    assert sorted(Path(folder).iterdir()) == before


def test_nothing_that_could_be_written(tmp_path):
    detections.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND})
    with pytest.raises(InputError, match=r"--formats=geojson,gpkg: nothing could be written: detections.geojson was not written"):
        convert.run([f"--detections={tmp_path}", "--formats=geojson,gpkg"])


def test_mosaics_that_moved_are_found_by_name(tmp_path, pixels, write_raster):
    gone = plain("north.1", (300, 400))
    detections.write(str(tmp_path / "d"), manifest_of(gone), {"north.1": scattered(9, 300, 400)})
    new = tmp_path / "new"
    new.mkdir()
    write_raster(new / "north.1.jpg", pixels(300, 400))
    (new / "north.1.xml").write_text("an annotation of the same name is no mosaic")
    argv = [f"--detections={tmp_path}/d", "--formats=crops", f"--output={tmp_path}/out"]
    assert convert.run([*argv, f"--mosaics={new}/*"]) == 0
    assert len(list((tmp_path / "out/crops").glob("*.jpg"))) == 9


def moved_to(tmp_path: Path, *names: str) -> Manifest:
    for name in names:
        (tmp_path / name).touch()
    return moved.find(manifest_of(plain("a"), plain("b")), f"{tmp_path}/*")


def test_which_file_a_moved_mosaic_is(tmp_path):
    assert [one.path for one in moved_to(tmp_path, "a.tif", "c.jpg").mosaics] == [f"{tmp_path}/a.tif", "data/b.jpg"]
    assert moved_to(tmp_path, "a.JPG").mosaics[0].path == f"{tmp_path}/a.JPG"  # data/a.jpg it was
    with pytest.raises(InputError, match=r"b.png and .*b.tif might be mosaic b: narrow the pattern"):
        moved_to(tmp_path, "b.png", "b.tif")


def test_a_pattern_of_other_mosaics(tmp_path):
    with pytest.raises(InputError, match="matches 1 files, and none of the mosaics that were searched: a, b; the names must be"):
        moved_to(tmp_path, "c.jpg")


def test_classes_are_those_of_the_detections(folder):
    convert.run([f"--detections={folder}", "--formats=coco"])
    value = json.loads((Path(folder) / "detections.coco.json").read_text())
    assert tuple(one["name"] for one in value["categories"]) == CLASSES
    assert {one["category_id"] for one in value["annotations"]} == set(np.unique(FOUND.class_ids[:2]).tolist())
