"""`rookery anchors`: boxes from records and tables, the file, the table and the picture."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from pipeline import shard
from survey import box_shapes, dataset, files
from survey.errors import InputError
from tpu_train import anchors_verb, box_sizes

SIDES = ((20, 10), (40, 40), (10, 30))  # width, height of the three objects of each mosaic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two mosaics of one patch of 128 px, each with a box of 20 x 10, of 40 x 40 and of 10 x 30 px; one mosaic to learn from."""
    folder = tmp_path_factory.mktemp("survey")
    for seed, name in enumerate(("one", "two")):
        image = np.random.default_rng(seed).integers(20, 60, (3, 128, 128)).astype(np.uint8)
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", height=128, width=128, count=3, dtype="uint8") as out:
            out.write(image)
        text = ""
        for (width, height), x in zip(SIDES, (5, 40, 90), strict=True):
            corners = f"<xmin>{x}</xmin><ymin>{8}</ymin><xmax>{x + width}</xmax><ymax>{8 + height}</ymax>"
            text += f"<object><name>square</name><bndbox>{corners}</bndbox></object>"
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.tif</filename>{text}</annotation>")
    argv = f"--mosaics {folder}/*.tif --annotations {folder}/*.xml --patch_size 128 --overlap 0 --split train=0.5,val=0.5"
    assert shard.run([*argv.split(), "--output", str(folder / "dataset")]) == 0
    return str(folder / "dataset")


def run(tmp_path: Path, *argv: str) -> dict:
    assert anchors_verb.run([*argv, "--output", str(tmp_path / "anchors.json")]) == 0
    value: dict = json.loads((tmp_path / "anchors.json").read_text())
    return value


def test_sizes_of_a_dataset(data):
    np.testing.assert_allclose(sorted(box_sizes.of_dataset(data, "train").tolist()), sorted(map(list, SIDES)), atol=1e-3)
    assert box_sizes.of_dataset(data, "val").dtype == np.float32


def test_sizes_as_tensorflow_reads_them(data):
    import tensorflow as tf

    shards = [f"{data}/{shard.file}" for shards in dataset.read(data).splits.values() for shard in shards]
    for record in tf.data.TFRecordDataset(shards):
        features = tf.train.Example.FromString(record.numpy()).features.feature
        y0, x0, y1, x1 = (np.array(features[name].float_list.value, np.float32) for name in box_sizes.SIDES)
        np.testing.assert_array_equal(box_sizes.sizes(record.numpy()), np.stack([x1 - x0, y1 - y0], axis=1))


def example(**lists: list[float]) -> bytes:
    import tensorflow as tf

    message = tf.train.Example()
    message.features.feature["image/encoded"].bytes_list.value.append(b"\x0a\x03abc" * 100)
    message.features.feature["image/patch_id"].int64_list.value.append(-1)
    for side, values in lists.items():
        message.features.feature[f"image/object/bbox/{side}"].float_list.value.extend(values)
    return message.SerializeToString()


def test_sizes_of_a_record_by_hand():
    # Width 0.5 - 0.25 and 1 - 0, height 0.75 - 0.5 and 0.5 - 0.
    record = example(ymin=[0.5, 0.0], xmin=[0.25, 0.0], ymax=[0.75, 0.5], xmax=[0.5, 1.0])
    assert box_sizes.sizes(record).tolist() == [[0.25, 0.25], [1.0, 0.5]]
    assert box_sizes.sizes(example(ymin=[], xmin=[], ymax=[], xmax=[])).shape == (0, 2)


def test_floats_that_are_not_packed():
    # Field 1 of a FloatList with wire type 5, once a number, as writers without packing give it: tag 1 << 3 | 5 = 0x0d.
    def entry(name: str, value: float) -> bytes:
        single = b"\x0d" + np.float32(value).tobytes()
        feature = b"\x12" + bytes([len(single)]) + single  # float_list is field 2
        key = f"image/object/bbox/{name}".encode()
        pair = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(pair)]) + pair

    features = entry("ymin", 0.0) + entry("xmin", 0.5) + entry("ymax", 0.25) + entry("xmax", 1.0)
    assert len(features) < 256  # a length from 128 on takes two bytes: seven bits and a sign to go on, then the rest
    record = b"\x0a" + bytes([len(features) & 0x7F | 0x80, len(features) >> 7]) + features
    assert box_sizes.sizes(record).tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"not a message", "not a tf.train.Example"),
        (example(ymin=[0.0], xmin=[0.0], ymax=[0.5], xmax=[0.5])[:-3], "not a tf.train.Example"),
        (b"", "without image/object/bbox/ymin"),
        (example(ymin=[0.0], xmin=[0.0], ymax=[0.5]), "without image/object/bbox/xmax"),
        (example(ymin=[0.0], xmin=[0.0], ymax=[0.5], xmax=[]), "of different lengths"),
    ],
)
def test_records_without_boxes(record, message):
    with pytest.raises(ValueError, match=message):
        box_sizes.sizes(record)


