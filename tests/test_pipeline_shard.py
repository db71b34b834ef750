"""`rookery shard` end to end on small real files, through Beam's real runner."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import publish, shard
from survey import dataset, labels
from survey.errors import InputError

# The survey of test_pipeline_plan: 300 x 500 px, 4 x 6 patches of 100 px; columns 0 to 3 go to train, 5 to val.
OBJECTS = [
    ("tern", (10, 10, 30, 40)),  # train, one patch
    ("goose", (90, 85, 110, 125)),  # train, shown enough by three patches
    ("tern", (250, 450, 270, 480)),  # val, two patches
    ("tern", (-10, 200, 10, 220)),  # half outside the mosaic; train, one patch
    ("tern", (310, 10, 330, 30)),  # outside
]
SIZE = (300, 500)


@pytest.fixture
def survey(tmp_path, pixels, write_raster, write_voc):
    """A folder with one mosaic and its annotations, and the command line for it."""
    write_raster(tmp_path / "north.png", pixels(*SIZE))
    write_voc(tmp_path / "north.xml", "north.png", SIZE, OBJECTS)

    def argv(output="ds", *more):
        return [
            f"--mosaics={tmp_path}/*.png",
            f"--annotations={tmp_path}/*.xml",
            f"--output={tmp_path / output}",
            "--patch_size=100",
            "--overlap=20",
            "--records_per_shard=4",
            *more,
        ]

    return tmp_path, argv


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_dataset_from_a_mosaic(survey, pixels, capsys):
    import tensorflow as tf
    from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder

    folder, argv = survey
    assert shard.run(argv()) == 0
    made = dataset.read(str(folder / "ds"))
    assert sorted(contents(folder / "ds")) == [
        "dataset.json",
        "labels.pbtxt",
        "patches.parquet",
        *(f"train-{i:05d}-of-00004.tfrecord" for i in range(4)),  # 16 patches, 4 a file
        "val-00000-of-00001.tfrecord",
    ]
    assert made.classes == labels.read(str(folder / "ds/labels.pbtxt")) == ("goose", "tern")
    assert (made.records("train"), made.records("val")) == (16, 4)
    assert made.statistics.objects == {"train": 5, "val": 2}
    assert made.counts["objects_clipped_to_mosaic"] == 1
    assert made.counts["objects_empty_or_outside_mosaic"] == 1
    assert made.options["split_by"] == "block"
    (mosaic,) = made.mosaics
    assert (mosaic.name, mosaic.height, mosaic.width) == ("north", *SIZE)
    assert mosaic.sha256 == hashlib.sha256((folder / "north.png").read_bytes()).hexdigest()

    # Every record is where the ledger says, shows the pixels of its window, and carries its numbers as Model Garden wants them.
    ledger = {(row["shard"], row["record"]): row for row in pq.read_table(folder / "ds/patches.parquet").to_pylist()}
    ids = [row["patch_id"] for row in pq.read_table(folder / "ds/patches.parquet").to_pylist()]
    assert ids == sorted(ids)
    assert len(ledger) == 20
    image, decoder = pixels(*SIZE), TfExampleDecoder()
    seen = 0
    for name, shards in made.splits.items():
        for part in shards:
            path = folder / "ds" / part.file
            assert hashlib.sha256(path.read_bytes()).hexdigest() == part.sha256
            for record, serialised in enumerate(tf.data.TFRecordDataset(str(path))):
                row = ledger[part.file, record]
                decoded = decoder.decode(serialised)
                assert int(tf.strings.to_number(decoded["source_id"], tf.int64)) == row["patch_id"]
                got_mosaic, grid, r, c = made.locate(row["patch_id"])
                window = grid.window(r, c)
                assert (got_mosaic.name, r, c) == (row["mosaic"], row["row"], row["column"])
                assert (window.y0, window.x0, window.y1, window.x1) == (row["y0"], row["x0"], row["y1"], row["x1"])
                assert row["split"] == name
                expected = image[window.y0 : window.y1, window.x0 : window.x1].astype(int)
                assert np.abs(decoded["image"].numpy() - expected).mean() < 2
                assert len(decoded["groundtruth_classes"]) == row["objects"]
                seen += 1
    assert seen == 20

    printed = capsys.readouterr()
    assert "shard: 20 of 20 patches" in printed.err
    assert "train: 16 patches, 5 boxes, 4 files" in printed.out
    assert "1 dropped, because they are empty or outside the mosaic\n" in printed.out
    assert "north.xml: tern at yxyx (310.0, 10.0, 330.0, 30.0)" in printed.out
    assert f"rookery train --dataset {folder / 'ds'}" in printed.out


def test_the_same_bytes_from_one_and_from_two_workers(survey):
    folder, argv = survey
    shard.run(argv("one"))
    shard.run(argv("two", "--direct_num_workers=2"))
    assert contents(folder / "one") == contents(folder / "two")


def test_the_same_command_again_does_nothing(survey, capsys):
    folder, argv = survey
    shard.run(argv())
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "ds").iterdir()}
    capsys.readouterr()
    assert shard.run(argv()) == 0
    assert capsys.readouterr().out == f"{folder / 'ds'} already holds this dataset, nothing to do\n"
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "ds").iterdir()} == before


def test_an_interrupted_run_is_completed(survey, monkeypatch, capsys):
    folder, argv = survey
    shard.run(argv("whole"))
    monkeypatch.setattr(publish, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shard.run(argv())
    monkeypatch.undo()
    # As if killed earlier: one shard was not begun, one is half-written under its temporary name, one was damaged since.
    (folder / "ds/train-00000-of-00004.tfrecord").unlink()
    (folder / "ds/unfinished/train-00000-of-00004.tfrecord.json").unlink()
    (folder / "ds/unfinished/train-00000-of-00004.tfrecord.0123").write_bytes(b"half")
    (folder / "ds/train-00001-of-00004.tfrecord").write_bytes(b"damaged")
    kept = (folder / "ds/train-00002-of-00004.tfrecord").stat().st_mtime_ns
    capsys.readouterr()
    assert shard.run(argv()) == 0
    assert "3 of 5 shards were finished by an interrupted run" in capsys.readouterr().out
    assert contents(folder / "ds") == contents(folder / "whole")
    assert (folder / "ds/train-00002-of-00004.tfrecord").stat().st_mtime_ns == kept


def test_an_interrupted_run_is_not_mixed_with_another(survey, monkeypatch):
    _, argv = survey
    monkeypatch.setattr(publish, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shard.run(argv())
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"interrupted run with other input \(--jpeg_quality 95 there, 80 now\)"):
        shard.run(argv("ds", "--jpeg_quality=80"))


def test_a_given_label_map_and_several_mosaics(survey, pixels, write_raster, write_voc):
    folder, argv = survey
    for i in range(4):
        write_raster(folder / f"m{i}.png", pixels(*SIZE, seed=i + 1))
        write_voc(folder / f"m{i}.xml", f"m{i}.png", SIZE, OBJECTS)
    labels.write(str(folder / "map.pbtxt"), ("tern", "goose", "whale"))
    assert shard.run(argv("ds", f"--label_map={folder}/map.pbtxt")) == 0
    made = dataset.read(str(folder / "ds"))
    assert made.classes == ("tern", "goose", "whale")
    # Five mosaics of 24 patches: one of them is val.
    assert made.options["split_by"] == "mosaic"
    assert (made.records("train"), made.records("val")) == (96, 24)
    assert [m.first_patch_id for m in made.mosaics] == [0, 24, 48, 72, 96]
    rows = pq.read_table(folder / "ds/patches.parquet").to_pylist()
    assert [row["patch_id"] for row in rows] == list(range(120))


def nothing_was_written(folder: Path, name: str = "ds") -> bool:
    return not (folder / name).exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--mosaics=nowhere/*.tif"], r"--mosaics='nowhere/\*\.tif' matches no file"),
        (["--annotations=nowhere/*.xml"], r"--annotations=.* matches no file"),
        (["--label_map=nowhere.pbtxt"], "nowhere.pbtxt"),
        (["--overlap=100"], "overlap=100 px with patch_size=100 px"),
        (["--split=train=0.9,val=0.2"], "shares sum to 1.1"),
        (["--min_visible=1.5"], "--min_visible=1.5"),
        (["--jpeg_quality=0"], "--jpeg_quality=0"),
        (["--records_per_shard=0"], "--records_per_shard=0"),
        (["--annotation_format=xml"], "invalid choice: 'xml'"),
        (["--patchsize=3"], "did you mean --patch_size"),
        (["--direct_num_worker=3"], "did you mean --direct_num_workers"),
        (["--patch_size=600"], "no patch is left for val"),
        (["--output=gs://bucket/ds"], "--output=gs://bucket/ds"),
    ],
)
def test_bad_flags(survey, more, words):
    folder, argv = survey
    with pytest.raises(InputError, match=words):
        shard.run(argv("ds", *more))
    assert nothing_was_written(folder)


def test_bad_surveys(survey, pixels, write_raster, write_voc):
    folder, argv = survey

    def refused(words, *more):
        with pytest.raises(InputError, match=words):
            shard.run(argv("ds", *more))
        assert nothing_was_written(folder)

    labels.write(str(folder / "map.pbtxt"), ("tern", "geese"))
    refused(r"class 'goose', which the label map lacks .* correct it to 'geese'", f"--label_map={folder}/map.pbtxt")

    other = write_voc(folder / "south.xml", "south.png", SIZE, OBJECTS)
    refused(r"south\.xml annotates image 'south\.png', which is not among the 1 mosaics")
    Path(other).unlink()

    write_raster(folder / "north.tif", pixels(*SIZE))
    refused("both named 'north'", f"--mosaics={folder}/north.*[fg]")
    (folder / "north.tif").unlink()

    shutil.copy(folder / "north.png", folder / "copy.png")
    refused("are the same image")
    (folder / "copy.png").unlink()

    write_raster(folder / "deep.png", pixels(*SIZE).astype(np.uint16))
    refused("deep.png holds uint16 pixels")
    (folder / "deep.png").unlink()

    write_voc(folder / "north.xml", "north.png", (500, 300), OBJECTS)
    refused("its boxes would be misplaced")
    (folder / "north.xml").write_text("")
    refused("not a Pascal VOC file")


def test_output_that_holds_something_else(survey):
    folder, argv = survey
    (folder / "ds").mkdir()
    (folder / "ds/thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files \('thesis.doc'\): name an empty or a new folder"):
        shard.run(argv())
    assert sorted(contents(folder / "ds")) == ["thesis.doc"]
    (folder / "file").touch()
    with pytest.raises(InputError, match="is a file: name a folder"):
        shard.run(argv("file"))
    with pytest.raises(InputError, match="cannot be written"):
        shard.run(argv("file/below"))


def test_output_that_holds_another_dataset(survey, write_voc):
    folder, argv = survey
    shard.run(argv())
    before = contents(folder / "ds")
    with pytest.raises(InputError, match=r"holds another dataset \(--overlap 20 there, 30 now\): name another folder"):
        shard.run(argv("ds", "--overlap=30"))
    write_voc(folder / "north.xml", "north.png", SIZE, OBJECTS[:2] + OBJECTS[2:3])
    with pytest.raises(InputError, match="the mosaics or annotations have changed since"):
        shard.run(argv())
    assert contents(folder / "ds") == before
    write_voc(folder / "north.xml", "north.png", SIZE, OBJECTS)
    (folder / "ds/train-00000-of-00004.tfrecord").unlink()
    with pytest.raises(InputError, match=r"train-00000-of-00004\.tfrecord is missing: delete the folder"):
        shard.run(argv())


def test_a_damaged_mosaic_is_named_and_nothing_looks_finished(survey, pixels, write_raster):
    folder, argv = survey
    random = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)  # does not compress: the cut hits pixels
    write_raster(folder / "north.png", random)
    content = (folder / "north.png").read_bytes()
    (folder / "north.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"north\.png is damaged: rows \d+ to \d+ cannot be read"):
        shard.run(argv())
    assert not (folder / "ds/dataset.json").exists()


def test_the_manifest_says_how_it_was_made(survey):
    folder, argv = survey
    shard.run(argv())
    options = json.loads((folder / "ds/dataset.json").read_text())["options"]
    assert options["patch_size"] == 100
    assert options["split"] == ["train=0.8", "val=0.2"]
    assert "output" not in options
    assert str(folder / "ds") not in (folder / "ds/dataset.json").read_text()
