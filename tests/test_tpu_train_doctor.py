"""`rookery doctor`: a healthy dataset passes; what is broken is named by the check that it belongs to, and by no other."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import tensorflow as tf

from pipeline import records, shard
from survey import anchors, boxes, dataset
from survey.anchors import AnchorSpec
from survey.errors import InputError
from tpu_train import checks, doctor, duplicates, fitness, inspection

SIZE = 128


def ground(seed: int) -> np.ndarray:
    """A smooth ground that is unlike that of other seeds and unlike itself elsewhere, 300 px a side."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 200, (16, 16, 3))
    at = np.linspace(0, 14.99, 300)
    low, part = at.astype(int), (at % 1)[:, None]
    rows = coarse[low] * (1 - part[..., None]) + coarse[low + 1] * part[..., None]
    fine = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return fine.astype(np.uint8)


def write_survey(folder: Path, names: tuple[str, str]) -> str:
    """Two mosaics with 36 objects of two classes each, sharded: the first is for training, the second for validation."""
    for seed, mosaic in enumerate(("one", "two")):
        rng = np.random.default_rng(seed + 10)
        image, text = ground(seed), ""
        for number in range(36):
            # One in each cell of 50 px; the lower right quarter stays empty, so that there are patches without objects.
            y, x = (50 * cell + int(rng.integers(2, 18)) for cell in divmod(number, 6))
            side = int(rng.integers(16, 29))
            if y > 140 and x > 140:
                continue
            image[y : y + side, x : x + side] = 255 * (number % 2)
            label = names[number % 2].replace("&", "&amp;").replace("<", "&lt;")
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + side}</xmax><ymax>{y + side}</ymax>"
            text += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
        profile = {"driver": "GTiff", "height": 300, "width": 300, "count": 3, "dtype": "uint8", "crs": "EPSG:32617"}
        with rasterio.open(folder / f"{mosaic}.tif", "w", transform=rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 4e6), **profile) as out:
            out.write(image.transpose(2, 0, 1))
        (folder / f"{mosaic}.xml").write_text(f"<annotation><filename>{mosaic}.tif</filename>{text}</annotation>")
    out_folder = str(folder / "dataset")
    argv = f"--mosaics {folder}/*.tif --annotations {folder}/*.xml --patch_size {SIZE} --overlap 32 --split train=0.5,val=0.5"
    assert shard.run([*argv.split(), "--records_per_shard", "5", "--output", out_folder]) == 0
    return out_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_survey(tmp_path_factory.mktemp("survey"), ("auk", "gull"))


