"""CSV, COCO JSON and the counts; and what holds for every format."""

import csv
import io
import json
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from small_survey import CLASSES, FOUND, detections_at, manifest_of, on_map, plain, scattered

from inference.outputs import coco, geojson, geopackage, job, publishing, tables, writing
from survey import files, truth
from survey.annotations import every
from survey.annotations.reading import ReadOptions
from survey.detections import Detections
from survey.errors import InputError

NONE = FOUND.take(np.zeros(3, bool))


def written(folder: Path, *mosaics, found=FOUND, formats=("csv", "coco")) -> dict[str, str]:
    names = writing.write(str(folder), manifest_of(*mosaics), {mosaic.name: found for mosaic in mosaics}, formats)
    assert sorted(names) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_text() for name in names}


def test_csv(tmp_path):
    mosaic = on_map(tmp_path / "reef.tif")
    rows = list(csv.DictReader(io.StringIO(written(tmp_path / "out", mosaic, plain('odd, "name"'))[tables.CSV])))
    assert len(rows) == 4
    latitude = rows[0].pop("latitude")
    # The centre (20, 40) lies 4 m east and 2 m south of the corner (500000, 4000000). On the central meridian a degree of
    # longitude is 0.9996 * 90,200 m long at 36.1 N (cos 36.1 * 111,320 * 1.0012): 4 m are 0.0000443 degrees.
    assert float(rows[0].pop("longitude")) == pytest.approx(-81 + 4.43e-5, abs=2e-7)
    assert 36.1 < float(latitude) < 36.2
    assert rows[0] == {
        "mosaic": "reef",
        "class": "tree",
        "score": "0.9",
        **{"y0": "10", "x0": "20", "y1": "30", "x1": "60"},
        **{"map_x": "500004", "map_y": "3999998", "crs": "EPSG:32617"},
    }
    assert rows[2]["mosaic"] == 'odd, "name"'
    assert {rows[2][name] for name in ("map_x", "map_y", "crs", "longitude", "latitude")} == {""}


def test_csv_has_every_digit_that_parquet_has(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "BLOCK_ROWS", 300)  # several blocks
    found = scattered(1000, 50_000, 50_000)
    text = written(tmp_path, plain("a", (50_000, 50_000)), found=found, formats=["csv"])[tables.CSV]
    rows = list(csv.DictReader(io.StringIO(text)))
    read = np.array([[row[side] for side in ("y0", "x0", "y1", "x1")] for row in rows], np.float32)
    np.testing.assert_array_equal(read, found.boxes_mosaic_px)
    np.testing.assert_array_equal(np.float32([row["score"] for row in rows]), found.scores)


def test_counts(tmp_path):
    assert written(tmp_path, plain("a"))[tables.COUNTS] == "mosaic,class,count\na,bird,1\na,tree,1\n"
    # A score of exactly the threshold counts, also where the threshold is no float32 number.
    scores = np.array([0.7, 0.7, 0.69], np.float32)
    one = Detections(np.zeros((3, 4), np.float32), scores, np.array([1, 1, 2], np.int32), np.zeros(3, np.int64))
    assert writing.count({"a": one}, CLASSES, 0.7) == {"a": {"bird": 2, "tree": 0}}


def test_coco_as_a_dataset(tmp_path):
    value = json.loads(written(tmp_path, plain("a"), plain("b"))[coco.DATASET])
    assert value["images"][1] == {"id": 2, "file_name": "b.jpg", "width": 100, "height": 50}
    assert value["categories"] == [{"id": 1, "name": "bird"}, {"id": 2, "name": "tree"}]
    assert [one["id"] for one in value["annotations"]] == [1, 2, 3, 4]
    assert value["annotations"][2] == {
        **{"id": 3, "image_id": 2, "category_id": 2, "bbox": [20, 10, 40, 20], "area": 800},
        **{"iscrowd": 0, "segmentation": [], "score": 0.9},
    }


