from dataclasses import dataclass

import numpy as np

from pipeline import plan, split, transforms, work
from survey.annotations.annotation import Annotation
from survey.geometry import Mosaic
from survey.raster import Raster


@dataclass(frozen=True)
class Shard:
    file: str
    mosaics: tuple[str, ...]


def mosaic(name: str, one_pass: bool) -> Mosaic:
    return Mosaic(name, name, 100, 100, one_pass=one_pass)


def files(items):
    return ["".join(shard.file for shard in item) for item in items]


def test_shards_of_a_large_file_without_tiles_are_one_work_item():
    shards = [Shard("a", ("png",)), Shard("b", ("png", "tif")), Shard("c", ("tif",)), Shard("d", ("tif",)), Shard("e", ("png",))]
    # The first split of png is in a and b, the second in e.
    assert files(work.grouped(shards, [mosaic("png", True), mosaic("tif", False)])) == ["abe", "c", "d"]
    # Tiles can be read from anywhere.
    assert files(work.grouped(shards, [mosaic("png", False), mosaic("tif", False)])) == ["a", "b", "c", "d", "e"]


def test_photos_that_straddle_two_shards_are_read_twice():
    shards = [Shard("a", ("1", "2")), Shard("b", ("2", "3")), Shard("c", ("3", "4"))]
    assert files(work.grouped(shards, [mosaic(name, True) for name in "1234"])) == ["a", "b", "c"]


def test_chains_that_meet_become_one():
    # x spans a, c, e; y spans b, d, e: they meet in e.
    shards = [
        Shard("a", ("x",)),
        Shard("b", ("y",)),
        Shard("c", ("x",)),
        Shard("d", ("y",)),
        Shard("e", ("x", "y")),
        Shard("f", ()),
    ]
    assert files(work.grouped(shards, [mosaic("x", True), mosaic("y", True)])) == ["abcde", "f"]


def planned(one_pass: bool) -> plan.Plan:
    tiling = plan.Tiling(patch_size=50, overlap_px=0, min_visible=0.3, records_per_shard=256)
    survey = [Mosaic("m", "m.png", 50 * 40, 50 * 40, one_pass=one_pass)]
    boxes = [Annotation("m.png", None, "seal", (10.0, 10.0, 20.0, 20.0), "m.xml")]
    rule = split.Rule("auto", {"train": 1.0})
    return plan.make(survey, boxes, classes=None, tiling=tiling, rule=rule)


def test_a_shard_lies_together_in_the_mosaic():
    # 40 x 40 patches in 7 shards of 228 or 229. Blocks of 16 x 16: the first shard lies in the first block, no row is whole.
    tiled = planned(one_pass=False).shards[0].table
    assert tiled.rows.max() < 16
    assert tiled.columns.max() < 16
    # Without tiles: rows, 228.6 patches are 5.7 of them.
    rows = planned(one_pass=True).shards[0].table
    assert rows.rows.max() == 5
    assert set(rows.columns) == set(range(40))
    # And yet neighbours are not neighbours in the file: one step of 1 in hundreds is chance.
    assert (np.abs(np.diff(tiled.patch_ids)) == 1).mean() < 0.05


def test_a_png_is_read_once_for_shards_of_both_splits(tmp_path, pixels, write_raster, monkeypatch):
    from pipeline import shard

    image = pixels(500, 500)
    write_raster(tmp_path / "m.png", image)
    objects = "".join(
        f"<object><name>seal</name><bndbox><xmin>{i}</xmin><ymin>{i}</ymin><xmax>{i + 20}</xmax><ymax>{i + 20}</ymax></bndbox>"
        "</object>"
        for i in range(0, 480, 20)
    )
    size = "<size><width>500</width><height>500</height></size>"
    (tmp_path / "m.xml").write_text(f"<annotation><filename>m.png</filename>{size}{objects}</annotation>")
    opened = []

    class Watched(Raster):
        def __init__(self, path, **more):
            super().__init__(path, **more)
            opened.append(self)

    monkeypatch.setattr(transforms, "Raster", Watched)
    argv = [f"--mosaics={tmp_path}/m.png", f"--annotations={tmp_path}/m.xml", f"--output={tmp_path}/out", "--patch_size=50"]
    assert shard.run([*argv, "--overlap=10", "--records_per_shard=20", "--split=train=0.5,val=0.5"]) == 0
    assert len(list((tmp_path / "out").glob("*.tfrecord"))) > 4
    assert [raster._pixels.restarts for raster in opened] == [0]
