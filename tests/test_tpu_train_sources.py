"""A run of the real verb over a shard that lost a byte: refused, then allowed, and from the first step on when started again."""

import json
import shutil
from pathlib import Path

import pytest
from test_tpu_train_loop_verb import survey as survey

from survey import dataset
from survey.errors import InputError
from tpu_train import train

FLAGS = ["--steps=4", "--validate_every=4", "--steps_per_loop=2", "--batch_size=2", "--init=scratch"]


def test_a_damaged_shard(survey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(survey, tmp_path / "dataset")
    (shard,) = dataset.read(str(data)).splits["train"]
    path = data / shard.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of some record
    path.write_bytes(content)
    run = ["--dataset", str(data), "--model_dir", str(tmp_path / "run"), *FLAGS]
    with pytest.raises(InputError, match=rf"(?s)but 1 record is damaged: .*--max_bad_records 1\n.*{shard.file}: record \d"):
        train.run(run)
    assert path.read_bytes() == content  # nobody repairs it in place
    assert train.run([*run, "--max_bad_records=1"]) == 0
    assert f"{shard.file}" in capsys.readouterr().err
    (copy,) = (tmp_path / "run/cleaned").glob("*.tfrecord")
    assert len(copy.read_bytes()) < len(content)
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert [each["step"] for each in history["validations"]] == [4]
