"""BCCD's photos in sheets: every pixel and every box where it belongs, in the files that `rookery shard` is given."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile

BOXES = {  # xmin, ymin, xmax, ymax of the one cell of each photo
    "a": (10, 20, 110, 140),
    "b": (0, 0, 641, 481),  # a pixel beyond the photo, as some of BCCD's
    "c": (600, 400, 640, 480),
    "d": (5, 6, 7, 8),
}


@pytest.fixture
def bccd(tmp_path: Path) -> Path:
    """Four photos in a folder like BCCD's: three to learn from, of which two columns would leave a place empty."""
    folder = tmp_path / "bccd"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "train.txt").write_text("a\nb\nc\n")
    (folder / "val.txt").write_text("d\n")
    for number, (name, (x0, y0, x1, y1)) in enumerate(BOXES.items()):
        pixels = np.full((480, 640, 3), 60 * number, np.uint8)
        (folder / f"images/{name}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
        (folder / f"annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><object><name>RBC</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
        )
    return folder


def test_sheets(bccd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import bccd_sheets

    output = tmp_path / "sheets"
    bccd_sheets.main([f"--bccd={bccd}", f"--output={output}"])
    train = tifffile.imread(output / "train.tif")
    assert train.shape == (480, 3 * 640, 3)
    assert [int(train[240, 640 * column + 320, 0]) for column in range(3)] == [0, 60, 120]
    assert tifffile.imread(output / "val.tif").shape == (480, 640, 3)
    document = json.loads((output / "annotations.json").read_text())
    assert [(each["file_name"], each["height"], each["width"]) for each in document["images"]] == [
        ("train.tif", 480, 1920),
        ("val.tif", 480, 640),
    ]
    # x, y, width, height; the second photo begins at x = 640 and ends at 1280, the third at 1280
    assert [(each["image_id"], each["bbox"]) for each in document["annotations"]] == [
        (1, [10, 20, 100, 120]),
        (1, [640, 0, 640, 480]),
        (1, [1280 + 600, 400, 40, 80]),
        (2, [5, 6, 2, 2]),
    ]

    from pipeline import shard

    assert shard.run([*shlex.split(capsys.readouterr().out), "--patch_size=416", f"--output={tmp_path / 'dataset'}"]) == 0
    made = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert set(made["splits"]) == {"train", "val"}
