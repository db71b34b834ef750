"""rookery count, through run(argv): the three situations, the proposal of patches, and bad input."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import stub_model
from PIL import Image

from inference import count, estimates
from survey import detections, model
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic

CLASSES = ("gull", "tern & <auk>")
SIDE, PATCH = 128, 16  # 8 x 8 patches a mosaic
VALIDATION = {
    "objects_found": 96.0,
    "true_count": 120.0,
    "calibrated_count": 100.0,
    "count_error": 0.1,
    "count_dispersion": 0.1,
    "count_units": 20.0,
}


def spec(**changes):
    base = dataclasses.replace(stub_model.SPEC, classes=CLASSES, image_size=PATCH, overlap_px=0)
    return dataclasses.replace(base, calibration=((0.4, 0.2), (0.8, 0.9)), validation=VALIDATION, **changes)


class Survey:
    """Mosaics of random objects and their detections, on disk; one object a patch on the average, 6 px wide."""

    def __init__(self, folder: Path, mosaics: int, seed: int = 0) -> None:
        self.folder, rng = folder, np.random.default_rng(seed)
        self.truth: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
        found, made = {}, []
        model.write(str(folder / "model"), spec())
        for m in range(mosaics):
            name = f"m{m}"
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{name}.png")
            made.append(Mosaic(name, str(folder / f"{name}.png"), SIDE, SIDE))
            number = 30 + 10 * m
            corner = rng.integers(0, SIDE - 6, (number, 2)).astype(float)
            true = np.concatenate([corner, corner + 6], axis=1)
            seen, false = true[rng.random(number) < 0.8], rng.integers(0, SIDE - 6, (10, 2)).astype(float)
            boxes = np.concatenate([seen, np.concatenate([false, false + 6], axis=1)]).astype(np.float32)
            scores = np.where(np.arange(len(boxes)) < len(seen), 0.8, 0.4).astype(np.float32)
            found[name] = Detections(boxes, scores, np.ones(len(boxes), np.int32), np.zeros(len(boxes), np.int64))
            self.truth[name] = [("gull", tuple(box)) for box in true.tolist()]
        self.number = sum(map(len, self.truth.values()))
        options = {"overlap_px": 0}
        digest = model.digest(str(folder / "model"))
        manifest = Manifest(str(folder / "model"), digest, CLASSES, 0.5, tuple(made), {}, {}, options, {})
        detections.write(str(folder / "found"), manifest, found)

    def count(self, *more: str) -> estimates.Estimates:
        assert count.run([f"--detections={self.folder}/found", *more]) == 0
        return estimates.read(str(self.folder / "found"))

    def propose(self, number: int) -> list[dict]:
        assert count.run([f"--detections={self.folder}/found", f"--label_sample={number}", f"--output={self.folder}/sample"]) == 0
        return json.loads((self.folder / "sample/sample.json").read_text())["patches"]

    def label(self, patches: list[dict], write_voc) -> str:
        """Writes the truth of the patches over the model's boxes; returns the flags that read them."""
        for patch in patches:
            y, x, bottom, right = patch["window"]
            inside = [
                (name, (y0 - y, x0 - x, y1 - y, x1 - x))
                for name, (y0, x0, y1, x1) in self.truth[patch["mosaic"]]
                if y1 > y and x1 > x and y0 < bottom and x0 < right
            ]
            write_voc(self.folder / "sample" / patch["annotation"], patch["image"], (bottom - y, right - x), inside)
        return f"--annotations={self.folder}/sample/*.xml"


def row(made, **where):
    wanted = {"mosaic": "", "stratum": "", "class_name": "", **where}
    (found,) = [one for one in made.rows if all(getattr(one, key) == value for key, value in wanted.items())]
    return found


