"""Experiments: Model Garden configurations and tasks, each registered under the name that --model selects."""
