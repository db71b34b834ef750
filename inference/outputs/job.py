"""What every format's writer is given: the detections, where to write, and the settings."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from inference.outputs import lines
from survey import files
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.raster import Raster

# Rows that are made into text at a time: large enough that Arrow's loops do the work, small enough (30 MB of GeoJSON) that a
# million detections need no more memory than a hundred thousand.
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What the formats beyond plain tables leave open.

    Attributes:
      tile_px: labels of a mosaic with a longer side than this are written as tiles of at most this side, with images.
      density_cell_m: side of a density cell in metres, for mosaics with a ground resolution; None asks for none.
      density_cell_px: side of a density cell in pixels, for all other mosaics; None asks for none.
      crops: crops written of each class, at most.
      crops_of: "best" or "worst" scores of each class, or "all" detections.
    """

    tile_px: int = 4096
    density_cell_m: float | None = None
    density_cell_px: float | None = None
    crops: int = 100
    crops_of: str = "best"


@dataclass(frozen=True, slots=True)
class Block:
    """Some detections of one mosaic, and its number among the images, from 1."""

    mosaic: Mosaic
    image_id: int
    found: Detections


@dataclass(frozen=True, slots=True)
class Job:
    """One folder of outputs.

    Attributes:
      folder: where they go.
      manifest: of the detections.
      found: all detections of each mosaic, by name.
      counted: of these, the ones that reach `manifest.score_threshold`.
      settings: of the formats.
      notes: gets, line by line, what people should know: what could not be written, and why.
    """

    folder: str
    manifest: Manifest
    found: dict[str, Detections]
    counted: dict[str, Detections]
    settings: Settings
    notes: list[str] = field(default_factory=list)

    def path(self, name: str) -> str:
        """Path of an output."""
        return os.path.join(self.folder, name)

    def blocks(self, *, counted: bool = True) -> Iterator[Block]:
        """The detections that count, or all, mosaic by mosaic and at most BLOCK_ROWS at a time, best score first."""
        chosen = self.counted if counted else self.found
        for image_id, mosaic in enumerate(self.manifest.mosaics, start=1):
            one = chosen[mosaic.name]
            for start in range(0, len(one), BLOCK_ROWS):
                yield Block(mosaic, image_id, one.take(np.arange(start, min(start + BLOCK_ROWS, len(one)))))

    def class_names(self, class_ids: np.ndarray, written: list[str] | None = None) -> pa.Array:
        """Names of classes [N] as strings [N]; `written` are the names as the format spells them, by default as they are."""
        return lines.chosen(list(self.manifest.classes) if written is None else written, class_ids - 1)


def open_mosaic(mosaic: Mosaic) -> Raster:
    """The pixels of a mosaic that detections were found in.

    Raises:
      InputError: they are not there, cannot be read, or are not of the size that was searched.
    """
    if not mosaic.path.startswith("/vsi") and not files.exists(mosaic.path):  # GDAL's virtual files are for it to open
        raise InputError(
            f"{mosaic.path} is not there any more, and its pixels are needed: say where the mosaics are now with "
            '--mosaics="FOLDER/*"'
        )
    raster = Raster(mosaic.path, stretch=mosaic.stretch)
    info = raster.info()
    if (info.height, info.width) != (mosaic.height, mosaic.width):
        with raster:
            raise InputError(
                f"{mosaic.path} is {info.width} x {info.height} px, but {mosaic.name} was {mosaic.width} x {mosaic.height} px "
                "when it was searched: give the right file with --mosaics"
            )
    return raster
