"""The host's share of the input: TFRecord -> uint8 pixels and padded boxes, static shapes. Everything else runs on the device."""

from collections.abc import Sequence

import tensorflow as tf

from survey.errors import InputError
from tpu_train import crop as crops
from tpu_train.crop import Crop
from tpu_train.example import FEATURES
from tpu_train.shards import Shard

# Encoded records are shuffled window by window, and the next window is read meanwhile: 0.3 GB each at 0.8 bytes a pixel, which
# JPEGs of quality 95 take. Boxes are bytes, too: of small patches there is a limit to the number of records.
SHUFFLE_PIXELS = 400_000_000
SHUFFLE_RECORDS = 8192
SHARDS_IN_TURN = 8  # open files; their records alternate, so that a batch is not from one corner of one mosaic


def decode(
    serialized: tf.Tensor, patch_size: int, max_boxes: int, crop: Crop | None = None, seeds: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """One record, or the part of it that a random view shows.

    Args:
      serialized: a tf.train.Example as `rookery shard` writes it.
      patch_size: side of its image in pixels.
      max_boxes: rows of the padded boxes; further boxes are cut off.
      crop: of which the view is one; by default the whole patch.
      seeds: int32 [2], of the view (`tpu_train.crop.seeds`).

    Returns:
      image: uint8 [side, side, 3]; the side is patch_size, or with a crop its window.
      boxes: float32 [max_boxes, 4], yxyx in pixels of the image, 0 beyond the last; with a crop also of what lies outside.
      classes: int32 [max_boxes], ids from 1, 0 beyond the last.
      objects: int32 [], how many the record has: those beyond max_boxes were cut off.
      patch_id: int64 [].
      view: float32 [3], with a crop only: scale, and where the view begins, y and x in pixels of the image.
    """
    example = tf.io.parse_single_example(serialized, FEATURES)
    sides = [example[f"image/object/bbox/{side}"] for side in ("ymin", "xmin", "ymax", "xmax")]
    boxes = tf.stack(sides, axis=1)[:max_boxes] * patch_size
    if crop is None:
        # Also decodes PNG: the operation looks at the first bytes, not at its name.
        image = tf.ensure_shape(tf.io.decode_jpeg(example["image/encoded"], channels=3), [patch_size, patch_size, 3])
        viewed = {}
    else:
        corner, view = crop.draw(seeds)
        image = _window(example["image/encoded"], patch_size, corner, crop.window)
        boxes -= tf.cast(tf.tile(corner, [2]), tf.float32)
        viewed = {"view": view}
    labels = tf.cast(example["image/object/class/label"], tf.int32)
    classes = labels[:max_boxes]
    missing = max_boxes - tf.size(classes)
    return {
        "image": image,
        "boxes": tf.ensure_shape(tf.pad(boxes, [[0, missing], [0, 0]]), [max_boxes, 4]),
        "classes": tf.ensure_shape(tf.pad(classes, [[0, missing]]), [max_boxes]),
        "objects": tf.size(labels),
        "patch_id": example["image/patch_id"],
        **viewed,
    }


def _window(encoded: tf.Tensor, patch_size: int, corner: tf.Tensor, side: int) -> tf.Tensor:
    """Pixels uint8 [side, side, 3] of a picture, from a corner on: of a JPEG nothing else is transformed back."""

    def jpeg() -> tf.Tensor:
        picture = tf.io.extract_jpeg_shape(encoded)[:2]
        with tf.control_dependencies([tf.debugging.assert_equal(picture, [patch_size, patch_size])]):
            return tf.image.decode_and_crop_jpeg(encoded, tf.concat([corner, [side, side]], axis=0), channels=3)

    def other() -> tf.Tensor:
        whole = tf.ensure_shape(tf.io.decode_png(encoded, channels=3), [patch_size, patch_size, 3])
        return tf.slice(whole, tf.concat([corner, [0]], axis=0), [side, side, 3])

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(encoded), jpeg, other), [side, side, 3])


