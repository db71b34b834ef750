"""From 16 bits to 8: the same stretch for every patch of a mosaic, in every worker and every stage.

Sensors fill a part of the 65,536 values, and clipping or dividing by 256 would leave an image black or white. So each band is
stretched linearly between two percentiles of the whole mosaic; what lies outside them is black or white.
"""

from collections.abc import Iterable

import numpy as np

Stretch = tuple[tuple[float, float], ...]  # (low, high) of each colour band, in values of the file

# 2 and 98 are what QGIS and ArcGIS show such images with: glints and shadows do not set the contrast of the rest.
PERCENTILES = (2.0, 98.0)


def measure(samples: Iterable[tuple[np.ndarray, np.ndarray]], bands: int) -> Stretch:
    """Percentiles of a sample of pixels, band by band, from histograms: exact, and the memory does not grow with the sample.

    Args:
      samples: (pixels uint16 or int16 [..., bands], valid bool [...]) of parts of a mosaic.
      bands: colour bands.

    Returns:
      (low, high) of each band, low < high.
    """
    counts = np.zeros((bands, 1 << 16), np.int64)
    lowest = 0
    for pixels, valid in samples:
        lowest = int(np.iinfo(pixels.dtype).min)
        for band in range(bands):
            values = pixels[..., band][valid].astype(np.int64) - lowest
            counts[band] += np.bincount(values, minlength=1 << 16)
    return tuple(_percentiles(row, lowest) for row in counts)


def apply(pixels: np.ndarray, stretch: Stretch) -> np.ndarray:
    """uint8 [..., bands] of 16-bit pixels [..., bands]: low becomes 0, high 255, rounded to the nearest."""
    tables = [_table(pixels.dtype, low, high) for low, high in stretch]
    # Looked up, not computed: the same bytes on every machine, and several times faster than floating point.
    index = pixels.view(np.uint16)
    return np.stack([table[index[..., band]] for band, table in enumerate(tables)], axis=-1)


_tables: dict[tuple[str, float, float], np.ndarray] = {}


def _table(dtype: np.dtype, low: float, high: float) -> np.ndarray:
    key = (dtype.name, low, high)
    if key not in _tables:
        if len(_tables) >= 64:  # of a few mosaics; 64 kB each
            _tables.clear()
        values = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float64)
        _tables[key] = np.clip(np.floor((values - low) * (255 / (high - low)) + 0.5), 0, 255).astype(np.uint8)
    return _tables[key]


def _percentiles(counts: np.ndarray, lowest: int) -> tuple[float, float]:
    total = int(counts.sum())
    if total == 0:
        return float(lowest), float(lowest + 1)
    cumulated = np.cumsum(counts)
    low, high = (int(np.searchsorted(cumulated, max(1, np.ceil(total * p / 100)))) + lowest for p in PERCENTILES)
    return float(low), float(max(high, low + 1))  # a flat band is black, not a division by zero
