"""Backbones and heads that Model Garden lacks."""
