import json

import numpy as np
import pytest

from survey import dataset, detections, model
from survey.anchors import AnchorSpec
from survey.dataset import Dataset, Shard, Statistics
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.heads import RetinaNetHeads
from survey.model import ModelSpec

MOSAICS = (
    Mosaic("a", "x/a.tif", 300, 500, 4, "EPSG:32617", (0.5, 0.0, 1.0, 0.0, -0.5, 2.0), 0.5, "ab", 0),
    Mosaic("b", "x/b.png", 100, 180, sha256="cd", first_patch_id=24),
)
DATASET = Dataset(
    patch_size=100,
    overlap_px=20,
    classes=("seal", "tern"),
    splits={
        "train": (Shard("train-00000-of-00001.tfrecord", 22, "ef"),),
        "val": (Shard("val-00000-of-00001.tfrecord", 4, "01"),),
    },
    mosaics=MOSAICS,
    statistics=Statistics({"train": 5, "val": 2}, {"seal": 3, "tern": 4}, 2, {"q50": 20.5}),
    counts={"objects_read": 7},
    options={"split": ["train=0.8", "val=0.2"]},
)
SPEC = ModelSpec(
    image_size=416,
    classes=("tern",),
    heads=RetinaNetHeads(AnchorSpec(3, 5, 3, (0.5, 1.0, (1.4, 0.7)), 2.0), (10.0, 10.0, 5.0, 5.0), "levels", background=True),
    score_threshold=0.4,
    score_floor=0.05,
    nms_iou=0.5,
    overlap_px=64,
    gsd_m=(0.1, 0.2),
    bands=(3, 4),
    calibration=((0.1, 0.05), (0.9, 0.8)),
    validation={"f1": 0.5},
    dataset_digest="00",
    versions={"rookery": "0.1.0"},
)


def test_dataset_round_trip(tmp_path):
    folder = str(tmp_path)
    dataset.write(folder, DATASET)
    assert dataset.read(folder) == DATASET
    assert DATASET.records("train") == 22
    assert dataset.digest(folder) == dataset.digest(folder)


def test_locate_is_the_way_back_from_a_number():
    # a has 4 x 6 = 24 patches, 0 to 23; b (one row, two columns) begins at 24.
    for patch_id, name, cell in ((0, "a", (0, 0)), (23, "a", (3, 5)), (13, "a", (2, 1)), (24, "b", (0, 0)), (25, "b", (0, 1))):
        mosaic, grid, row, column = DATASET.locate(patch_id)
        assert (mosaic.name, (row, column)) == (name, cell)
        assert mosaic.first_patch_id + grid.index(row, column) == patch_id
    for outside in (26, -1):
        with pytest.raises(InputError, match=f"patch_id={outside} is not in this dataset"):
            DATASET.locate(outside)


def test_model_round_trip(tmp_path):
    model.write(str(tmp_path), SPEC)
    assert model.read(str(tmp_path)) == SPEC


def test_detections_round_trip(tmp_path):
    # Mosaic b has nothing; it must come back all the same, or its count of 0 would be lost.
    found = detections.Detections(
        boxes_mosaic_px=np.array([[1, 2, 3.5, 4], [5, 6, 7, 8]], np.float32),
        scores=np.array([0.5, 0.25], np.float32),
        class_ids=np.array([2, 1], np.int32),
        patch_ids=np.array([3, 13], np.int64),
    )
    manifest = detections.Manifest("m", "00", ("seal", "tern"), 0.4, MOSAICS, {"a": {"tern": 1}}, {"patches": 26}, {}, {"x": "1"})
    none = found.take(np.zeros(2, bool))
    detections.write(str(tmp_path), manifest, {"a": found, "b": none})
    got_manifest, got = detections.read(str(tmp_path))
    assert got_manifest == manifest
    assert list(got) == ["a", "b"]
    for name, expected in (("a", found), ("b", none)):
        for field in ("boxes_mosaic_px", "scores", "class_ids", "patch_ids"):
            np.testing.assert_array_equal(getattr(got[name], field), getattr(expected, field))
    assert len(got["b"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.json", "detections.parquet"]


@pytest.mark.parametrize(
    ("module", "file", "version"),
    [(dataset, dataset.MANIFEST, 1), (model, model.SPEC, 2), (detections, detections.MANIFEST, 1)],
)
def test_other_versions_and_missing_files_are_refused(tmp_path, module, file, version):
    with pytest.raises(InputError, match="does not exist"):
        module.read(str(tmp_path))
    (tmp_path / file).write_text(json.dumps({"format_version": 99}))
    with pytest.raises(InputError, match=f"format_version 99: this Rookery reads {version}"):
        module.read(str(tmp_path))
