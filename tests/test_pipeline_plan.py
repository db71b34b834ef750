import dataclasses
import sys
from collections import Counter

import numpy as np
import pytest

from pipeline import labelling, plan, split, summary
from survey import truth
from survey.annotations.annotation import Annotation
from survey.errors import InputError
from survey.geometry import Mosaic, Window

# 4 rows x 6 columns of patches; columns start at 0, 80, ..., 400. Of the columns 0 to 3 go to train, 5 to val, 4 to none
# (test_pipeline_split works this out).
NORTH = Mosaic("north", "x/north.tif", 300, 500, sha256="aa")


def annotation(box, name="tern", image="north.tif", size=(300, 500)):
    return Annotation(image, size, name, box, "north.xml")


def make(annotations, mosaics=(NORTH,), **changes):
    classes, rule = changes.pop("classes", None), changes.pop("rule", split.Rule())
    tiling = plan.Tiling(**{"patch_size": 100, "overlap_px": 20, "min_visible": 0.3, "records_per_shard": 5, **changes})
    return plan.make(mosaics, annotations, classes=classes, tiling=tiling, rule=rule)


OBJECTS = [
    annotation((10, 10, 30, 40)),  # A: patch (0, 0) only
    annotation((90, 85, 110, 125), "goose"),  # B: four patches, see below
    annotation((250, 450, 270, 480)),  # C: val, rows 2 and 3
    annotation((-10, 200, 10, 220)),  # D: half outside
    annotation((310, 10, 330, 30)),  # E: below the mosaic
    annotation((50, 60, 40, 80)),  # F: upside down
    annotation((50, 60, 60, 60)),  # G: no width
    annotation((100, 345, 120, 395)),  # H: only in column 4 (320 to 420), which is in no split
    annotation((float("nan"), 60, 60, 70)),  # I: not a number
]


@pytest.fixture(scope="module")
def planned():
    return make(OBJECTS)


def test_objects_in_patches_by_hand(planned):
    shown = {(p.row, p.column): (p.boxes_patch_px.tolist(), p.class_ids.tolist()) for p in planned.patches if len(p.class_ids)}
    # Classes in alphabetical order: goose 1, tern 2. B (y 90..110, x 85..125) is shown by rows 0 (to 100: half of it) and 1, and
    # by columns 0 (to 100: 15 of 40 px) and 1: shares 0.1875, 0.5, 0.375, 1. Patch (0, 0) shows too little.
    # C (y 250..270) is half in row 2 (160 to 260), whole in row 3 (200 to 300). D is clipped to y 0..10, column 2 (160 to 260).
    assert shown == {
        (0, 0): ([[10, 10, 30, 40]], [2]),
        (0, 1): ([[90, 5, 100, 45]], [1]),
        (1, 0): ([[10, 85, 30, 100]], [1]),
        (1, 1): ([[10, 5, 30, 45]], [1]),
        (0, 2): ([[0, 40, 10, 60]], [2]),
        (2, 5): ([[90, 50, 100, 80]], [2]),
        (3, 5): ([[50, 50, 70, 80]], [2]),
    }


def test_everything_is_counted(planned):
    assert planned.counts == {
        "largest_object_px": 50,  # H, the widest that lies in the mosaic
        "objects_larger_than_overlap": 4,  # of 20 px: A 30, B 40, C 30, H 50 px wide; D is 20 px and whole in some patch
        "patches_on_ground_of_another_split": 0,
        "boxes_too_little_visible_in_patch": 1,  # B in (0, 0)
        "mosaics": 1,
        "mosaics_without_objects": 0,
        "objects_clipped_to_mosaic": 1,  # D
        "objects_empty_or_outside_mosaic": 4,  # E, F, G, I
        "objects_in_no_patch": 1,  # H
        "objects_labelled": 4,  # A, B, C, D
        "objects_read": 9,
        "patches_between_splits": 4,  # column 4
        "patches_train": 16,
        "patches_val": 4,
    }
    assert planned.offenders["objects_clipped_to_mosaic"] == ["north.xml: tern at yxyx (-10, 200, 10, 220)"]
    assert len(planned.offenders["objects_empty_or_outside_mosaic"]) == truth.OFFENDERS_SHOWN