def test_coco_results_load_over_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "BLOCK_ROWS", 2)
    written(tmp_path, plain("a"), plain("b"))
    with redirect_stdout(io.StringIO()):
        dataset = COCO(str(tmp_path / coco.DATASET))
        results = dataset.loadRes(str(tmp_path / coco.RESULTS))
    # All three detections of each mosaic, also the one below the threshold.
    assert len(dataset.anns), len(results.anns) == (4, 6)
    assert [one["score"] for one in results.imgToAnns[2]] == [0.9, 0.5, 0.49]
    assert results.imgToAnns[2][2]["bbox"] == [1, 1, 1, 1]


@pytest.mark.parametrize(("name", "format"), [(tables.CSV, "csv_boxes"), (coco.DATASET, "coco")])
def test_what_is_written_is_read_back(tmp_path, name, format):
    mosaic = plain("a", (5000, 7000))
    found = scattered(2000, 5000, 7000)
    written(tmp_path, mosaic, found=found)
    read = every.read([str(tmp_path / name)], format, ReadOptions())
    here = truth.by_mosaic(read.annotations, [mosaic], CLASSES, named_in="x").objects["a"]
    np.testing.assert_array_equal(here.class_ids, found.class_ids)
    np.testing.assert_array_equal(here.boxes_mosaic_px.astype(np.float32), found.boxes_mosaic_px)


def test_nothing_found(tmp_path):
    texts = written(tmp_path, plain(), found=NONE, formats=writing.DEFAULT_FORMATS)
    assert texts[tables.COUNTS] == "mosaic,class,count\nphoto,bird,0\nphoto,tree,0\n"
    assert json.loads(texts[coco.DATASET])["annotations"] == []
    assert json.loads(texts[coco.RESULTS]) == []
    assert texts[tables.CSV].count("\n") == 1


def test_names_of_any_script_and_with_quotes(tmp_path):
    mosaic = plain("ñandú <&> \"1\" 'x'")
    manifest = manifest_of(mosaic)
    texts = written(tmp_path, mosaic)
    assert next(csv.DictReader(io.StringIO(texts[tables.CSV])))["mosaic"] == mosaic.name
    assert json.loads(texts[coco.DATASET])["images"][0]["file_name"] == f"{mosaic.name}.jpg"
    assert manifest.mosaics[0].name == mosaic.name


def test_unknown_formats_name_the_nearest(tmp_path):
    with pytest.raises(InputError, match="has 'geojosn': did you mean 'geojson'"):
        writing.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND}, ["csv", "geojosn"])
    with pytest.raises(InputError, match="--formats is empty"):
        writing.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND}, [])
    with pytest.raises(InputError, match=r"has 'crops': here must be any of csv, coco, geojson, gpkg; `rookery convert` writes"):
        writing.check_formats(["csv", "crops"], among=writing.DEFAULT_FORMATS)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_be_written_stops_all_before_anything_is(tmp_path):
    with pytest.raises(InputError, match="--density_cell_px"):
        writing.write(str(tmp_path), manifest_of(plain()), {"photo": FOUND}, ["csv", "density"])
    assert list(tmp_path.iterdir()) == []


def test_an_error_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with suppress(RuntimeError), publishing.stream(str(path)) as out:
        out(b"new")
        raise RuntimeError
    with suppress(RuntimeError), publishing.by_gdal(str(path)) as temporary:
        Path(temporary).write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_frames_in_words(tmp_path):
    assert writing.frame(on_map(tmp_path / "reef.tif")) == "map coordinates, EPSG:32617"
    assert writing.frame(plain()) == "pixels (x right, y down)"


def test_outputs_in_cloud_storage_are_the_same(tmp_path, gcs):
    mosaic = on_map(tmp_path / "reef.tif")
    found = {"reef": detections_at((10, 20, 30, 60))}
    names = writing.write("gs://bkt/out", manifest_of(mosaic), found)
    assert names == [tables.CSV, tables.COUNTS, coco.DATASET, coco.RESULTS, geojson.FILE, geopackage.FILE]
    writing.write(str(tmp_path / "out"), manifest_of(mosaic), found)
    assert files.names("gs://bkt/out") == sorted(names)
    for name in names[:-1]:
        assert files.read(f"gs://bkt/out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert files.read(f"gs://bkt/out/{geopackage.FILE}")[:15] == b"SQLite format 3"  # its bytes hold the time of writing
