"""GeoJSON, GeoPackage, Shapefile and whatever else GDAL reads: polygons and points in map coordinates.

GeoJSON that names no CRS is in WGS 84 longitude and latitude, as RFC 7946 section 4 says. No image is named: an object belongs
to every mosaic that shows it. All layers of a file are read; `--class_column=layer` takes a layer's name as the class.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from survey import files, storage
from survey.annotations import reading
from survey.annotations.annotation import Annotation, Length
from survey.annotations.reading import CLASS_COLUMNS, Reading, ReadOptions
from survey.errors import InputError

WHAT = "a map layer (GeoJSON, GeoPackage, Shapefile)"
SKIPPED = "features_left_out"
SHAPEFILE = (".shp", ".shx", ".dbf", ".prj", ".cpg")  # the parts of one
POINT, POLYGON, MULTIPOINT, MULTIPOLYGON = 0, 3, 4, 6  # shapely.get_type_id


def read(path: str, options: ReadOptions) -> Reading:
    """Objects of one file, in its order. A multipolygon is one object; each point of a multipoint is one.

    Raises:
      InputError: GDAL cannot read it, it has no CRS, or its coordinates cannot be of that CRS; the class column is missing or
        a feature leaves it empty; points of a class without a box size.
    """
    import pyogrio  # it and shapely take half a second to import, which `--help` should not wait for

    if files.size(path) == 0:
        raise reading.empty_file(path, WHAT)
    annotations: list[Annotation] = []
    skipped: Counter[str] = Counter()
    with _at_hand(path) as local:
        try:
            layers = [str(name) for name, geometry in pyogrio.list_layers(local) if geometry is not None]
        except pyogrio.errors.DataSourceError as error:
            raise InputError(f"{path} is not {WHAT}: {error}") from error
        for layer in layers:
            annotations += _layer(path, local, layer, options, skipped)
    return Reading(annotations, skipped=skipped)


@contextmanager
def _at_hand(path: str) -> Iterator[str]:
    """The file as GDAL is to read it. One in a bucket is copied with its checksum compared, and so are the parts of a Shapefile.

    GDAL takes what it got of an answer that was cut off for the whole.
    """
    if not storage.is_remote(path):
        yield path
        return
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    with tempfile.TemporaryDirectory(prefix="rookery_layer_") as local:
        for each in files.names(folder):
            if os.path.splitext(each)[0] == stem and (each == name or os.path.splitext(each)[1].lower() in SHAPEFILE):
                storage.download(f"{folder}/{each}", os.path.join(local, each))
        yield os.path.join(local, name)


def _layer(path: str, local: str, layer: str, options: ReadOptions, skipped: Counter[str]) -> list[Annotation]:
    import pyogrio
    import shapely

    where = f"{path}, layer {layer}"
    try:
        info = pyogrio.read_info(local, layer=layer)
        column = _class_column(list(info["fields"]), options.class_column, where)
        _, ids, held, values = pyogrio.raw.read(
            local, layer=layer, columns=[column] if column else [], return_fids=True, force_2d=True
        )
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        pyogrio.errors.FeatureError,
        pyogrio.errors.GeometryError,
    ) as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    crs = info["crs"]
    if crs is None:
        raise InputError(
            f"{where} names no CRS, so nobody knows where its coordinates are: keep the .prj beside a Shapefile, or write one in "
            "with ogr2ogr -a_srs EPSG:CODE out.gpkg in"
        )
    geometries = shapely.from_wkb(held, on_invalid="ignore")
    damaged = next((i for i in np.flatnonzero(shapely.is_missing(geometries)) if held[i] is not None), None)
    if damaged is not None:
        raise InputError(
            f"{where}: feature {ids[damaged]} has a shape that is damaged or curved: repair it, or draw it as a polygon"
        )
    del held  # here and below: of a million features each copy of the shapes is a quarter of a GiB
    kinds = shapely.get_type_id(geometries)  # -1 for no geometry
    usable = np.isin(kinds, (POINT, POLYGON, MULTIPOINT, MULTIPOLYGON)) & ~shapely.is_empty(geometries)
    if not usable.all():
        skipped[SKIPPED] += int((~usable).sum())
    unnamed = next((i for i in np.flatnonzero(usable) if column is not None and not _name(values[0][i])), None)
    if unnamed is not None:
        raise InputError(f"{where}: feature {ids[unnamed]} has no class in column {column!r}")
    corners, starts, owners = _objects(geometries, kinds, usable)
    del geometries
    _check_degrees(corners, crs, where)
    points = np.isin(kinds[owners], (POINT, MULTIPOINT)).tolist()
    names: dict[str, str] = {}
    sides: dict[str, Length] = {}
    result = []
    for i, (owner, start, end) in enumerate(zip(owners.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        name = layer if column is None else _name(values[0][owner])
        name = names.setdefault(name, name)
        if points[i] and name not in sides:
            sides[name] = options.side(name, path)
        outline = corners[start:end]  # a view: all objects share one array
        (x0, y0), (x1, y1) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
        side = sides[name] if points[i] else None
        result.append(Annotation("", None, name, (y0, x0, y1, x1), path, "map", side, crs, outline))
    return result


def _objects(geometries: np.ndarray, kinds: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects of a layer: of a multipoint each point, of everything else the whole.

    Args:
      geometries: [F].
      kinds: their type ids, [F].
      usable: which of them are objects, [F] bool.

    Returns:
      (corners float64 [P, 2] (x, y), starts [N + 1]: object i has corners[starts[i]:starts[i + 1]], features of the objects [N]).
    """
    import shapely

    whole = np.flatnonzero(usable & (kinds != MULTIPOINT))
    many = np.flatnonzero(usable & (kinds == MULTIPOINT))
    pieces, piece_of = shapely.get_parts(geometries[many], return_index=True)
    owners = np.concatenate([whole, many[piece_of]])
    order = np.argsort(owners, kind="stable")
    parts = np.concatenate([geometries[whole], pieces])[order]
    corners, part_of = shapely.get_coordinates(parts, return_index=True)
    return corners, np.searchsorted(part_of, np.arange(len(parts) + 1)), owners[order]


def _class_column(columns: list[str], asked: str | None, where: str) -> str | None:
    """The field with the class; None for the layer's own name."""
    by_name = {name.lower(): name for name in reversed(columns)}
    for name in (asked,) if asked is not None else CLASS_COLUMNS:
        if name in columns or name.lower() in by_name:
            return name if name in columns else by_name[name.lower()]
    if asked == "layer":
        return None
    wanted = f"column {asked!r}" if asked is not None else f"class column (one of {', '.join(CLASS_COLUMNS)})"
    raise InputError(
        f"{where} has no {wanted}: it has {', '.join(columns) or 'none at all'}; name one with --class_column, or take the "
        "layer's name with --class_column=layer"
    )


def _name(value: Any) -> str:
    if value is None or value != value:  # not a number: an empty cell of a numeric column
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a whole column turns to floats where one cell of it is empty
    return str(value).strip()


def _check_degrees(corners: np.ndarray, crs: str, where: str) -> None:
    """Refuses coordinates in metres or pixels that claim to be WGS 84, which is what GeoJSON is without a CRS."""
    if crs != "EPSG:4326" or not len(corners):
        return
    x, y = np.abs(corners).max(axis=0)
    if x > 360 or y > 90:
        raise InputError(
            f"{where} is in degrees of longitude and latitude (EPSG:4326, which GeoJSON is unless it says otherwise), but has "
            f"coordinates up to {x:.12g}, {y:.12g}: write its real CRS in with ogr2ogr -a_srs EPSG:CODE out.gpkg in"
        )