def test_statistics_by_hand(planned):
    statistics = planned.statistics
    assert statistics.objects == {"train": 5, "val": 2}  # A, three of B, D; two of C
    assert statistics.objects_per_class == {"goose": 3, "tern": 4}
    assert statistics.max_objects_per_patch == 1
    # Train areas: A 20 x 30, B 10 x 40, 20 x 15, 20 x 40, D 10 x 20; roots 24.5, 20, 17.3, 28.3, 14.1: median 20.
    assert statistics.box_sides_px["q50"] == 20.0


def test_patch_numbers_by_construction(planned):
    assert all(p.patch_id == p.row * 6 + p.column for p in planned.patches)
    assert next(p for p in planned.patches if p.patch_id == 23).window == Window(200, 400, 300, 500)


def test_shards_are_balanced_complete_and_mixed():
    planned = make(OBJECTS, records_per_shard=6)
    # 16 train patches in ceil(16 / 6) = 3 files of 6, 5 and 5; 4 val patches in one.
    assert [(s.file, len(s.patches)) for s in planned.shards] == [
        ("train-00000-of-00003.tfrecord", 6),
        ("train-00001-of-00003.tfrecord", 5),
        ("train-00002-of-00003.tfrecord", 5),
        ("val-00000-of-00001.tfrecord", 4),
    ]
    assert max(Counter(p.patch_id for p in planned.patches).values()) == 1
    first = [p.patch_id for p in planned.shards[0].patches]
    assert first != sorted(first)
    assert len({p.row for p in planned.shards[0].patches}) > 1


def test_shuffle_is_fixed_for_ever():
    def splitmix64(value):
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the first number of Vigna's reference implementation from state 0
    ids = np.arange(5, 1005)
    order = plan.shuffled(ids)
    assert ids[order].tolist() == sorted(ids.tolist(), key=splitmix64)
    # Neighbours land far apart: the mean distance of two random places in 1000 is 333.
    assert 280 < np.abs(np.diff(order)).mean() < 390


def test_the_plan_does_not_depend_on_the_order_of_input():
    south = Mosaic("south", "y/south.tif", 300, 500, sha256="bb")
    objects = [*OBJECTS, annotation((10, 10, 30, 40), image="south.tif")]
    one = make(objects, [NORTH, south])
    other = make(objects, [south, NORTH])
    assert one.digest(jpeg_quality=95) == other.digest(jpeg_quality=95)
    assert one.digest(jpeg_quality=95) != one.digest(jpeg_quality=90)
    assert one.digest() != make(objects, [NORTH, dataclasses.replace(south, sha256="cc")]).digest()
    assert one.digest() != make(objects[1:], [NORTH, south]).digest()
    moved = dataclasses.replace(south, path="elsewhere/south.tif")
    assert one.digest() == make(objects, [NORTH, moved]).digest()


def test_visibility_rule():
    window = Window(0, 0, 100, 100)
    boxes = np.array([[0, 90, 10, 110], [0, 97, 10, 107], [0, 100, 10, 120], [-50, -50, 200, 200]], float)
    # Shown: half; 3 of 10 px, exactly the threshold; nothing; 100 x 100 of 250 x 250 = 0.16.
    clipped, kept = labelling.label(window, boxes, 0.3)
    assert kept.tolist() == [True, True, False, False]
    assert clipped[0].tolist() == [0, 90, 10, 100]
    assert labelling.label(window, boxes, 0.0)[1].tolist() == [True, True, False, True]


def test_an_object_never_shown_enough_is_reported():
    # 400 px wide: a patch of 100 px shows a quarter of it at most. A makes the split train not empty.
    planned = make([OBJECTS[0], annotation((20, 50, 60, 450))])
    assert planned.counts["objects_in_no_patch"] == 1
    assert planned.counts["objects_labelled"] == 1


