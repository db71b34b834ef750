"""GeoPackage in the mosaics' own CRS, for QGIS and every other GIS: one layer a CRS, one polygon an object, spatial index.

Nothing is reprojected, so distances and areas are those of the survey's projection. A layer is named `detections`, or
`detections_EPSG_32617` and so on where the mosaics have several CRSs.
"""

import re
from collections.abc import Iterator

import pyarrow as pa

from inference.outputs import geopackage_layer, lines, placing
from inference.outputs.job import Job
from inference.outputs.publishing import by_gdal

FILE = "detections.gpkg"
SCHEMA = pa.schema(
    [
        ("geometry", pa.binary()),
        ("mosaic", pa.string()),
        ("class", pa.string()),
        ("score", pa.float32()),
        ("y0", pa.float32()),  # the box in mosaic pixels, as in detections.parquet
        ("x0", pa.float32()),
        ("y1", pa.float32()),
        ("x1", pa.float32()),
        ("patch_id", pa.int64()),
    ]
)


def check(job: Job) -> None:
    """Nothing can be wrong with it; mosaics without a place on a map are noted."""


def write(job: Job) -> list[str]:
    """Writes FILE; nothing where no mosaic has a place on a map."""
    placed = [mosaic for mosaic in job.manifest.mosaics if placing.on_map(mosaic)]
    if not placed:
        job.notes.append(f"{FILE} was not written: no mosaic has a place on a map (CRS and affine transform)")
        return []
    elsewhere = [mosaic.name for mosaic in job.manifest.mosaics if not placing.on_map(mosaic)]
    if elsewhere:
        job.notes.append(f"{FILE} lacks the mosaics that have no place on a map: {', '.join(elsewhere)}")
    systems = list(dict.fromkeys(str(mosaic.crs) for mosaic in placed))
    with by_gdal(job.path(FILE)) as path:
        arrow = f"{path}.arrow"
        for crs, layer in zip(systems, layer_names(systems), strict=True):
            with pa.OSFile(arrow, "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
                for batch in _batches(job, crs):
                    stream.write_batch(batch)
            geopackage_layer.add(path, arrow, layer, crs)
    return [FILE]


def layer_names(systems: list[str]) -> list[str]:
    """Names of the layers of these CRSs, each another.

    >>> layer_names(["EPSG:32617"])
    ['detections']
    >>> layer_names(["EPSG:32617", 'PROJCS["mine", ...]'])
    ['detections_EPSG_32617', 'detections_2']
    """
    if len(systems) == 1:
        return ["detections"]
    short = [re.fullmatch(r"([A-Za-z]+):(\d+)", crs) for crs in systems]
    return [f"detections_{found[1]}_{found[2]}" if found else f"detections_{i}" for i, found in enumerate(short, start=1)]


def _batches(job: Job, crs: str) -> Iterator[pa.RecordBatch]:
    import shapely

    for block in job.blocks():
        if not placing.on_map(block.mosaic) or block.mosaic.crs != crs:
            continue
        found = block.found
        shapes = shapely.to_wkb(shapely.polygons(placing.outlines(block.mosaic, found.boxes_mosaic_px)))
        names = lines.chosen([block.mosaic.name], found.class_ids * 0)
        columns = [shapes, names, job.class_names(found.class_ids), found.scores, *found.boxes_mosaic_px.T, found.patch_ids]
        arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        yield pa.record_batch(arrays, schema=SCHEMA)
