"""A watch over the loss, on the device: a step whose loss is not finite, or explodes, is noted with the patches it saw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from survey.dataset import Dataset
from survey.errors import InputError

# A focal loss is divided by the objects of the batch (Lin et al. 2017): a batch that happens to show one object instead of the
# usual tens has tens of times the usual loss, and nothing is wrong. A diverging run multiplies its loss with every step.
EXPLODED = 100.0  # times the running mean
HARMLESS = 1.0  # a loss up to this is no explosion, however small the mean has become
WARM_UP = 50  # steps before the mean means something: the first losses are high, and fall within tens of steps
HORIZON = 100  # steps over which the mean looks back
SKIPS = 4  # steps that may be listed to be passed over
_PIECE = 1 << 21  # a patch number travels in three pieces of 21 bits, which float32 holds exactly


@dataclass(frozen=True, slots=True)
class Incident:
    """A step that went wrong.

    Attributes:
      step: steps trained before it.
      loss: of the replica where it went wrong; may be NaN or infinite.
      patch_ids: the batch of that replica.
    """

    step: int
    loss: float
    patch_ids: tuple[int, ...]

    def describe(self, data: Dataset) -> str:
        """Step, loss, and each patch with the mosaic and the cell it was cut from."""
        places = []
        for patch_id in self.patch_ids:
            try:
                mosaic, _, row, column = data.locate(patch_id)
                places.append(f"{patch_id} ({mosaic.name} row {row} column {column})")
            except InputError:  # records that are not of this dataset, given by --training_file_pattern
                places.append(str(patch_id))
        what = "is not finite" if not math.isfinite(self.loss) else f"is over {EXPLODED:.0f} times its running mean"
        return f"step {self.step}: the loss, {self.loss:.4g}, {what}, on patches {', '.join(places)}"


class Guard(tf.Module):
    """The watch. Make it within the strategy's scope.

    All replicas exchange their losses and patch numbers, a few kilobytes, so that all come to the same verdict: a gradient that
    one replica spoils would reach all of them.

    Args:
      replica_batch: images per step of one replica.
    """

    def __init__(self, replica_batch: int) -> None:
        super().__init__(name="guard")
        self._step = _variable("step", tf.constant(-1, tf.int64))
        self._loss = _variable("loss", tf.constant(0.0))
        self._patch_ids = _variable("patch_ids", tf.fill([replica_batch], tf.constant(-1, tf.int64)))
        self._skip = _variable("skip", tf.fill([SKIPS], tf.constant(-1, tf.int64)))
        self.mean = _variable("mean", tf.constant(0.0))
        self.count = _variable("count", tf.constant(0, tf.int64))

    def observe(self, step: tf.Tensor, loss: tf.Tensor, patch_ids: tf.Tensor) -> tf.Tensor:
        """Looks at a step; to be called in it, by every replica.

        Args:
          step: whole number [], steps trained so far (`optimizer.iterations`).
          loss: float [], of this replica.
          patch_ids: int64 [replica_batch], what it saw.

        Returns:
          bool [], the same on all replicas: whether the step may change the weights. It may not where the loss went wrong, and in
          steps that `clear` lists.
        """
        step = tf.cast(step, tf.int64)
        losses, ids = _exchanged(tf.cast(loss, tf.float32), tf.cast(patch_ids, tf.int64))  # [R], [R, B]
        settled = self.count >= WARM_UP
        limit = tf.where(settled, tf.maximum(EXPLODED * self.mean, HARMLESS), losses.dtype.max)
        wrong = tf.logical_not(tf.math.is_finite(losses)) | (losses > limit)
        skipped = tf.reduce_any(tf.equal(self._skip, step))
        healthy = tf.logical_not(tf.reduce_any(wrong) | skipped)

        first = tf.argmax(tf.cast(wrong, tf.int32), output_type=tf.int32)
        news = tf.reduce_any(wrong) & tf.logical_not(skipped) & (self._step < 0)
        self._loss.assign(tf.where(news, tf.gather(losses, first), self._loss))
        self._patch_ids.assign(tf.where(news, tf.gather(ids, first), self._patch_ids))
        self._step.assign(tf.where(news, step, self._step))

        count = self.count + tf.cast(healthy, tf.int64)
        weight = 1.0 / tf.cast(tf.clip_by_value(count, 1, HORIZON), tf.float32)
        self.mean.assign(tf.where(healthy, self.mean + weight * (tf.reduce_mean(losses) - self.mean), self.mean))
        self.count.assign(count)
        return healthy

    def incident(self) -> Incident | None:
        """The first step since `clear` that went wrong, if any. On the host, between two inner loops."""
        step = int(self._step.numpy())
        if step < 0:
            return None
        return Incident(step, float(self._loss.numpy()), tuple(int(patch_id) for patch_id in self._patch_ids.numpy()))

    def clear(self, skip: Sequence[int]) -> None:
        """Forgets the incident.

        Args:
          skip: steps that are to change nothing from now on, SKIPS at most.
        """
        self._step.assign(-1)
        self._skip.assign([*skip, *[-1] * (SKIPS - len(skip))])


def _variable(name: str, value: tf.Tensor) -> tf.Variable:
    # One value for all replicas, as they agree; int64, because TensorFlow keeps int32 variables on the host of a GPU.
    return tf.Variable(value, name=name, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


def _exchanged(loss: tf.Tensor, patch_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses [R] and patch numbers [R, B] of all replicas, from those of this one.

    One sum of float32, the only kind of exchange that every device and strategy has: each replica fills its own row of a table.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return loss[tf.newaxis], patch_ids[tf.newaxis]
    batch = patch_ids.shape[0]
    pieces = [tf.cast(tf.math.floormod(patch_ids // _PIECE**i, _PIECE), tf.float32) for i in range(3)]
    row = tf.concat([loss[tf.newaxis], *pieces], axis=0)  # [1 + 3 B]
    mine = tf.equal(tf.range(replicas), context.replica_id_in_sync_group)
    table = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(mine[:, tf.newaxis], row[tf.newaxis], 0.0))  # [R, 1 + 3 B]
    back = [tf.cast(table[:, 1 + i * batch : 1 + (i + 1) * batch], tf.int64) * _PIECE**i for i in range(3)]
    return table[:, 0], back[0] + back[1] + back[2]
