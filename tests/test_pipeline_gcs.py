"""`rookery shard` with everything on gs://: the same shards as on a disk, resumed, and never more downloaded than cut."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import quiet
from pipeline import publish, shard, work
from survey import dataset, files, flags, labels
from survey.errors import InputError

with quiet.importing():
    from beam_jobs import launch
    from pipeline import transforms

SIZE = (700, 900)
OBJECTS = [
    ("tern", (10, 10, 30, 40)),
    ("goose", (90, 85, 110, 125)),
    ("tern", (250, 750, 270, 780)),
    ("tern", (600, 500, 630, 540)),
]
CUT = ["--patch_size=100", "--overlap=20", "--records_per_shard=24"]


@pytest.fixture
def survey(tmp_path, pixels, write_raster, write_voc, gcs, request):
    """Two mosaics and their annotations on the disk and in the bucket: (disk, bucket, command line for either)."""
    disk, bucket = tmp_path / "disk", f"gs://bkt/{request.node.originalname}"
    disk.mkdir()
    tiled = {"driver": "GTiff", "tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    write_raster(disk / "north 1.tif", pixels(*SIZE), crs="EPSG:32617", transform=(0.1, 0, 4e5, 0, -0.1, 4e6), **tiled)
    write_raster(disk / "süd.jpg", pixels(*SIZE, seed=1))
    for name in ("north 1.tif", "süd.jpg"):
        write_voc(disk / f"{Path(name).stem}.xml", name, SIZE, OBJECTS)
    for path in disk.iterdir():
        gcs.upload(path, f"{bucket}/{path.name}")

    def argv(where: object, output: str, *more: str) -> list[str]:
        return [f"--mosaics={where}/*.[tj][ip][fg]", f"--annotations={where}/*.xml", f"--output={output}", *CUT, *more]

    return disk, bucket, argv


def shards(folder: str) -> dict[str, str]:
    return {name: files.sha256(os.path.join(folder, name)) for name in files.names(folder) if name.endswith(".tfrecord")}


def test_the_same_shards_as_on_a_disk(survey, tmp_path, capsys, monkeypatch):
    disk, bucket, argv = survey
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    assert shard.run(argv(disk, str(tmp_path / "ds"))) == 0
    assert shard.run(argv(bucket, f"{bucket}/ds")) == 0
    printed = capsys.readouterr()
    assert f"dataset: {bucket}/ds\n" in printed.out
    local, remote = dataset.read(str(tmp_path / "ds")), dataset.read(f"{bucket}/ds")
    assert len(shards(f"{bucket}/ds")) > 4
    assert shards(f"{bucket}/ds") == shards(str(tmp_path / "ds"))
    assert local.splits == remote.splits
    assert local.statistics == remote.statistics
    assert files.names(f"{bucket}/ds") == sorted(os.listdir(tmp_path / "ds"))  # no unfinished/, no receipts
    assert labels.read(f"{bucket}/ds/labels.pbtxt") == ("goose", "tern")
    assert dataset.digest(f"{bucket}/ds") == hashlib.sha256(files.read(f"{bucket}/ds/dataset.json")).hexdigest()
    for one, other in zip(local.mosaics, remote.mosaics, strict=True):
        assert (one.name, one.crs, one.transform, one.gsd_m) == (other.name, other.crs, other.transform, other.gsd_m)
        assert other.sha256 == f"gs-md5:{hashlib.md5(Path(one.path).read_bytes()).hexdigest()}"
    here, there = (
        files.read_table(f"{folder}/patches.parquet").drop_columns("mosaic_sha256")
        for folder in (tmp_path / "ds", f"{bucket}/ds")
    )
    assert here == there
    assert not list((tmp_path / "scratch").glob("*.tfrecord*"))


def test_two_workers_in_other_processes(survey, tmp_path):
    disk, bucket, argv = survey
    shard.run(argv(disk, str(tmp_path / "ds")))
    shard.run(argv(bucket, f"{bucket}/ds", "--direct_num_workers=2"))
    assert shards(f"{bucket}/ds") == shards(str(tmp_path / "ds"))


def test_the_manifest_comes_last_and_shards_in_one_step(survey, gcs):
    _, bucket, argv = survey
    before = len(gcs.requests())
    shard.run(argv(bucket, f"{bucket}/ds"))
    ours = [r for r in gcs.requests(since=before) if r.method in ("POST", "PUT", "DELETE") and "/_fail" not in r.path]
    uploads = [r for r in ours if "/upload/" in r.path]
    assert "ifGenerationMatch=0" in uploads[0].path  # plan.json, by one launcher only
    made = dataset.read(f"{bucket}/ds")
    parts = sum(len(shards) for shards in made.splits.values())
    # plan.json, the work, each shard and its receipt, label map, ledger, manifest: one upload each.
    assert len(uploads) == 2 + 2 * parts + 3
    removed = [r for r in ours if r.method == "DELETE"]
    assert ours[-len(removed) :] == removed  # only after the manifest
    assert len(removed) == 2 + parts
    assert all("unfinished" in r.path for r in removed)


def test_an_interrupted_run_is_completed(survey, gcs, monkeypatch, capsys):
    _, bucket, argv = survey
    shard.run(argv(bucket, f"{bucket}/whole"))
    monkeypatch.setattr(publish, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shard.run(argv(bucket, f"{bucket}/ds"))
    monkeypatch.undo()
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"interrupted run with other input \(--min_visible 0.3 there, 0.5 now\)"):
        shard.run(argv(bucket, f"{bucket}/ds", "--min_visible=0.5"))
    # As if killed earlier: one shard was not begun, one was overwritten since.
    first, second, *rest = sorted(shards(f"{bucket}/ds"))
    files.remove(f"{bucket}/ds/{first}")
    files.remove(f"{bucket}/ds/unfinished/{first}.json")
    files.write(f"{bucket}/ds/{second}", b"damaged")
    capsys.readouterr()
    before = len(gcs.requests())
    assert shard.run(argv(bucket, f"{bucket}/ds")) == 0
    assert f"{len(rest)} of {len(rest) + 2} shards were finished by an interrupted run" in capsys.readouterr().out
    again = gcs.requests(since=before)
    assert shards(f"{bucket}/ds") == shards(f"{bucket}/whole")
    # What was finished is known by its metadata: it is neither downloaded nor uploaded again.
    assert not [r for r in again for name in rest if name in r.path and "unfinished" not in r.path]
    assert shard.run(argv(bucket, f"{bucket}/ds")) == 0
    assert capsys.readouterr().out == f"{bucket}/ds already holds this dataset, nothing to do\n"


def test_another_launcher_that_was_faster_is_noticed(survey, gcs, monkeypatch):
    _, bucket, _ = survey
    publish.start(f"{bucket}/ds", {"plan_sha256": "a", "overlap": 20})
    gcs.fail(412, 1, "POST /upload/")  # the emulator ignores if_generation_match, the service answers so
    with pytest.raises(InputError, match=r"interrupted run with other input \(--overlap 20 there, 30 now\)"):
        publish.start(f"{bucket}/ds", {"plan_sha256": "b", "overlap": 30})
    gcs.fail(412, 1, "POST /upload/")
    publish.start(f"{bucket}/ds", {"plan_sha256": "a", "overlap": 20})  # the same work: both may go on


def test_folders_that_hold_something_else(survey):
    _, bucket, argv = survey
    files.write(f"{bucket}/other/thesis.doc", b"years of work")
    with pytest.raises(InputError, match=r"holds other files \('thesis.doc'\): name an empty or a new folder"):
        shard.run(argv(bucket, f"{bucket}/other"))
    assert files.names(f"{bucket}/other") == ["thesis.doc"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--output=s3://bkt/ds"], "s3:// cannot be read or written"),
        (["--output=gs://Bkt/ds"], "'Bkt' is not the name of a bucket"),
        (["--output=gs://no-such-bucket/ds"], "the bucket 'no-such-bucket' does not exist"),
        (["--mosaics=gs://no-such-bucket/*.tif"], "the bucket 'no-such-bucket' does not exist"),
        (["--mosaics=gs://bkt/none/*.tif"], r"--mosaics='gs://bkt/none/\*.tif' matches no object"),
        (["--label_map=gs://bkt/none.pbtxt"], "--label_map=gs://bkt/none.pbtxt does not exist"),
    ],
)
def test_bad_addresses(survey, more, words):
    _, bucket, argv = survey
    with pytest.raises(InputError, match=words):
        shard.run(argv(bucket, f"{bucket}/ds", *more))
    assert files.names(f"{bucket}/ds") == []


def test_cutting_a_part_downloads_a_part(gcs, tmp_path, write_raster, write_voc):
    size = (1200, 7500)  # noise does not compress: 27 MB
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    tiled = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    local = write_raster(tmp_path / "long.tif", image, **tiled)
    write_voc(tmp_path / "long.xml", "long.tif", size, OBJECTS[:3])
    for name in ("long.tif", "long.xml"):
        gcs.upload(tmp_path / name, f"gs://bkt/part/{name}")
    argv = ["--mosaics=gs://bkt/part/*.tif", "--annotations=gs://bkt/part/*.xml", "--output=gs://bkt/part/ds", *CUT]
    argv += ["--records_per_shard=16", "--jpeg_quality=50"]
    options, _ = flags.parse(shard.Options, argv, prog="rookery shard", passthrough=True)
    before = len(gcs.requests())
    planned = shard.make_plan(options)
    headers = sum(r.sent for r in gcs.requests("long.tif", since=before))
    # One file of records that lie close together: 16 of 1,410 patches.
    pieces = work.write("gs://bkt/part/ds", [planned.shards[:1]])
    cut = transforms.CutShards(pieces, planned.mosaics, folder="gs://bkt/part/ds", classes=planned.classes, jpeg_quality=50)
    launch.run(launch.options([], [], prog="rookery shard"), lambda pipeline: pipeline | cut)
    served = sum(r.sent for r in gcs.requests("long.tif", since=before))
    whole = os.path.getsize(local)
    assert headers < whole / 5  # one request of 4 MiB, whatever the size of the mosaic
    assert served < whole / 3, f"{served:,} of {whole:,} bytes were served"
    assert all(r.range for r in gcs.requests("long.tif", since=before) if r.sent > 10_000)
