import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import stub_model
from ml_dtypes import bfloat16

from inference import decode_verb
from inference.decode import Decoder, DecodeSpec
from survey import model
from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.heads import RetinaNetHeads

# Level 3 at 32 px: 4 x 4 cells, one square anchor of 16 px about (4, 4), (4, 12), ...; arrays per level, background first.
SPEC = {
    "image_size": 32,
    "classes": ["seal", "tern"],
    "heads": {
        "kind": "retinanet",
        "anchors": {"min_level": 3, "max_level": 3, "num_scales": 1, "aspect_ratios": [1.0], "anchor_size": 2.0},
        "box_scales": [1, 1, 1, 1],
        "layout": "levels",
        "background": True,
    },
    "score_floor": 0.3,
    "nms_iou": 0.5,
}


@pytest.fixture
def folder(tmp_path):
    boxes, scores = np.zeros((2, 4, 4, 4), np.float32), np.full((2, 4, 4, 3), -9, np.float32)
    scores[:, :, :, 0] = 9  # the background's column says nothing of objects
    scores[0, 1, 2, 2] = math.log(3)  # a tern, 3/4, about (12, 20)
    scores[1, 0, 0, 1] = 0  # a seal, 1/2, about (4, 4), cut at the corner
    np.savez(tmp_path / "raw.npz", box_outputs_3=boxes, cls_outputs_3=scores)
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return tmp_path


def run(folder, *flags: str) -> int:
    return decode_verb.run([f"--raw={folder}/raw.npz", f"--spec={folder}/spec.json", *flags])


def test_files_of_all_kinds(folder, capsys):
    assert run(folder, f"--output={folder}/found.csv") == 0
    assert "2 detections of 2 images" in capsys.readouterr().out
    rows = list(csv.DictReader((folder / "found.csv").read_text().splitlines()))
    assert rows[0] == dict(zip(decode_verb.COLUMNS, ["0", "2", "tern", "0.75", "4.0", "12.0", "20.0", "28.0"], strict=True))
    assert rows[1] == dict(zip(decode_verb.COLUMNS, ["1", "1", "seal", "0.5", "0.0", "0.0", "12.0", "12.0"], strict=True))
    run(folder, f"--output={folder}/found.json")
    assert [(row["image"], row["class_name"], row["y1"]) for row in json.loads((folder / "found.json").read_text())] == [
        (0, "tern", 20.0),
        (1, "seal", 12.0),
    ]
    run(folder, f"--output={folder}/found.npz", "--image=1")
    with np.load(folder / "found.npz") as found:
        assert found["image"].tolist() == [1]
        assert found["boxes_patch_px"].tolist() == [[0, 0, 12, 12]]


def test_a_table_on_the_screen_and_one_image(folder, capsys):
    run(folder, "--image=0")
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["0", "2", "tern", "0.750", "4.000", "12.000", "20.000", "28.000"]
    assert out[-1] == "1 detections of 1 images; boxes in patch pixels"
    with pytest.raises(InputError, match=r"--image=2: .* holds 2 images, 0 to 1"):
        run(folder, "--image=2")
    with pytest.raises(InputError, match=r"--output=x.txt: must end with .csv, .json, .npz"):
        run(folder, "--output=x.txt")


def test_bfloat16_from_a_file(folder, capsys):
    # numpy saves it as two nameless bytes. log 3 = 1.0986 is 1.1016 in bfloat16 (steps of 1/128): sigmoid 0.7506.
    with np.load(folder / "raw.npz") as raw:
        np.savez(folder / "raw.npz", **{name: raw[name].astype(bfloat16) for name in raw.files})
    run(folder, "--image=0")
    assert "0.751" in capsys.readouterr().out


