"""What an exported model says of the pixels it learned from."""

import dataclasses

import pytest
from test_survey_contracts import DATASET

from tpu_train import saved_model


@pytest.mark.parametrize(
    ("known", "resampled", "expected"),
    [
        ((0.1, 0.3, 0.2), None, (0.1, 0.3)),
        ((0.1, 0.3, None), None, None),  # of one mosaic nobody knows: the range would be a guess
        ((0.1, 0.3, None), 0.25, (0.25, 0.25)),  # all were resampled to it
        ((), None, None),
    ],
)
def test_range_of_ground_resolutions(known, resampled, expected):
    mosaics = tuple(dataclasses.replace(DATASET.mosaics[0], gsd_m=gsd) for gsd in known)
    data = dataclasses.replace(DATASET, mosaics=mosaics, gsd_m=resampled)
    assert saved_model._gsd_range(data) == expected
