"""What a run computes on: a Cloud TPU, GPUs, or the CPU."""

import os

import tensorflow as tf


def pick() -> tuple[tf.distribute.Strategy, str]:
    """The strategy for the best device there is, and one line that names it.

    A TPU is taken when TPU_NAME names one or libtpu shows local ones, then GPUs, then the CPU.
    """
    name = os.environ.get("TPU_NAME")
    if name or tf.config.list_physical_devices("TPU"):
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
        return strategy, f"TPU {name or '(local)'}, {strategy.num_replicas_in_sync} replicas"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.OneDeviceStrategy("/gpu:0")
        return strategy, f"{len(gpus)} GPU"
    # Not the default strategy: Model Garden swaps averaged weights in cross-replica context only.
    return tf.distribute.OneDeviceStrategy("/cpu:0"), f"CPU, {os.cpu_count()} cores"
