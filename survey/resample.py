"""Patches at another ground resolution, with integers only: the same bytes on every processor.

A patch is resampled from the source pixels whose centres lie in it, and from no others, so patches that share no pixel after
resampling share none before.
"""

import math
from functools import lru_cache

import numpy as np

from survey.geometry import Window

WEIGHT_BITS = 12  # weights in 1/4096: 255 * 4096 * 2**4 stays within int32, and the error is below half a grey level
SPARE_BITS = 4  # kept between the two passes


def source(window: Window, scale: tuple[float, float]) -> Window:
    """The source pixels whose centres lie in a window.

    Args:
      window: in pixels of the target resolution.
      scale: source pixels for one target pixel, down and across.

    >>> source(Window(0, 10, 100, 110), (2.0, 0.5))
    Window(y0=0, x0=5, y1=200, x1=55)
    """
    return Window(
        _first(window.y0, scale[0]), _first(window.x0, scale[1]), _first(window.y1, scale[0]), _first(window.x1, scale[1])
    )


def resize(pixels: np.ndarray, window: Window, scale: tuple[float, float]) -> np.ndarray:
    """Pixels of a window from those of `source(window, scale)`, with a triangle filter as wide as a target pixel or wider.

    That is linear interpolation where the image is enlarged, and an antialiased average where it is shrunk (the filter of
    Pillow's BILINEAR and of tf.image.resize with antialias, but for the pixels at the border).

    Args:
      pixels: uint8 [h, w, C].
      window: in pixels of the target resolution.
      scale: source pixels for one target pixel, down and across.

    Returns:
      uint8 [window.height, window.width, C].
    """
    if pixels.shape[:2] == (window.height, window.width) and scale == (1.0, 1.0):
        return pixels
    tall = _apply(pixels.astype(np.int32), *_taps(window.y0, window.y1, scale[0]), shift=WEIGHT_BITS - SPARE_BITS)
    wide = _apply(tall.transpose(1, 0, 2), *_taps(window.x0, window.x1, scale[1]), shift=WEIGHT_BITS + SPARE_BITS)
    return np.ascontiguousarray(wide.transpose(1, 0, 2).astype(np.uint8))


def _first(edge: int, scale: float) -> int:
    # The first pixel whose centre is at or beyond the edge. The same number decides where one patch ends and the next begins.
    return math.ceil(edge * scale - 0.5)


def _apply(pixels: np.ndarray, indices: np.ndarray, weights: np.ndarray, *, shift: int) -> np.ndarray:
    total = np.full((len(indices), *pixels.shape[1:]), 1 << (shift - 1), np.int32)  # half, so that the shift rounds
    for tap in range(indices.shape[1]):
        total += pixels[indices[:, tap]] * weights[:, tap, None, None]
    return total >> shift


@lru_cache(maxsize=256)
def _taps(begin: int, end: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Which source pixels make each target pixel along one axis: (indices from the window's first, weights), int32 [n, taps]."""
    first, last = _first(begin, scale), _first(end, scale)
    support = max(1.0, scale)
    centers = (np.arange(begin, end) + 0.5) * scale
    low = np.floor(centers - support).astype(int)
    raw = low[:, None] + np.arange(math.ceil(2 * support) + 2)  # [n, taps] source pixels
    share = np.maximum(0.0, 1 - np.abs(raw + 0.5 - centers[:, None]) / support)
    share[(raw < first) | (raw >= last)] = 0.0
    weights = np.round(share / share.sum(axis=1, keepdims=True) * 2**WEIGHT_BITS).astype(np.int32)
    largest = weights.argmax(axis=1)
    weights[np.arange(len(weights)), largest] += 2**WEIGHT_BITS - weights.sum(axis=1)  # a grey image stays as grey as it is
    return np.clip(raw - first, 0, last - first - 1), weights
