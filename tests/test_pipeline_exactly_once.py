"""Nothing lost, doubled or mixed: kill -9, full disks, damaged mosaics, several workers, odd names. Real files and processes."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import publish, shard
from survey import dataset
from survey.errors import InputError
from survey.geometry import Window
from survey.raster import Raster

REPOSITORY = Path(__file__).parent.parent
SIZE = (300, 500)
OBJECTS = [("tern", (10, 10, 30, 40)), ("tern", (90, 85, 110, 125)), ("tern", (250, 450, 270, 480))]


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def survey(tmp_path, write_raster, write_voc):
    """Five mosaics that do not compress, so that any missing byte is missed; 24 patches each."""
    random = np.random.default_rng(0)
    for name in "abcde":
        pixels = random.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        write_raster(tmp_path / f"{name}.tif", pixels, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
        write_voc(tmp_path / f"{name}.xml", f"{name}.tif", SIZE, OBJECTS)

    def argv(output="ds", *more):
        folder = f"--output={tmp_path / output}"
        size = ["--patch_size=100", "--overlap=20", "--records_per_shard=8"]
        return [f"--mosaics={tmp_path}/*.tif", f"--annotations={tmp_path}/*.xml", folder, *size, *more]

    return tmp_path, argv


def truncate(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def move_directory_to_front(path: Path, write_raster) -> None:
    """Rewrites a TIFF with its header in front, as a COG has it: cut off, it still opens."""
    with Raster(str(path)) as source:
        pixels = source.read(Window(0, 0, *SIZE))
    write_raster(path, pixels, driver="COG", blocksize=128, compress="deflate", overviews="NONE")


def test_killed_at_twenty_random_moments():
    done = subprocess.run(
        [sys.executable, "benchmarks/kill_resume.py", "--moments=20", "--side_px=700"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 different" in done.stdout
    assert int(done.stdout.split("moments, ")[1].split()[0]) >= 5  # they were killed, not finished


def test_a_file_that_reaches_its_limit(survey):
    # A full disk (ENOSPC) and a file size limit (EFBIG) fail the same way, in write(); the limit needs no mount.
    folder, argv = survey
    shard.run(argv("whole"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in (folder / "whole").glob("*.tfrecord"))
    smallest = min(path.stat().st_size for path in (folder / "whole").glob("*.tfrecord"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((largest + smallest) // 2, hard))
        with pytest.raises(InputError, match=r"--output=.*ds cannot be written: File too large; make room .* are kept"):
            shard.run(argv())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (folder / "ds/dataset.json").exists()
    receipts = {path.name for path in (folder / "ds/unfinished").iterdir() if not path.name.startswith("work-")} - {"plan.json"}
    finished = {path.name for path in (folder / "ds").glob("*.tfrecord")}
    assert {name.removesuffix(".json") for name in receipts} == finished  # nothing half-written is left, under any name
    shard.run(argv())
    assert contents(folder / "ds") == contents(folder / "whole")


def test_a_full_disk(survey, tmp_path):
    folder, argv = survey
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; test_a_file_that_reaches_its_limit covers the same path")
    try:
        with pytest.raises(InputError, match=r"cannot be written: No space left on device; make room"):
            shard.run(argv("disk/ds"))
        assert not (disk / "ds/dataset.json").exists()
        assert all(path.stat().st_size for path in (disk / "ds").glob("*.tfrecord"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert shard.run(argv("disk/ds")) == 0
        shard.run(argv("whole"))
        assert contents(disk / "ds") == contents(folder / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_damaged_mosaic_is_named_counted_and_left_out(survey, write_raster, capsys):
    folder, argv = survey
    move_directory_to_front(folder / "c.tif", write_raster)
    truncate(folder / "c.tif")
    with pytest.raises(
        InputError, match=r"1 mosaics cannot be read, --max_bad_mosaics=0:\n.*c\.tif is damaged.*\n.*--max_bad_mosaics 1"
    ):
        shard.run(argv())
    assert not (folder / "ds/dataset.json").exists()
    # Allowed, it is left out as a whole, also the patches that could be read; shards without it are not cut again.
    capsys.readouterr()
    assert shard.run(argv("ds", "--max_bad_mosaics=1")) == 0
    printed = capsys.readouterr()
    assert "c.tif is damaged" in printed.err
    assert "left out of mosaics that cannot be read: 24 patches" in printed.out
    assert "1 mosaics left out, because they cannot be read" in printed.out
    made = dataset.read(str(folder / "ds"))
    assert made.counts["mosaics_unreadable"] == 1
    assert made.counts["patches_of_bad_mosaics"] == 24
    assert made.counts["objects_labelled"] == 4 * 3
    rows = pq.read_table(folder / "ds/patches.parquet").to_pylist()
    assert {row["mosaic"] for row in rows} == {"a", "b", "d", "e"}
    assert len(rows) == 96 == sum(made.records(name) for name in made.splits)
    # Whoever cuts, in whatever order.
    shard.run(argv("fresh", "--max_bad_mosaics=1"))
    shard.run(argv("two", "--max_bad_mosaics=2", "--direct_num_workers=2"))
    assert contents(folder / "ds") == contents(folder / "fresh") == contents(folder / "two")


def test_a_file_that_is_no_image_is_left_out_with_its_objects(survey, capsys):
    folder, argv = survey
    (folder / "d.tif").write_bytes(b"not an image")
    (folder / "e.tif").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 mosaics cannot be read, --max_bad_mosaics=1:\n.*d\.tif.*\n.*e\.tif"):
        shard.run(argv("ds", "--max_bad_mosaics=1"))
    assert not (folder / "ds").exists()
    assert shard.run(argv("ds", "--max_bad_mosaics=2")) == 0
    made = dataset.read(str(folder / "ds"))
    assert [mosaic.name for mosaic in made.mosaics] == ["a", "b", "c"]
    assert (made.counts["mosaics_unreadable"], made.counts["objects_of_bad_mosaics"]) == (2, 6)
    assert "6 dropped with a mosaic that cannot be read" in capsys.readouterr().out


def test_one_and_two_processes_write_the_same_bytes(survey):
    folder, argv = survey
    shard.run(argv("one"))
    shard.run(argv("two", "--direct_num_workers=2"))
    shard.run(argv("threads", "--direct_num_workers=2", "--direct_running_mode=multi_threading"))
    assert contents(folder / "one") == contents(folder / "two") == contents(folder / "threads")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--jpeg_quality=80", "jpeg_quality 95 there, 80 now"),
        ("--image_format=png", "image_format jpeg there, png now"),
        ("--jpeg_subsampling=420", "jpeg_subsampling 444 there, 420 now"),
        ("--no-skip_empty", "skip_empty True there, False now"),
        ("--negatives_per_positive=1", "negatives_per_positive None there, 1.0 now"),
        ("--split=train=0.7,val=0.3", "split"),
        ("--records_per_shard=9", "records_per_shard 8 there, 9 now"),
        ("--min_visible=0.4", "min_visible 0.3 there, 0.4 now"),
        ("--split_by=block", "split_by mosaic there, block now"),
    ],
)
def test_another_option_is_never_mixed_in(survey, monkeypatch, flag, words):
    folder, argv = survey
    monkeypatch.setattr(publish, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shard.run(argv())
    before = contents(folder / "ds")
    with pytest.raises(InputError, match=f"holds an interrupted run with other input .*{words}"):
        shard.run(argv("ds", flag))
    assert contents(folder / "ds") == before


def test_another_input_is_never_mixed_in(survey, monkeypatch, write_raster):
    folder, argv = survey
    monkeypatch.setattr(publish, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shard.run(argv())
    write_raster(folder / "a.tif", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(InputError, match="the mosaics or annotations have changed since"):
        shard.run(argv())


def test_names_with_spaces_unicode_and_dots(tmp_path, pixels, write_raster, write_voc):
    names = ["Robben 2024 (Süd)", "a..b", "海豹", "..hidden", "x'y; rm -rf $HOME"]
    for i, name in enumerate(names):
        write_raster(tmp_path / f"{name}.png", pixels(*SIZE, seed=i))
        write_voc(tmp_path / f"{name}.xml", f"{name}.png", SIZE, OBJECTS)
    flags = [f"--annotations={tmp_path}/*.xml", "--patch_size=100", "--overlap=20", f"--output={tmp_path}/out put/ds é"]
    # A glob's star leaves hidden files out, as in a shell.
    assert shard.run([f"--mosaics={tmp_path}/[!.]*.png", *flags[:0], f"--annotations={tmp_path}/[!.]*.xml", *flags[1:]]) == 0
    made = dataset.read(str(tmp_path / "out put/ds é"))
    assert sorted(mosaic.name for mosaic in made.mosaics) == sorted(name for name in names if name != "..hidden")
    assert set((tmp_path / "out put/ds é").iterdir()) == {
        tmp_path / "out put/ds é" / name
        for name in ("dataset.json", "labels.pbtxt", "patches.parquet", *(s.file for part in made.splits.values() for s in part))
    }
    (tmp_path / "again").mkdir()
    write_raster(tmp_path / "again/海豹.tif", pixels(*SIZE, seed=9))
    with pytest.raises(InputError, match="both named '海豹'"):
        shard.run([f"--mosaics={tmp_path}/**/海豹.*[fg]", *flags])
