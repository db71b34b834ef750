"""What a run computes on: a Cloud TPU, GPUs, or the CPU.

`survey.tpu_environment` says what must be set before TensorFlow is imported.
"""

import os
from dataclasses import dataclass

import tensorflow as tf

from survey import tpu_environment
from survey.errors import InputError

# Between two looks of the host. An accelerator's step takes some hundredths of a second, a look about as long: a hundred steps
# make it cheap. A CPU's step takes up to seconds, and people want to see a line now and then.
STEPS_PER_LOOP = {"TPU": 100, "GPU": 100, "CPU": 20}


@dataclass(frozen=True, slots=True)
class Device:
    """Where a run computes.

    Attributes:
      strategy: distributes it.
      kind: TPU, GPU or CPU.
      name: for people.
      hosts: machines that feed it.
      compute_type: Keras policy of the matrix products: bfloat16 is what a TPU is built for, and needs no scaling of the loss.
    """

    strategy: tf.distribute.Strategy
    kind: str
    name: str
    hosts: int = 1
    compute_type: str = "float32"

    @property
    def replicas(self) -> int:
        """Copies of the model, each of which takes its share of a batch."""
        return int(self.strategy.num_replicas_in_sync)

    def line(self, steps_per_loop: int) -> str:
        """One line that says on what a run runs."""
        hosts, replicas = (f"{n} {what}{'' if n == 1 else 's'}" for n, what in ((self.hosts, "host"), (self.replicas, "replica")))
        return f"{self.name}; {hosts}, {replicas}, {self.compute_type}, {steps_per_loop} steps a loop"


def pick(*, one: bool = False) -> Device:
    """The best there is: a TPU when TPU_NAME names one or this machine has one, then GPUs, then the CPU.

    Args:
      one: only devices of this machine that can run a step line by line, and one replica: for debugging.
    """
    named = tpu_environment.is_named(os.environ)
    if not one and (named or tf.config.list_physical_devices("TPU")):
        return _tpu(os.environ["TPU_NAME"] if named else "local")
    gpus = [] if tf.config.list_physical_devices("TPU") else tf.config.list_physical_devices("GPU")
    if gpus:
        several = len(gpus) > 1 and not one
        strategy = tf.distribute.MirroredStrategy() if several else tf.distribute.OneDeviceStrategy("/gpu:0")
        model = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return Device(strategy, "GPU", f"{len(gpus) if several else 1} GPU ({model})")
    # Not the default strategy: Model Garden swaps averaged weights in cross-replica context only.
    return Device(tf.distribute.OneDeviceStrategy("/cpu:0"), "CPU", f"CPU, {os.cpu_count()} cores")


def _tpu(name: str) -> Device:
    """The TPU of that name. Built here, because Model Garden's own builder names a class that TensorFlow has renamed.

    Raises:
      InputError: it does not answer.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(
            f"TPU_NAME={name}: this TPU does not answer ({str(error).splitlines()[0]}); is it READY in "
            "`gcloud compute tpus tpu-vm list`, in this project and zone, and is no other program using it?"
        ) from error
    hosts = int(getattr(strategy.extended, "num_hosts", 1))
    return Device(strategy, "TPU", f"TPU ({name})", hosts, "mixed_bfloat16")


def check_batch(flag: str, batch_size: int, replicas: int) -> None:
    """Refuses a batch that does not divide: the shapes on a TPU are static, and so every replica takes the same number of images.

    Args:
      flag: what sets it, for the error.
      batch_size: images per step, over all replicas.
      replicas: of the model.

    Raises:
      InputError: names the two nearest batch sizes that divide.
    """
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        near = f"{below} or {below + replicas}" if below else str(replicas)
        raise InputError(
            f"{flag}={batch_size}: must be a multiple of the {replicas} replicas, each takes an equal share; use {near}"
        )
