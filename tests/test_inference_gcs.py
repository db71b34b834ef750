"""`rookery predict` with model, mosaics and output in a bucket: Google's client for our files, TensorFlow's own for the model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import stub_model
from gcs_emulator import Emulator
from test_inference_predict import save

from inference import parts
from survey import detections, files

BUCKET = "gs://bkt/predict"


def predict(where: str, output: str, environment: dict[str, str], *more: str) -> str:
    argv = [f"--model={where}/model", f"--mosaics={where}/mosaics/*.tif", f"--output={output}", "--formats=csv", *more]
    done = subprocess.run(
        [sys.executable, "-m", "inference.predict", *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_bucket_gives_what_a_disk_gives(tmp_path: Path, gcs: Emulator, tensorflow_gcs: dict[str, str]) -> None:
    stub_model.export(str(tmp_path / "model"))
    (tmp_path / "mosaics").mkdir()
    rng = np.random.default_rng(0)
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    for name in ("north", "south"):
        objects = [(y, x, 12, 0.8, 1) for y, x in rng.integers(10, 390, (30, 2)).tolist()]
        save(tmp_path / "mosaics" / f"{name}.tif", stub_model.paint(400, 400, objects), **tiled)
    for folder in ("model", "mosaics"):
        for path in (tmp_path / folder).rglob("*"):
            if path.is_file():
                gcs.upload(path, f"{BUCKET}/{path.relative_to(tmp_path)}")

    predict(str(tmp_path), str(tmp_path / "out"), {})
    said = predict(BUCKET, f"{BUCKET}/out", tensorflow_gcs)
    assert f"wrote {BUCKET}/out" in said
    (here, one), (there, other) = detections.read(str(tmp_path / "out")), detections.read(f"{BUCKET}/out")
    assert here.counts == there.counts
    assert sum(here.counts["north"].values()) > 20
    assert here.counters == there.counters
    for name in one:
        for field in ("boxes_mosaic_px", "scores", "class_ids", "patch_ids"):
            np.testing.assert_array_equal(getattr(one[name], field), getattr(other[name], field))
    assert files.names(f"{BUCKET}/out") == sorted(os.listdir(tmp_path / "out"))
    assert parts.FOLDER not in files.names(f"{BUCKET}/out")
    assert "already holds this very prediction" in predict(BUCKET, f"{BUCKET}/out", tensorflow_gcs)
