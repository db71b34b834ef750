"""The host's share of the input: TFRecord -> uint8 pixels and padded boxes, static shapes. Everything else runs on the device."""

import os

import tensorflow as tf

from survey import dataset

SHUFFLE_RECORDS = 2048  # encoded records held for shuffling: about 0.3 GB of 416 px JPEGs

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/patch_id": tf.io.FixedLenFeature([], tf.int64),
    "image/object/bbox/ymin": tf.io.VarLenFeature(tf.float32),
    "image/object/bbox/xmin": tf.io.VarLenFeature(tf.float32),
    "image/object/bbox/ymax": tf.io.VarLenFeature(tf.float32),
    "image/object/bbox/xmax": tf.io.VarLenFeature(tf.float32),
    "image/object/class/label": tf.io.VarLenFeature(tf.int64),
}


def decode(serialized: tf.Tensor, patch_size: int, max_boxes: int) -> dict[str, tf.Tensor]:
    """One record.

    Args:
      serialized: a tf.train.Example as `rookery shard` writes it.
      patch_size: side of its image in pixels.
      max_boxes: rows of the padded boxes; further boxes are cut off.

    Returns:
      image: uint8 [patch_size, patch_size, 3].
      boxes: float32 [max_boxes, 4], yxyx in patch pixels, 0 beyond the last.
      classes: int32 [max_boxes], ids from 1, 0 beyond the last.
      patch_id: int64 [].
    """
    example = tf.io.parse_single_example(serialized, FEATURES)
    # INTEGER_ACCURATE is the default of the JPEG library and of our own encoder's round trip.
    image = tf.io.decode_jpeg(example["image/encoded"], channels=3)
    sides = [tf.sparse.to_dense(example[f"image/object/bbox/{side}"]) for side in ("ymin", "xmin", "ymax", "xmax")]
    boxes = tf.stack(sides, axis=1)[:max_boxes] * patch_size
    classes = tf.cast(tf.sparse.to_dense(example["image/object/class/label"]), tf.int32)[:max_boxes]
    missing = max_boxes - tf.shape(classes)[0]
    return {
        "image": tf.ensure_shape(image, [patch_size, patch_size, 3]),
        "boxes": tf.ensure_shape(tf.pad(boxes, [[0, missing], [0, 0]]), [max_boxes, 4]),
        "classes": tf.ensure_shape(tf.pad(classes, [[0, missing]]), [max_boxes]),
        "patch_id": example["image/patch_id"],
    }


def read(
    folder: str,
    split: str,
    *,
    training: bool,
    batch_size: int,
    max_boxes: int,
    seed: int,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches of a split.

    Args:
      folder: of the dataset.
      split: its name.
      training: shuffle and repeat for ever; otherwise one pass in order, the last batch padded with blank images of patch_id -1.
      batch_size: global batch size.
      max_boxes: see `decode`.
      seed: of the shuffle.
      context: the strategy's, for several hosts.

    Returns:
      Batches of `decode`'s values with a static first dimension.
    """
    manifest = dataset.read(folder)
    paths = [os.path.join(folder, shard.file) for shard in manifest.splits[split]]
    if context is not None:
        batch_size = context.get_per_replica_batch_size(batch_size)
    shards = tf.data.Dataset.from_tensor_slices(paths)
    if context is not None and context.num_input_pipelines > 1:
        shards = shards.shard(context.num_input_pipelines, context.input_pipeline_id)
    if training:
        shards = shards.shuffle(len(paths), seed=seed)
        records = shards.interleave(tf.data.TFRecordDataset, cycle_length=min(8, len(paths)))
        records = records.shuffle(SHUFFLE_RECORDS, seed=seed).repeat()
    else:
        records = shards.interleave(tf.data.TFRecordDataset, cycle_length=1)
    decoded = records.map(
        lambda serialized: decode(serialized, manifest.patch_size, max_boxes),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    if not training:
        # Blank images fill the last batch: a partial batch would be another shape, and dropping it would lose validation images.
        spec = decoded.element_spec
        blank = {name: tf.zeros(value.shape, value.dtype) for name, value in spec.items()}
        blank["patch_id"] = tf.constant(-1, tf.int64)
        records_left = -manifest.records(split) % batch_size
        decoded = decoded.concatenate(tf.data.Dataset.from_tensors(blank).repeat(records_left))
    return decoded.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
