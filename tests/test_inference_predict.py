"""The verb on mosaics whose objects are written into their pixels (stub_model): every expected box follows from the painting."""

import dataclasses
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import rasterio
import stub_model
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from inference import parts, plan, predict
from inference.plan import Planned
from survey import detections, model
from survey.errors import InputError
from survey.geometry import Mosaic


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return stub_model.export(str(tmp_path_factory.mktemp("model")))


def save(path, pixels: np.ndarray, **profile) -> None:
    height, width, _ = pixels.shape
    driver = {".tif": "GTiff", ".png": "PNG"}[path.suffix]
    profile |= {"driver": driver, "height": height, "width": width, "count": 3, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # that is what a plain photo is
        with rasterio.open(path, "w", **profile) as file:
            file.write(pixels.transpose(2, 0, 1))


# Patches of 64 px with 16 px overlap start at 0, 48, 96, ...; cores meet at 56, 104, ... (the last patches snap inward).
# (y, x, side, score, class id): the box is the square of that side about (y + 0.5, x + 0.5).
PLAIN = (20, 20, 10, 0.8, 1)  # inside one core
SEAM = (30, 55, 12, 0.6, 2)  # centre 55.5, half a pixel left of the seam at 56: both patches see it whole
CORNER = (55, 104, 12, 1.0, 1)  # where four patches meet
NEIGHBOURS = [(90, 50, 12, 0.6, 2), (90, 60, 12, 0.7, 2)]  # across the seam at 56, overlapping by 2 px
LARGE = (140, 56, 40, 0.9, 2)  # wider than the overlap, on the seam: each patch sees a part
EDGE = (3, 120, 10, 0.6, 1)  # cut by the mosaic's upper edge
FAINT = (150, 150, 10, 0.2, 1)  # above the floor of 0.1, below the threshold of 0.5: kept, not counted
BELOW = (150, 120, 10, 0.05, 1)  # below the floor
OBJECTS = [PLAIN, SEAM, CORNER, *NEIGHBOURS, LARGE, EDGE, FAINT, BELOW]


def box(y: float, x: float, side: float) -> list[float]:
    return [y + 0.5 - side / 2, x + 0.5 - side / 2, y + 0.5 + side / 2, x + 0.5 + side / 2]


@pytest.fixture
def survey(tmp_path):
    """Two mosaics: one with every case, georeferenced, and one smaller than a patch."""
    folder = tmp_path / "mosaics"
    folder.mkdir()
    transform = Affine(0.5, 0, 1000, 0, -0.5, 2000)
    save(folder / "large.tif", stub_model.paint(190, 210, OBJECTS), crs="EPSG:32617", transform=transform)
    save(folder / "small.png", stub_model.paint(40, 50, [(20, 44, 16, 0.8, 1)]))
    return str(folder)


def argv(model_folder: str, survey: str, output, *more: str) -> list[str]:
    return [f"--model={model_folder}", f"--mosaics={survey}/*", f"--output={output}", *more]


def test_every_object_once(model_folder, survey, tmp_path, capsys):
    output = tmp_path / "out"
    assert predict.run(argv(model_folder, survey, output)) == 0
    manifest, found = detections.read(str(output))
    large = found["large"]
    expected = {
        (0.8, 1): [box(20, 20, 10)],
        (0.6, 2): [box(30, 55, 12), box(90, 50, 12)],
        (1.0, 1): [box(55, 104, 12)],
        (0.7, 2): [box(90, 60, 12)],
        (0.9, 2): [box(140, 56, 40)],
        (0.6, 1): [[0, 115.5, 8.5, 125.5]],
        (0.2, 1): [box(150, 150, 10)],
    }
    assert len(large) == sum(map(len, expected.values()))
    for (score, class_id), wanted in expected.items():
        same = (np.abs(large.scores - score) < 0.003) & (large.class_ids == class_id)  # scores are painted in 255ths
        got = large.boxes_mosaic_px[same]
        np.testing.assert_allclose(got[np.argsort(got[:, 0])], wanted, atol=1e-3)
    # The mosaic is smaller than a patch and padded: the box 36.5..52.5 ends at the mosaic's edge, 50.
    np.testing.assert_allclose(found["small"].boxes_mosaic_px, [[12.5, 36.5, 28.5, 50]], atol=1e-3)

    assert manifest.counts == {"large": {"bird": 3, "tree": 4}, "small": {"bird": 1, "tree": 0}}
    # Rows start at 0, 48, 96, 126 (190 px) and columns at 0, 48, 96, 144, 146 (210 px): 20 patches, and one for the small mosaic.
    assert manifest.counters["patches"] == 21
    assert manifest.counters["detections"] == 9
    assert [mosaic.first_patch_id for mosaic in manifest.mosaics] == [0, 20]
    assert all(len(mosaic.sha256) == 64 for mosaic in manifest.mosaics)
    grid = manifest.mosaics[0].grid(64, 16)
    for patch_id, one in zip(large.patch_ids, large.boxes_mosaic_px, strict=True):
        core = grid.core(*grid.cell(int(patch_id)))
        y, x = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
        assert core.y0 <= y < core.y1
        assert core.x0 <= x < core.x1

    # No parts are left, and what the default formats wrote is named.
    written = sorted(os.listdir(output))
    assert {"counts.csv", "detections.coco.json", "detections.csv", "detections.geojson", "detections.json"} <= set(written)
    assert parts.FOLDER not in written
    printed = capsys.readouterr()
    table = [line.split() for line in printed.out.splitlines()[1:5]]
    assert table == [["mosaic", "bird", "tree"], ["large", "3", "4"], ["small", "1", "0"], ["all", "4", "4"]]
    assert "map coordinates, EPSG:32617; pixels (x right, y down)" in printed.out
    assert "predict: 21 of 21 patches" in printed.err
    assert all(name in printed.out for name in written if name != "detections.json")
    assert manifest.options == {
        "overlap_px": 16,
        "patch_size": 64,
        "gsd_m": None,
        "flips": "none",
        "mosaics": f"{survey}/*",
        "batch_size": 8,
        "warnings": [],
    }


def test_one_and_two_workers_agree_to_the_byte(model_folder, survey, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert predict.run(argv(model_folder, survey, one)) == 0
    assert predict.run(argv(model_folder, survey, two, "--direct_num_workers=2", "--batch_size=3")) == 0
    for name in ("detections.parquet", "detections.csv", "detections.geojson", "detections.coco.json", "counts.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_grid_does_not_change_the_count(model_folder, survey, tmp_path):
    output = tmp_path / "out"
    assert predict.run(argv(model_folder, survey, output, "--overlap=40", "--score_threshold=0.15")) == 0
    manifest, _ = detections.read(str(output))
    assert manifest.counts == {"large": {"bird": 4, "tree": 4}, "small": {"bird": 1, "tree": 0}}  # the faint one counts now


@pytest.mark.parametrize(("trained_with", "default"), [(10, 10), (16, 16), (32, 16)])  # patches of 64 px
def test_the_default_overlap_is_a_quarter_at_most(model_folder, trained_with, default):
    spec = dataclasses.replace(model.read(model_folder), overlap_px=trained_with)
    assert predict.default_overlap(spec) == default


def test_a_finished_prediction_is_kept_and_another_refused(model_folder, survey, tmp_path, capsys):
    output = tmp_path / "out"
    assert predict.run(argv(model_folder, survey, output)) == 0
    before = (output / "detections.json").read_bytes()
    capsys.readouterr()
    assert predict.run(argv(model_folder, survey, output, "--batch_size=2")) == 0
    assert "already holds this very prediction" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"another prediction \(it differs in: overlap\): give another folder"):
        predict.run(argv(model_folder, survey, output, "--overlap=20"))
    with pytest.raises(InputError, match=r"differs in: mosaics, gsd_m, flips\)"):
        predict.run([*argv(model_folder, survey, output, "--flips=both", "--gsd_m=0.5"), f"--mosaics={survey}/large.tif"])
    with pytest.raises(InputError, match=r"differs in: mosaics, score_threshold"):
        predict.run([*argv(model_folder, survey, output, "--score_threshold=0.3"), f"--mosaics={survey}/small.png"])
    assert (output / "detections.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mosaics=nowhere/*.tif"], "--mosaics='nowhere/\\*.tif' matches no file"),
        (["--model=nowhere"], "nowhere/model.json does not exist"),
        (["--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["--overlap=-1"], "--overlap=-1"),
        (["--overlap=64"], "overlap=64 px with patch_size=64 px"),
        (["--score_threshold=1.5"], "--score_threshold=1.5: must be from 0 to 1"),
        (["--score_threshold=0.05"], "at least the model's score_floor=0.1"),
        (["--model=a,,b"], "--model=a,,b: must be different folders"),
        (["--gsd_m=0"], "--gsd_m=0.0: must be above 0"),
        (["--gsd_m=0.5"], r"--gsd_m=0\.5: mosaic .*small\.png does not say how large its pixels are"),
        (["--flips=sideways"], "invalid choice: 'sideways'"),
        (["--formats=csv,geojsn"], "did you mean 'geojson'"),
        (["--formats=csv,density"], "`rookery convert` writes the others"),
        (["--overlp=3"], "--overlp is not a flag of rookery predict: did you mean --overlap"),
        (["--runner=DirectRuner"], "DirectRuner"),
    ],
)
def test_bad_input_before_any_work(model_folder, survey, tmp_path, more, message):
    output = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        predict.run(argv(model_folder, survey, output, *more))
    assert not output.exists()


def test_mosaics_that_cannot_be_told_apart_or_read(model_folder, survey, tmp_path):
    save(tmp_path / "mosaics" / "small.tif", np.zeros((70, 70, 3), np.uint8))
    with pytest.raises(InputError, match=r"small\.png and .*small\.tif are both named 'small'.*rename"):
        predict.run(argv(model_folder, survey, tmp_path / "out"))
    os.remove(tmp_path / "mosaics" / "small.tif")
    (tmp_path / "mosaics" / "notes.txt").write_text("not an image")
    with pytest.raises(InputError, match=r"notes\.txt cannot be read as an image"):
        predict.run(argv(model_folder, survey, tmp_path / "out"))


def test_what_only_a_worker_finds_out_leaves_nothing_behind(survey, tmp_path):
    model_folder = stub_model.export(str(tmp_path / "model"), classes=("bird", "tree", "boat"))
    with pytest.raises(InputError, match=r"3 classes asks for .*raw_scores \[B, 64, 3\].*found .*raw_scores \[8, 64, 2\]"):
        predict.run(argv(model_folder, survey, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_several_models_and_flips_agree_with_one(model_folder, survey, tmp_path):
    """The stub sees the same whichever way it looks, so the averages are what each look saw."""
    plain, fused = tmp_path / "plain", tmp_path / "fused"
    twin = stub_model.export(str(tmp_path / "twin"))
    assert predict.run(argv(model_folder, survey, plain)) == 0
    assert predict.run([*argv(model_folder, survey, fused, "--flips=both"), f"--model={model_folder},{twin}"]) == 0
    (_, one), (manifest, other) = detections.read(str(plain)), detections.read(str(fused))
    assert manifest.model == f"{model_folder},{twin}"
    assert manifest.model_digest not in (model.digest(model_folder), model.digest(twin))
    for name, found in one.items():
        np.testing.assert_allclose(other[name].scores, found.scores, atol=1e-5)
        assert other[name].class_ids.tolist() == found.class_ids.tolist()
        assert other[name].patch_ids.tolist() == found.patch_ids.tolist()
        np.testing.assert_allclose(other[name].boxes_mosaic_px, found.boxes_mosaic_px, atol=1e-3)


def test_models_that_cannot_be_fused(model_folder, survey, tmp_path):
    other = stub_model.export(str(tmp_path / "other"), classes=("bird", "boat"))
    with pytest.raises(InputError, match=r"other finds bird, boat, .* finds bird, tree"):
        predict.run([*argv(model_folder, survey, tmp_path / "out"), f"--model={model_folder},{other}"])


def planned(name: str, side: int, **more: object) -> Planned:
    mosaic = Mosaic(name, f"{name}.tif", side, side, **more)
    return Planned(mosaic, mosaic, 64, 16, parts.key({"overlap_px": 16}, name))


def test_work_items_are_rows_of_patches():
    # 1000 px: starts 0, 48, ..., 936: 21 a side, 441 patches: 13 parts of 32 and one of 25. Four rows are 84 patches: parts that
    # begin at 0, 32, 64 | 96, 128, 160 | 192, 224 | 256, 288, 320 | 352, 384, 416.
    survey = [planned("a", 1000), planned("b", 64), planned("c", 1000, one_pass=True)]
    wanted = [part for one in survey for part in one.parts]
    assert [len(part) for part in survey[0].parts] == [32] * 13 + [25]
    found = plan.items(survey, wanted)
    assert [len(item.parts) for item in found] == [3, 3, 2, 3, 3, 1, 14]  # a raster without tiles is one item
    assert [part for item in found for part in item.parts] == wanted
    assert len({part.file for part in wanted}) == len(wanted)
    # Of a run that was cut short only the missing ones, where they belong.
    left = plan.items(survey, [survey[0].parts[4], survey[0].parts[13], survey[2].parts[0]])
    assert [[part.start for part in item.parts] for item in left] == [[128], [416], [0]]


def test_help_is_quick():
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-m", "inference.predict", "--help"], capture_output=True, text=True, check=True)
    assert "--mosaics" in out.stdout
    assert time.monotonic() - start < 3  # 0.4 s alone; the machine that runs the tests may be busy
