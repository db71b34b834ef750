"""The verb on mosaics whose objects are written into their pixels (stub_model): every expected box follows from the painting."""

import dataclasses
import json
import os
import shutil
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

from inference import parts, predict
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

    assert sorted(os.listdir(output)) == [
        "counts.csv",
        "detections.coco.json",
        "detections.csv",
        "detections.geojson",
        "detections.json",
        "detections.parquet",
    ]
    printed = capsys.readouterr()
    table = [line.split() for line in printed.out.splitlines()[1:5]]
    assert table == [["mosaic", "bird", "tree"], ["large", "3", "4"], ["small", "1", "0"], ["all", "4", "4"]]
    assert "map coordinates, EPSG:32617; pixels (x right, y down)" in printed.out
    assert "predict: 21 of 21 patches" in printed.err
    # The plain bird's centre (20.5, 20.5) on a map of 0.5 m pixels.
    features = json.loads((output / "detections.geojson").read_text())["features"]
    ring = next(f for f in features if f["properties"]["score"] == 0.8)["geometry"]["coordinates"][0]
    np.testing.assert_allclose(np.mean(ring[:4], axis=0), [1000 + 20.5 * 0.5, 2000 - 20.5 * 0.5], atol=1e-3)


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


def test_a_finished_prediction_is_kept_and_another_refused(model_folder, survey, tmp_path, capsys):
    output = tmp_path / "out"
    parts_folder = output / parts.FOLDER
    parts_folder.mkdir(parents=True)
    (parts_folder / "0000000000-0000000099.parquet").write_text("left over from a run that was killed")
    assert predict.run(argv(model_folder, survey, output)) == 0
    before = (output / "detections.json").read_bytes()
    capsys.readouterr()
    assert predict.run(argv(model_folder, survey, output, "--batch_size=2")) == 0
    assert "already holds this very prediction" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"another prediction \(it differs in: overlap\): give another folder"):
        predict.run(argv(model_folder, survey, output, "--overlap=20"))
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
    with pytest.raises(InputError, match=r"raw_scores \[8, 64, 2\] do not fit model.json.*3 classes"):
        predict.run(argv(model_folder, survey, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_mosaic(model_folder, tmp_path):
    path = tmp_path / "torn.tif"
    save(path, np.zeros((300, 300, 3), np.uint8))
    os.truncate(path, os.path.getsize(path) // 2)  # as after a copy that was cut short: the header still reads well
    output = tmp_path / "out"
    with pytest.raises(InputError, match=r"torn\.tif is damaged"):
        predict.run([f"--model={model_folder}", f"--mosaics={path}", f"--output={output}"])
    assert not output.exists()


def test_work_items_are_runs_of_patches():
    # 1000 px: starts 0, 48, ..., 936: 21 a side, 441 patches; 16 a run make 27 runs of 16 and one of 9.
    mosaics = [Mosaic("a", "a.png", 1000, 1000), Mosaic("b", "b.png", 64, 64, first_patch_id=441)]
    runs = predict.plan(mosaics, 64, 16)
    assert [len(patches) for _, patches in runs] == [16] * 27 + [9, 1]
    assert [patches.start for mosaic, patches in runs if mosaic.name == "a"] == list(range(0, 441, 16))


def test_help_is_quick():
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-m", "inference.predict", "--help"], capture_output=True, text=True, check=True)
    assert "--mosaics" in out.stdout
    assert time.monotonic() - start < 3  # 0.4 s alone; the machine that runs the tests may be busy


def test_a_model_of_one_ground_resolution_refuses_another(model_folder, survey, tmp_path):
    """The large mosaic has 0.5 m a pixel; the small one, a plain photo, has none."""
    spec = model.read(model_folder)
    for gsd_m, words in ((0.25, r"large\.tif has 0\.5 m a pixel, the model was trained at 0\.25 m"), (0.5, "no known ground")):
        folder = tmp_path / f"model-{gsd_m}"
        shutil.copytree(model_folder, folder)
        model.write(str(folder), dataclasses.replace(spec, gsd_m=gsd_m))
        with pytest.raises(InputError, match=words):
            predict.run(argv(str(folder), survey, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