def test_without_labels_by_hand(tmp_path, capsys):
    survey = Survey(tmp_path, 1)
    made = survey.count()
    # Detections of score .8 count, each worth .9; the ten of .4 do not, and are worth .2 each. 120 objects for 100 expected.
    total = row(made)
    n, t = total.counted, total.estimate
    assert t == pytest.approx(1.2 * (0.9 * n + 2))
    # Own: 1.2^2 (n .09 + 10 * .16) + (.9 n + 2) .2 / .64; validation: (.1 T)^2; t of 19 degrees of freedom 2.09302, on the
    # logarithm.
    error = np.sqrt(1.44 * (0.09 * n + 1.6) + (0.9 * n + 2) * 0.2 / 0.64 + 0.01 * t * t)
    assert (total.low, total.high) == pytest.approx((t * np.exp(-2.09302 * error / t), t * np.exp(2.09302 * error / t)), rel=1e-5)
    nothing = row(made, class_name=CLASSES[1])
    # No tern: ln .05 / ln .2 = 1.86 may hide.
    assert (nothing.estimate, nothing.low, nothing.high) == pytest.approx((0, 0, 1.861), abs=0.001)
    out = capsys.readouterr().out
    assert "method: no labels of this survey" in out
    assert "looks like the model's validation data" in out
    assert (tmp_path / "found/estimates.csv").read_text().splitlines()[1].startswith(f",,,{n},{t:.2f},")


def test_labelled_patches(tmp_path, write_voc, capsys):
    survey = Survey(tmp_path, 2)
    patches = survey.propose(36)
    assert "36 of 128 patches" in (said := capsys.readouterr().out)
    assert "36 labels" in said
    assert "72 labels" in said
    flag = survey.label(patches, write_voc)
    made = survey.count(f"--sample={tmp_path}/sample", flag)
    total = row(made)
    assert total.low <= survey.number <= total.high
    assert (made.units, made.labelled_units) == (128, 36)
    # More than ten labelled patches in each mosaic: each has its own estimate, and they add up but for the slope.
    parts = [row(made, mosaic=name) for name in survey.truth]
    assert sum(one.estimate for one in parts) == pytest.approx(total.estimate, rel=0.1)
    assert all(one.low < one.estimate < one.high for one in parts)
    assert "prediction-powered" in capsys.readouterr().out


def test_all_patches_labelled_is_exact(tmp_path, write_voc):
    survey = Survey(tmp_path, 1)
    flag = survey.label(survey.propose(64), write_voc)
    total = row(survey.count(f"--sample={tmp_path}/sample", flag))
    # Every centre lies in one core: all 30 objects, once each, also those that several patches show.
    assert (total.estimate, total.low, total.high) == pytest.approx((30, 30, 30))


def test_labelled_mosaics_and_strata(tmp_path, write_voc, capsys):
    survey = Survey(tmp_path, 6)
    (tmp_path / "strata.csv").write_text("mosaic,stratum\n" + "".join(f"m{i},{'east' if i < 3 else 'west'}\n" for i in range(6)))
    for name in ("m0", "m1", "m2", "m3"):
        write_voc(tmp_path / f"{name}.xml", f"{name}.png", (SIDE, SIDE), survey.truth[name])
    made = survey.count(f"--annotations={tmp_path}/*.xml", f"--strata={tmp_path}/strata.csv")
    assert (made.units, made.labelled_units) == (6, 4)
    known = row(made, mosaic="m1")
    assert known.estimate == known.low == known.high == len(survey.truth["m1"])
    # All of east is known: 30 + 40 + 50.
    assert row(made, stratum="east").high == 120
    total, west = row(made), row(made, stratum="west")
    assert total.low <= survey.number <= total.high
    assert west.estimate == pytest.approx(total.estimate - 120)
    others = [row(made, mosaic=name) for name in ("m4", "m5")]
    assert sum(one.estimate for one in others) == pytest.approx(west.estimate - row(made, mosaic="m3").estimate)
    assert "ratio of true to expected" in capsys.readouterr().out


def test_without_the_model_labels_still_count(tmp_path, write_voc, capsys):
    survey = Survey(tmp_path, 1)
    flag = survey.label(survey.propose(40), write_voc)
    (tmp_path / "model/model.json").unlink()
    total = row(survey.count(f"--sample={tmp_path}/sample", flag))
    assert total.low <= 30 <= total.high
    assert "not calibrated" in capsys.readouterr().out
    with pytest.raises(InputError, match="calibration is needed"):
        survey.count()


