"""Patches of different splits that show the same picture: found by a fingerprint, then verified by their pixels.

The fingerprint is a difference hash (N. Krawetz, "Kind of Like That", 2013): the picture is shrunk to 9 x 9 means, and each bit
says whether a mean is greater than its left (first 64 bits) or upper (last 64) neighbour. It stays nearly the same under JPEG
compression and changes of light.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

CELLS = 9
EVEN = 1.0  # standard deviation of the 81 means, in grey levels, below which the bits are the noise of water, snow or sand
# Of 128 bits. Two unrelated pictures differ in 64 on average, a picture and its JPEG at quality 30 in about 5.
MAX_BITS = 12
# Pearson correlation of the pixels: above 0.95 for another compression or exposure of a picture, below 0.5 for other ground.
MIN_CORRELATION = 0.9
MAX_VERIFIED = 500  # pairs whose pixels are read again: 2 s; nobody reads a longer list of copies
_BLOCK = 4_000_000  # pairs compared at once: 64 MB


@dataclass(frozen=True, slots=True)
class Pair:
    """Two patches, as indices, and the correlation of their pixels."""

    first: int
    second: int
    correlation: float


@dataclass(frozen=True, slots=True)
class Search:
    """What the search found.

    Attributes:
      pairs: verified.
      compared: patches that took part.
      even: patches that were too even to compare.
      unverified: further pairs of like fingerprints whose pixels were not compared.
    """

    pairs: tuple[Pair, ...]
    compared: int
    even: int
    unverified: int


def fingerprint(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The bits of a picture.

    Args:
      image: uint8 [S, S, 3] of static size.

    Returns:
      (bool [128], standard deviation of the means in grey levels).
    """
    # Green carries most of the brightness, and a few hundred pixels do for a mean; of small pictures all are taken.
    step = max(1, min(4, image.shape[0] // 100))
    green = tf.cast(image[::step, ::step, 1], tf.float32)
    means = tf.constant(_areas(green.shape[0])) @ green @ tf.constant(_areas(green.shape[1]).T)  # [9, 9]
    across = means[:8, 1:] > means[:8, :-1]
    down = means[1:, :8] > means[:-1, :8]
    return tf.reshape(tf.stack([across, down]), [-1]), tf.math.reduce_std(means)


def pack(bits: np.ndarray) -> np.ndarray:
    """128 bits as uint64 [2]."""
    return np.packbits(bits).view(np.uint64)


def search(
    fingerprints: np.ndarray, split: np.ndarray, take: np.ndarray, even: np.ndarray, image: Callable[[int], np.ndarray | None]
) -> Search:
    """Pairs of patches of different splits that show the same.

    Args:
      fingerprints: uint64 [N, 2].
      split: int [N].
      take: bool [N], patches that have a fingerprint.
      even: bool [N], those whose fingerprint means nothing.
      image: reads the pixels of a patch, uint8 [S, S, 3], None where it cannot.
    """
    usable = take & ~even
    members = {int(s): np.flatnonzero(usable & (split == s)) for s in np.unique(split)}
    found = [
        (distance, int(members[a][i]), int(members[b][j]))
        for a, b in itertools.combinations(members, 2)
        for i, j, distance in zip(*near(fingerprints[members[a]], fingerprints[members[b]]), strict=True)
    ]
    found.sort()
    pairs = []
    for _, i, j in found[:MAX_VERIFIED]:
        first, second = image(i), image(j)
        if first is not None and second is not None and first.shape == second.shape:
            value = correlation(first, second)
            if value >= MIN_CORRELATION:
                pairs.append(Pair(i, j, value))
    return Search(tuple(pairs), int(usable.sum()), int((take & even).sum()), max(0, len(found) - MAX_VERIFIED))


def near(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of fingerprints that differ in at most MAX_BITS.

    Args:
      a: uint64 [N, 2].
      b: uint64 [M, 2].

    Returns:
      (i, j, bits that differ), each [P].
    """
    rows = max(1, _BLOCK // max(1, len(b)))
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(np.zeros(0, int),) * 3]
    for start in range(0, len(a), rows):
        block = a[start : start + rows]
        half = np.bitwise_count(block[:, None, 0] ^ b[None, :, 0])
        # The second half is looked at only where the first one is near: one pair in thousands.
        i, j = np.nonzero(half <= MAX_BITS)
        distance = half[i, j].astype(int) + np.bitwise_count(block[i, 1] ^ b[j, 1])
        keep = distance <= MAX_BITS
        parts.append((i[keep] + start, j[keep], distance[keep]))
    i, j, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return i, j, distance


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two pictures' pixels, in [-1, 1]; 0 if one of them is of one colour."""
    x, y = (image.astype(np.float32).mean(axis=2).ravel() for image in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _areas(length: int) -> np.ndarray:
    """Weights [CELLS, length] that take means over CELLS equal parts of `length` pixels."""
    edges = np.linspace(0, length, CELLS + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, 1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
