"""What goes into the report: pictures within their budget, detections as arrays, verdicts, crops and chart geometry."""

import base64
import json

import numpy as np
import pytest
import simplejpeg

from inference.page import charts, embedded, pictures, tiles
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic
from survey.metrics import Operating
from survey.raster import Raster
from survey.reliability import Reliability


def test_pictures_keep_to_their_budget(tmp_path, write_raster):
    # Noise is the worst that JPEG can meet: 0.9 bytes a pixel and more, so 1,800 x 2,000 px of it are above 3 MB, and the
    # coarser level of 900 x 1,000 px above 0.8 MB.
    noise = np.random.default_rng(0).integers(0, 256, (1800, 2000, 3), dtype=np.uint8)
    with Raster(write_raster(tmp_path / "noise.png", noise)) as raster:
        for budget, sizes in ((8_000_000, [(900, 1000), (1800, 2000)]), (2_000_000, [(900, 1000)])):
            pyramid = tiles.build(raster, 1800, 2000, budget)
            assert [(level.height, level.width) for level in pyramid.levels] == sizes
            assert pyramid.bytes <= budget
            assert pyramid.full == (len(sizes) == 2)
        # 100 kB: not even the coarser level, which is shrunk until it fits.
        pyramid = tiles.build(raster, 1800, 2000, 100_000)
        assert 30_000 < pyramid.bytes <= 100_000
        assert len(pyramid.levels) == 1
    boxes = np.zeros((5, 4))
    layer = pictures.layer("many", boxes, pictures.TP, most=2)
    assert (layer.count, layer.path.count("M")) == (5, 2)


def test_tiles_put_together_are_the_mosaic(tmp_path, pixels, write_raster):
    image = pixels(1100, 1700)
    with Raster(write_raster(tmp_path / "m.png", image)) as raster:
        base, fine = tiles.build(raster, 1100, 1700, 10_000_000).levels
    # 1,700 px are more than 1,600, so the coarser level is half: 550 x 850. The finer has ceil(1700 / 512) = 4 columns, 3 rows.
    assert (base.height, base.width, len(base.tiles)) == (550, 850, 1)
    assert (fine.height, fine.width, fine.columns, len(fine.tiles)) == (1100, 1700, 4, 12)
    pieces = [simplejpeg.decode_jpeg(tile) for tile in fine.tiles]
    rows = [np.concatenate(pieces[4 * row : 4 * row + 4], axis=1) for row in range(3)]
    whole = np.concatenate(rows).astype(int)
    assert whole.shape == image.shape
    assert np.abs(whole - image).mean() < 3


def test_detections_in_the_page(tmp_path):
    # 2,000 px wide: a unit is 2000 / 65535 px, so x 1,000 is 32,767.5, rounded to the even 32,768.
    mosaic = Mosaic("m", "m.png", 1000, 2000)
    boxes, scores = np.float32([[0, 1000, 10, 2000], [1, 1, 2, 2], [1, 1, 2, 2]]), np.float32([0.9, 0.3, 0.3])
    found = {"m": Detections(boxes, scores, np.int32([2, 1, 1]), np.zeros(3, int))}
    manifest = Manifest("", "", ("a", "b"), 0.5, (mosaic,), {}, {}, {}, {})
    value = embedded.block(manifest, found, {}, {}, (), {}, most=3)["mosaics"][0]
    assert np.frombuffer(base64.b64decode(value["boxes"]), "<u2")[:4].tolist() == [0, 32768, 328, 65535]
    assert np.frombuffer(base64.b64decode(value["scores"]), "<f4").tolist() == scores.tolist()
    assert np.frombuffer(base64.b64decode(value["classes"]), "<u2").tolist() == [1, 0, 0]
    # Two fit: of the two that share 0.3 one would do, so none is kept, and the page is complete from 0.9 up.
    value = embedded.block(manifest, found, {}, {}, (), {}, most=2)
    assert (value["lowest"], value["complete"]) == (float(np.float32(0.9)), False)
    assert len(base64.b64decode(value["mosaics"][0]["scores"])) == 4


def test_verdicts_of_all_detections():
    # One object. The better box overlaps by 100 / 300 only, the other fits: at IoU 0.3 the better one takes the object, at 0.5
    # the other one does.
    found = Detections(np.float32([[0, 0, 10, 30], [0, 0, 10, 10]]), np.float32([0.9, 0.4]), np.int32([1, 1]), np.zeros(2, int))
    truths = embedded.Truths(np.array([[0, 0, 10, 10.0]]), np.array([1]))
    judged = embedded.judge(found, truths, 1, (0.3, 0.5))
    assert judged.hits.tolist() == [0b01, 0b10]
    assert judged.found_at.tolist() == [float(np.float32(0.9))]
    assert embedded.judge(found, truths, 1, (0.5, 0.3)).found_at.tolist() == [float(np.float32(0.4))]


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
    (line,) = charts.precision_recall([("IoU 0.5", [0.5, 1.0], [1.0, 0.5], at, "- 0")]).lines
    assert line.path == "M54 14L260 14L466 157"
    assert line.point == (260, 85.5)
    # 25 bins of .04: .5 lies in bin 12, 1.0 in the last; 3 detections at most in a bin, so ticks 0 .. 3, 3 at the top.
    chart = charts.histogram(np.float32([0.5, 0.5, 0.49, 1.0]), 0.5)
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3"]
    assert (chart.bars[12].counted_y, chart.bars[12].rest_y) == (109.3, 14)  # 2 of 3 and 3 of 3: 300 - 286 * 2 / 3
    assert chart.bars[24].counted_height == pytest.approx(95.3)
    assert chart.threshold_x == 260


def test_calibration_chart_by_hand():
    # Mean score 0.5 and half of 10 right: x = 54 + 206, y = 300 - 143; Wilson's interval is 0.237 to 0.763: 232.2 and 81.8.
    (series,) = charts.reliability([("all", (Reliability(0.5, 0.5, 10),))]).series
    (mark,) = series.marks
    assert (mark.x, mark.y) == (260, 157)
    assert (mark.low_y, mark.high_y) == pytest.approx((232.3, 81.7), abs=0.2)
    assert charts.wilson(1.0, 4)[1] == pytest.approx(1.0)
    # None of 4: z^2 / (n + z^2) = 3.8415 / 7.8415.
    assert charts.wilson(0.0, 4) == pytest.approx((0.0, 0.4899), abs=1e-4)


def test_json_in_a_script_element_cannot_end_it():
    hostile = "</script><!--<script>&\u2028"
    text = str(embedded.as_json({hostile: [hostile]}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {hostile: [hostile]}
