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
        (["--output=s3://bucket/ds"], "s3://bucket/ds: must be a local path or a gs:// address"),
        (["--gsd_m=0"], "--gsd_m=0.0: is the side of a pixel"),
        (["--gsd_m=0.5"], "mosaic .*north.png does not say how large its pixels are"),
        (["--negatives_per_positive=-1"], "--negatives_per_positive=-1.0: must be 0 or more"),
        (["--image_format=webp"], "invalid choice: 'webp'"),
        (["--max_bad_mosaics=-1"], "--max_bad_mosaics=-1"),
        (["--split_by=list"], "the list goes with --split_by list"),
        (["--split_by=block", "--split_list=x.csv"], "the list goes with --split_by list"),
        (["--split_list=x.csv"], "--split_list=x.csv cannot be read"),
        (["--split_by=fold"], "folds go with --split_by fold"),
        (["--folds=1"], "must be at least 2 folds"),
        (["--folds=3", "--fold=3"], "a fold from 0 to folds - 1"),
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

    (folder / "deep.png").touch()
    refused(r"1 mosaics cannot be read, --max_bad_mosaics=0:\n.*deep\.png cannot be read as an image")
    (folder / "deep.png").unlink()

    write_voc(folder / "north.xml", "north.png", (500, 300), OBJECTS)
    refused("its boxes would be misplaced")
    (folder / "north.xml").write_text("")
    refused("is empty .0 bytes., a Pascal VOC file is expected")


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
    with pytest.raises(InputError, match="file/below is a file: name a folder"):
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
    with pytest.raises(InputError, match=r"1 mosaics cannot be read.*\n.*north\.png is damaged: rows \d+ to \d+ cannot be read"):
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


def test_patches_that_show_nothing_are_skipped_and_counted(survey, pixels, write_raster, capsys):
    folder, argv = survey
    (folder / "north.png").unlink()
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[:, :260] = 0  # columns 0 to 2 of patches (0 to 260 px) show nothing at all
    write_raster(folder / "north.png", np.concatenate([pixels(*SIZE), alpha], axis=-1))
    assert shard.run(argv()) == 0
    made = dataset.read(str(folder / "ds"))
    # 12 patches there, 5 of which have objects (test_pipeline_plan): an annotation outranks a mask.
    assert made.counts["patches_empty"] == 7
    assert (made.records("train"), made.records("val")) == (9, 4)
    rows = pq.read_table(folder / "ds/patches.parquet").to_pylist()
    assert len(rows) == 13
    assert all(row["objects"] or row["column"] > 2 for row in rows)
    assert "left out in which no pixel shows anything: 7 patches" in capsys.readouterr().out
    shard.run(argv("two", "--direct_num_workers=2"))
    assert contents(folder / "ds") == contents(folder / "two")
    shard.run(argv("all", "--no-skip_empty"))
    assert dataset.read(str(folder / "all")).records("train") == 16


def test_resampled_png_patches_lead_back_to_their_pixels(survey, pixels, write_raster):
    import rasterio
    import tensorflow as tf

    folder, argv = survey
    (folder / "north.png").unlink()
    affine = rasterio.Affine(0.1, 0, 1000, 0, -0.1, 2000)
    write_raster(folder / "north.png.tif", pixels(*SIZE), crs="EPSG:32617", transform=affine)
    (folder / "north.png.tif").rename(folder / "north.tif")
    mosaics = f"--mosaics={folder}/north.tif"
    flags = ["--gsd_m=0.2", "--image_format=png", "--patch_size=50", "--overlap=10", mosaics]
    assert shard.run([flag for flag in argv("ds", *flags) if "*.png" not in flag and flag != "--patch_size=100"]) == 0
    made = dataset.read(str(folder / "ds"))
    assert made.gsd_m == 0.2
    assert made.mosaics[0].gsd_m == pytest.approx(0.1)
    assert made.no_shared_pixels["holds"] is True
    assert made.no_shared_pixels["pairs_sharing"] == 0
    image, seen = pixels(*SIZE).astype(float), 0
    halved = image.reshape(150, 2, 250, 2, 3).mean(axis=(1, 3))
    rows = {row["patch_id"]: row for row in pq.read_table(folder / "ds/patches.parquet").to_pylist()}
    for part in made.splits["train"]:
        for serialised in tf.data.TFRecordDataset(str(folder / "ds" / part.file)):
            example = tf.train.Example.FromString(serialised.numpy()).features.feature
            row = rows[example["image/patch_id"].int64_list.value[0]]
            assert example["image/format"].bytes_list.value[0] == b"png"
            decoded = tf.io.decode_png(example["image/encoded"].bytes_list.value[0]).numpy()
            _, grid, r, c = made.locate(row["patch_id"])
            window = grid.window(r, c)
            assert (row["y0"], row["x0"], row["y1"], row["x1"]) == tuple(
                2 * v for v in (window.y0, window.x0, window.y1, window.x1)
            )
            assert row["mosaic_sha256"] == hashlib.sha256((folder / "north.tif").read_bytes()).hexdigest()
            assert np.abs(decoded - halved[window.y0 : window.y1, window.x0 : window.x1]).mean() < 1.5
            seen += 1
    assert seen == made.records("train")


def test_folds_and_lists(survey, pixels, write_raster, write_voc):
    folder, argv = survey
    for i in range(2):
        write_raster(folder / f"m{i}.png", pixels(*SIZE, seed=i + 1))
        write_voc(folder / f"m{i}.xml", f"m{i}.png", SIZE, OBJECTS)
    validated = []
    for fold in range(3):
        shard.run(argv(f"fold{fold}", "--folds=3", f"--fold={fold}"))
        rows = pq.read_table(folder / f"fold{fold}/patches.parquet").to_pylist()
        validated += [row["patch_id"] for row in rows if row["split"] == "val"]
    assert sorted(validated) == list(range(72))
    (folder / "splits.csv").write_text("mosaic,split\nnorth,train\nm0,val\nm1,test\n")
    shard.run(argv("listed", f"--split_list={folder}/splits.csv"))
    made = dataset.read(str(folder / "listed"))
    assert {name: made.records(name) for name in made.splits} == {"train": 24, "test": 24, "val": 24}
    rows = pq.read_table(folder / "listed/patches.parquet").to_pylist()
    assert {(row["mosaic"], row["split"]) for row in rows} == {("north", "train"), ("m0", "val"), ("m1", "test")}


def test_an_object_larger_than_the_overlap_is_reported(survey, capsys):
    _, argv = survey
    shard.run(argv())
    # Of 20 px: A is 30 wide, B 40, C 30; D is 20 and whole in some patch.
    assert "3 larger than the overlap of 20 px, the largest 40 px: some may be whole in no patch; remedy: --overlap 40" in (
        capsys.readouterr().out
    )
