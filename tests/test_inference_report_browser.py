"""The report in a real browser: it loads in silence, numbers follow the slider as numpy counts, the map obeys the keyboard."""

import dataclasses
import io
import json
import re

import browser
import numpy as np
import pytest
from PIL import Image

from inference import evaluate, report
from inference.page import embedded
from survey import detections
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic

EVIL = "</script><script>alert(1)</script>"
WORSE = "\"'><img src=x onerror=alert(2)><!--<script>"


@pytest.fixture(scope="module")
def chromium():
    with browser.browser() as running:
        yield running


def survey(folder, pixels, write_raster, write_voc, *, side=700, classes=("gull", "tern"), name="north", number=400):
    """Two mosaics with `number` random detections each; `name` has an object where every third detection is."""
    generator = np.random.default_rng(7)
    mosaics, found, objects = [], {}, []
    for i, label in enumerate((name, "south")):
        path = write_raster(folder / f"m{i}.png", pixels(side, side, i))
        mosaics.append(Mosaic(label, path, side, side))
        corner = generator.uniform(0, side - 20, (number, 2)).round()
        boxes = np.concatenate([corner, corner + generator.integers(6, 20, (number, 2))], axis=1)
        # Scores on a grid of 0.001 and between: the slider stops exactly on some of them.
        scores = np.sort(
            np.where(
                generator.random(number) < 0.5, generator.uniform(0.05, 1, number).round(3), generator.uniform(0.05, 1, number)
            )
        )
        ids = generator.integers(1, len(classes) + 1, number)
        found[label] = Detections(
            boxes.astype(np.float32), scores[::-1].astype(np.float32), ids.astype(np.int32), np.zeros(number, np.int64)
        )
        if not i:
            objects = [(classes[ids[k] - 1], tuple(boxes[k])) for k in range(0, number, 3)]
    counts = {label: dict.fromkeys(classes, 0) for label in found}
    manifest = Manifest(
        "model", "ab" * 32, classes, 0.437, tuple(mosaics), counts, {"patches": 4}, {"overlap_px": 64}, {"numpy": "2"}
    )
    detections.write(str(folder / "found"), manifest, found)
    write_voc(folder / "truth.xml", f"{name}.png", (side, side), objects)
    return manifest, found, objects


def write_report(folder, *, judged=True):
    if judged:
        assert evaluate.run([f"--detections={folder}/found", f"--annotations={folder}/truth.xml"]) == 0
    assert report.run([f"--detections={folder}/found", f"--output={folder}/report.html"]) == 0
    return folder / "report.html"


def number_in(text):
    return int(re.search(r"[\d,]+", text)[0].replace(",", ""))


def set_threshold(page, value):
    page.evaluate(
        """value => {
        const slider = document.getElementById('threshold');
        slider.value = value;
        slider.dispatchEvent(new Event('input'));
    }""",
        str(value),
    )


def assert_silent(log):
    assert log.complaints == []
    assert log.requests == []
    assert log.dialogs == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("survey")


@pytest.fixture
def judged_page(made, pixels, write_raster, write_voc):
    """The page of a judged survey, made once for the module, and what is in it."""
    if not (made / "report.html").exists():
        survey(made, pixels, write_raster, write_voc)
        write_report(made)
    manifest, found = detections.read(str(made / "found"))
    return made / "report.html", manifest, found


def test_live_numbers_are_numpys(chromium, judged_page):
    path, manifest, found = judged_page
    page, log = browser.opened(chromium, path)
    hero = page.locator("h1 .big")
    # One score of the data itself, the slider's own steps, and both ends.
    for threshold in (0.05, 0.25, 0.437, 0.438, 0.9, 1.0, 0.613):
        set_threshold(page, threshold)
        want = sum(int((one.scores >= np.float32(threshold)).sum()) for one in found.values())
        assert number_in(hero.inner_text()) == want
        for m, mosaic in enumerate(manifest.mosaics):
            one = found[mosaic.name]
            for c in range(2):
                cell = page.locator(f'tbody [data-live="found {m} {c}"]').first
                assert number_in(cell.inner_text()) == int(
                    ((one.scores >= np.float32(threshold)) & (one.class_ids == c + 1)).sum()
                )
    # Exactly on a score of the data, given as the double that prints it.
    score = float(np.sort(found["north"].scores)[100])
    page.locator("#threshold-number").fill(repr(score))
    assert number_in(hero.inner_text()) == sum(int((one.scores >= np.float32(score)).sum()) for one in found.values())
    assert_silent(log)


