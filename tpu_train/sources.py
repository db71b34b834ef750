"""The files that a run reads, and what becomes of them when one turns out to be damaged."""

from collections.abc import Sequence

from tpu_train import damage, shards
from tpu_train.options import Options
from tpu_train.plan import Plan
from tpu_train.shards import Shard

TRAINING, VALIDATION = "training", "validation"


class Sources:
    """The TFRecord files of a run.

    Args:
      options: of `rookery train`.
      plan: of the run.

    Attributes:
      shards: of TRAINING and of VALIDATION; cleaned copies stand for damaged files.

    Raises:
      InputError: see `tpu_train.shards.resolve` and `tpu_train.damage.known`.
    """

    def __init__(self, options: Options, plan: Plan) -> None:
        self._options, self._patch_size = options, plan.patch_size
        pattern, most = options.training_file_pattern, plan.max_boxes
        held_out = "" if options.validation else options.val_split
        training = shards.resolve(options.dataset, options.train_split, pattern, held_out=held_out, max_boxes=most)
        validation = () if options.validation else shards.resolve(options.dataset, options.val_split, max_boxes=most)
        self._training = len(training)
        self._originals = (*training, *validation)
        self.shards = self._divided(damage.known(self._originals, options.model_dir, options.max_bad_records))

    @property
    def named(self) -> list[list[str | int]]:
        """The files to learn from with their numbers of records, as a run remembers them: other files are another run."""
        return [[shard.path, shard.records] for shard in self._originals[: self._training]]

    def repair(self, error: Exception) -> None:
        """Puts cleaned copies in the place of damaged files.

        Args:
          error: what TensorFlow raised when it read them.

        Raises:
          InputError: more records are damaged than --max_bad_records allows.
          Exception: `error`, where no record is damaged.
        """
        import tensorflow as tf

        from tpu_train import example

        def judge(content: bytes) -> str | None:
            return example.complaint(content, self._patch_size)

        wrong_checksum = isinstance(error, tf.errors.DataLossError)
        options = self._options
        self.shards = self._divided(
            damage.repair(
                self._originals,
                options.model_dir,
                options.max_bad_records,
                cause=error,
                judge=None if wrong_checksum else judge,
            )
        )

    def _divided(self, files: Sequence[Shard]) -> dict[str, tuple[Shard, ...]]:
        """What is learned from, and what judges it, as --validation and --sample_train ask for.

        Args:
          files: the whole files to read, cleaned copies where they are damaged. A patch stays on the side on which it was in the
            files as they were cut: or what was learned from would judge after a repair.
        """
        options = self._options
        training, validation = self._originals[: self._training], self._originals[self._training :]
        if options.validation:
            training, validation = shards.held_out(training, options.validation)
        if options.sample_train:
            training = shards.sampled(training, options.sample_train)
        whole = {original.path: file for original, file in zip(self._originals, files, strict=True)}
        parts = {TRAINING: training, VALIDATION: validation}
        return {name: tuple(shards.in_copy(part, whole[part.path]) for part in side) for name, side in parts.items()}
