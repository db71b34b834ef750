import hashlib

import numpy as np
import pytest
import simplejpeg

from pipeline import records
from pipeline.records import Encoding
from survey.errors import InputError


def example(pixels, boxes, class_ids, patch_id=7):
    return records.example(
        patch_id=patch_id,
        filename="nörd.tif",
        encoded=records.encode_jpeg(pixels, 95),
        patch_size=len(pixels),
        boxes_patch_px=boxes,
        class_ids=class_ids,
        classes=("seal", "tern"),
    )


BOXES = np.array([[10, 20, 30, 60], [0, 0, 100, 100]], float)
CLASS_IDS = np.array([2, 1])


def test_the_same_as_tensorflow_would_write(pixels):
    import tensorflow as tf

    got = tf.train.Example.FromString(example(pixels(100, 100), BOXES, CLASS_IDS))
    feature = got.features.feature
    assert feature["image/source_id"].bytes_list.value == [b"7"]
    assert feature["image/patch_id"].int64_list.value == [7]
    assert feature["image/filename"].bytes_list.value == ["nörd.tif".encode()]
    assert feature["image/format"].bytes_list.value == [b"jpeg"]
    assert (feature["image/height"].int64_list.value, feature["image/width"].int64_list.value) == ([100], [100])
    # Box 0: y 10 to 30, x 20 to 60, of 100 px.
    for side, expected in (("ymin", [0.1, 0]), ("xmin", [0.2, 0]), ("ymax", [0.3, 1]), ("xmax", [0.6, 1])):
        np.testing.assert_allclose(feature[f"image/object/bbox/{side}"].float_list.value, expected, rtol=1e-6)
    assert feature["image/object/class/label"].int64_list.value == [2, 1]
    assert feature["image/object/class/text"].bytes_list.value == [b"tern", b"seal"]
    assert feature["image/object/is_crowd"].int64_list.value == [0, 0]
    assert feature["image/object/area"].float_list.value == [20 * 40, 100 * 100]
    # Byte for byte: what TensorFlow's own class makes of the same message.
    assert got.SerializeToString(deterministic=True) == example(pixels(100, 100), BOXES, CLASS_IDS)


def test_model_garden_decodes_it(pixels):
    import tensorflow as tf
    from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder

    image = pixels(100, 100)
    decoder = TfExampleDecoder(regenerate_source_id=False)
    decoded = decoder.decode(tf.constant(example(image, BOXES, CLASS_IDS)))
    assert decoded["source_id"].numpy() == b"7"
    assert tf.strings.to_number(decoded["source_id"], tf.int64).numpy() == 7
    np.testing.assert_allclose(decoded["groundtruth_boxes"].numpy(), BOXES / 100, rtol=1e-6)
    np.testing.assert_array_equal(decoded["groundtruth_classes"].numpy(), CLASS_IDS)
    np.testing.assert_array_equal(decoded["groundtruth_is_crowd"].numpy(), [False, False])
    assert decoded["image"].shape == (100, 100, 3)
    assert np.abs(decoded["image"].numpy().astype(int) - image).mean() < 2
    empty = decoder.decode(tf.constant(example(image, np.zeros((0, 4)), np.zeros(0, int))))
    assert empty["groundtruth_boxes"].shape == (0, 4)
    assert empty["groundtruth_classes"].shape == (0,)


def test_tensorflow_reads_the_file(tmp_path, pixels):
    import tensorflow as tf

    written = [example(pixels(100, 100, seed), BOXES, CLASS_IDS, seed) for seed in range(3)] + [b""]
    path = str(tmp_path / "x.tfrecord")
    digest = records.write_tfrecord(path, written)
    assert [record.numpy() for record in tf.data.TFRecordDataset(path)] == written
    content = (tmp_path / "x.tfrecord").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrecord")) as writer:
        for record in written:
            writer.write(record)
    assert content == (tmp_path / "theirs.tfrecord").read_bytes()


def test_png_without_loss(pixels):
    import tensorflow as tf
    from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder

    image = pixels(100, 100)
    encoding = Encoding(image_format="png")
    encoded = encoding.encode(image[:, ::-1])
    assert encoded == encoding.encode(np.ascontiguousarray(image[:, ::-1]))
    written = records.example(
        patch_id=7,
        filename="a.tif",
        encoded=encoded,
        image_format="png",
        patch_size=100,
        boxes_patch_px=BOXES,
        class_ids=CLASS_IDS,
        classes=("seal", "tern"),
    )
    got = tf.train.Example.FromString(written)
    assert got.features.feature["image/format"].bytes_list.value == [b"png"]
    decoded = TfExampleDecoder(regenerate_source_id=False).decode(tf.constant(written))
    np.testing.assert_array_equal(decoded["image"].numpy(), image[:, ::-1])


def test_subsampling(pixels):
    image = pixels(64, 48)
    half = Encoding(jpeg_quality=90, jpeg_subsampling="420").encode(image)
    assert simplejpeg.decode_jpeg_header(half)[3] == "420"
    assert Encoding(jpeg_quality=90).encode(image) == records.encode_jpeg(image, 90)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ({"image_format": "webp"}, "--image_format=webp: must be one of jpeg, png"),
        ({"jpeg_quality": 0}, "--jpeg_quality=0: must be from 1 to 100"),
        ({"jpeg_subsampling": "411"}, "--jpeg_subsampling=411: must be one of 444, 420"),
    ],
)
def test_bad_encodings(encoding, message):
    with pytest.raises(InputError, match=message):
        Encoding(**encoding)


def test_jpeg_keeps_colour_at_full_resolution(pixels):
    image = pixels(64, 48)
    encoded = records.encode_jpeg(image[:, ::-1], 95)  # a view with negative strides, as windows may be
    assert simplejpeg.decode_jpeg_header(encoded)[:4] == (64, 48, "YCbCr", "444")
    assert np.abs(simplejpeg.decode_jpeg(encoded).astype(int) - image[:, ::-1]).mean() < 2
    assert records.encode_jpeg(image, 50) == records.encode_jpeg(image.copy(), 50)