def test_live_precision_and_recall_are_evaluates(chromium, judged_page, tmp_path):
    path, manifest, found = judged_page
    page, log = browser.opened(chromium, path)
    # `evaluate` of the same detections at another threshold is another program that must come to the same numbers.
    folder = tmp_path / "again"
    for threshold in (0.2, 0.7):
        detections.write(str(folder), dataclasses.replace(manifest, score_threshold=threshold), found)
        assert evaluate.run([f"--detections={folder}", f"--annotations={path.parent}/truth.xml"]) == 0
        judged = json.loads((folder / "evaluation.json").read_text())["overall"]["at_iou"]
        set_threshold(page, threshold)
        for i, one in enumerate(judged):
            at = one["at_score_threshold"]
            cells = {
                kind: page.locator(f'td[data-live="{kind} - - {i}"]').inner_text() for kind in ("right", "false", "missed", "f1")
            }
            assert [number_in(cells[kind]) for kind in ("right", "false", "missed")] == [at["tp"], at["fp"], at["fn"]]
            assert float(cells["f1"]) == pytest.approx(at["f1"], abs=6e-4)
    assert_silent(log)


def test_page_says_the_same_with_and_without_scripts(chromium, judged_page):
    path, _, _ = judged_page
    texts = []
    for scripts in (True, False):
        page, _ = browser.opened(chromium, path, scripts=scripts)
        texts.append(page.locator("[data-live]").all_inner_texts() + page.locator(".layer-count").all_inner_texts())
        assert page.locator("#controls").is_visible() == scripts
        assert page.locator(".mosaic img").first.is_visible() != scripts
    assert texts[0] == texts[1]
    # The map of the page without scripts shows the boxes that are right in their own blue, #56B4E9.
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".map").first.screenshot())).convert("RGB")).astype(int)
    assert (np.abs(shot - [0x56, 0xB4, 0xE9]).max(axis=2) < 12).sum() > 200
    assert len(texts[0]) > 30


def view(page):
    """Scale of the first map in percent, as it shows it."""
    return float(page.locator(".scale").first.inner_text().removesuffix(" %"))


def picture(page):
    """What the first map shows, as the bytes of a screenshot."""
    page.wait_for_timeout(150)  # it is drawn with the next frame
    return page.locator(".map").first.screenshot()


def test_map_by_keyboard(chromium, judged_page):
    path, _, _ = judged_page
    page, log = browser.opened(chromium, path)
    frame = page.locator(".map").first
    frame.focus()
    page.wait_for_timeout(300)
    whole, drawn = view(page), picture(page)
    page.keyboard.press("+")
    assert view(page) == pytest.approx(1.5 * whole, rel=0.02)
    zoomed = picture(page)
    assert zoomed != drawn
    page.keyboard.press("ArrowDown")  # the square mosaic still fits across
    assert picture(page) != zoomed
    page.keyboard.press("-")
    assert view(page) == pytest.approx(whole, rel=0.02)
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.keyboard.press("0")
    assert view(page) == pytest.approx(whole)
    assert picture(page) == drawn
    # n: the best of all, and its words.
    page.keyboard.press("n")
    status = page.locator(".status").first.inner_text()
    assert status.startswith("1 of ")
    assert "score 0.99" in status or "score 1.000" in status
    page.locator(".tip").first.wait_for(state="visible", timeout=60_000)  # drawn with the next frame
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    assert picture(page) == drawn
    assert_silent(log)


def test_map_by_mouse_wheel_buttons_and_fingers(chromium, judged_page):
    path, _, _ = judged_page
    page, log = browser.opened(chromium, path)
    frame = page.locator(".map").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    whole = view(page)
    page.mouse.wheel(0, 10)  # not yet focused: the page scrolls, the map says how
    page.wait_for_timeout(200)
    assert view(page) == whole
    assert page.locator(".wheel-hint").first.is_visible()
    frame.focus()
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(200)
    assert view(page) == pytest.approx(whole * np.exp(0.6), rel=0.02)  # exp(300 * 0.002)
    page.locator('[data-do="fit"]').first.click()
    assert view(page) == whole
    # Two fingers that part from 100 to 200 px: twice as large.
    page.evaluate("""() => {
        const frame = document.querySelector('.map');
        frame.setPointerCapture = () => {};
        const edge = frame.getBoundingClientRect();
        const send = (kind, id, x) => frame.dispatchEvent(new PointerEvent(kind,
            {pointerId: id, pointerType: 'touch', clientX: edge.left + x, clientY: edge.top + 200, bubbles: true}));
        send('pointerdown', 11, 300); send('pointerdown', 12, 400);
        send('pointermove', 11, 250); send('pointermove', 12, 450);
        send('pointerup', 11, 250); send('pointerup', 12, 450);
    }""")
    assert view(page) == pytest.approx(2 * whole, rel=0.02)
    assert_silent(log)


