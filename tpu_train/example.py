"""What a record holds: its features, the labels of its objects, and why one cannot be decoded."""

import re

import tensorflow as tf
from google.protobuf.message import DecodeError

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/patch_id": tf.io.FixedLenFeature([], tf.int64),
    # Lists of any length, dense at once: by way of sparse tensors they cost the host 3 % of its images.
    "image/object/bbox/ymin": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    "image/object/bbox/xmin": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    "image/object/bbox/ymax": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    "image/object/bbox/xmax": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    "image/object/class/label": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
}


def labels(serialized: bytes) -> list[int]:
    """The class ids of a record's objects.

    Raises:
      ValueError: it is no tf.train.Example, or it lacks a feature; says which.
    """
    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None
    if lacking := [name for name in FEATURES if name not in features]:
        raise ValueError(f"without {lacking[0]}")
    return list(features["image/object/class/label"].int64_list.value)


def complaint(serialized: bytes, patch_size: int) -> str | None:
    """Why `tpu_train.input.decode` fails on a record, in words that name the patch; None if it does not."""
    try:
        example = tf.io.parse_single_example(serialized, FEATURES)
    except tf.errors.OpError as error:
        # TensorFlow puts the names of its graph nodes around what happened: "{{function_node ...}} what [Op:...]".
        return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", error.message.splitlines()[0])
    patch = f"patch {int(example['image/patch_id'])}"
    try:
        shape = tf.io.decode_jpeg(example["image/encoded"], channels=3).shape
    except tf.errors.OpError:
        return f"{patch}: image/encoded is not a picture that can be decoded"
    if shape[:2] != (patch_size, patch_size):
        return f"{patch}: its picture is {shape[0]} px high and {shape[1]} px wide, not {patch_size}"
    lengths = {len(value) for name, value in example.items() if name.startswith("image/object/")}
    return f"{patch}: its lists of box sides and of labels are of different lengths" if len(lengths) > 1 else None
