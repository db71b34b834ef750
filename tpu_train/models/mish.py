"""Mish, x tanh(softplus(x)) (Misra 2019, https://arxiv.org/abs/1908.08681), in a form that runs everywhere.

On a CPU with oneDNN TensorFlow sees a convolution, batch normalisation in inference, and mish as Model Garden writes it, makes
them one operation, and has no such operation: "Fusion is not implemented: [FusedBatchNorm,Mish]". So ended every validation and
every exported model of a network with mish, on any machine with such a TensorFlow. Written out by n = exp(x),

    tanh(log(1 + n)) = ((1 + n)^2 - 1) / ((1 + n)^2 + 1) = n (n + 2) / (n (n + 2) + 2)

it is left alone, and is one exponential and a division instead of an exponential, a logarithm and a tanh.
"""

import tensorflow as tf
from official.projects.yolo.modeling.layers import nn_blocks

# From here on the factor is 1 in float32 and its derivative 0: 2 / (n (n + 2) + 2) < 1e-8 at n = exp(10). And no n overflows.
_LINEAR = 10.0


def mish(x: tf.Tensor) -> tf.Tensor:
    """Mish of each value."""
    n = tf.exp(tf.minimum(x, _LINEAR))
    product = n * (n + 2.0)
    return x * (product / (product + 2.0))


def replace(model: tf.Module) -> int:
    """Has every mish of Model Garden's blocks in a built model computed by `mish`; returns how many there were."""
    blocks = [each for each in model.submodules if isinstance(each, nn_blocks.ConvBN) and each._activation == "mish"]
    for block in blocks:
        block._activation_fn = mish
    return len(blocks)