def test_given_label_map_keeps_its_ids_and_unused_classes():
    planned = make([OBJECTS[0]], classes=("whale", "tern"))
    assert planned.classes == ("whale", "tern")
    assert planned.statistics.objects_per_class == {"whale": 0, "tern": 1}
    assert [p.class_ids.tolist() for p in planned.patches if len(p.class_ids)] == [[2]]


@pytest.mark.parametrize(
    ("annotations", "changes", "words"),
    [
        ([annotation((1, 1, 9, 9), image="nort.tif")], {}, r"annotates image 'nort.tif', .* 1 mosaics \(nearest: x/north.tif\)"),
        ([annotation((1, 1, 9, 9), size=(500, 300))], {}, r"\(500, 300\), but x/north.tif has \(300, 500\)"),
        ([annotation((1, 1, 9, 9), "ter")], {"classes": ("seal", "tern")}, r"class 'ter'.*correct it to 'tern'"),
        ([], {}, "hold 0 objects"),
        ([annotation((310, 10, 330, 30))], {}, "hold 1 objects, of which none lies in a mosaic"),
        ([annotation((10, 450, 30, 480))], {}, "the split train holds no object"),
    ],
)
def test_bad_input(annotations, changes, words):
    with pytest.raises(InputError, match=words):
        make(annotations, **changes)


def test_negatives_are_thinned_in_train_only_by_a_fixed_hash():
    everything = make(OBJECTS)
    planned = make(OBJECTS, negatives_per_positive=1.0)
    # Train has 16 patches, of which 5 show an object: (0, 0), (0, 1), (1, 0), (1, 1), (0, 2). 5 of the 11 empty ones stay.
    assert planned.counts["patches_train"] == 10
    assert planned.counts["empty_patches_left_out"] == 6
    assert planned.counts["patches_val"] == everything.counts["patches_val"] == 4
    kept = {p.patch_id for p in planned.patches}
    assert {p.patch_id for p in everything.patches if len(p.class_ids) or p.split == "val"} < kept
    assert planned.statistics == everything.statistics
    assert planned.digest() == make(OBJECTS, negatives_per_positive=1.0).digest() != everything.digest()
    assert make(OBJECTS, negatives_per_positive=0.0).counts["patches_train"] == 5
    assert make(OBJECTS, negatives_per_positive=9.0).counts["empty_patches_left_out"] == 0
    # More negatives keep the earlier ones.
    assert kept < {p.patch_id for p in make(OBJECTS, negatives_per_positive=2.0).patches}


def test_what_workers_left_out_leaves_counts_and_statistics(planned):
    # Patch 0 is (0, 0) with A; patch 3 is (0, 3) and empty.
    left = planned.without(np.array([0, 3]), {"patches_empty": 1, "patches_of_bad_mosaics": 1})
    assert {p.patch_id for p in planned.patches} - {p.patch_id for p in left.patches} == {0, 3}
    assert [s.file for s in left.shards] == [s.file for s in planned.shards]  # a file with fewer records keeps its name
    assert (left.counts["patches_train"], left.counts["objects_labelled"]) == (14, 3)
    assert left.statistics.objects == {"train": 4, "val": 2}
    assert left.proof.patches == 18
    with pytest.raises(InputError, match="split val is left without any patch"):
        planned.without(np.array([5, 11, 17, 23]), {})