def test_a_damaged_shard(data, tmp_path):
    for name in files.names(data):
        content = bytearray(files.read(f"{data}/{name}"))
        if name.startswith("train-"):
            content[-20] ^= 1  # within the last record: its checksum no longer fits
        (tmp_path / name).write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"train-.*: 1 of \d records cannot be read: `rookery doctor` names them"):
        box_sizes.of_dataset(str(tmp_path), "train")
    (tmp_path / dataset.read(data).splits["val"][0].file).unlink()
    with pytest.raises(InputError, match=r"val-.* is missing: copy the dataset again"):
        box_sizes.of_dataset(str(tmp_path), "val")


def test_anchors_of_a_dataset(data, tmp_path, capsys):
    # By area: 20 * 10 = 200, 10 * 30 = 300, 40 * 40 = 1600.
    value = run(tmp_path, "--dataset", data, "--k", "3", "--scales", "3", "--picture", str(tmp_path / "anchors.png"))
    assert value["anchors_px"] == [[20, 10], [10, 30], [40, 40]]
    assert (value["image_size"], value["k"], value["seed"], value["boxes"]) == (128, 3, 0, 3)
    assert (value["mean_best_iou"], value["share_below_half"]) == (1.0, 0.0)
    assert value["source"] == {"dataset": "dataset", "digest": dataset.digest(data), "split": "train"}
    assert {"python", "numpy"} <= set(value["versions"])
    assert box_shapes.read_anchors(str(tmp_path / "anchors.json")) == ((20.0, 10.0), (10.0, 30.0), (40.0, 40.0))
    printed = capsys.readouterr().out
    assert "3 boxes, in pixels of the patches of 128 px" in printed
    assert "mean best IoU 1.0000; 0.0 % of the boxes below 0.5" in printed
    # Third line of the table: 10 / 30 = 0.33, the root of 300 is 17.3.
    assert "2     10.00      30.00   0.33     17.3      1      2" in printed


def test_picture(data, tmp_path):
    run(tmp_path, "--dataset", data, "--k", "2", "--picture", str(tmp_path / "anchors.png"))
    pixels = np.asarray(Image.open(tmp_path / "anchors.png").convert("RGB")).astype(int)
    # Outlines of vermillion, #d55e00. One of the three boxes is not hidden by its anchor: a blue dot.
    assert (np.abs(pixels - [0xD5, 0x5E, 0x00]).sum(axis=2) < 12).sum() > 200
    assert (pixels[..., 2] - pixels[..., 0] > 60).sum() > 10


def test_same_input_same_bytes(data, tmp_path):
    written = []
    for _ in range(2):
        run(tmp_path, "--dataset", data, "--k", "2", "--picture", str(tmp_path / "anchors.png"))
        written.append([(tmp_path / name).read_bytes() for name in ("anchors.json", "anchors.png")])
    assert written[0] == written[1]


def test_image_size_scales(data, tmp_path):
    # Patches of 128 px to 64 px: half of every side.
    value = run(tmp_path, "--dataset", data, "--k", "3", "--image_size", "64")
    assert value["anchors_px"] == [[10, 5], [5, 15], [20, 20]]
    assert value["image_size"] == 64


TABLE = """image_path,xmin,ymin,xmax,ymax,width,height
one.jpg,10,10,30,20,400,200
one.jpg,0,0,80,20,400,200
two.jpg,5,5,15,35,100,300
two.jpg,0,0,0,0,100,300
two.jpg,50,50,50,60,100,300
"""


def test_anchors_of_a_table(tmp_path, capsys):
    (tmp_path / "records.csv").write_text(TABLE)
    value = run(tmp_path, "--record_csv", str(tmp_path / "records.csv"), "--k", "3")
    # 20 x 10, 80 x 20, 10 x 30; four zeros say that there is no object, and the last box has no width.
    assert value["anchors_px"] == [[20, 10], [10, 30], [80, 20]]
    assert (value["boxes"], value["left_out"], value["image_size"]) == (3, 1, None)
    assert value["source"] == {"record_csv": "records.csv", "sha256": files.sha256(str(tmp_path / "records.csv"))}
    assert "left out, without area: 1 of 4 boxes" in capsys.readouterr().out


