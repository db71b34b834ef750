"""Mosaics that lie elsewhere now than when they were searched."""

import dataclasses
import os

from survey import files
from survey.detections import Manifest
from survey.errors import InputError
from survey.mosaics import stem


def find(manifest: Manifest, pattern: str) -> Manifest:
    """The manifest with the mosaics where they lie now. Files are not opened.

    Args:
      manifest: of the detections.
      pattern: glob of the mosaics' new places; "" leaves all where they were. It may match other files too: a mosaic is the file
        of its name, and where there are several (`north.tif` beside `north.xml`) the one with the same ending as before.

    Raises:
      InputError: the pattern matches nothing, none of the mosaics, or several files that might be one of them.
    """
    if not pattern:
        return manifest
    by_name: dict[str, list[str]] = {}
    for path in files.match(pattern, "mosaics"):
        by_name.setdefault(stem(path), []).append(path)
    if not any(mosaic.name in by_name for mosaic in manifest.mosaics):
        raise InputError(
            f"--mosaics={pattern!r} matches {sum(map(len, by_name.values()))} files, and none of the mosaics that were searched: "
            f"{', '.join(mosaic.name for mosaic in manifest.mosaics[:5])}; the names must be as they were"
        )
    places = []
    for mosaic in manifest.mosaics:
        candidates = by_name.get(mosaic.name, [mosaic.path])
        alike = [path for path in candidates if _ending(path) == _ending(mosaic.path)] or candidates
        if len(alike) > 1:
            raise InputError(f"--mosaics={pattern!r}: {' and '.join(alike)} might be mosaic {mosaic.name}: narrow the pattern")
        places.append(dataclasses.replace(mosaic, path=alike[0]))
    return dataclasses.replace(manifest, mosaics=tuple(places))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
