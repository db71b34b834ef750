"""A training run with its dataset and its folder in a bucket: Google's client for our files, TensorFlow's own for records."""

import os
import subprocess
import sys
from pathlib import Path

from gcs_emulator import Emulator
from test_tpu_train_loop_verb import survey as survey

from survey import files
from tpu_train.history import History

FLAGS = ["--steps=4", "--validate_every=2", "--steps_per_loop=2", "--batch_size=2", "--init=scratch"]


def train(dataset: str, model_dir: str, environment: dict[str, str]) -> str:
    argv = [sys.executable, "-m", "tpu_train.train", f"--dataset={dataset}", f"--model_dir={model_dir}", *FLAGS]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_run_in_a_bucket_is_the_same_run(survey: str, tmp_path: Path, gcs: Emulator, tensorflow_gcs: dict[str, str]) -> None:
    for path in Path(survey).iterdir():
        gcs.upload(path, f"gs://bkt/train/dataset/{path.name}")
    there, here = "gs://bkt/train/run", str(tmp_path / "run")
    said = train("gs://bkt/train/dataset", there, tensorflow_gcs)
    assert said.count("validate: AP50") == 2
    train(survey, here, {})
    assert History(there).validations == History(here).validations
    written = files.names(there)
    assert {"train.json", "params.yaml", "history.json", "best", "ckpt-4.index"} <= set(written)
    assert not [name for name in written if "temp" in name]
    assert "is already trained" in train("gs://bkt/train/dataset", there, tensorflow_gcs)
