"""rookery report, through run(argv): one page that holds all it shows, and shows text from data as text."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from inference import charts, evaluate, pictures
from inference.report import run
from survey import detections, model
from survey.anchors import AnchorSpec
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.metrics import Operating
from survey.model import ModelSpec
from survey.raster import Raster

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
        self.text += " " * (tag == "br")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
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
    assert "<script" not in html.lower()
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


def test_size_is_bounded(tmp_path, write_raster):
    # Noise is the worst that JPEG can meet: 1,500 x 1,500 px of it are about 2.5 MB, above a budget of 100 kB.
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    with Raster(write_raster(tmp_path / "noise.png", noise)) as raster:
        uri = pictures.overview(raster, 100_000)
    assert 30_000 < len(uri) <= 100_000 * 4 / 3 + 40
    boxes = np.zeros((5, 4))
    layer = pictures.layer("many", boxes, pictures.TP, most=2)
    assert (layer.count, layer.path.count("M")) == (5, 2)


def test_crop_stays_inside_and_keeps_the_box_in_place(tmp_path, pixels, write_raster):
    with Raster(write_raster(tmp_path / "m.png", pixels(100, 200))) as raster:
        mosaic = Mosaic("m", raster.path, 100, 200)
        # A 20 x 10 box: a piece of 2.4 * 20 = 48 px around (15, 195). Rows -9 .. 39 move to 0 .. 48, columns 171 .. 219 to
        # 152 .. 200.
        crop = pictures.crop(raster, mosaic, (5, 190, 25, 200), pictures.TP, "gull", 0.9)
        assert (crop.height, crop.width, crop.path) == (48, 48, "M38 5h10v20h-10z")
        # A box as large as the mosaic: the piece is the mosaic.
        crop = pictures.crop(raster, mosaic, (0, 0, 100, 200), pictures.FN, "gull")
        assert (crop.height, crop.width, crop.path) == (100, 200, "M0 0h200v100h-200z")


def test_chart_geometry_by_hand():
    # The plot spans x 54 .. 466 and y 300 .. 14. Recall .5, precision .75: x = 54 + 206, y = 300 - 214.5.
    at = Operating(0.5, 1, 1, 1, 0.75, 0.5, 0.6)
    (line,) = charts.precision_recall([("IoU 0.5", [0.5, 1.0], [1.0, 0.5], at)]).lines
    assert line.path == "M54 14L260 14L466 157"
    assert line.point == (260, 85.5)
    # 25 bins of .04: .5 lies in bin 12, 1.0 in the last; 3 detections at most in a bin, so ticks 0 .. 3, 3 at the top.
    chart = charts.histogram(np.float32([0.5, 0.5, 0.49, 1.0]), 0.5)
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3"]
    assert (chart.bars[12].counted_y, chart.bars[12].rest_y) == (109.3, 14)  # 2 of 3 and 3 of 3: 300 - 286 * 2 / 3
    assert chart.bars[24].counted_height == pytest.approx(95.3)
    assert chart.threshold_x == 260


def test_the_models_dataset_is_named_while_the_model_is_the_same(survey):
    folder = str(survey / "model")
    anchors = AnchorSpec(min_level=3, max_level=5, num_scales=1, aspect_ratios=(1.0,), anchor_size=3.0)
    spec = ModelSpec("retinanet", 416, ("gull",), anchors, (1, 1, 1, 1), 0.5, 0.05, 0.4, 64, None, {"f1": 0.61}, "ef" * 32, {})
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
