"""The host's share of the input: TFRecord -> uint8 pixels and padded boxes, static shapes. Everything else runs on the device."""

import os

import tensorflow as tf

from survey import dataset
from survey.errors import InputError

SHUFFLE_RECORDS = 2048  # encoded records shuffled at a time: about 0.3 GB of 416 px JPEGs, and the next ones are read meanwhile
SHARDS_IN_TURN = 8  # open files; their records alternate, so that a batch is not from one corner of one mosaic

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
    # Also decodes PNG: the operation looks at the first bytes, not at its name.
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
    seed: int = 0,
    start_step: int = 0,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Batches of a split.

    The order of training records is a function of the seed and the epoch alone, so that a run that goes on at `start_step` sees
    what it would have seen without the stop. Each epoch shows every record once.

    Args:
      folder: of the dataset.
      split: its name.
      training: shuffle and repeat for ever; otherwise one pass in order, the last batch padded with blank images of patch_id -1.
      batch_size: global batch size.
      max_boxes: see `decode`.
      seed: of the shuffle.
      start_step: steps already trained: their records are skipped, undecoded.
      context: the strategy's, for several hosts; each reads its own shards.

    Returns:
      Batches of `decode`'s values with a static first dimension.

    Raises:
      InputError: more hosts than shards.
    """
    manifest = dataset.read(folder)
    shards = manifest.splits[split]
    if context is not None:
        batch_size = context.get_per_replica_batch_size(batch_size)
        shards = shards[context.input_pipeline_id :: context.num_input_pipelines]
        if not shards:
            raise InputError(
                f"split {split} of {folder} has {len(manifest.splits[split])} shards for {context.num_input_pipelines} hosts: "
                "shard it again with a smaller --records_per_shard"
            )
    paths = [os.path.join(folder, shard.file) for shard in shards]
    count = sum(shard.records for shard in shards)
    if training:
        first_epoch, skip = divmod(start_step * batch_size, count)
        epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
        records = epochs.flat_map(lambda epoch: _shuffled(paths, seed, epoch)).skip(skip)
    else:
        records = tf.data.Dataset.from_tensor_slices(paths).interleave(tf.data.TFRecordDataset, cycle_length=1)
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
        decoded = decoded.concatenate(tf.data.Dataset.from_tensors(blank).repeat(-count % batch_size))
    return decoded.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _shuffled(paths: list[str], seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """The records of one epoch: shards in random order, several read in turn, and records shuffled window by window.

    Windows and not `Dataset.shuffle`, whose seed cannot follow the epoch when operations must be deterministic.
    """
    seeds = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0]), epoch)
    shards = tf.data.Dataset.from_tensor_slices(_permuted(tf.constant(paths), seeds))
    records = shards.interleave(tf.data.TFRecordDataset, cycle_length=min(SHARDS_IN_TURN, len(paths)))

    def shuffled(number: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        return _permuted(window, tf.random.experimental.stateless_fold_in(seeds, number + 1))

    return records.batch(SHUFFLE_RECORDS).enumerate().map(shuffled).prefetch(1).unbatch()


def _permuted(values: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """The values [N, ...] in an order that follows from seeds int [2]."""
    return tf.gather(values, tf.argsort(tf.random.stateless_uniform(tf.shape(values)[:1], seeds)))
