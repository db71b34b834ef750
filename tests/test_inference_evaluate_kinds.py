"""rookery evaluate: sizes, kinds of error, confusion, calibration and the spread of counts, through run(argv)."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from inference import evaluation
from inference.evaluate import run
from survey import detections
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic

SIZE = (100, 200)

# class_id, score, box; the truth beside each. Scores of 0.3 and more count.
NORTH = [
    (1, 0.9, 10, 10, 30, 30),  # gull A: IoU 1
    (1, 0.8, 50, 50, 70, 60),  # half of gull B: 0.5
    (2, 0.7, 10, 100, 30, 112.5),  # part of tern C: 0.625
    (1, 0.6, 80, 150, 100, 170),  # nothing
    (2, 0.2, 60, 150, 80, 170),  # nothing, and does not count
]
SOUTH = [
    (2, 0.5, 0, 180, 10, 200),  # tern E: 1
    (1, 0.4, 0, 10, 20, 30),  # gull D moved by half: 1/3
]
NORTH_TRUTH = [("gull", (10, 10, 30, 30)), ("gull", (50, 50, 70, 70)), ("tern", (10, 100, 30, 120))]
SOUTH_TRUTH = [("gull", (0, 0, 20, 20)), ("tern", (0, 180, 10, 200))]


def found(rows):
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int32), np.zeros(len(table), np.int64))


def survey_in(folder, write_voc, *, north=NORTH, gsd_m=(None, None)):
    mosaics = tuple(Mosaic(name, f"{name}.png", *SIZE, gsd_m=g) for name, g in zip(("north", "south"), gsd_m, strict=True))
    manifest = Manifest("model", "0" * 64, ("gull", "tern"), 0.3, mosaics, {}, {}, {}, {})
    detections.write(str(folder / "found"), manifest, {"north": found(north), "south": found(SOUTH)})
    (folder / "truth").mkdir()
    write_voc(folder / "truth/north.xml", "north.png", SIZE, NORTH_TRUTH)
    write_voc(folder / "truth/south.xml", "south.png", SIZE, SOUTH_TRUTH)
    return folder


@pytest.fixture
def survey(tmp_path, write_voc):
    return survey_in(tmp_path, write_voc)


def evaluate(folder, *more):
    argv = [f"--detections={folder}/found", f"--annotations={folder}/truth/*.xml", "--iou=0.4,0.7", *more]
    assert run(argv) == 0
    return json.loads((folder / "found/evaluation.json").read_text())


def test_sizes_by_hand(survey):
    # All objects have 20 x 20 = 400 px² but E, 10 x 20 = 200. Bounds of 18 and 21 px are 324 and 441 px².
    result = evaluate(survey, "--sizes_px=18,21")
    small, medium, large = result["overall"]["sizes"]
    assert [(one["name"], one["from_px"], one["to_px"]) for one in (small, medium, large)] == [
        ("small", 0, 18),
        ("medium", 18, 21),
        ("large", 21, None),
    ]
    assert [one["truths"] for one in (small, medium, large)] == [1, 4, 0]
    # Small: only tern E is asked for; the tern on C found a medium one and is ignored, the gulls have no small object.
    assert small["at_iou"][0]["ap"] == 1
    # From IoU .65 on the tern of .7 has found nothing, and 20 x 12.5 = 250 px² make it a small one, false: F T, AP 1/2.
    assert small["coco_ap"] == pytest.approx((3 + 7 / 2) / 10)
    # Medium at .4: gull T T F F of 3, the half of B counting although it is small itself: 67/101. Tern C of 1: 1.
    assert medium["at_iou"][0]["ap"] == pytest.approx((67 / 101 + 1) / 2)
    at = medium["at_iou"][0]["at_score_threshold"]
    assert (at["tp"], at["fp"], at["fn"]) == (3, 2, 1)
    assert large["ap50"] is None
    assert [one["truths"] for one in result["classes"]["tern"]["sizes"]] == [1, 1, 0]


def test_kinds_of_error_by_hand(survey):
    result = evaluate(survey)
    at_04, at_07 = result["overall"]["at_iou"]
    # At .4 two are false: nothing, and D by 1/3; so D is not missed altogether. At .7 the parts of B and C are false as well.
    kinds = ["wrong_class", "localisation", "both", "duplicate", "background", "missed"]
    assert [(one["kind"], one["number"]) for one in at_04["errors"]] == list(zip(kinds, [0, 1, 0, 0, 1, 0], strict=True))
    assert [one["number"] for one in at_07["errors"]] == [0, 3, 0, 0, 1, 0]
    # AP at .4, gull T T F F of 3: D put right gives T T F T, 34 points more at precision 3/4. The tern has all it can.
    gain = {one["kind"]: one["ap_gain"] for one in at_04["errors"]}
    assert gain["localisation"] == pytest.approx(34 * 0.75 / 101 / 2)
    assert gain["background"] == pytest.approx(0)
    tern = result["classes"]["tern"]["at_iou"]
    assert [one["number"] for one in tern[1]["errors"]] == [0, 1, 0, 0, 0, 0]
    # Kinds of detections add up to the false ones, in every entry.
    for scores in (result["overall"], *result["classes"].values()):
        for one in scores["at_iou"]:
            assert sum(kind["number"] for kind in one["errors"][:-1]) == one["at_score_threshold"]["fp"]


def test_confusion_by_hand(survey):
    result = evaluate(survey)
    confusion = result["overall"]["at_iou"][0]["confusion"]
    assert confusion["labels"] == ["gull", "tern", "background"]
    assert confusion["counts"] == [[2, 0, 1], [0, 2, 0], [2, 0, 0]]
    assert result["classes"]["gull"]["at_iou"][0]["confusion"] is None


def test_a_wrong_name(tmp_path, write_voc):
    wrong = [(2, 0.95, 10, 10, 30, 30), *NORTH]  # gull A as a tern, before the gull
    result = evaluate(survey_in(tmp_path, write_voc, north=wrong))
    at = result["overall"]["at_iou"][0]
    # Regardless of class the tern of .95 takes A, and the gull of .9 finds nothing free.
    assert at["confusion"]["counts"] == [[1, 1, 1], [0, 2, 0], [3, 0, 0]]
    # Within its class the gull is right, and the tern is of the wrong class.
    assert [one["number"] for one in at["errors"]] == [1, 1, 0, 0, 1, 0]


def test_matches_name_the_kind(survey):
    evaluate(survey)
    rows = pq.read_table(survey / "found/matches.parquet").to_pylist()
    told = [(r["mosaic"], r["class_name"], r["outcome"], r["kind"]) for r in rows if r["at_iou"] == 0.4]
    assert told == [
        ("north", "gull", "tp", None),
        ("north", "gull", "tp", None),
        ("north", "gull", "fp", "background"),
        ("north", "tern", "tp", None),
        ("south", "gull", "fp", "localisation"),
        ("south", "gull", "fn", "near_false"),
        ("south", "tern", "tp", None),
    ]
    half = rows[1]
    assert [half[side] for side in ("y0", "x0", "y1", "x1", "truth_y0", "truth_x1")] == [50, 50, 70, 60, 50, 70]
    assert (half["score"], half["iou"]) == (pytest.approx(0.8), 0.5)
    near = next(r for r in rows if r["kind"] == "near_false" and r["at_iou"] == 0.4)
    assert (near["score"], near["iou"], near["y0"], near["truth_x1"]) == (None, None, None, 20)


def test_a_missed_object_is_named_so(tmp_path, write_voc):
    evaluate(survey_in(tmp_path, write_voc, north=NORTH[1:]))
    rows = pq.read_table(tmp_path / "found/matches.parquet").to_pylist()
    assert [(r["kind"], r["truth_y0"]) for r in rows if r["outcome"] == "fn" and r["at_iou"] == 0.4] == [
        ("missed", 10),
        ("near_false", 0),
    ]


def test_spread_of_counts_by_hand(survey):
    # Cells of 100 x 100, two a mosaic. Found beside true: north 2/2 (A, B) and 2/1 (nothing, C); south 1/1 (D) and 1/1 (E).
    result = evaluate(survey, "--cell_px=100")
    cells, mosaics = result["overall"]["over_cells"], result["overall"]["over_mosaics"]
    assert (cells["number"], cells["mean_true"], cells["mean_error"], cells["mean_absolute_error"]) == (4, 1.25, 0.25, 0.25)
    assert cells["rmse"] == pytest.approx(math.sqrt(1 / 4))
    assert (mosaics["number"], mosaics["rmse"]) == (2, pytest.approx(math.sqrt(1 / 2)))  # north 4/3, south 2/2
    assert result["classes"]["tern"]["over_cells"]["rmse"] == 0
    # 70 px divide 100 x 200 into 1 x 3 cells, 1000 px into one: as the mosaics.
    assert evaluate(survey, "--cell_px=70")["overall"]["over_cells"]["number"] == 6
    assert evaluate(survey, "--cell_px=1000")["overall"]["over_cells"] == mosaics


def test_reliability_holds_every_detection(survey):
    result = evaluate(survey)
    at = result["overall"]["at_iou"][0]
    # Scores add up to 4.1: one bin. 4 of 7 are right.
    assert at["reliability"] == [{"mean_score": pytest.approx(4.1 / 7), "precision": pytest.approx(4 / 7), "number": 7}]
    assert at["calibration_error"] == pytest.approx(abs(4.1 - 4) / 7)


def test_what_is_read_is_what_was_written(survey):
    evaluate(survey)
    read, matches = evaluation.read(str(survey / "found"))
    evaluation.write(str(survey / "again"), read, matches)
    assert (survey / "again/evaluation.json").read_bytes() == (survey / "found/evaluation.json").read_bytes()
    assert read.overall.at_iou[0].confusion.counts[0] == (2, 0, 1)
    assert math.isnan(read.overall.sizes[2].coco_ap)
    assert read.gsd_m is None


def test_an_evaluation_of_before_is_refused(survey):
    evaluate(survey)
    path = survey / "found/evaluation.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(InputError, match="format_version 1: this Rookery reads 2"):
        evaluation.read(str(survey / "found"))


def rows_of(text):
    return [line.split() for line in text.splitlines()]


def test_summary_tells_all_of_it(survey, capsys):
    evaluate(survey, "--cell_px=100")
    rows = rows_of(capsys.readouterr().out)
    assert ["gull", "small", "0-32", "3", "0.663", "0.337", "0.663", "0.369", "0.500", "0.667", "0.571"] in rows
    assert ["all", "large", "96+", "0", *["-"] * 7] in rows
    assert ["all", "0.7", "number", "0", "3", "0", "0", "1", "0"] in rows
    assert ["all", "0.4", "AP", "gain", "+0.000", "+0.126", "+0.000", "+0.000", "+0.000", "+0.000"] in rows
    assert ["background", "2", "0", "0"] in rows
    assert ["all", "cells", "4", "1.25", "+0.25", "0.25", "0.50"] in rows
    assert ["all", "0.014", "0.300"] in rows  # |4.1 - 4| / 7 and, at .7, |4.1 - 2| / 7


@pytest.mark.parametrize(
    ("gsd_m", "metres"), [((0.1, 0.1), "3.2-9.6"), ((0.1, 0.25), "3.2-9.6 / 8-24"), ((0.1, None), None)], ids=str
)
def test_sizes_in_metres_where_the_resolution_is_known(tmp_path, write_voc, capsys, gsd_m, metres):
    result = evaluate(survey_in(tmp_path, write_voc, gsd_m=gsd_m))
    text = capsys.readouterr().out
    assert (f"medium 32-96  {metres}" in text.replace("    ", "  ")) == (metres is not None)
    assert ("sides m" in text) == (metres is not None)
    assert result["gsd_m"] == (None if metres is None else list(gsd_m))


@pytest.mark.parametrize("sizes", ["96,32", "32", "0,96", "32,32", "1,2,3", "32,inf", "nan,4"])
def test_refuses_sizes_that_part_nothing(survey, sizes):
    with pytest.raises(InputError, match=f"--sizes_px={sizes}: must be two sides in pixels, the smaller first"):
        evaluate(survey, f"--sizes_px={sizes}")


def test_refuses_a_cell_of_nothing(survey):
    with pytest.raises(InputError, match="--cell_px=0: must be at least 1 px"):
        evaluate(survey, "--cell_px=0")
