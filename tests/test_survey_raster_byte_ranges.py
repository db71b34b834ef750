import io

import numpy as np
import tifffile

from survey import byte_ranges
from survey.byte_ranges import BucketRanges, LocalRanges, RangesFile
from survey.geometry import Window
from survey.tiled_tiff import open_tiled_tiff


def test_local_pieces(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    ranges = LocalRanges(str(tmp_path / "a"))
    assert ranges.read_at(10, 5) == bytes(range(10, 15))
    assert ranges.read_at(95, 20) == bytes(range(95, 100))
    assert ranges.read_at(200, 5) == b""
    ranges.close()
    ranges.close()


def test_a_bucket_is_read_in_chunks_that_are_kept():
    content, asked = bytes(range(100)), []

    def read_range(first: int, last: int) -> bytes:
        asked.append((first, last))
        return content[first : last + 1]

    ranges = BucketRanges("gs://seals/a.tif", read_range, chunk_bytes=16)
    assert ranges.read_at(10, 10) == content[10:20]
    assert ranges.read_at(0, 32) == content[:32]
    assert asked == [(0, 15), (16, 31)]
    assert ranges.read_at(90, 20) == content[90:]
    assert ranges.read_at(5, 0) == b""
    assert ranges.requests == 4  # 80 to 95 and 96 to 111, too
    for chunk in range(7):
        ranges.read_at(chunk * 16, 1)
    for chunk in range(1, 20):
        ranges.read_at(1000 + chunk * 16, 1)
    assert len(ranges._chunks) == byte_ranges.CHUNKS_KEPT


def test_a_file_over_ranges(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    file = RangesFile(LocalRanges(str(tmp_path / "a")))
    assert file.seekable()
    assert file.readable()
    assert file.read(3) == b"012"
    assert file.seek(2, io.SEEK_CUR) == 5
    assert (file.read(10), file.tell()) == (b"56789", 10)


def test_a_tiled_tiff_in_a_bucket_is_never_read_whole(tmp_path, pixels, monkeypatch):
    image = pixels(1024, 1024)
    tifffile.imwrite(tmp_path / "a.tif", np.random.default_rng(0).permutation(image), tile=(256, 256))
    content = (tmp_path / "a.tif").read_bytes()
    truth = tifffile.imread(tmp_path / "a.tif")
    ranges = BucketRanges("gs://seals/a.tif", lambda first, last: content[first : last + 1], chunk_bytes=1 << 16)
    monkeypatch.setattr(byte_ranges, "open_ranges", lambda path: ranges)
    tiff = open_tiled_tiff("gs://seals/a.tif", fill=0)
    np.testing.assert_array_equal(tiff.read(Window(300, 300, 400, 400)), truth[300:400, 300:400])
    # One tile of 196,608 bytes is 4 chunks of 65,536 at most; with the header, 5 or 6 of the file's 49.
    assert ranges.requests <= 6
    tiff.close()
