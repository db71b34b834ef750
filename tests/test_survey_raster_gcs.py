"""Rasters on gs://, against the emulator: by ranges, never whole."""

import numpy as np
import pytest
import tifffile

# Fixtures, imported under their own names.
from gcs_emulator import _gcs_server as _gcs_server
from gcs_emulator import gcs as gcs

from survey import byte_ranges
from survey.geometry import Window
from survey.raster import Raster
from survey.tiled_tiff import TiledTiff


@pytest.mark.parametrize("compression", ["jpeg", None])
def test_a_tiled_tiff_is_read_by_ranges(tmp_path, pixels, gcs, monkeypatch, compression):
    monkeypatch.setattr(byte_ranges, "CHUNK_BYTES", 1 << 16)
    image = pixels(2048, 2048)
    if compression is None:
        image = np.random.default_rng(0).permutation(image)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(256, 256), compression=compression, photometric="rgb")
    gcs.upload(tmp_path / "a.tif", "gs://bkt/a.tif")
    window = Window(700, 500, 900, 800)
    with Raster(str(tmp_path / "a.tif")) as local:
        expected = local.read(window)
    before = len(gcs.requests())
    with Raster("gs://bkt/a.tif") as raster:
        np.testing.assert_array_equal(raster.read(window), expected)
        assert isinstance(raster._pixels, TiledTiff)
    if compression is None:  # 12 MB; the window lies in 2 x 3 of its 64 tiles
        sent = sum(request.sent for request in gcs.requests("a.tif", since=before) if request.method == "GET")
        assert sent < 0.25 * (tmp_path / "a.tif").stat().st_size
