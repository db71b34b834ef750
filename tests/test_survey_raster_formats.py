"""Every layout a survey may come in, as real files, against the pixels that went in."""

import itertools
import os
import warnings

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile

from survey import stretch
from survey.errors import InputError
from survey.geometry import Window
from survey.raster import Raster
from survey.row_bands import RowBands
from survey.tiled_tiff import TiledTiff

# Not a multiple of the tile, so that edge tiles and the last strip are cut; windows over tile seams and over every edge.
HEIGHT, WIDTH, TILE = 150, 200, 64
WINDOWS = [Window(0, 0, 150, 200), Window(10, 20, 50, 80), Window(60, 60, 70, 130), Window(140, 190, 150, 200)]

LAYOUTS = {
    "tiled": {"tiled": True, "blockxsize": TILE, "blockysize": TILE},
    "striped": {"blockysize": 7},
    "one_strip": {"blockysize": HEIGHT},
    "planes": {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "interleave": "band"},
}
CODECS = {
    "none": {},
    "lzw": {"compress": "lzw", "predictor": 2},
    "deflate": {"compress": "deflate"},
    "deflate_predictor": {"compress": "deflate", "predictor": 2},
    "zstd": {"compress": "zstd"},
    "big": {"compress": "deflate", "bigtiff": "YES"},
}


