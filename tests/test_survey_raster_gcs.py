"""Rasters on gs://, against the emulator: tiles by ranges, never whole, and what only GDAL reads with all that it refers to."""

import numpy as np
import pytest
import rasterio
import tifffile

from survey import byte_ranges
from survey.errors import InputError
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


def mosaic_of(tile: str) -> str:
    """A VRT of 64 x 64 px that shows one file, named as seen from the VRT."""
    source = f'<SimpleSource><SourceFilename relativeToVRT="1">{tile}</SourceFilename><SourceBand>%d</SourceBand></SimpleSource>'
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{b}">{source % b}</VRTRasterBand>' for b in (1, 2, 3))
    return f'<VRTDataset rasterXSize="64" rasterYSize="64">{bands}</VRTDataset>'


def test_a_vrt_comes_with_the_tiles_below_it(tmp_path, pixels, gcs):
    (tmp_path / "tiles").mkdir()
    image = pixels(64, 64)
    with rasterio.open(tmp_path / "tiles/a.tif", "w", driver="GTiff", height=64, width=64, count=3, dtype="uint8") as out:
        out.write(image.transpose(2, 0, 1))
    (tmp_path / "survey.vrt").write_text(mosaic_of("tiles/a.tif"))
    for name in ("survey.vrt", "tiles/a.tif"):
        gcs.upload(tmp_path / name, f"gs://bkt/flight/{name}")
    with Raster("gs://bkt/flight/survey.vrt") as raster:
        np.testing.assert_array_equal(raster.read(Window(8, 8, 40, 48)), image[8:40, 8:48])


def test_a_vrt_whose_tiles_lie_elsewhere_is_refused(tmp_path, pixels, gcs):
    (tmp_path / "tiles").mkdir()
    with rasterio.open(tmp_path / "tiles/a.tif", "w", driver="GTiff", height=64, width=64, count=3, dtype="uint8") as out:
        out.write(pixels(64, 64).transpose(2, 0, 1))
    (tmp_path / "survey.vrt").write_text(mosaic_of("../tiles/a.tif"))
    gcs.upload(tmp_path / "survey.vrt", "gs://bkt/elsewhere/flight/survey.vrt")
    gcs.upload(tmp_path / "tiles/a.tif", "gs://bkt/elsewhere/tiles/a.tif")
    with (
        Raster("gs://bkt/elsewhere/flight/survey.vrt") as raster,
        pytest.raises(
            InputError, match=r"refers to gs://bkt/elsewhere/tiles/a.tif: in a bucket what a raster refers to must lie"
        ),
    ):
        raster.read(Window(0, 0, 8, 8))
