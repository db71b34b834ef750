"""Windows of a raster that can only be read front to back (JPEG, PNG): every row is decoded once, a band of rows is kept."""

import numpy as np
import rasterio
import rasterio.windows

from survey.geometry import Window

# A band of rows at a time: enough to keep the decoder busy, and less than GDAL's own cache (`gdal.GDAL_CACHE_MB`), which
# it fills with the rows of all bands before it hands out the first one.
READ_BYTES = 8 << 20


class RowBands:
    """Rows of an open raster.

    Windows are expected in row order: what lies above the current one is let go. A window further up starts the decoder again.

    Args:
      dataset: an open raster.
      bands: numbers of the bands to read, from 1.

    Attributes:
      restarts: how often a window lay above rows that were let go; 0 after one pass.
    """

    def __init__(self, dataset: rasterio.DatasetReader, bands: list[int]) -> None:
        self._dataset, self._bands = dataset, bands
        self._dtype = np.dtype(dataset.dtypes[0])
        self._rows = np.empty((0, dataset.width, len(bands)), self._dtype)
        self._top = self._bottom = 0  # the rows held, half-open
        self.restarts = 0

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window inside the raster: [h, w, bands], in the type of the file.

        Raises:
          RasterioIOError: a row cannot be decoded.
        """
        if window.y0 < self._top:
            self.restarts += 1
            self._top = self._bottom = window.y0
        elif window.y0 >= self._bottom:
            self._top = self._bottom = window.y0
        if window.y1 > self._bottom:
            self._extend(window)
        out: np.ndarray = self._rows[window.y0 - self._top : window.y1 - self._top, window.x0 : window.x1].copy()
        return out

    def close(self) -> None:
        """Lets go of the rows."""
        self._rows = self._rows[:0]

    def _extend(self, window: Window) -> None:
        """Lets go of the rows above the window and reads those that it lacks."""
        kept = self._rows[window.y0 - self._top : self._bottom - self._top]
        if len(self._rows) < window.height:
            grown = np.empty((window.height, *self._rows.shape[1:]), self._dtype)
            grown[: len(kept)] = kept
            self._rows = grown
        else:
            self._rows[: len(kept)] = kept  # numpy copies overlapping ranges rightly
        self._top, self._bottom = window.y0, window.y0 + len(kept)
        width = self._dataset.width
        step = max(1, READ_BYTES // (width * len(self._bands) * self._dtype.itemsize))
        for y in range(self._bottom, window.y1, step):
            rows = min(step, window.y1 - y)
            pixels = self._dataset.read(self._bands, window=rasterio.windows.Window(0, y, width, rows))  # [bands, rows, width]
            for band, plane in enumerate(pixels):
                self._rows[y - self._top : y - self._top + rows, :, band] = plane
            self._bottom = y + rows
