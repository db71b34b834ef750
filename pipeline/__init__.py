"""The first stage: mosaics and annotations in, a dataset of TFRecord shards out (survey.dataset)."""
