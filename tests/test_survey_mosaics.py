import pytest

from survey import mosaics
from survey.errors import InputError
from survey.geometry import Mosaic


def test_windows_paths_and_dots_in_names():
    assert mosaics.stem(r"C:\survey 1\north.2024.tif") == "north.2024"
    assert mosaics.stem("/a/b/.hidden") == ".hidden"
    assert mosaics.stem("noend") == "noend"


def test_patches_are_numbered_in_the_order_of_names():
    """a_south of 100 x 180 px has 1 x 2 patches of 100 px with 20 px overlap, and comes first."""
    north, south = Mosaic("north", "north.tif", 300, 500), Mosaic("a_south", "a_south.tif", 100, 180)
    found = mosaics.numbered([north, south], patch_size=100, overlap_px=20)
    assert [(one.name, one.first_patch_id) for one in found] == [("a_south", 0), ("north", 2)]


def test_headers_digests_and_twins(tmp_path, pixels, write_raster):
    one = write_raster(tmp_path / "one.png", pixels(40, 50), driver="PNG")
    two = write_raster(tmp_path / "two.png", pixels(30, 60, seed=1), driver="PNG")
    found = mosaics.read([two, one], patch_size=32, overlap_px=8)
    assert [(m.name, m.height, m.width, m.first_patch_id) for m in found] == [("one", 40, 50, 0), ("two", 30, 60, 4)]
    assert len({m.sha256 for m in found}) == 2
    (tmp_path / "copy.png").write_bytes((tmp_path / "one.png").read_bytes())
    with pytest.raises(InputError, match=r"one\.png and .*copy\.png are the same image"):
        mosaics.read([one, str(tmp_path / "copy.png")], patch_size=32, overlap_px=8)
    with pytest.raises(InputError, match=r"both named 'one'"):
        mosaics.read([one, str(tmp_path / "other" / "one.jpg")], patch_size=32, overlap_px=8)
