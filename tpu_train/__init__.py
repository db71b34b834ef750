"""From a dataset to a model: experiments, input, augmentation, targets, the training verb and the export."""

import os

# Both are read once, when TensorFlow is first imported. Model Garden is written for Keras 2; and TensorFlow's C++ side reports
# every missing GPU library as an error, while its real errors arrive as exceptions.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