def test_any_model_json_is_a_spec(tmp_path):
    model.write(str(tmp_path), stub_model.SPEC)
    spec = decode_verb.read_spec(f"{tmp_path}/model.json")
    assert (spec.heads, spec.score_floor, spec.suppression) == (stub_model.SPEC.heads, 0.1, "class")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nms_iou": None}, "nms_iou=None: must be a number from 0 to 1"),
        ({"nms_io": 0.5}, r"unknown nms_io \(did you mean nms_iou\?\)"),
        ({"classes": "seal"}, "classes='seal': must be the list of class names"),
        ({"image_size": 32.5}, "image_size=32.5"),
        ({"image_size": 36}, "image_size=36: must be a multiple of the coarsest stride, 8 px"),
        ({"suppression": "hard"}, "suppression='hard': must be one of class, agnostic"),
        ({"heads": {"kind": "ssd"}}, "heads of kind 'ssd' cannot be decoded: must be one of retinanet, yolo"),
        ({"heads": 3}, "heads of kind 3"),
        ({"heads": {"kind": "retinanet", "box_scales": [1, 1, 1, 1]}}, "retinanet heads lack anchors"),
        ({"heads": SPEC["heads"] | {"level": 3}}, "retinanet heads have unknown level: the keys are anchors, box_scales"),
        ({"heads": SPEC["heads"] | {"layout": "nchw"}}, "layout='nchw': must be one of flat, levels, tpu"),
        ({"heads": SPEC["heads"] | {"box_scales": [1, 1]}}, r"box_scales=\[1, 1\]: must be four numbers"),
        ({"heads": SPEC["heads"] | {"box_scales": "x"}}, "spec.json: "),
        ({"heads": {"kind": "yolo", "levels": [4, 3], "anchors_px": [[[9, 9]], [[9, 9]]]}}, r"levels=\[4, 3\]: must be"),
        ({"heads": {"kind": "yolo", "levels": [3], "anchors_px": [[[9, 9]], [[9, 9]]]}}, "anchors_px has 2 entries for 1 levels"),
        ({"heads": {"kind": "yolo", "levels": [3], "anchors_px": [[9, 9]]}}, "spec.json: "),
        # One class too many, a missing background, another kind: all shapes are printed, wanted and found.
        ({"classes": ["a", "b", "c"]}, r"\[B, 4, 4, 4\], one .*found box_outputs_3 \[2, 4, 4, 4\]; cls_outputs_3 \[2, 4, 4, 3\]"),
        ({"heads": SPEC["heads"] | {"background": False}}, r"asks for .*cls_outputs_3 \[B, 4, 4, 2\]"),
        ({"heads": SPEC["heads"] | {"layout": "flat"}}, r"raw_boxes \[B, 16, 4\]; raw_scores \[B, 16, 3\].*found box_outputs_3"),
    ],
)  # fmt: skip
def test_specs_that_do_not_fit(folder, change, message):
    (folder / "spec.json").write_text(json.dumps(SPEC | change))
    with pytest.raises(InputError, match=message):
        run(folder)


def test_missing_keys_and_files(folder):
    (folder / "spec.json").write_text(json.dumps({"classes": ["a"]}))
    with pytest.raises(InputError, match="lacks image_size, heads, score_floor, nms_iou"):
        run(folder)
    (folder / "spec.json").write_text(json.dumps(SPEC))
    for content, message in ((b"no zip", "is not an .npz of numbers"), (None, "does not exist: save the outputs")):
        (folder / "raw.npz").unlink()
        if content:
            (folder / "raw.npz").write_bytes(content)
        with pytest.raises(InputError, match=message):
            run(folder)
    np.savez(folder / "raw.npz", box_outputs_3=np.zeros((2, 4, 4, 4)), cls_outputs_3=np.full((2, 4, 4, 3), np.nan))
    with pytest.raises(InputError, match="cls_outputs_3 holds 96 values that are not a number"):
        run(folder)
    np.savez(folder / "raw.npz", box_outputs_3=np.array(["x"]))
    with pytest.raises(InputError, match="box_outputs_3 is of type <U1: must be float32"):
        run(folder)
    np.save(folder / "raw.npz.npy", np.zeros(3))
    (folder / "raw.npz.npy").rename(folder / "raw.npz")
    with pytest.raises(InputError, match="holds one array, not several"):
        run(folder)


PAGE = (Path(__file__).parent.parent / "docs/decoding.md").read_text()


def test_the_specs_of_the_page_load(tmp_path):
    examples = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    found = []
    for example in examples:
        (tmp_path / "spec.json").write_text(example)
        found.append(decode_verb.read_spec(str(tmp_path / "spec.json")))
    old, yolo = found
    # 640 px at level 3: 80 x 80 cells of 3 x 3 anchors, 2 classes without a background.
    assert old.heads.shapes(640, 2)["cls_outputs_3"] == (80, 80, 18)
    assert old.heads.largest_log_ratio > 50
    # 416 px at level 5: 13 x 13 cells of 3 anchors with 5 + 2 numbers.
    assert yolo.heads.shapes(416, 2)["raw_output_5"] == (13, 13, 21)


def test_the_worked_example_of_the_page():
    boxes, scores = np.zeros((1, 8, 8, 4), np.float32), np.full((1, 8, 8, 1), -9, np.float32)
    boxes[0, 3, 4], scores[0, 3, 4] = [0.25, 0.5, math.log(0.75), math.log(1.5)], 2
    heads = RetinaNetHeads(AnchorSpec(3, 3, 1, (1.0,), 2.0), (1.0,) * 4, "levels")
    (found,) = Decoder(DecodeSpec(64, ("star",), heads, 0.05, 0.5))({"box_outputs_3": boxes, "cls_outputs_3": scores})
    np.testing.assert_allclose(found.boxes_patch_px, [[26, 32, 38, 56]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [0.88], atol=0.005)
    assert "(26, 32, 38, 56)" in PAGE
    assert "= 0.88" in PAGE
