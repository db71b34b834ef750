"""Launching on Google Cloud: what runs on the engineer's machine, and what runs on the TPU's. No TensorFlow, no Beam."""
