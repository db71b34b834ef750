"""rookery report, through run(argv): one page that holds all it shows, and shows text from data as text."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from inference import estimates, evaluate
from inference.page import embedded, overlays
from inference.report import run
from survey import detections, model
from survey.anchors import AnchorSpec
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.heads import RetinaNetHeads
from survey.model import ModelSpec

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """A page's elements and text; fails where tags are not balanced or an attribute is repeated."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self._open, self._hidden = [], "", [], False
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        self.text += " " * (tag in ("br", "td", "th"))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.text += data

    def words(self):
        return " ".join(self.text.split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def write_detections(folder, mosaics, rows, classes=("gull",), threshold=0.5):
    """rows: (mosaic, class_id, score, y0, x0, y1, x1), best first."""
    by_mosaic = {}
    for mosaic in mosaics:
        table = np.array([row[1:] for row in rows if row[0] == mosaic.name], np.float32).reshape(-1, 6)
        by_mosaic[mosaic.name] = Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int32), np.zeros(len(table), int))
    manifest = Manifest(
        "model", "ab" * 32, classes, threshold, tuple(mosaics), {}, {"patches": 4}, {"overlap": 64}, {"numpy": "2"}
    )
    detections.write(str(folder), manifest, by_mosaic)


@pytest.fixture
def survey(tmp_path, pixels, write_raster, write_voc):
    """`north`, annotated: of 3 gulls 2 are found, and one box is false. `south`: one gull, not annotated."""
    mosaics = []
    for name in ("north", "south"):
        path = write_raster(tmp_path / f"{name}.png", pixels(120, 160))
        mosaics.append(Mosaic(name, path, 120, 160, sha256="cd" * 32))
    rows = [
        ("north", 1, 0.9, 10, 10, 30, 30),
        ("north", 1, 0.8, 50, 50, 70, 70),
        ("north", 1, 0.6, 80, 120, 100, 140),
        ("north", 1, 0.1, 0, 0, 9, 9),
        ("south", 1, 0.7, 100, 100, 120, 120),
    ]
    write_detections(tmp_path / "found", mosaics, rows)
    objects = [("gull", box) for box in ((10, 10, 30, 30), (50, 50, 70, 70), (90, 5, 110, 25))]
    write_voc(tmp_path / "north.xml", "north.png", (120, 160), objects)
    return tmp_path


def report(folder, *more):
    assert run([f"--detections={folder}/found", f"--output={folder}/report.html", *more]) == 0
    html = (folder / "report.html").read_text()
    return html, Page(html)


def judge(folder, *more):
    assert evaluate.run([f"--detections={folder}/found", f"--annotations={folder}/north.xml", *more]) == 0


def assert_self_contained(html, page):
    assert "http:" not in html
    assert "https:" not in html
    # Two scripts: the block of data, and ours, which the policy allows by its hash.
    data, ours = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    json.loads(data)
    assert "<" not in data
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in page.all("meta") if "default-src" in meta.get("content", "")]
    assert f"script-src 'sha256-{digest}';" in policy
    assert html.lower().count("<script") == 2
    assert "url(" not in html
    assert "@import" not in html
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:40])
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))