def plain(path: str, window: Window) -> np.ndarray:
    """What GDAL reads: [h, w, bands]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            region = rasterio.windows.Window(window.x0, window.y0, window.width, window.height)
            return dataset.read(window=region).transpose(1, 2, 0)


def noise(bands: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(bands)
    return rng.integers(0, 1 << (8 * np.dtype(dtype).itemsize), (HEIGHT, WIDTH, bands)).astype(dtype)


@pytest.mark.parametrize(("layout", "codec", "bands"), list(itertools.product(LAYOUTS, CODECS, (1, 3, 4))))
def test_lossless_tiff_8_bit(tmp_path, write_raster, layout, codec, bands):
    image = noise(bands, "uint8")
    extra = {"alpha": "YES"} if bands == 4 else {}
    path = write_raster(tmp_path / "a.tif", image, **LAYOUTS[layout], **CODECS[codec], **extra)
    truth = image[..., :3] if bands >= 3 else np.repeat(image, 3, axis=-1)
    with Raster(path) as raster:
        for window in WINDOWS:
            got = raster.read(window)
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, truth[window.y0 : window.y1, window.x0 : window.x1])
            valid = raster.read_valid(window)
            expected = image[..., 3] > 0 if bands == 4 else np.ones((HEIGHT, WIDTH), bool)
            np.testing.assert_array_equal(valid, expected[window.y0 : window.y1, window.x0 : window.x1])
        assert raster.one_pass == (layout in ("striped", "one_strip"))
        assert isinstance(raster._pixels, TiledTiff) == (layout != "planes" or bands == 1)


@pytest.mark.parametrize(
    ("layout", "codec", "bands", "dtype"),
    list(itertools.product(LAYOUTS, ("none", "lzw", "deflate"), (1, 3, 4), ("uint16", "int16"))),
)
def test_lossless_tiff_16_bit_is_stretched(tmp_path, write_raster, layout, codec, bands, dtype):
    image = noise(bands, dtype)
    extra = {"alpha": "YES", "photometric": "RGB"} if bands == 4 else {}
    if bands == 4:
        image[..., 3] = np.where(np.arange(WIDTH) < 100, 0, 1)  # the left half shows nothing
    path = write_raster(tmp_path / "a.tif", image, **LAYOUTS[layout], **CODECS[codec], **extra)
    with Raster(path) as raster:
        measured = raster.info().stretch
        colours = image[..., : 3 if bands >= 3 else 1]
        shown = colours[:, 100:] if bands == 4 else colours
        # The whole image is smaller than the sample: the percentiles are those of all valid pixels. "inverted_cdf" is the
        # smallest value that at least 2 % (98 %) of the pixels do not exceed.
        for band, (low, high) in enumerate(measured):
            assert low == np.percentile(shown[..., band], 2, method="inverted_cdf")
            assert high == np.percentile(shown[..., band], 98, method="inverted_cdf")
        limits = np.array(measured)
        scaled = (colours.astype(float) - limits[:, 0]) * 255 / (limits[:, 1] - limits[:, 0])
        truth = np.broadcast_to(np.clip(np.floor(scaled + 0.5), 0, 255), (HEIGHT, WIDTH, 3))
        for window in WINDOWS:
            got = raster.read(window).astype(int)
            # One level where the two ways to compute it round a half differently.
            assert np.abs(got - truth[window.y0 : window.y1, window.x0 : window.x1]).max() <= 1
    with Raster(path, stretch=measured) as again:
        np.testing.assert_array_equal(again.read(WINDOWS[1]), got_window(path, WINDOWS[1]))


def got_window(path: str, window: Window) -> np.ndarray:
    with Raster(path) as raster:
        return raster.read(window)


@pytest.mark.parametrize(("layout", "photometric"), list(itertools.product(("tiled", "striped"), ("YCBCR", "RGB", "MINISBLACK"))))
def test_jpeg_tiff_as_gdal_reads_it(tmp_path, pixels, write_raster, layout, photometric):
    image = pixels(HEIGHT, WIDTH)
    if photometric == "MINISBLACK":
        image = image[..., :1]
    profile = LAYOUTS["tiled"] if layout == "tiled" else {"blockysize": 16}
    path = write_raster(tmp_path / "a.tif", image, **profile, compress="jpeg", photometric=photometric, JPEG_QUALITY=90)
    with Raster(path) as raster:
        for window in WINDOWS:
            got, gdal = raster.read(window).astype(int), plain(path, window).astype(int)
            # Two versions of libjpeg upsample the halved chroma of YCbCr with other roundings.
            assert np.abs(got - gdal).max() <= (4 if photometric == "YCBCR" else 1)
        assert np.abs(raster.read(WINDOWS[0]).astype(int) - image).mean() < 2
        assert isinstance(raster._pixels, TiledTiff)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_tiles_whose_markers_say_nothing_of_their_colours(tmp_path, pixels, photometric):
    image = pixels(64, 64)
    # Bare JPEG: no JFIF and no Adobe marker, components 1, 2, 3, which libjpeg takes for YCbCr whatever the TIFF says.
    space = "RGB" if photometric == "rgb" else "YCBCR"
    tile = imagecodecs.jpeg8_encode(image, level=95, colorspace="RGB", outcolorspace=space, subsampling="444")
    tile = without_markers(tile)
    shape = {"shape": (64, 64, 3), "dtype": "uint8", "tile": (64, 64), "compression": "jpeg", "photometric": photometric}
    tifffile.imwrite(tmp_path / "a.tif", iter([tile]), subsampling=(1, 1) if photometric == "ycbcr" else None, **shape)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:  # tifffile writes YCbCr, whatever it is told
        file.pages.first.tags["PhotometricInterpretation"].overwrite(2 if photometric == "rgb" else 6)
    with Raster(str(tmp_path / "a.tif")) as raster:
        assert np.abs(raster.read(Window(0, 0, 64, 64)).astype(int) - image).mean() < 2


def without_markers(jpeg: bytes) -> bytes:
    """A JPEG without its APPn segments, and with components 1, 2, 3."""
    out, at = bytearray(b"\xff\xd8"), 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = bytearray(jpeg[at:end])
        if segment[1] == 0xC0:
            segment[10], segment[13], segment[16] = 1, 2, 3
        if not 0xE0 <= segment[1] <= 0xEF:
            out += segment
        at = end
    scan = bytearray(jpeg[at:])
    scan[5], scan[7], scan[9] = 1, 2, 3
    return bytes(out + scan)


def test_jpeg_with_alpha_and_with_a_mask(tmp_path, pixels, write_raster):
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[30:, 50:] = 255
    image = np.dstack([pixels(HEIGHT, WIDTH), alpha])
    path = write_raster(tmp_path / "rgba.tif", image, **LAYOUTS["tiled"], compress="jpeg", photometric="RGB", alpha="YES")
    with Raster(path) as raster:
        assert np.abs(raster.read(WINDOWS[0]).astype(int) - image[..., :3]).mean() < 3
        assert (raster.read_valid(Window(40, 60, 150, 200))).all()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_raster(tmp_path / "masked.tif", image[..., :3], **LAYOUTS["tiled"], compress="jpeg", photometric="YCBCR")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(alpha > 0)
    with Raster(path) as raster:
        assert raster.has_mask
        np.testing.assert_array_equal(raster.read_valid(WINDOWS[0]), alpha > 0)
        assert raster.valid_fraction(Window(0, 0, 30, 200)) == 0
        # 120 x 150 of 150 x 200 pixels are valid; in the window of 60 x 100 beyond the corner, 10 x 10 of the image are.
        assert raster.valid_fraction(WINDOWS[0]) == pytest.approx(120 * 150 / (150 * 200))
        assert raster.valid_fraction(Window(140, 190, 200, 290)) == pytest.approx(10 * 10 / (60 * 100))


def test_nodata_in_all_bands_is_nothing(tmp_path, write_raster):
    image = noise(3, "uint8") // 2 + 1
    image[:20] = 255
    image[50, 50, 0] = 255  # one band alone is a colour
    path = write_raster(tmp_path / "a.tif", image, nodata=255, **LAYOUTS["tiled"])
    with Raster(path) as raster:
        expected = np.repeat(np.arange(HEIGHT) >= 20, WIDTH).reshape(HEIGHT, WIDTH)
        np.testing.assert_array_equal(raster.read_valid(WINDOWS[0]), expected)
        assert not raster.read_valid(Window(-10, 0, 5, 10)).any()
    deep = noise(1, "uint16")
    deep[:, :50] = 0
    with Raster(write_raster(tmp_path / "deep.tif", deep, nodata=0, compress="lzw")) as raster:
        assert raster.valid_fraction(Window(0, 0, HEIGHT, 50)) == 0
        # What is no data does not pull the percentiles down.
        assert raster.stretch[0][0] == np.percentile(deep[:, 50:][deep[:, 50:] > 0], 2, method="inverted_cdf")


def test_a_raster_without_a_mask_needs_no_reading(tmp_path, write_raster):
    with Raster(write_raster(tmp_path / "a.png", noise(3, "uint8"))) as raster:
        assert not raster.has_mask
        assert raster.valid_fraction(Window(0, 0, 10, 10)) == 1
        assert raster.valid_fraction(Window(140, 0, 160, 10)) == 0.5
        assert raster._pixels is None


@pytest.mark.parametrize(
    ("layout", "bands", "dtype"), list(itertools.product(("tiled", "striped"), (1, 3, 4), ("uint8", "uint16")))
)
def test_pixels_are_put_where_they_are_wanted(tmp_path, write_raster, layout, bands, dtype):
    extra = {"alpha": "YES"} if bands == 4 else {}
    path = write_raster(tmp_path / "a.tif", noise(bands, dtype), **LAYOUTS[layout], **extra)
    with Raster(path) as raster:
        for window in (*WINDOWS, Window(-5, 180, 40, 230), Window(300, 300, 310, 310)):
            out = np.full((window.height, window.width, 3), 77, np.uint8)
            assert raster.read(window, out) is out
            np.testing.assert_array_equal(out, raster.read(window))


def test_sparse_tiles(tmp_path, write_raster):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[70:, 70:] = noise(3, "uint8")[70:, 70:]
    path = write_raster(tmp_path / "a.tif", image, **LAYOUTS["tiled"], SPARSE_OK=True, compress="deflate")
    with Raster(path) as raster:
        np.testing.assert_array_equal(raster.read(WINDOWS[0]), image)
        assert raster._pixels.tiles_decoded < 12  # of 3 x 4; the empty ones are not in the file


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_png(tmp_path, write_raster, bands, dtype):
    image = noise(bands, dtype)
    with Raster(write_raster(tmp_path / "a.png", image)) as raster:
        assert raster.one_pass
        if dtype == "uint8":
            truth = image[..., :3] if bands >= 3 else np.repeat(image, 3, axis=-1)
            for window in WINDOWS:
                np.testing.assert_array_equal(raster.read(window), truth[window.y0 : window.y1, window.x0 : window.x1])
        else:
            got = raster.read(WINDOWS[0])
            assert (got.min(), got.max(), got.shape) == (0, 255, (HEIGHT, WIDTH, 3))
        if bands == 4:
            np.testing.assert_array_equal(raster.read_valid(WINDOWS[1]), image[10:50, 20:80, 3] > 0)


def test_png_with_a_palette(tmp_path):
    from PIL import Image

    colours = noise(3, "uint8")[:16, 0]
    values = noise(1, "uint8")[..., 0] % 16
    picture = Image.fromarray(values, "P") if not hasattr(Image, "frombytes") else Image.frombytes("P", (WIDTH, HEIGHT), values)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a.png")
    with Raster(str(tmp_path / "a.png")) as raster:
        np.testing.assert_array_equal(raster.read(WINDOWS[1]), colours[values][10:50, 20:80])
        np.testing.assert_array_equal(raster.overview(WIDTH), colours[values])


@pytest.mark.parametrize("progressive", ["ON", "OFF"])
def test_jpeg(tmp_path, pixels, write_raster, progressive):
    image = pixels(HEIGHT, WIDTH)
    path = write_raster(tmp_path / "a.jpg", image, QUALITY=95, PROGRESSIVE=progressive)
    with Raster(path) as raster:
        for window in WINDOWS:
            np.testing.assert_array_equal(raster.read(window), plain(path, window))
        assert np.abs(raster.read(WINDOWS[0]).astype(int) - image).mean() < 2


def test_rows_are_read_once_front_to_back(tmp_path, pixels, write_raster):
    path = write_raster(tmp_path / "a.png", pixels(HEIGHT, WIDTH))
    read = []

    class Watched:
        """A dataset that notes which rows are asked for."""

        def __init__(self, dataset):
            self.width, self.dtypes, self._dataset = dataset.width, dataset.dtypes, dataset

        def read(self, bands, window):
            read.extend(range(window.row_off, window.row_off + window.height))
            return self._dataset.read(bands, window=window)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        dataset = rasterio.open(path)
    rows = RowBands(Watched(dataset), [1, 2, 3])
    for y in (0, 40, 80, 100):  # patches of 50 px that overlap, the last snapped inward
        for x in (0, 40, 150):
            np.testing.assert_array_equal(rows.read(Window(y, x, y + 50, x + 50)), pixels(HEIGHT, WIDTH)[y : y + 50, x : x + 50])
    assert read == list(range(HEIGHT))
    assert rows.restarts == 0
    rows.read(Window(10, 0, 20, 10))
    assert rows.restarts == 1
    dataset.close()


def test_tiles_are_decoded_once_in_row_order(tmp_path, write_raster):
    image = noise(3, "uint8")
    with Raster(write_raster(tmp_path / "a.tif", image, **LAYOUTS["tiled"], compress="deflate")) as raster:
        for y in (0, 40, 80, 100):
            for x in (0, 40, 80, 120, 150):
                raster.read(Window(y, x, y + 50, x + 50))
        tiff = raster._pixels
        assert tiff.tiles_decoded == 3 * 4  # 150 x 200 in tiles of 64
        # The windows at row 100 lie in tile rows 1 and 2; row 0 is finished and was let go.
        assert {index // 4 for index in tiff._cache} == {1, 2}
        assert tiff._held_bytes == sum(tile.nbytes for tile in tiff._cache.values()) == 8 * 64 * 64 * 3
        tiff._cache_bytes = 2 * 64 * 64 * 3
        raster.read(Window(0, 0, 150, 200))
        assert len(tiff._cache) == 2


@pytest.mark.parametrize("kind", ["tiled.tif", "striped.tif", "jpeg.tif", "a.png", "a.jpg"])
def test_a_file_that_breaks_off_is_named_with_its_rows(tmp_path, pixels, write_raster, kind):
    profile = {
        "tiled.tif": {**LAYOUTS["tiled"], "compress": "deflate"},
        "striped.tif": {**LAYOUTS["striped"], "compress": "lzw"},
        "jpeg.tif": {**LAYOUTS["tiled"], "compress": "jpeg", "photometric": "YCBCR"},
    }.get(kind, {})
    whole = write_raster(tmp_path / kind, pixels(HEIGHT, WIDTH), **profile)
    size = os.path.getsize(whole)
    os.truncate(whole, size * 2 // 3)
    with Raster(whole) as raster:
        if kind != "a.png":  # GDAL decodes a small PNG as a whole
            raster.read(Window(0, 0, 10, 10))  # what is there can still be read
        with pytest.raises(InputError, match=rf"{kind} is damaged: rows \d+ to \d+ cannot be read .*; copy it again"):
            raster.read(Window(140, 190, 150, 200))


@pytest.mark.parametrize("codec", ["deflate", "jpeg", "zstd"])
def test_a_tile_of_rubbish_is_named_with_its_rows(tmp_path, pixels, write_raster, codec):
    path = write_raster(tmp_path / "a.tif", pixels(HEIGHT, WIDTH), **LAYOUTS["tiled"], compress=codec)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
    with open(path, "r+b") as file:
        file.seek(page.dataoffsets[5] + 10)  # tile 5 of 4 a row: row 1, column 1
        file.write(b"\x00\xff\xd9\x55" * (page.databytecounts[5] // 4 - 4))
    with Raster(path) as raster:
        raster.read(Window(0, 0, 64, 64))
        with pytest.raises(InputError, match=r"a\.tif is damaged: rows 64 to 128 cannot be read \(tile 5"):
            raster.read(Window(64, 64, 70, 70))


def test_a_decompression_bomb_is_refused(tmp_path, pixels, write_raster, monkeypatch):
    path = write_raster(tmp_path / "a.png", pixels(HEIGHT, WIDTH))
    with pytest.raises(InputError, match=r"a\.png claims 200 x 150 px: must be at most 29,999 px in all; .*ROOKERY_MAX_PIXELS"):
        Raster(path, max_pixels=29_999)
    monkeypatch.setenv("ROOKERY_MAX_PIXELS", "1000")
    with pytest.raises(InputError, match="at most 1,000 px"):
        Raster(path)
    monkeypatch.delenv("ROOKERY_MAX_PIXELS")
    sparse = {"tiled": True, "compress": "deflate", "SPARSE_OK": True, "BIGTIFF": "YES"}
    empty(tmp_path / "huge.tif", 200_000, **sparse)
    with pytest.raises(InputError, match=r"huge\.tif claims 200,000 x 200,000 px: must be at most 20,000,000,000 px"):
        Raster(str(tmp_path / "huge.tif"))
    monkeypatch.setattr("survey.raster.MAX_BLOCK_BYTES", 1 << 14)
    strip = write_raster(tmp_path / "strip.tif", pixels(HEIGHT, WIDTH), blockysize=HEIGHT, compress="deflate")
    with pytest.raises(InputError, match=r"strip\.tif is stored in pieces of 200 x 150 px .*TILED=YES"):
        Raster(strip)


def empty(path, side, **profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", width=side, height=side, count=1, dtype="uint8", **profile):
            pass


def test_stretch_of_a_flat_band_and_of_nothing():
    flat = np.full((4, 4, 1), 700, np.uint16)
    limits = stretch.measure([(flat, np.ones((4, 4), bool))], 1)
    assert limits == ((700.0, 701.0),)
    assert not stretch.apply(flat, limits).any()
    assert stretch.measure([(flat, np.zeros((4, 4), bool))], 1) == ((0.0, 1.0),)


def test_stretch_by_hand():
    # 200 to 1200 in 255 steps: 200 -> 0, 700 -> 127.5 -> 128, 1200 -> 255, and what lies outside is clipped.
    values = np.array([[0], [200], [700], [1200], [65535]], np.uint16)
    np.testing.assert_array_equal(stretch.apply(values, ((200.0, 1200.0),))[:, 0], [0, 0, 128, 255, 255])
