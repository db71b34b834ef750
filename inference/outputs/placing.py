"""Where detections are on the map: outlines in the mosaic's own CRS, and positions in WGS 84 longitude and latitude.

Longitude and latitude are what GeoJSON asks for (RFC 7946 section 4, OGC:CRS84): x is longitude. PROJ does the transformation;
from a datum other than WGS 84 it takes the best one that needs no grid file, as GDAL does.
"""

from functools import lru_cache

import numpy as np
import rasterio.warp
from rasterio._err import CPLE_BaseError  # what GDAL says; rasterio.errors has no name for it
from rasterio.errors import CRSError

from survey import boxes
from survey.geometry import Mosaic

WGS84 = "EPSG:4326"


def on_map(mosaic: Mosaic) -> bool:
    """Whether the mosaic has a place on a map: that needs both a CRS and an affine transform."""
    return mosaic.crs is not None and mosaic.transform is not None


def on_earth(mosaic: Mosaic) -> bool:
    """Whether positions on the mosaic can be given as longitude and latitude; a local engineering CRS cannot."""
    return mosaic.crs is not None and mosaic.transform is not None and _known(mosaic.crs)


def outlines(mosaic: Mosaic, boxes_mosaic_px: np.ndarray) -> np.ndarray:
    """Corners of boxes in the mosaic's CRS.

    Args:
      mosaic: with a transform.
      boxes_mosaic_px: [N, 4], yxyx.

    Returns:
      float64 [N, 5, 2] (x, y): closed rings that begin at the box's upper left corner in pixels, counterclockwise on the map
      also where the map is mirrored or turned against the pixels.
    """
    y0, x0, y1, x1 = boxes_mosaic_px.T.astype(float)
    # Down, right, up, left in pixels is counterclockwise on a map whose north is up.
    corners = np.stack([np.stack(corner, axis=1) for corner in ((y0, x0), (y1, x0), (y1, x1), (y0, x1), (y0, x0))], axis=1)
    rings = mosaic.to_map(corners.reshape(-1, 2)).reshape(-1, 5, 2)
    return counterclockwise(rings)


def counterclockwise(rings: np.ndarray) -> np.ndarray:
    """Closed rings [N, 5, 2] (x, y), each turned if need be; by the shoelace formula about the first corner."""
    x, y = np.moveaxis(rings - rings[:, :1], 2, 0)
    twice_area = np.sum(x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1], axis=1)
    return np.where((twice_area < 0)[:, None, None], rings[:, ::-1], rings)


def centers(mosaic: Mosaic, boxes_mosaic_px: np.ndarray) -> np.ndarray:
    """Centres of boxes [N, 4] in the mosaic's CRS: float64 [N, 2] (x, y)."""
    return mosaic.to_map(boxes.centers(boxes_mosaic_px))


def degrees(mosaic: Mosaic, points: np.ndarray) -> np.ndarray:
    """WGS 84 positions of points in the mosaic's CRS.

    Args:
      mosaic: for which `on_earth` holds.
      points: [P, 2] (x, y).

    Returns:
      float64 [P, 2] (longitude, latitude); infinite where the projection has no such place.
    """
    assert mosaic.crs is not None
    if not len(points):
        return np.zeros((0, 2))
    longitude, latitude = rasterio.warp.transform(mosaic.crs, WGS84, points[:, 0], points[:, 1])
    return np.stack([longitude, latitude], axis=1)


@lru_cache(maxsize=1024)
def _known(crs: str) -> bool:
    try:
        rasterio.warp.transform(crs, WGS84, [0.0], [0.0])
    except (CRSError, CPLE_BaseError):
        return False
    return True