def test_a_common_ground_resolution():
    # 300 x 500 px of 0.1 m at 0.2 m are 150 x 250 px: 2 x 3 patches of 100 px, starts 0, 50 and 0, 80, 150.
    placed = dataclasses.replace(NORTH, crs="EPSG:32617", transform=(0.1, 0, 1000, 0, -0.1, 2000), gsd_m=0.1)
    coarse = dataclasses.replace(
        NORTH, name="coarse", path="c.tif", crs="EPSG:32618", transform=(0.2, 0, 0, 0, -0.2, 0), gsd_m=0.2
    )
    objects = [annotation((10, 10, 30, 40)), annotation((10, 10, 30, 40), image="coarse.tif")]
    made = make(objects, [placed, coarse], gsd_m=0.2, rule=split.Rule(shares={"train": 1.0}))
    assert [(m.name, m.height, m.gsd_m, m.first_patch_id) for m in made.mosaics] == [
        ("coarse", 300, 0.2, 0),
        ("north", 300, 0.1, 24),
    ]
    patches = {p.patch_id: p for p in made.patches}
    assert len(patches) == 24 + 6
    assert patches[0].boxes_patch_px.tolist() == [[10, 10, 30, 40]]
    assert (patches[0].source, patches[0].scale) == (patches[0].window, (1.0, 1.0))
    assert patches[24].boxes_patch_px.tolist() == [[5, 5, 15, 20]]
    last = patches[29]
    assert (last.row, last.column, last.window, last.source) == (1, 2, Window(50, 150, 150, 250), Window(100, 300, 300, 500))
    assert last.scale == (2.0, 2.0)
    with pytest.raises(InputError, match=r"--gsd_m=0.2: mosaic x/north.tif does not say how large its pixels are"):
        make(OBJECTS, gsd_m=0.2)


def test_two_mosaics_of_one_ground_do_not_leak():
    # The same 50 m of ground flown twice, 5 m apart: as many blocks as one likes, one mosaic's val is the other's train.
    one = dataclasses.replace(NORTH, crs="EPSG:32617", transform=(0.1, 0, 1000, 0, -0.1, 2000), gsd_m=0.1)
    two = dataclasses.replace(one, name="south", path="s.tif", sha256="bb", transform=(0.1, 0, 1005, 0, -0.1, 2000))
    made = make([*OBJECTS, annotation((10, 10, 30, 40), image="south.tif")], [one, two])
    assert made.split_by == "block"
    assert made.proof.holds
    assert made.proof.overlapping_mosaics == 1
    # Val of north is its column 5, px 400 to 500, map 1040 to 1050. In south that is px 350 to 450: columns 3 (240 to 340) and
    # before are free, 4 is a buffer already, 5 is val too. Val of south, map 1045 to 1055, meets nothing of train in north.
    assert made.counts["patches_on_ground_of_another_split"] == 0
    turned = dataclasses.replace(two, transform=(-0.1, 0, 1050, 0, -0.1, 2000))  # flown the other way: its column 0 is north's 5
    made = make([*OBJECTS, annotation((110, 210, 130, 240), image="south.tif")], [one, turned])
    # Val of south, px 400 to 500, is map 1000 to 1010, where north has train in columns 0 (0 to 100 px) and 1 (80 to 180): 8
    # patches; val of north, map 1040 to 1050, is train of south in its columns 0 and 1.
    assert made.counts["patches_on_ground_of_another_split"] == 16
    assert made.proof.holds


def test_numbers_that_a_float32_would_mix_up(planned, capsys):
    assert np.float32(16_777_217) == np.float32(plan.FLOAT32_IDS)  # the first two numbers that are mixed up
    summary.warn_of_large_ids(planned, sys.stdout)
    assert capsys.readouterr().out == ""
    far = dataclasses.replace(planned.table, patch_ids=planned.table.patch_ids + plan.FLOAT32_IDS)
    summary.warn_of_large_ids(dataclasses.replace(planned, table=far), sys.stdout)
    assert "warning: patch numbers reach 16,777,239" in capsys.readouterr().out  # 2**24 + 23
    huge = Mosaic("a", "a.tif", 60_000, 60_000)
    with pytest.raises(InputError, match=r"3,600,000,000 patches, and numbers above 2,147,483,647 are lost"):
        make([annotation((10, 10, 12, 12), image="a.tif", size=None)], [huge], patch_size=1, overlap_px=0)
