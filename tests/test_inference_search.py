"""Searching patches of a raster, with a model that finds the one bright pixel of a patch."""

import threading
import time

import numpy as np
import pytest

from inference import stitch
from inference.decode import Found
from inference.parts import concatenate
from inference.search import Detector, search
from survey.errors import InputError
from survey.geometry import PatchGrid, Window
from survey.raster import Raster


class Picture:
    """Pixels in memory, and who reads them."""

    def __init__(self, pixels: np.ndarray, *, concurrent: bool = True) -> None:
        self.pixels, self.concurrent = pixels, concurrent
        self.threads: set[int] = set()
        self.reading = self.most_reading = 0

    def read(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        self.threads.add(threading.get_ident())
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        time.sleep(0.001)
        out = np.empty((window.height, window.width, 3), np.uint8) if out is None else out
        out[...] = 0
        height, width, _ = self.pixels.shape
        y0, x0, y1, x1 = max(window.y0, 0), max(window.x0, 0), min(window.y1, height), min(window.x1, width)
        out[y0 - window.y0 : y1 - window.y0, x0 - window.x0 : x1 - window.x0] = self.pixels[y0:y1, x0:x1]
        self.reading -= 1
        return out


class Brightest:
    """A model whose raw heads are the pixels."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(images))
        return {"pixels": images}


def decode(raw: dict[str, np.ndarray]) -> list[Found]:
    """A box of 8 px around every pixel that is not black, clipped to the patch."""
    result = []
    for image in raw["pixels"]:
        at = np.argwhere(image[..., 0] > 0)
        corners = np.concatenate([at - 3.5, at + 4.5], axis=1)
        scores = image[at[:, 0], at[:, 1], 0].astype(np.float32) / 255
        result.append(Found(np.clip(corners, 0, len(image)).astype(np.float32), scores, np.ones(len(at), np.int32)))
    return result


def picture(height: int = 190, width: int = 210, **more: bool) -> tuple[Picture, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.uint8)
    places = rng.permutation((height // 12) * (width // 12))[:60]
    at = np.stack(np.divmod(places, width // 12), axis=1) * 12 + 6
    pixels[at[:, 0], at[:, 1]] = rng.integers(100, 255, (60, 1))
    return Picture(pixels, **more), at


def test_each_patch_hands_on_what_reaches_into_its_core():
    pixels = np.zeros((64, 112, 3), np.uint8)
    # Patches at columns 0 and 48, cores meet at 56: the pixel at 57 is seen by both, its box 53.5..61.5 reaches into both cores.
    pixels[20, 57] = 255
    pixels[20, 70] = 255  # the second patch's alone
    grid = PatchGrid(64, 112, 64, 16)
    claims = list(search(Picture(pixels), grid, range(2), Detector([(Brightest(8), decode)])))
    assert [claim.index for claim in claims] == [0, 1]
    assert claims[0].found.boxes_mosaic_px.tolist() == [[16.5, 53.5, 24.5, 61.5]]
    assert claims[1].found.boxes_mosaic_px.tolist() == [[16.5, 53.5, 24.5, 61.5], [16.5, 66.5, 24.5, 74.5]]
    assert [claim.seen for claim in claims] == [1, 2]
    assert claims[1].found.patch_ids.tolist() == [1, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_and_threads_do_not_matter(batch_size: int):
    raster, at = picture()
    grid = PatchGrid(190, 210, 64, 16)
    runner = Brightest(batch_size)
    found = concatenate([claim.found for claim in search(raster, grid, range(20), Detector([(runner, decode)]))])
    assert sum(runner.batches) == 20
    assert max(runner.batches) == min(batch_size, 20)
    objects, _ = stitch.stitch(found, grid, first_patch_id=0, nms_iou=0.5)
    centers = (objects.boxes_mosaic_px[:, :2] + objects.boxes_mosaic_px[:, 2:]) / 2
    assert sorted(map(tuple, centers.tolist())) == sorted(map(tuple, (at + 0.5).tolist()))


def test_one_thread_for_a_raster_that_allows_no_more():
    raster, _ = picture(concurrent=False)
    list(search(raster, PatchGrid(190, 210, 64, 16), range(20), Detector([(Brightest(4), decode)])))
    assert len(raster.threads) == 1
    assert raster.most_reading == 1


def test_only_some_batches_are_under_way():
    raster, _ = picture()
    claims = search(raster, PatchGrid(190, 210, 64, 16), range(20), Detector([(Brightest(2), decode)]))
    next(claims)
    before = raster.threads
    claims.close()  # ends the threads
    assert before == raster.threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "look"))]


def test_what_goes_wrong_in_a_thread_comes_out():
    raster, _ = picture()

    def torn(window: Window, out: np.ndarray) -> np.ndarray:
        raise InputError("torn")

    raster.read = torn
    with pytest.raises(InputError, match="torn"):
        list(search(raster, PatchGrid(190, 210, 64, 16), range(20), Detector([(Brightest(2), decode)])))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "look"))]


class Shifted(PatchGrid):
    """Patches that begin before the mosaic does."""

    @property
    def row_starts(self) -> tuple[int, ...]:
        return tuple(range(-20, self.height, 48))

    @property
    def column_starts(self) -> tuple[int, ...]:
        return tuple(range(-30, self.width, 48))


def test_a_shifted_grid_finds_the_same():
    raster, at = picture()
    grid = Shifted(190, 210, 64, 16)
    claims = search(raster, grid, range(len(grid)), Detector([(Brightest(8), decode)]))
    objects, _ = stitch.stitch(concatenate([claim.found for claim in claims]), grid, first_patch_id=0, nms_iou=0.5)
    assert len(objects) == len(at)


def test_a_tile_is_decoded_once_by_several_threads(tmp_path, pixels, write_raster):
    image = pixels(600, 600)
    tiled = {"driver": "GTiff", "tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    grid = PatchGrid(600, 600, 100, 20)
    seen: list[bytes] = []  # by several threads, in any order

    def keep(raw: dict[str, np.ndarray]) -> list[Found]:
        seen.extend(one.tobytes() for one in raw["pixels"])
        none = np.zeros(0, np.float32)
        return [Found(np.zeros((0, 4), np.float32), none, none.astype(np.int32)) for _ in raw["pixels"]]

    with Raster(write_raster(tmp_path / "a.tif", image, **tiled)) as raster:
        assert raster.concurrent
        list(search(raster, grid, range(len(grid)), Detector([(Brightest(4), keep)])))
        assert raster._pixels.tiles_decoded == 5 * 5
    windows = [grid.window(row, column) for row, column in grid.cells()]
    assert sorted(seen) == sorted(image[one.y0 : one.y1, one.x0 : one.x1].tobytes() for one in windows)
