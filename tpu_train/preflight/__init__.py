"""Preflight: what a training run will meet on a TPU, found out without the TPU."""
