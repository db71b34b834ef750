"""What lies where in the folder of a training run, for all who write or read there."""

import os

RECORD = "train.json"  # which run the folder belongs to
CONFIG = "params.yaml"  # its experiment, every value
BEST = "best"  # the checkpoint that validated best
BEST_RECORD = os.path.join(BEST, "info.json")  # its metrics, as Model Garden writes them