def test_bad_input(tmp_path, write_voc):
    survey = Survey(tmp_path, 6)
    with pytest.raises(InputError, match="at least 10 patches"):
        survey.count("--label_sample=9", f"--output={tmp_path}/s")
    with pytest.raises(InputError, match="has only 384 patches"):
        survey.count("--label_sample=385", f"--output={tmp_path}/s")
    with pytest.raises(InputError, match="needs its labels"):
        survey.count(f"--sample={tmp_path}/s")
    with pytest.raises(InputError, match="confidence=95"):
        survey.count("--confidence=95")
    write_voc(tmp_path / "m0.xml", "m0.png", (SIDE, SIDE), survey.truth["m0"])
    with pytest.raises(InputError, match="1 of 6 mosaics are annotated: at least 4"):
        survey.count(f"--annotations={tmp_path}/m0.xml")
    write_voc(tmp_path / "x.xml", "x.png", (SIDE, SIDE), [])
    write_voc(tmp_path / "y.xml", "y.png", (SIDE, SIDE), [("gull", (0, 0, 5, 5))])
    with pytest.raises(InputError, match=r"'y.png', which is not among the 6 mosaics"):
        survey.count(f"--annotations={tmp_path}/y.xml")
    write_voc(tmp_path / "m0.xml", "m0.png", (SIDE, SIDE), [("gul", (0, 0, 5, 5))])
    with pytest.raises(InputError, match="class 'gul'"):
        survey.count(f"--annotations={tmp_path}/m0.xml")
    file = tmp_path / "strata.csv"
    for text, message in (
        ("mosaic,stratum\nm0,a\n", "no stratum for m1, m2"),
        ("mosaic,stratum\nn0,a\n", "'n0' was not predicted"),
        ("mosaic,stratum\nm0,a\nm0,b\n", "line 3: mosaic 'm0' has a stratum already"),
        ("mosaic;stratum\nm0;a\n", "columns mosaic and stratum"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            survey.count(f"--strata={file}")


def test_a_model_without_validation_is_refused(tmp_path):
    survey = Survey(tmp_path, 1)
    model.write(str(tmp_path / "model"), spec(gsd_m=(0.1, 0.1)))
    with pytest.raises(InputError, match="not the model that made these"):
        survey.count(f"--model={tmp_path}/model")
    manifest, found = detections.read(str(tmp_path / "found"))
    model.write(str(tmp_path / "model"), dataclasses.replace(spec(), validation={"recall": 0.8}, calibration=()))
    manifest = dataclasses.replace(manifest, model_digest=model.digest(str(tmp_path / "model")))
    detections.write(str(tmp_path / "found"), manifest, found)
    with pytest.raises(InputError, match=r"lacks objects_found, true_count, .* calibration: without labels"):
        survey.count()


def test_bad_samples(tmp_path, write_voc):
    survey = Survey(tmp_path, 1)
    patches = survey.propose(20)
    with pytest.raises(InputError, match="holds a sample already"):
        survey.propose(20)
    flags = [f"--sample={tmp_path}/sample", f"--annotations={tmp_path}/sample/*.xml"]
    with pytest.raises(InputError, match="all 20 files are just as the model wrote them"):
        survey.count(*flags)
    survey.label(patches[:-1], write_voc)
    assert survey.count(*flags).labelled_units == 20
    (tmp_path / "sample" / patches[3]["annotation"]).unlink()
    with pytest.raises(InputError, match=f"lacks 1 of the 20 patches of the sample: {patches[3]['image'][:-4]}"):
        survey.count(*flags)
    manifest, found = detections.read(str(tmp_path / "found"))
    detections.write(str(tmp_path / "found"), dataclasses.replace(manifest, score_threshold=0.6), found)
    with pytest.raises(InputError, match="drawn from other detections"):
        survey.count(*flags)


def test_estimates_round_trip(tmp_path):
    made = Survey(tmp_path, 2).count()
    assert estimates.read(str(tmp_path / "found")) == made
    assert [one.mosaic for one in made.rows] == ["", "", "", "m0", "m0", "m0", "m1", "m1", "m1"]
    file = tmp_path / "found" / estimates.FILE
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(InputError, match="format_version 7"):
        estimates.read(str(tmp_path / "found"))