def assert_accessible(page):
    assert all(image["alt"] for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert all(link["href"][1:] in ids for link in page.all("a"))
    named = " ".join(attributes.get("aria-labelledby", "") for _, attributes in page.elements).split()
    assert set(named) <= set(ids)
    assert page.all("html")[0]["lang"] == "en"
    # Whatever scrolls can be reached by keyboard.
    assert all(
        attributes.get("tabindex") == "0" for _, attributes in page.elements if attributes.get("class") in ("map", "scroll")
    )


def model_spec(**changes):
    anchors = AnchorSpec(min_level=3, max_level=5, num_scales=1, aspect_ratios=(1.0,), anchor_size=3.0)
    spec = ModelSpec(
        image_size=416,
        classes=("gull",),
        heads=RetinaNetHeads(anchors, (1.0, 1.0, 1.0, 1.0)),
        score_threshold=0.5,
        score_floor=0.05,
        nms_iou=0.4,
        overlap_px=64,
        gsd_m=None,
        bands=(),
        calibration=(),
        validation={"f1": 0.61},
        dataset_digest="ef" * 32,
        versions={},
    )
    return dataclasses.replace(spec, **changes)


def test_without_evaluation(survey):
    html, page = report(survey)
    assert_self_contained(html, page)
    assert_accessible(page)
    assert "4 gull found in 2 mosaics" in page.words()  # 0.9, 0.8, 0.6 and 0.7 reach 0.5
    assert "no evaluation with these detections" in page.words()
    assert "Precision" not in page.text
    assert "gull: 3" in page.words()  # layer of north
    assert "ab" * 32 in html
    assert "cd" * 32 in html
    assert "No mosaic is georeferenced" in page.words()


def test_with_evaluation(survey):
    judge(survey)
    html, page = report(survey)
    assert_self_contained(html, page)
    assert_accessible(page)
    words = page.words()
    # north: 3 found, 3 annotated; 2 right, 1 false, 1 missed: precision 2/3, recall 2/3, F1 = 4 / (3 + 3).
    assert "4 gull found in 2 mosaics, 3 of them in the annotated mosaic, where people marked 3: ±0" in words
    assert "found, right: 2 found, false: 1 missed: 1" in words
    assert "Of the 3 boxes that count, 2 sit on an annotated object; 1 do not." in words
    assert "67 %" in words
    assert "0.667" in words
    assert "Not annotated, so in no figure of quality: south." in words
    assert "at least 40 %" in words
    # Overviews of 2 mosaics, and crops: 2 right, 1 false, 1 missed. The gull of south was not judged, so it is no example.
    assert len(page.all("img")) == 2 + 4
    # The missed object is drawn where it is: x 5, y 90, 20 by 20.
    assert 'd="M5 90h20v20h-20z"' in html


def test_evaluation_in_a_folder_of_its_own_and_stale_ones(survey):
    judge(survey, f"--output={survey}/judged")
    assert "Precision" not in report(survey)[1].text
    assert "Precision" in report(survey, f"--evaluation={survey}/judged")[1].text
    manifest, found = detections.read(str(survey / "found"))
    detections.write(str(survey / "found"), manifest, {**found, "south": found["south"].take(np.zeros(0, int))})
    with pytest.raises(InputError, match=r"is about other detections.*run `rookery evaluate` again"):
        report(survey, f"--evaluation={survey}/judged")


def test_text_from_data_is_escaped(tmp_path, pixels, write_raster, write_voc):
    # A class and a mosaic named to break out of text, of attributes, and of the style sheet.
    evil, worse = "<script>alert(1)</script>", "\"'><img src=x onerror=alert(2)></style>"
    path = write_raster(tmp_path / "m.png", pixels(64, 64))
    write_detections(tmp_path / "found", [Mosaic(evil, path, 64, 64)], [(evil, 2, 0.9, 5, 5, 20, 20)], classes=(evil, worse))
    html, page = report(tmp_path)
    assert_self_contained(html, page)
    assert_accessible(page)
    assert evil in page.text
    assert worse in page.text
    assert "&lt;script&gt;alert(1)" in html
    assert all(image["src"].startswith("data:") for image in page.all("img"))


def test_several_classes_with_evaluation(survey, write_voc):
    manifest, found = detections.read(str(survey / "found"))
    found["north"].class_ids[1] = 2
    write_detections(
        survey / "found",
        manifest.mosaics,
        [
            (name, k, s, *box)
            for name, one in found.items()
            for k, s, box in zip(one.class_ids, one.scores, one.boxes_mosaic_px, strict=True)
        ],
        classes=("gull", "tern"),
    )
    write_voc(survey / "north.xml", "north.png", (120, 160), [("gull", (10, 10, 30, 30)), ("tern", (50, 50, 70, 70))])
    judge(survey, "--iou=0.5")
    html, page = report(survey)
    assert_self_contained(html, page)
    assert_accessible(page)
    assert "4 objects of 2 classes found" in page.words()
    assert "By class, at IoU 0.5" in page.words()


def test_map_coordinates_and_density(tmp_path, pixels, write_raster):
    # 100 x 200 px of 0.5 m: 50 m x 100 m = 0.5 ha, 2 gulls: 4 per ha.
    affine = (0.5, 0.0, 4e5, 0.0, -0.5, 5e6)
    path = write_raster(tmp_path / "m.png", pixels(100, 200))
    mosaic = Mosaic("m", path, 100, 200, crs="EPSG:32617", transform=affine, gsd_m=0.5)
    write_detections(tmp_path / "found", [mosaic], [("m", 1, 0.9, 0, 0, 9, 9), ("m", 1, 0.8, 50, 50, 60, 60)])
    words = report(tmp_path)[1].words()
    assert "2 gull found, 4.00 per hectare" in words
    assert "cover 0.500 ha" in words
    assert "50.0 cm a pixel" in words
    assert "EPSG:32617" in words


def test_no_detections_at_all(survey):
    manifest, _ = detections.read(str(survey / "found"))
    write_detections(survey / "found", manifest.mosaics, [])
    assert "0 gull found" in report(survey)[1].words()
    judge(survey)
    words = report(survey)[1].words()
    assert "people marked 3: −3 (−100.0 %)" in words
    assert "Of the 0 boxes that count" in words


def test_the_page_keeps_to_its_bound(tmp_path, write_raster, monkeypatch):
    # A survey above every limit, with limits small enough for a test: two mosaics of noise and 4,000 detections in each.
    monkeypatch.setattr(overlays, "PICTURE_BYTES", 300_000)
    monkeypatch.setattr(overlays, "MAX_BOXES", 100)
    monkeypatch.setattr(embedded, "MAX_DETECTIONS", 1000)
    generator = np.random.default_rng(0)
    mosaics, rows = [], []
    for name in ("a", "b"):
        path = write_raster(tmp_path / f"{name}.png", generator.integers(0, 256, (900, 900, 3), dtype=np.uint8))
        mosaics.append(Mosaic(name, path, 900, 900))
        corners = generator.uniform(0, 880, (4000, 2))
        scores = np.sort(generator.uniform(0.1, 1, 4000))[::-1]
        rows += [(name, 1, s, y, x, y + 15, x + 15) for s, (y, x) in zip(scores, corners, strict=True)]
    write_detections(tmp_path / "found", mosaics, rows)
    html, page = report(tmp_path)
    assert_self_contained(html, page)
    # Base64 of the pictures: 400 kB. Detections: 20 bytes each, 20 kB. Static boxes: twice 30 bytes each, 6 kB. 32 crops of
    # 48 px of noise: at most 1 byte a pixel and a header, 32 * 4 / 3 * 3 kB = 128 kB. Style, script, words: 90 kB.
    assert len(html) < 400_000 + 20_000 + 6_000 + 128_000 + 90_000
    assert sum(len(image["src"]) for image in page.all("img")) > 200_000


def estimate(folder, *rows, of=None):
    made_of = evaluate.digests(str(folder / "found")) if of is None else of
    method, holds = "prediction-powered inference", ("the labelled patches were drawn at random", "<b>labels</b> are right")
    made = estimates.Estimates(0.95, method, holds, 400, 30, tuple(rows), {}, made_of, {"seed": 1}, {"numpy": "2"})
    estimates.write(str(folder / "found"), made)


def test_estimates_stand_beside_the_counts(survey):
    row = estimates.Estimate
    everything, coast = row("", "", "", 4, 5.25, 3.5, 12.0), row("", "coast", "", 3, 4.0, 2.0, 6.0)
    estimate(survey, everything, coast, row("north", "", "gull", 3, 3.9, 2.0, 6.1))
    html, page = report(survey)
    assert_self_contained(html, page)
    words = page.words()
    # Fewer than ten objects are given with a tenth: 5.25 is 5.2, to even.
    assert "estimate 5.2, 95 % interval 3.5 to 12" in words
    assert "north 3 3.9 2.0 to 6.1" in words
    assert "south 1 – –" in words
    assert "coast all classes 3 4.0 2.0 to 6.0" in words
    assert "prediction-powered inference (30 of 400 units were labelled)" in words
    assert "<b>labels</b> are right" in words
    estimate(survey, of={"detections.json": "00"})
    with pytest.raises(InputError, match=r"estimates\.json is about other detections.*run `rookery count` again"):
        report(survey)


def test_checks_name_what_the_run_and_the_model_say(survey):
    folder = str(survey / "model")
    spec = model_spec(gsd_m=(0.05, 0.1), bands=(4,))
    model.write(folder, spec)
    manifest, found = detections.read(str(survey / "found"))
    # North has the upper end of 0.1 m and 5 % more, which is tolerated, south 0.2 m; both have 3 bands.
    placed = tuple(dataclasses.replace(m, gsd_m=g) for m, g in zip(manifest.mosaics, (0.105, 0.2), strict=True))
    changes = {"model": folder, "model_digest": model.digest(folder), "mosaics": placed}
    detections.write(str(survey / "found"), dataclasses.replace(manifest, **changes), found)
    words = report(survey)[1].words()
    # A prediction that compared the two itself is believed.
    changes["options"] = {"warnings": ["mind the gap"]}
    detections.write(str(survey / "found"), dataclasses.replace(manifest, **changes), found)
    warned = report(survey)[1].words()
    assert "The prediction warned: mind the gap" in warned
    assert "trained at" not in warned
    assert "trained at 0.05 to 0.1 m a pixel, and objects have another size in pixels in south (0.2 m)" in words
    assert "trained on mosaics of 4 bands, of another number are north (3), south (3)" in words
    assert "no evaluation, and no estimate with an interval" in words


def test_the_models_dataset_is_named_while_the_model_is_the_same(survey):
    folder = str(survey / "model")
    spec = model_spec()
    model.write(folder, spec)
    manifest, found = detections.read(str(survey / "found"))
    detections.write(str(survey / "found"), dataclasses.replace(manifest, model=folder, model_digest=model.digest(folder)), found)
    words = report(survey)[1].words()
    assert "ef" * 32 in words
    assert "f1 0.61" in words
    model.write(folder, dataclasses.replace(spec, nms_iou=0.5))
    assert "the model that made these detections is not in its folder now" in report(survey)[1].words()


def test_moved_and_missing_mosaics(survey):
    (survey / "elsewhere").mkdir()
    (survey / "north.png").rename(survey / "elsewhere/north.png")
    with pytest.raises(InputError, match=r"mosaic north is not at .*north\.png any more.*--mosaics"):
        report(survey)
    assert not (survey / "report.html").exists()
    report(survey, f"--mosaics={survey}/elsewhere/*.png")


def test_refuses_another_picture_of_the_same_name(survey, pixels, write_raster):
    write_raster(survey / "north.png", pixels(60, 80))
    with pytest.raises(InputError, match=r"60 px high and 80 wide.*120 high and 160 wide"):
        report(survey)


def test_refuses_a_folder_without_detections_or_evaluation(survey):
    with pytest.raises(InputError, match=r"detections\.json does not exist"):
        run([f"--detections={survey}", f"--output={survey}/r.html"])
    with pytest.raises(InputError, match=r"evaluation\.json does not exist"):
        report(survey, f"--evaluation={survey}/found")


def test_refuses_an_output_that_is_no_page(survey):
    with pytest.raises(InputError, match=re.escape("--output='report.pdf': must be a file name ending in .html")):
        run([f"--detections={survey}/found", "--output=report.pdf"])
