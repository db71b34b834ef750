"""What several tests need: small real files, an emulator a process, and the switch that TensorFlow needs before its import."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import rasterio

# Fixtures, imported under their own names: here, so that all tests of a process share one emulator.
from gcs_emulator import _gcs_server as _gcs_server
from gcs_emulator import gcs as gcs
from gcs_tls_proxy import faulty as faulty
from gcs_tls_proxy import gcs_proxy as gcs_proxy
from gcs_tls_proxy import tensorflow_gcs as tensorflow_gcs
from rasterio.errors import NotGeoreferencedWarning

from survey.annotations import every
from survey.annotations.reading import Reading, ReadOptions


@pytest.fixture(autouse=True)
def _deterministic_operations_end_with_a_test() -> Iterator[None]:
    """A training asks TensorFlow for them, for its whole process; the next test has not asked."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        config.disable_op_determinism()


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Images that survive JPEG: `pixels(height, width, seed=0)` is smooth, uint8 [height, width, 3], and unlike other seeds."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        y, x = np.mgrid[:height, :width] / 40.0
        waves = [np.sin(y * (1 + channel) + seed) + np.cos(x * (2 - channel) + seed) for channel in range(3)]
        return (np.stack(waves, axis=-1) * 60 + 127).astype(np.uint8)

    return make


@pytest.fixture
def write_raster() -> Callable[..., str]:
    """`write_raster(path, pixels, **profile)` writes [H, W] or [H, W, bands] in the format of the ending; returns the path."""

    def write(path: Path | str, image: np.ndarray, **profile: object) -> str:
        bands = image[..., None] if image.ndim == 2 else image
        height, width, count = bands.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", height=height, width=width, count=count, dtype=bands.dtype, **profile) as out:
                out.write(bands.transpose(2, 0, 1))
        return str(path)

    return write


@pytest.fixture
def write_voc() -> Callable[..., str]:
    """`write_voc(path, filename, (height, width), [(class, (y0, x0, y1, x1)), ...])` writes Pascal VOC XML; returns the path."""

    def write(path: Path | str, filename: str, size: tuple[int, int], objects: list[tuple[str, tuple[float, ...]]]) -> str:
        height, width = size
        text = f"<annotation><filename>{filename}</filename><size><width>{width}</width><height>{height}</height></size>"
        for name, (y0, x0, y1, x1) in objects:
            corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            text += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        Path(path).write_text(text + "</annotation>")
        return str(path)

    return write


@pytest.fixture
def read_annotations(tmp_path: Path) -> Callable[..., Reading]:
    """`read_annotations(format, text, name="a.txt", **options)` writes a file and reads it."""

    def make(annotation_format: str, text: str | bytes, name: str = "a.txt", **options: str) -> Reading:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return every.read([str(path)], annotation_format, ReadOptions.parse(**options))

    return make
