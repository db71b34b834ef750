"""A small survey of squares and bars, sharded: what the tests of YOLO train on."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline import shard

SIZE = 64  # of its patches
CLASSES = ("bar", "square")  # as `rookery shard` sorts them


def make(folder: Path, *extra: str) -> str:
    """Shards two mosaics of 240 px, one to train and one to validate, and returns the dataset's folder."""
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        image = rng.integers(20, 60, (240, 240, 3)).astype(np.uint8)
        text = ""
        for i, y in enumerate(range(4, 210, 32)):
            for j, x in enumerate(range(4, 210, 32)):
                bar = (i + j) % 3 == 0
                high, wide = (rng.integers(6, 10), rng.integers(20, 27)) if bar else (side := rng.integers(12, 23), side)
                image[y : y + high, x : x + wide] = (220, 60, 60) if bar else rng.integers(180, 255, 3)
                corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + wide}</xmax><ymax>{y + high}</ymax>"
                text += f"<object><name>{CLASSES[not bar]}</name><bndbox>{corners}</bndbox></object>"
        # Two places: what shows one piece of ground must be in one split.
        place = rasterio.Affine(0.1, 0, 5e5 + 100 * seed, 0, -0.1, 4e6)
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", height=240, width=240, count=3, dtype="uint8",
                           crs="EPSG:32617", transform=place) as out:  # fmt: skip
            out.write(image.transpose(2, 0, 1))
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.tif</filename>{text}</annotation>")
    argv = f"--mosaics {folder}/*.tif --annotations {folder}/*.xml --patch_size {SIZE} --overlap 16 --split train=0.5,val=0.5"
    assert shard.run([*argv.split(), *extra, "--output", str(folder / "dataset")]) == 0
    return str(folder / "dataset")


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dataset, with seven patches a file."""
    return make(tmp_path_factory.mktemp("survey"), "--records_per_shard", "7")