def read(
    shards: Sequence[Shard],
    *,
    patch_size: int,
    max_boxes: int,
    training: bool,
    batch_size: int,
    crop: Crop | None = None,
    seed: int = 0,
    start_step: int = 0,
    context: tf.distribute.InputContext | None = None,
    prefetch: bool = True,
) -> tf.data.Dataset:
    """Batches of the records of some files.

    The order of training records is a function of the seed, the epoch and the list of files alone, and the view of a record one
    of the seed and its place in that order: a run that goes on at `start_step` sees what it would have seen without the stop.
    Each epoch shows every record once.

    Several hosts share out the files, and each goes through its own, which may be more or fewer records than the others': in
    training its epochs are as long as its own files; in validation all hosts go on, with blank images, for as many steps as the
    one that has most.

    Args:
      shards: files, see `tpu_train.shards.resolve`.
      patch_size: see `decode`.
      max_boxes: see `decode`.
      training: shuffle and repeat for ever; otherwise one pass in order, filled up with blank images of patch_id -1.
      batch_size: global batch size.
      crop: of which each record shows a random view; by default whole patches.
      seed: of the shuffle and of the views.
      start_step: steps already trained: their records are skipped, undecoded.
      context: the strategy's, for several replicas on one or several hosts.
      prefetch: reads ahead; otherwise each batch is decoded when it is asked for, record by record. In a run that is when the
        strategy asks, which on one device is two batches ahead.

    Returns:
      Batches of `decode`'s values with a static first dimension, the batch size of one replica.

    Raises:
      InputError: fewer files with records than hosts, or a batch size that the replicas cannot share evenly.
    """
    hosts, host, replicas = (
        (context.num_input_pipelines, context.input_pipeline_id, context.num_replicas_in_sync) if context else (1, 0, 1)
    )
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        near = f"{below} or {below + replicas}" if below else str(replicas)
        raise InputError(f"--batch_size={batch_size}: must be a multiple of the {replicas} replicas; use {near}")
    filled = [shard for shard in shards if shard.records]
    if len(filled) < hosts:
        raise InputError(
            f"{len(filled)} TFRecord files for {hosts} hosts: each needs one; shard again with a smaller --records_per_shard"
        )
    # A host feeds all of its replicas from one dataset, batch after batch: a step takes this many records of it.
    step_records = batch_size // hosts
    counts = [sum(shard.records for shard in filled[i::hosts]) for i in range(hosts)]
    mine = filled[host::hosts]
    if training:
        first_epoch, skip = divmod(start_step * step_records, counts[host])
        window = max(1, min(SHUFFLE_RECORDS, SHUFFLE_PIXELS // patch_size**2))
        records = _shuffled(mine, seed, first_epoch, window).skip(skip)
    else:
        records = tf.data.Dataset.from_tensor_slices(_columns(mine)).flat_map(_records)

    def decoded_record(number: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        return decode(serialized, patch_size, max_boxes, crop, crops.seeds(seed, host, number) if crop else None)

    numbered = records.enumerate(start_step * step_records)
    # One after the other they are in order anyway, and TensorFlow warns of saying so.
    ahead = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True} if prefetch else {}
    decoded = numbered.map(decoded_record, **ahead)
    if not training:
        # Blank images fill the last step of all replicas: a partial batch would be another shape, and where one replica has no
        # batch, the batches of the others would be lost.
        blank = {name: tf.zeros(value.shape, value.dtype) for name, value in decoded.element_spec.items()}
        blank["patch_id"] = tf.constant(-1, tf.int64)
        steps = max(-(-count // step_records) for count in counts)
        decoded = decoded.concatenate(tf.data.Dataset.from_tensors(blank).repeat()).take(steps * step_records)
    batches = decoded.batch(batch_size // replicas, drop_remainder=True)
    if prefetch:
        return batches.prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()  # or TensorFlow would read ahead of its own accord
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return batches.with_options(options)


def _columns(shards: Sequence[Shard]) -> tuple[list[str], list[int], list[int]]:
    """Files as tensors want them, see `_records`."""
    return [shard.path for shard in shards], [shard.first for shard in shards], [shard.records for shard in shards]


def _records(path: tf.Tensor, first: tf.Tensor, number: tf.Tensor) -> tf.data.Dataset:
    """So many records of a file, from the `first` on."""
    return tf.data.TFRecordDataset(path).skip(tf.cast(first, tf.int64)).take(tf.cast(number, tf.int64))


def _shuffled(files: Sequence[Shard], seed: int, first_epoch: int, size: int) -> tf.data.Dataset:
    """The records of all epochs from one on: shards in random order, several read in turn, records shuffled in windows of a size.

    Windows and not `Dataset.shuffle`, whose seed cannot follow the epoch when operations must be deterministic.
    """

    def windows(epoch: tf.Tensor) -> tf.data.Dataset:
        seeds = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0]), epoch)
        order = _order(len(files), seeds)
        shards = tf.data.Dataset.from_tensor_slices(tuple(tf.gather(column, order) for column in _columns(files)))
        # Read side by side, which hides the latency of Cloud Storage; the order is that of reading them in turn all the same.
        records = shards.interleave(
            _records,
            cycle_length=min(SHARDS_IN_TURN, len(files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        numbered = records.batch(size).enumerate(start=1)
        return numbered.map(lambda number, window: (tf.random.experimental.stateless_fold_in(seeds, number), window))

    def shuffled(seeds: tf.Tensor, window: tf.Tensor) -> tf.data.Dataset:
        # Picked one by one: gathering them all at once would hold every byte of the window twice.
        return tf.data.Dataset.from_tensor_slices(_order(tf.size(window), seeds)).map(lambda i: window[i])

    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return epochs.flat_map(windows).prefetch(1).flat_map(shuffled)


def _order(count: int | tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """The numbers below `count` in an order that follows from seeds int [2]."""
    return tf.argsort(tf.random.stateless_uniform([count], seeds))