@pytest.fixture
def folder(good: str, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(good, tmp_path / "dataset")
    return tmp_path / "dataset"


def examine(folder: Path | str, sample: int = 0) -> dict[str, checks.Check]:
    """Every verdict by name, without the page."""
    folder, data = str(folder), dataset.read(str(folder))
    seen = inspection.inspect(folder, data, sample=sample)
    reader = inspection.Reader(data.patch_size, data.statistics.max_objects_per_patch)
    search = duplicates.search(
        seen.fingerprints, seen.split, seen.seen, seen.even, lambda i: reader.image(inspection.content(folder, seen, i))
    )
    fit = fitness.fit_anchors(folder, data, seen)
    found = [*checks.of_records(folder, data, seen), *fitness.of_content(folder, data, seen, search, fit)]
    return {check.name: check for check in found}


def troubled(found: dict[str, checks.Check]) -> list[str]:
    return [name for name, check in found.items() if check.severity in (checks.WARNING, checks.ERROR)]


def read_records(path: Path) -> list[bytes]:
    return [record.numpy() for record in tf.data.TFRecordDataset(str(path))]


def change(folder: Path, split: str, index: int, edit: Callable[[tf.train.Example], None]) -> str:
    """Edits one record of a split's first shard and makes the manifest true again; returns the shard's name."""
    manifest = json.loads((folder / "dataset.json").read_text())
    entry = manifest["splits"][split][0]
    path = folder / entry["file"]
    contents = read_records(path)
    example = tf.train.Example.FromString(contents[index])
    edit(example)
    contents[index] = example.SerializeToString()
    entry["sha256"] = records.write_tfrecord(str(path), contents)
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return str(entry["file"])


def put(key: str, position: int, value: float | bytes) -> Callable[[tf.train.Example], None]:
    def edit(example: tf.train.Example) -> None:
        feature = example.features.feature[key]
        getattr(feature, feature.WhichOneof("kind")).value[position] = value

    return edit


def encode(pixels: np.ndarray, quality: int = 95) -> bytes:
    encoded: bytes = tf.io.encode_jpeg(pixels, quality=quality).numpy()
    return encoded


def test_a_healthy_dataset_is_fit(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "doctor.html")
    assert doctor.run(["--dataset", good, "--output", out, "--strict"]) == doctor.FIT
    printed = capsys.readouterr().out
    assert "\nfit to train\n" in printed
    lines = [line for line in printed.splitlines() if line.startswith("ok ")]
    assert len({line.index("  ", 9) for line in lines if line.startswith("ok       objects per patch")}) == 1
    assert not re.search(r"^(warning|error)", printed, re.MULTILINE)
    page = Path(out).read_text()
    assert "Fit to train" in page
    assert "<script" not in page
    # The namespace of no SVG, no font, no picture: nothing that a browser would fetch.
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count('class="boxes"') == page.count("<figcaption><b>Patch")
    assert "auk" in page
    written = dataset.read(good)
    assert f"{written.records('train')} train" in page


@pytest.mark.parametrize(
    ("edit", "name", "words"),
    [
        (put("image/source_id", 0, b"patch_12"), "ids", r"image/source_id is 'patch_12'"),
        (put("image/source_id", 0, b""), "ids", "image/source_id is empty"),
        (put("image/source_id", 0, b"7777"), "ids", r"image/source_id is 7777, image/patch_id is \d+"),
        (put("image/object/class/label", 0, 0), "labels", r"label 0 in train-00000"),
        (put("image/object/class/label", 0, 3), "labels", r"label 3 in train-00000"),
        (put("image/object/class/text", 0, b"tern"), "label map", r"is called 'tern', the manifest says '(auk|gull)'"),
        (put("image/object/bbox/ymax", 0, 1.5), "boxes", "outside the patch"),
        (put("image/object/bbox/ymax", 0, float("nan")), "boxes", "not a number"),
        (put("image/object/bbox/ymax", 0, -0.5), "boxes", "without area"),
        (put("image/encoded", 0, b"no picture"), "decoder", "is not a picture that can be decoded"),
        (lambda example: example.features.feature.pop("image/patch_id"), "decoder", "image/patch_id.*required"),
        (lambda example: example.features.feature["image/object/bbox/ymin"].float_list.value.append(0.5), "decoder", "lengths"),
        (put("image/encoded", 0, encode(np.zeros((96, 128, 3), np.uint8))), "image size", "96 px high, 128 px wide"),
        (put("image/height", 0, 64), "image size", "say 64 and 128 px"),
    ],
)  # fmt: skip
def test_a_broken_record_is_named(folder: Path, edit: Callable[[tf.train.Example], None], name: str, words: str) -> None:
    """Record 0 of the first shard; the manifest is made true again, so that only the one check has something to say."""
    change(folder, "train", 0, edit)
    found = examine(folder)
    assert troubled(found) == [name]
    assert found[name].severity == checks.ERROR
    assert re.search(words, " ".join((found[name].found, *found[name].cases)))
    assert "train-00000" in " ".join(found[name].cases)
    assert "record 0" in " ".join(found[name].cases)
    assert found[name].remedy


def test_a_number_that_stands_twice(folder: Path) -> None:
    first = tf.train.Example.FromString(read_records(folder / dataset.read(str(folder)).splits["train"][0].file)[0])
    number = first.features.feature["image/patch_id"].int64_list.value[0]

    def same(example: tf.train.Example) -> None:
        put("image/patch_id", 0, number)(example)
        put("image/source_id", 0, str(number).encode())(example)

    change(folder, "train", 1, same)
    found = examine(folder)
    assert troubled(found) == ["ids"]
    assert f"patch {number} stands in train-00000-of-00002.tfrecord record 0 and in" in found["ids"].cases[0]


def test_labels_counted_from_zero_are_recognised(folder: Path) -> None:
    """Two classes as 0 and 1 instead of 1 and 2, in every record: YOLO's way."""
    manifest = json.loads((folder / "dataset.json").read_text())
    for shards in manifest["splits"].values():
        for entry in shards:
            contents = []
            for record in read_records(folder / entry["file"]):
                example = tf.train.Example.FromString(record)
                values = example.features.feature["image/object/class/label"].int64_list.value
                values[:] = [value - 1 for value in values]
                example.features.feature.pop("image/object/class/text")
                contents.append(example.SerializeToString())
            entry["sha256"] = records.write_tfrecord(str(folder / entry["file"]), contents)
    (folder / "dataset.json").write_text(json.dumps(manifest))
    found = examine(folder)["labels"]
    assert "add 1 to each" in found.remedy
    assert "num_classes = classes + 1 = 3" in found.why


def test_damage_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One flipped byte, one file cut off, one missing: each with its file, and the rest is still judged."""
    train, val = (dataset.read(str(folder)).splits[split] for split in ("train", "val"))
    content = bytearray((folder / train[0].file).read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    content[12 + length + 4 + 12 + 100] ^= 1  # byte 100 of record 1: behind record 0, its two checksums and lengths
    (folder / train[0].file).write_bytes(content)
    whole = (folder / train[1].file).read_bytes()
    (folder / train[1].file).write_bytes(whole[:-50])
    (folder / val[0].file).unlink()
    assert doctor.run(["--dataset", str(folder), "--output", str(tmp_path / "d.html")]) == doctor.UNFIT
    out = capsys.readouterr().out
    assert f"{train[0].file} record 1: the checksum (CRC) of its bytes is wrong" in out
    assert f"{train[1].file} record {train[1].records - 1}: the file is cut off here" in out
    assert f"{val[0].file} is missing: {val[0].records} patches of split val" in out
    assert len([line for line in out.splitlines() if line.startswith("error")]) == 1
    assert out.splitlines()[-2].startswith("not fit to train: 1 error")
    assert "Not fit to train" in (tmp_path / "d.html").read_text()


def test_with_every_shard_lost_there_is_still_a_page(folder: Path, tmp_path: Path) -> None:
    for shard_file in folder.glob("*.tfrecord"):
        shard_file.unlink()
    assert doctor.run(["--dataset", str(folder), "--output", str(tmp_path / "d.html")]) == doctor.UNFIT
    assert "is missing: 3 patches of split train" in (tmp_path / "d.html").read_text()


def test_a_shard_written_again_is_told_from_damage(folder: Path) -> None:
    manifest = (folder / "dataset.json").read_text()
    change(folder, "train", 0, put("image/filename", 0, b"other.tif"))
    (folder / "dataset.json").write_text(manifest)
    found = examine(folder)
    assert troubled(found) == ["shards"]
    assert "written again after the manifest" in found["shards"].cases[0]


def test_a_copy_in_another_split_is_found(folder: Path) -> None:
    """The picture of a train patch, compressed once more, as a val patch."""
    encoded: list[bytes] = []

    def take(example: tf.train.Example) -> None:
        pixels = tf.io.decode_jpeg(example.features.feature["image/encoded"].bytes_list.value[0])
        encoded.append(encode(pixels.numpy(), quality=70))

    change(folder, "train", 1, take)
    change(folder, "val", 2, lambda example: put("image/encoded", 0, encoded[0])(example))
    found = examine(folder)
    assert troubled(found) == ["near-duplicates"]
    assert len(found["near-duplicates"].cases) == 1
    assert re.search(r"patch \d+ \(train\) and patch \d+ \(val\): correlation (0\.9|1\.0)", found["near-duplicates"].cases[0])


def test_too_many_objects(folder: Path) -> None:
    """150 boxes where the manifest says far fewer: training would cut them off, and so would Model Garden."""

    def crowd(example: tf.train.Example) -> None:
        feature = example.features.feature
        for side, value in (("ymin", 0.2), ("xmin", 0.2), ("ymax", 0.4), ("xmax", 0.4)):
            feature[f"image/object/bbox/{side}"].float_list.value[:] = [value] * 150
        feature["image/object/class/label"].int64_list.value[:] = [1] * 150
        feature["image/object/class/text"].bytes_list.value[:] = [b"auk"] * 150

    change(folder, "train", 0, crowd)
    found = examine(folder)
    assert troubled(found) == ["objects per patch"]
    assert found["objects per patch"].severity == checks.ERROR
    assert "a patch holds 150 objects" in found["objects per patch"].found
    # With a manifest that knows, our own training makes room; Model Garden's defaults of 100 still would not.
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["statistics"]["max_objects_per_patch"] = 150
    (folder / "dataset.json").write_text(json.dumps(manifest))
    check = examine(folder)["objects per patch"]
    assert check.severity == checks.WARNING
    assert "max_num_instances=150" in check.remedy
    assert "YOLO's max_num_instances=200, a multiple of 50" in check.remedy  # 150 and 50 to spare
    seen = inspection.inspect(str(folder), dataset.read(str(folder)))
    lost = {cap.limit: (cap.patches, cap.objects) for cap in fitness.caps(dataset.read(str(folder)), seen)}
    assert lost[100] == (1, 50)
    assert lost[200] == (0, 0)


def test_a_manifest_of_other_classes(folder: Path) -> None:
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"gull"', '"tern"'))
    found = examine(folder)
    assert troubled(found) == ["label map"]
    assert "labels.pbtxt has auk, gull; dataset.json has auk, tern" in found["label map"].cases


def test_splits_that_share_pixels(folder: Path) -> None:
    """The ledger says that a val patch was cut where a train patch was."""
    table = pq.read_table(folder / dataset.LEDGER)
    rows = table.to_pylist()
    there = next(row for row in rows if row["split"] == "train")
    moved = next(row for row in rows if row["split"] == "val")
    moved.update({name: there[name] for name in ("mosaic", "y0", "x0", "y1", "x1")})
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), folder / dataset.LEDGER)
    found = examine(folder)
    assert troubled(found) == ["splits"]
    assert f"patches {there['patch_id']} (train) and {moved['patch_id']} (val) of" in " ".join(found["splits"].cases)


def test_a_lost_ledger(folder: Path) -> None:
    (folder / dataset.LEDGER).unlink()
    assert troubled(examine(folder)) == ["ids", "splits"]


def test_a_class_without_examples_is_a_warning(folder: Path, tmp_path: Path) -> None:
    """A third class in map and manifest that nobody annotated: a warning, and exit code 1 only when asked for."""
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(re.sub(r'("classes": \[\s*"auk",\s*"gull")', r'\1, "tern"', text))
    with (folder / dataset.LABELS).open("a") as file:
        file.write('item { name: "tern" id: 3 }\n')
    argv = ["--dataset", str(folder), "--output", str(tmp_path / "d.html"), "--sample", "2"]
    assert doctor.run(argv) == doctor.FIT
    assert doctor.run([*argv, "--strict"]) == doctor.DOUBTFUL
    page = (tmp_path / "d.html").read_text()
    assert "tern has no box in train" in page
    assert "<code>--sample 2</code>" in page


def test_a_sample_looks_at_few_pictures_and_all_else(folder: Path) -> None:
    change(folder, "train", 0, put("image/object/class/label", 0, 9))
    found = examine(folder, sample=1)
    assert found["image size"].found.startswith("2 pictures")
    assert troubled(found) == ["labels"]


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    good = write_survey(tmp_path, ("<script>alert(1)</script>", "a & b"))
    doctor.run(["--dataset", good, "--output", str(tmp_path / "d.html")])
    page = (tmp_path / "d.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_wrong_command_lines(good: str, tmp_path: Path) -> None:
    for argv, message in (
        (["--dataset", good, "--output", "page.txt"], "must be a file name ending in .html"),
        (["--dataset", good, "--sample", "-1"], "--sample=-1"),
        (["--dataset", str(tmp_path)], "dataset manifest"),
    ):
        with pytest.raises(InputError, match=message):
            doctor.run(argv)


def test_the_best_anchor_is_the_best_of_all() -> None:
    """Against every anchor at every position, for boxes of all shapes, also at the border."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-5, 250, (200, 2)), rng.uniform(3, 120, (200, 2))
    some = np.concatenate([corner, corner + size], axis=1)
    spec = AnchorSpec(3, 6, 3, (0.5, 1.0, 2.0), 2.25)
    expected = boxes.iou(some, spec.boxes(256).astype(float)).max(axis=1)
    np.testing.assert_allclose(fitness.best_anchor_iou(some, spec, 256), expected, atol=1e-6)


def test_boxes_that_anchors_miss_are_a_warning() -> None:
    """8 boxes as the smallest anchor, 2 a tenth of its side: IoU at most 1 / 100."""
    spec = anchors.fit({"q10": 32.0, "q99": 64.0})  # 32 px at level 3
    px = np.array([[4.0 - 16, 4 - 16, 4 + 16, 4 + 16]] * 8 + [[4.0, 4, 7.2, 7.2]] * 2)
    best = fitness.best_anchor_iou(px, spec, 128)
    fit = fitness.Anchors(spec, np.sqrt(boxes.area(px)), best, best)
    np.testing.assert_allclose(best, [1.0] * 8 + [0.01] * 2, atol=2e-3)
    check = fitness.anchors(fit)
    assert check.severity == checks.WARNING
    assert check.found.startswith("20.0% of the boxes have no anchor with IoU ≥ 0.5, 20.0% none with 0.4")
    assert "median side of 3 px, all boxes 32 px: try a smaller --anchor_size" in check.remedy


def test_fingerprints_bear_compression_and_light_and_tell_pictures_apart() -> None:
    prints, even = [], []
    for image in (ground(5), ground(6), np.full((300, 300, 3), 90, np.uint8)):
        again = tf.io.decode_jpeg(encode((image * 0.8 + 20).astype(np.uint8), quality=40)).numpy()
        for one in (image, again):
            bits, deviation = duplicates.fingerprint(tf.constant(one))
            prints.append(duplicates.pack(bits.numpy()))
            even.append(float(deviation) < duplicates.EVEN)
    assert even == [False] * 4 + [True] * 2
    i, j, _ = duplicates.near(np.array(prints[:4:2]), np.array(prints[1:4:2]))
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 0), (1, 1)]
    assert duplicates.correlation(ground(5), ground(6)) < 0.5


def test_the_checksum_is_that_of_tfrecords() -> None:
    record = b"a record"
    framed = records.frame(record)
    assert struct.unpack("<I", framed[-4:])[0] == inspection.masked_crc32c(record)
