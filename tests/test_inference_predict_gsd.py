"""Mosaics of another ground resolution or number of bands than the model was trained on."""

import dataclasses
import shutil

import numpy as np
import pytest
import stub_model
from rasterio.transform import Affine
from test_inference_predict import argv, box, save

from inference import mismatch, predict
from survey import detections, model
from survey.geometry import Mosaic

TRAINED = dataclasses.replace(stub_model.SPEC, gsd_m=(0.4, 0.5), bands=(3,))
# In pixels of 0.5 m: (y, x, side, score, class id).
OBJECTS = [(20, 20, 10, 0.8, 1), (36, 108, 20, 0.6, 2), (100, 60, 12, 1.0, 1)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return stub_model.export(str(tmp_path_factory.mktemp("model")), gsd_m=(0.4, 0.5), bands=(3,))


@pytest.fixture
def survey(tmp_path):
    """One mosaic of 0.25 m a pixel. Four pixels of it make one of 0.5 m, so each object is painted as a block of 4 x 4.

    The triangle filter that halves reaches over four pixels: the middle of the block keeps its value exactly.
    """
    folder = tmp_path / "mosaics"
    folder.mkdir()
    coarse = stub_model.paint(120, 130, OBJECTS)
    fine = np.zeros((240, 260, 3), np.uint8)
    for y, x, *_ in OBJECTS:
        fine[2 * y - 1 : 2 * y + 3, 2 * x - 1 : 2 * x + 3] = coarse[y, x]
    save(folder / "fine.tif", fine, crs="EPSG:32617", transform=Affine(0.25, 0, 1000, 0, -0.25, 2000))
    return str(folder)


def test_resampled_on_the_fly_with_boxes_in_the_mosaics_own_pixels(model_folder, survey, tmp_path, capsys):
    output = tmp_path / "out"
    assert predict.run(argv(model_folder, survey, output, "--gsd_m=0.5")) == 0
    assert "warning" not in capsys.readouterr().err
    manifest, found = detections.read(str(output))
    one = found["fine"]
    order = np.argsort(one.boxes_mosaic_px[:, 0])
    expected = [np.array(box(y, x, side)) * 2 for y, x, side, _, _ in OBJECTS]
    np.testing.assert_allclose(one.boxes_mosaic_px[order], expected, atol=1e-3)
    (mosaic,) = manifest.mosaics
    assert (mosaic.height, mosaic.width, mosaic.gsd_m) == (240, 260, 0.25)
    assert manifest.options["gsd_m"] == 0.5
    # 120 px: rows at 0, 48, 56; 130 px: columns at 0, 48, 66. Nine patches, not the 30 of the mosaic as it is.
    assert manifest.counters["patches"] == 9


def test_a_mosaic_of_another_resolution_is_warned_of_with_both_numbers(model_folder, survey, tmp_path, capsys):
    assert predict.run(argv(model_folder, survey, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    text = (
        f"fine has 0.25 m a pixel, {model_folder} was trained at 0.4 to 0.5 m a pixel: objects have another size than it knows; "
    )
    assert f"warning: {text}--gsd_m=0.4472 resamples the mosaics" in printed.err  # the square root of 0.4 * 0.5
    assert "mind the 1 warning above" in printed.out
    manifest, _ = detections.read(str(tmp_path / "out"))
    assert manifest.options["warnings"] == [f"{text}--gsd_m=0.4472 resamples the mosaics"]


def warned(*mosaics: Mosaic, gsd_m: float | None = None, spec: model.ModelSpec = TRAINED) -> list[str]:
    return mismatch.warnings(spec, mosaics, gsd_m, model="m")


def mosaic(name: str, gsd_m: float | None, bands: int = 3) -> Mosaic:
    return Mosaic(name, f"{name}.tif", 100, 100, gsd_m=gsd_m, bands=bands)


def test_five_per_cent_is_near_enough():
    # 0.4 * 0.95 = 0.38 and 0.5 * 1.05 = 0.525.
    assert warned(mosaic("a", 0.381), mosaic("b", 0.524), mosaic("c", 0.45)) == []
    assert len(warned(mosaic("a", 0.379), mosaic("b", 0.526))) == 2


def test_one_line_for_mosaics_alike():
    (text,) = warned(*[mosaic(f"m{i}", 0.1) for i in range(5)])
    assert text.startswith("5 mosaics (m0, m1, m2, ...) have 0.1 m a pixel, m was trained at 0.4 to 0.5 m a pixel")


def test_no_known_resolution():
    (text,) = warned(mosaic("photo", None))
    assert text.startswith("photo has no known ground resolution, m was trained at 0.4 to 0.5 m a pixel")


def test_resampled_to_what_the_model_does_not_know():
    assert warned(mosaic("a", 0.1), gsd_m=0.5) == []
    (text,) = warned(mosaic("a", 0.1), gsd_m=2.0, spec=dataclasses.replace(TRAINED, gsd_m=(0.5, 0.5)))
    assert (
        text == "--gsd_m=2: m was trained at 0.5 m a pixel: objects have another size than it knows; --gsd_m=0.5 is right for it"
    )


def test_other_bands():
    (text,) = warned(mosaic("a", 0.5, bands=4), mosaic("b", 0.5))
    assert text.startswith(
        "a has 4 colour bands, m was trained on mosaics with 3: the first three are taken for red, green and blue"
    )
    (text,) = warned(mosaic("a", 0.5, bands=1))
    assert text.startswith("a has 1 colour band, m was trained on mosaics with 3: the first is taken for")


def test_a_model_that_does_not_say():
    unknown = dataclasses.replace(TRAINED, gsd_m=None, bands=())
    assert warned(mosaic("a", 0.1, bands=1), mosaic("b", None), spec=unknown) == []


def test_several_models_each_warn(model_folder, survey, tmp_path, capsys):
    other = str(tmp_path / "other")
    shutil.copytree(model_folder, other)
    model.write(other, dataclasses.replace(TRAINED, gsd_m=(1.0, 1.0)))
    assert predict.run([*argv(model_folder, survey, tmp_path / "out"), f"--model={model_folder},{other}"]) == 0
    assert capsys.readouterr().err.count("warning: fine has 0.25 m a pixel") == 2
