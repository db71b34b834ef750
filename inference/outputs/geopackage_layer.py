"""Adds a layer to a GeoPackage, in a process of its own that never imports TensorFlow.

TensorFlow shows its own sqlite to the whole process, and that one is built without R-trees: where TensorFlow was imported first,
as in `rookery predict` on one machine, GDAL's sqlite calls end there and the spatial index is left out without a word.
"""

import os
import subprocess
import sys

import pyarrow as pa


def add(path: str, arrow: str, layer: str, crs: str) -> None:
    """Adds a layer, in another process.

    Args:
      path: the GeoPackage, local; made where there is none.
      arrow: an Arrow file with the layer's rows, polygons as WKB in the column `geometry`.
      layer: its name.
      crs: as GDAL reads it.

    Raises:
      RuntimeError: GDAL could not write it; with what it said.
    """
    command = [sys.executable, "-m", "inference.outputs.geopackage_layer", path, arrow, layer, crs]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{path}: the layer {layer} could not be written:\n{done.stderr}")


def _write(path: str, arrow: str, layer: str, crs: str) -> None:
    import pyogrio  # half a second that `--help` should not wait for

    with pa.memory_map(arrow) as source:
        batches = pa.ipc.open_stream(source)
        pyogrio.write_arrow(
            batches,
            path,
            layer=layer,
            driver="GPKG",
            geometry_name="geometry",
            geometry_type="Polygon",
            crs=crs,
            append=os.path.exists(path),
        )


if __name__ == "__main__":
    _write(*sys.argv[1:])
