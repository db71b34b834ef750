"""The XLA path goes through the real TPU compiler, without a TPU."""

import importlib.util
from pathlib import Path

import pytest
import tensorflow as tf

from inference.decode import DecodeSpec
from inference.decode_xla import XlaDecoder
from survey.anchors import AnchorSpec
from survey.heads import LEVELS, RetinaNetHeads

INSTALLED = all(importlib.util.find_spec(name) for name in ("jax", "libtpu"))


@pytest.mark.skipif(not INSTALLED, reason="the TPU compiler is not installed: extra `preflight`")
def test_decoding_compiles_for_v5e(tmp_path: Path) -> None:
    from tpu_train.preflight import compiler
    from tpu_train.preflight.lowering import Traced

    heads = RetinaNetHeads(AnchorSpec(3, 5, 3, (0.5, 1.0, 2.0), 4.0), (1.0,) * 4, LEVELS, background=True)
    spec = DecodeSpec(256, tuple(f"class_{i}" for i in range(9)), heads, 0.05, 0.5)
    decoder = XlaDecoder(spec, top_k=1000, max_detections=100)
    inputs = {name: tf.TensorSpec((8, *shape), tf.bfloat16) for name, shape in heads.shapes(256, 9).items()}

    def decode(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        return decoder(dict(zip(inputs, arrays, strict=True)))

    function = tf.function(decode, jit_compile=True)
    traced = Traced("decode", function, inputs, None, decoder)
    found = compiler.compile(traced.lower(), "v5e:2x2", cache=tmp_path, timeout_s=600)
    assert isinstance(found, compiler.Compiled), found
    # The logits of 12,096 anchors, 9 classes, 8 images are 3.5 MB in float32; nothing here needs a hundred times that.
    assert found.temporary_bytes < 350e6