def test_hover_layers_classes_and_examples(chromium, judged_page):
    path, _, found = judged_page
    page, log = browser.opened(chromium, path)
    page.locator("a[data-jump]").first.click()
    page.wait_for_timeout(300)
    text = page.locator(".tip").first.inner_text()
    best = page.locator("a[data-jump]").first.get_attribute("data-text")
    assert text.startswith(best)
    # The example lies in the middle of the map now: hovering there finds it again.
    box = page.locator(".map").first.bounding_box()
    assert 0 <= box["y"] < 900
    page.keyboard.press("Escape")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(200)
    assert "score" in page.locator(".tip").first.inner_text()
    # A class that is put out leaves the map and the line of totals, not the table.
    gulls = sum(int(((one.scores >= np.float32(0.437)) & (one.class_ids == 1)).sum()) for one in found.values())
    before = page.locator("h1 .big").inner_text()
    page.locator('input[data-class="1"]').uncheck()
    assert page.locator("#summary").inner_text().startswith(f"{gulls} counted of the classes shown")
    assert page.locator("h1 .big").inner_text() == before
    drawn = picture(page)
    page.locator(".mosaic input.layer").first.uncheck()
    assert picture(page) != drawn
    page.locator("#reset").click()
    assert_silent(log)


def test_hostile_text_does_nothing(chromium, tmp_path, pixels, write_raster, write_voc):
    manifest, found, _ = survey(
        tmp_path, pixels, write_raster, write_voc, side=100, classes=(EVIL, WORSE), name="north", number=30
    )
    evil = tuple(
        Mosaic(f"{EVIL}{WORSE}{i}", mosaic.path, mosaic.height, mosaic.width) for i, mosaic in enumerate(manifest.mosaics)
    )
    options = {"warnings": [EVIL, WORSE], EVIL: WORSE}
    manifest = Manifest(EVIL, WORSE, (EVIL, WORSE), 0.5, evil, {}, {EVIL: 1}, options, {WORSE: EVIL})
    detections.write(str(tmp_path / "found"), manifest, dict(zip((m.name for m in evil), found.values(), strict=True)))
    page, log = browser.opened(chromium, write_report(tmp_path, judged=False))
    page.locator(".map").first.focus()
    page.keyboard.press("n")
    page.wait_for_timeout(200)
    assert page.locator(".tip").first.inner_text().startswith(("1 of 14: " + EVIL, "1 of 14: " + WORSE))
    assert page.locator("script").count() == 2
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("JSON.parse(document.getElementById('data').textContent).classes") == [EVIL, WORSE]
    assert_silent(log)


def test_policy_stops_other_scripts(chromium, judged_page):
    path, _, _ = judged_page
    page, log = browser.opened(chromium, path)
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.intruder = true';
        document.body.append(script);
        const image = new Image();
        image.src = 'file:///etc/hostname';
        document.body.append(image);
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.intruder") is None
    assert any("Content Security Policy" in text for text in log.complaints)


def test_more_detections_than_the_page_holds(chromium, tmp_path, pixels, write_raster, write_voc, monkeypatch):
    _, found, _ = survey(tmp_path, pixels, write_raster, write_voc, side=100, number=60)
    scores = np.concatenate([one.scores for one in found.values()])
    # 40 of 120 fit: below the 40th score the page knows only what is written in it, which is right at the threshold of the run.
    monkeypatch.setattr(embedded, "MAX_DETECTIONS", 40)
    lowest = float(np.sort(scores)[-40])
    assert lowest > 0.437
    page, log = browser.opened(chromium, write_report(tmp_path))
    assert number_in(page.locator("h1 .big").inner_text()) == int((scores >= np.float32(0.437)).sum())
    assert float(page.locator("#threshold").get_attribute("min")) == pytest.approx(lowest, abs=0.001)
    assert "holds the 40 detections of the highest scores" in page.locator("#controls").inner_text()
    set_threshold(page, 0.95)
    assert number_in(page.locator("h1 .big").inner_text()) == int((scores >= np.float32(0.95)).sum())
    page.locator("#reset").click()
    assert number_in(page.locator("h1 .big").inner_text()) == int((scores >= np.float32(0.437)).sum())
    assert_silent(log)


def test_narrow_dark_and_on_paper(chromium, judged_page):
    path, _, _ = judged_page
    page, log = browser.opened(chromium, path, width=390, height=844, dark=True, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing reaches beyond the screen
    page.emulate_media(media="print")
    assert not page.locator("#threshold").is_visible()
    assert page.locator(".map canvas").first.is_visible()
    assert_silent(log)
