"""Random images full of overlapping boxes, for comparing one way of matching with another."""

import numpy as np

from survey.matching import Frame


def random_frames(rng, images, classes, on_grid):
    """Crowded frames; on a coarse grid scores tie, and IoUs tie and fall exactly on thresholds."""
    frames = []
    for _ in range(images):
        m = int(rng.integers(0, 60))
        corner, size = rng.uniform(0, 60, (m, 2)), rng.uniform(4, 20, (m, 2))
        truth = np.concatenate([corner, corner + size], axis=1)
        again = truth[rng.integers(0, m, 90 if m else 0)]
        spurious = rng.uniform(0, 60, (10, 2))
        boxes = np.concatenate([again + rng.normal(0, 2, again.shape), np.concatenate([spurious, spurious + 8], axis=1)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = rng.uniform(0, 1, len(boxes))
        if on_grid:
            truth, boxes, scores = np.round(truth / 4) * 4, np.round(boxes / 4) * 4, np.round(scores, 1)
            truth[:, 2:], boxes[:, 2:] = np.maximum(truth[:, 2:], truth[:, :2] + 4), np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
        ids = rng.integers(1, classes + 1, len(boxes)), rng.integers(1, classes + 1, m)
        frames.append(Frame(boxes, scores, ids[0], truth, ids[1]))
    return frames