def test_a_table_scaled_to_the_longer_sides(tmp_path):
    # one.jpg is 400 x 200: 100 / 400 = a quarter; two.jpg is 100 x 300: 100 / 300 = a third: 10 x 30 becomes 3.33 x 10.
    (tmp_path / "records.csv").write_text(TABLE)
    value = run(tmp_path, "--record_csv", str(tmp_path / "records.csv"), "--k", "3", "--image_size", "100")
    assert value["anchors_px"] == [[5, 2.5], [3.33, 10], [20, 5]]


@pytest.mark.parametrize(
    "text",
    [
        "file;Left;Top;Right;Bottom\nа.jpg;1;2;11;22\n",
        "x0\ty0\tx1\ty1\n1\t2\t11\t22\n\n",
        "\ufefffolder with spaces/a.jpg 1,2,11,22,0\n",
        "a.jpg 1,2,11,22,0 1.5,2,11.5,22,3\nempty.jpg\n",
    ],
)
def test_other_tables(tmp_path, text):
    (tmp_path / "boxes.txt").write_text(text)
    sizes = anchors_verb.sizes_of_table(str(tmp_path / "boxes.txt"), None)
    assert np.unique(sizes, axis=0).tolist() == [[10, 20]]  # 11 - 1 and 22 - 2; 11.5 - 1.5 and 22 - 2


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("image,x,y\na,1,2\n", None, r"has no columns for the corners"),
        ("xmin,ymin,xmax,ymax\n1,2,wide,4\n", None, r"line 2: xmax='wide' must be a number"),
        ("xmin,ymin,xmax,ymax\n1,2,3,4\n", 416, r"--image_size=416: .* does not say how large its images are"),
        ("xmin,ymin,xmax,ymax,width,height\n1,2,3,4,,\n", 416, r"line 2 does not say how large its image is"),
        ("a.jpg 1,2,11,22,0\n", 416, r"--image_size=416: .* lists boxes without the sizes of its images"),
        ("a.jpg 1,2,11,22,0\nb.jpg 1,2,11,22\n", None, r"line 2: 'b.jpg 1,2,11,22' must be an image and xmin"),
        ("", None, r"is empty \(0 bytes\)"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, size, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        anchors_verb.sizes_of_table(str(tmp_path / "boxes.csv"), size)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--dataset or --record_csv: exactly one must be given"),
        (["--dataset=a", "--record_csv=b"], "exactly one must be given"),
        (["--dataset=a", "--k=0"], "--k=0: must be 1 or more"),
        # 8 / 3 = 2.67, the nearest whole number is 3 anchors a scale: 9.
        (["--dataset=a", "--k=8", "--scales=3"], "--k=8 --scales=3: .* must be a multiple of the scales: give --k=9"),
        (["--dataset=a", "--scales=0"], "--scales=0: must be the number of scales"),
        (["--dataset=a", "--image_size=0"], "--image_size=0: must be the side"),
        (["--dataset=a", "--seed=-1"], "--seed=-1: must be 0 or more"),
        (["--dataset=a", "--output=anchors.csv"], "must be a file name ending in .json"),
        (["--dataset=a", "--picture=anchors.jpg"], "must be a file name ending in .png"),
        (["--record_csv=nowhere.csv"], "--record_csv=nowhere.csv does not exist"),
        (["--dataset=nowhere"], r"nowhere/dataset.json does not exist"),
    ],
)
def test_command_lines_that_cannot_be(argv, message):
    with pytest.raises(InputError, match=message):
        anchors_verb.run(argv)


def test_more_anchors_than_shapes(data):
    with pytest.raises(InputError, match=r"k=9 anchors: must be from 1 to 3, the number of distinct shapes of the 3 boxes"):
        anchors_verb.run(["--dataset", data])
    with pytest.raises(InputError, match=r"--split=test: the dataset has patches in train, val"):
        anchors_verb.run(["--dataset", data, "--split", "test"])


def test_no_tensorflow(data, tmp_path):
    code = (
        "import sys\nfrom tpu_train import anchors_verb\n"
        f"assert anchors_verb.run(['--dataset', {data!r}, '--k', '2', '--output', {str(tmp_path / 'a.json')!r}]) == 0\n"
        "print('HEAVY', *sorted({'tensorflow', 'apache_beam', 'tf_keras', 'official', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"
