"""rookery evaluate, through run(argv)."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from inference import evaluation
from inference.evaluate import run
from survey import detections, files
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic

CLASSES = ("gull", "tern")
SIZE = (100, 200)


def found(*rows):
    """Detections from (class_id, score, y0, x0, y1, x1), best first."""
    table = np.array(sorted(rows, key=lambda row: -row[1]), np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int32), np.zeros(len(table), np.int64))


def write_detections(folder, by_mosaic, classes=CLASSES):
    mosaics = tuple(Mosaic(name, f"survey/{name}.png", *SIZE) for name in by_mosaic)
    manifest = Manifest("model", "0" * 64, classes, 0.3, mosaics, {}, {}, {}, {})
    detections.write(str(folder), manifest, by_mosaic)


@pytest.fixture
def survey(tmp_path, write_voc):
    """Two mosaics. The comments give the IoU of each detection with the object meant."""
    write_detections(
        tmp_path / "found",
        {
            "north": found(
                (1, 0.9, 10, 10, 30, 30),  # A: 1
                (1, 0.8, 50, 50, 70, 60),  # half of B: 200 / 400 = 0.5
                (1, 0.6, 80, 150, 100, 170),  # nothing
                (2, 0.7, 10, 100, 30, 112.5),  # part of C: 250 / 400 = 0.625
                (2, 0.2, 60, 150, 80, 170),  # nothing, and below the threshold of 0.3
            ),
            "south": found(
                (1, 0.4, 0, 10, 20, 30),  # D moved by half: 200 / 600 = 0.33
                (2, 0.5, 0, 180, 10, 200),  # E as far as it lies in the mosaic: 1
            ),
        },
    )
    (tmp_path / "truth").mkdir()
    north = [("gull", (10, 10, 30, 30)), ("gull", (50, 50, 70, 70)), ("tern", (10, 100, 30, 120))]
    south = [("gull", (0, 0, 20, 20)), ("tern", (-10, 180, 10, 220)), ("gull", (300, 300, 320, 320))]
    write_voc(tmp_path / "truth/north.xml", "north.png", SIZE, north)
    write_voc(tmp_path / "truth/south.xml", "south.png", SIZE, south)
    return tmp_path


def evaluate(folder, *more):
    argv = [f"--detections={folder}/found", f"--annotations={folder}/truth/*.xml", "--iou=0.4,0.7", *more]
    assert run(argv) == 0
    return json.loads((folder / "found/evaluation.json").read_text())


def test_average_precision_by_hand(survey):
    result = evaluate(survey)
    # Gull, 3 objects (the one outside the mosaic is dropped), detections .9 .8 .6 .4.
    # IoU .4: T T F F: precision 1 up to recall 2/3: r = 0 .. .66 are 67 of 101 points.
    # IoU .7: T F F F: precision 1 up to recall 1/3: r = 0 .. .33 are 34 points.
    gull = result["classes"]["gull"]
    assert [one["ap"] for one in gull["at_iou"]] == pytest.approx([67 / 101, 34 / 101])
    # COCO AP: the half box reaches .5 but no higher.
    assert gull["ap50"] == pytest.approx(67 / 101)
    assert gull["coco_ap"] == pytest.approx((67 + 9 * 34) / 101 / 10)
    # Tern, 2 objects, detections .7 .5 .2. IoU .4: T T F: 1. IoU .7: F T F: precision 1/2 up to recall 1/2: 51 points.
    # COCO AP: .625 reaches .50, .55 and .60.
    tern = result["classes"]["tern"]
    assert [one["ap"] for one in tern["at_iou"]] == pytest.approx([1, 51 / 101 / 2])
    assert tern["coco_ap"] == pytest.approx((3 + 7 * 51 / 101 / 2) / 10)
    assert result["overall"]["coco_ap"] == pytest.approx((gull["coco_ap"] + tern["coco_ap"]) / 2)
    assert result["overall"]["at_iou"][0]["ap"] == pytest.approx((67 / 101 + 1) / 2)


def test_precision_recall_and_f1_by_hand(survey):
    result = evaluate(survey)
    # Gull at IoU .4, score >= .3: T T F F of 3.
    at = result["classes"]["gull"]["at_iou"][0]["at_score_threshold"]
    assert (at["tp"], at["fp"], at["fn"]) == (2, 2, 1)
    assert (at["precision"], at["recall"], at["f1"]) == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    # Its best F1 is after two: 4 / (2 + 3), at a score between .8 and .6.
    best = result["classes"]["gull"]["at_iou"][0]["optimistic_best"]
    assert (best["f1"], best["threshold"]) == pytest.approx((0.8, 0.7))
    # Over all at IoU .4: 4 right of 6 that count (tern .2 does not), 5 objects: 8 / (6 + 5). At .7: A and E: 4 / 11.
    overall = [one["at_score_threshold"] for one in result["overall"]["at_iou"]]
    assert [(at["tp"], at["fp"], at["fn"]) for at in overall] == [(4, 2, 1), (2, 4, 3)]
    assert [at["f1"] for at in overall] == pytest.approx([8 / 11, 4 / 11])


def test_counts_and_clipping(survey):
    result = evaluate(survey)
    assert result["counts"] == [
        {"mosaic": "north", "class_name": "gull", "found": 3, "true": 2},
        {"mosaic": "north", "class_name": "tern", "found": 1, "true": 1},
        {"mosaic": "south", "class_name": "gull", "found": 1, "true": 1},
        {"mosaic": "south", "class_name": "tern", "found": 1, "true": 1},
    ]
    assert result["truth"] == {"objects_read": 6, "objects_clipped_to_mosaic": 1, "objects_empty_or_outside_mosaic": 1}


def test_matches_say_what_became_of_every_box(survey):
    evaluate(survey)
    rows = pq.read_table(survey / "found/matches.parquet").to_pylist()
    at_04 = [(r["mosaic"], r["class_name"], r["outcome"]) for r in rows if r["at_iou"] == 0.4]
    assert at_04 == [
        ("north", "gull", "tp"),
        ("north", "gull", "tp"),
        ("north", "gull", "fp"),
        ("north", "tern", "tp"),
        ("south", "gull", "fp"),
        ("south", "gull", "fn"),
        ("south", "tern", "tp"),
    ]
    half, missed = rows[1], next(r for r in rows if r["outcome"] == "fn" and r["at_iou"] == 0.4)
    assert (half["iou"], half["x1"], half["truth_x1"]) == (0.5, 60, 70)
    assert (missed["score"], missed["y0"], missed["truth_y1"]) == (None, None, 20)
    # At IoU .7, the half of B and the part of C are false, so B, C and D are missed.
    assert sum(r["at_iou"] == 0.7 and r["outcome"] == "fn" for r in rows) == 3


def test_provenance_and_round_trip(survey):
    result = evaluate(survey)
    north = str(survey / "truth/north.xml")
    assert result["annotations"][north] == files.sha256(north)
    assert result["detections"]["detections.parquet"] == files.sha256(str(survey / "found/detections.parquet"))
    assert result["options"]["iou"] == [0.4, 0.7]
    assert {"python", "numpy"} <= set(result["versions"])
    read, matches = evaluation.read(str(survey / "found"))
    assert read.overall.at_iou[1].at_score_threshold.fn == 3
    assert matches.schema == evaluation.MATCHES_SCHEMA


def test_summary_is_printed(survey, capsys):
    evaluate(survey)
    text = capsys.readouterr().out
    assert "evaluated 2 mosaics: 5 annotated objects, 7 detections, of which 6 count (score >= 0.3)" in text
    assert "of 6 annotated boxes 1 were clipped to their mosaic and 1 dropped" in text
    assert "optimistic bound" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["gull", "3", "0.663", "0.337", "0.663", "0.369"] in rows  # 67/101, 34/101, 67/101, 373/1010
    assert ["north", "gull", "3", "2", "+1", "+50.0"] in rows
    assert ["all", "all", "6", "5", "+1", "+20.0"] in rows


def test_output_folder_of_its_own(survey):
    run([f"--detections={survey}/found", f"--annotations={survey}/truth/*.xml", f"--output={survey}/judged/here"])
    assert sorted(path.name for path in (survey / "judged/here").iterdir()) == ["evaluation.json", "matches.parquet"]
    assert not (survey / "found/evaluation.json").exists()


def test_a_mosaic_without_annotations_is_left_out_and_named(survey, capsys):
    (survey / "truth/south.xml").unlink()
    result = evaluate(survey)
    assert result["unannotated"] == ["south"]
    assert result["overall"]["truths"] == 3
    assert "no annotations for south" in capsys.readouterr().out


def test_an_empty_annotation_file_makes_every_detection_false(survey, write_voc):
    write_voc(survey / "truth/south.xml", "south.png", SIZE, [])
    result = evaluate(survey)
    assert result["unannotated"] == []
    assert result["overall"]["at_iou"][0]["at_score_threshold"]["fp"] == 3  # one in north, both of south


def test_a_class_without_objects_has_no_recall(survey, write_voc):
    (survey / "truth/south.xml").unlink()
    write_voc(survey / "truth/north.xml", "north.png", SIZE, [("gull", (10, 10, 30, 30))])
    tern = evaluate(survey)["classes"]["tern"]
    assert tern["coco_ap"] is None
    assert tern["at_iou"][0]["at_score_threshold"]["recall"] is None
    assert tern["at_iou"][0]["at_score_threshold"]["precision"] == 0


def test_no_detections_at_all(survey):
    write_detections(survey / "found", {"north": found(), "south": found()})
    overall = evaluate(survey)["overall"]
    assert overall["coco_ap"] == 0
    assert overall["at_iou"][0]["at_score_threshold"]["precision"] is None
    assert overall["at_iou"][0]["recall"] == []


def refused(survey, *argv, match):
    before = sorted(survey.rglob("*"))
    with pytest.raises(InputError, match=match):
        run([f"--detections={survey}/found", f"--annotations={survey}/truth/*.xml", *argv])
    assert sorted(survey.rglob("*")) == before


def test_refuses_a_folder_without_detections(survey):
    refused(survey, f"--detections={survey}/truth", match=r"detections\.json does not exist.*rookery predict")


def test_refuses_annotations_of_an_image_not_predicted(survey, write_voc):
    write_voc(survey / "truth/west.xml", "west.tif", SIZE, [("gull", (0, 0, 5, 5))])
    refused(survey, match=r"west\.xml annotates image 'west\.tif', which is not among the 2 mosaics")


def test_refuses_classes_that_the_model_lacks(survey, write_voc):
    write_voc(survey / "truth/south.xml", "south.png", SIZE, [("skua", (0, 0, 5, 5))])
    refused(survey, match="classes gull, skua, tern, the model was exported for gull, tern: skua cannot be evaluated")


def test_refuses_annotations_of_another_size(survey, write_voc):
    write_voc(survey / "truth/south.xml", "south.png", (50, 100), [("gull", (0, 0, 5, 5))])
    refused(survey, match=r"\(50, 100\), but .*south.* has \(100, 200\)")


def test_refuses_one_mosaic_annotated_twice(survey, write_voc):
    write_voc(survey / "truth/again.xml", "north.png", SIZE, [("gull", (0, 0, 5, 5))])
    refused(survey, match=r"again\.xml and .*north\.xml both annotate mosaic north")


def test_refuses_when_nothing_is_annotated(survey, write_voc):
    write_voc(survey / "truth/other.xml", "other.png", SIZE, [])
    refused(survey, f"--annotations={survey}/truth/other.xml", match="label no object: predicted were north, south")


@pytest.mark.parametrize("iou", ["0", "-0.5", "1.01", "0.5,nan"])
def test_refuses_an_iou_out_of_range(survey, iou):
    refused(survey, f"--iou={iou}", match="must be above 0 and at most 1")


def test_refuses_a_pattern_that_matches_nothing(survey):
    refused(survey, f"--annotations={survey}/nowhere/*.xml", match="--annotations=.*matches no file")
