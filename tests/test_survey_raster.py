import numpy as np
import pytest
from rasterio.transform import Affine

from survey.errors import InputError
from survey.geometry import Window
from survey.raster import Raster


def test_georeference_and_pixels_of_a_geotiff(tmp_path, pixels, write_raster):
    image = pixels(120, 90)
    # 0.25 m pixels, UTM 17 north, upper left corner (500000, 3300000).
    transform = Affine(0.25, 0, 500_000, 0, -0.25, 3_300_000)
    path = write_raster(tmp_path / "a.tif", image, crs="EPSG:32617", transform=transform)
    with Raster(path) as raster:
        info = raster.info()
        assert (info.height, info.width, info.bands) == (120, 90, 3)
        assert info.crs == "EPSG:32617"
        assert info.transform == (0.25, 0, 500_000, 0, -0.25, 3_300_000)
        assert info.gsd_m == pytest.approx(0.25)
        np.testing.assert_array_equal(raster.read(Window(10, 20, 50, 80)), image[10:50, 20:80])


def test_degrees_have_no_ground_resolution(tmp_path, pixels, write_raster):
    transform = Affine(1e-6, 0, 10, 0, -1e-6, 50)
    path = write_raster(tmp_path / "a.tif", pixels(20, 30), crs="EPSG:4326", transform=transform)
    with Raster(path) as raster:
        assert raster.info().gsd_m is None
        assert raster.info().crs == "EPSG:4326"


def test_plain_image_without_georeference(tmp_path, pixels, write_raster):
    image = pixels(40, 30)
    with Raster(write_raster(tmp_path / "a.png", image)) as raster:
        info = raster.info()
        assert (info.crs, info.transform, info.gsd_m) == (None, None, None)
        np.testing.assert_array_equal(raster.read(Window(0, 0, 40, 30)), image)


def test_beyond_the_edge_is_black(tmp_path, pixels, write_raster):
    image = pixels(40, 30) // 2 + 100
    with Raster(write_raster(tmp_path / "a.png", image)) as raster:
        got = raster.read(Window(30, 20, 50, 40))
        assert got.shape == (20, 20, 3)
        np.testing.assert_array_equal(got[:10, :10], image[30:, 20:])
        assert not got[10:].any()
        assert not got[:, 10:].any()
        assert not raster.read(Window(100, 100, 110, 110)).any()
        np.testing.assert_array_equal(raster.read(Window(-5, -5, 5, 5))[5:, 5:], image[:5, :5])


def test_grey_is_repeated_and_alpha_left_out(tmp_path, pixels, write_raster):
    image = pixels(40, 30)
    with Raster(write_raster(tmp_path / "grey.tif", image[..., 0])) as raster:
        got = raster.read(Window(0, 0, 40, 30))
        assert raster.info().bands == 1
        np.testing.assert_array_equal(got, np.repeat(image[..., :1], 3, axis=2))
    alpha = np.dstack([image, np.full((40, 30), 7, np.uint8)])
    with Raster(write_raster(tmp_path / "alpha.png", alpha)) as raster:
        assert raster.info().bands == 4
        np.testing.assert_array_equal(raster.read(Window(0, 0, 40, 30)), image)
    grey_alpha = write_raster(tmp_path / "grey_alpha.png", alpha[..., 2:])
    with Raster(grey_alpha) as raster:
        np.testing.assert_array_equal(raster.read(Window(0, 0, 40, 30))[..., 1], image[..., 2])


def test_overview_keeps_proportions(tmp_path, pixels, write_raster):
    with Raster(write_raster(tmp_path / "a.png", pixels(200, 100))) as raster:
        assert raster.overview(50).shape == (50, 25, 3)
        assert raster.overview(1000).shape == (200, 100, 3)


def test_what_cannot_be_read_is_refused(tmp_path, pixels, write_raster):
    deep = write_raster(tmp_path / "deep.tif", pixels(20, 20).astype(np.float32))
    with pytest.raises(InputError, match=r"deep\.tif holds float32 pixels: must be uint8, uint16 or int16"):
        Raster(deep)
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(InputError, match=r"text\.tif cannot be read as an image"):
        Raster(str(tmp_path / "text.tif"))
    write_raster(tmp_path / "whole.png", pixels(400, 400))
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Raster(str(tmp_path / "cut.png")) as raster, pytest.raises(InputError, match=r"cut\.png is damaged"):
        raster.read(Window(300, 0, 400, 400))
