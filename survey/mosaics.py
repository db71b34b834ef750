"""The mosaics of a survey as files: what their headers say, names that tell them apart, and numbers for their patches."""

import dataclasses
from collections.abc import Sequence

from survey import files
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.raster import Raster, RasterInfo


def stem(path: str) -> str:
    r"""File name without folder and ending, as it names a mosaic; annotation tools on Windows write backslashes.

    >>> stem("C:\\survey\\north.1.tif")
    'north.1'
    """
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if "." in name[1:] else name


def read(paths: Sequence[str], *, patch_size: int, overlap_px: int, bad: dict[str, str] | None = None) -> tuple[Mosaic, ...]:
    """Headers and digests of mosaics; pixels are read only to digest the file.

    Args:
      paths: the image files.
      patch_size: side of a patch in pixels.
      overlap_px: pixels that neighbouring patches share, at least.
      bad: gets the names of files that are no image, each with the reason, and they are left out; by default they are an error.

    Returns:
      The mosaics in the order of their names, each with the number of its first patch.

    Raises:
      InputError: a file that is no image, or two that would be confused.
    """
    by_name: dict[str, str] = {}
    infos: dict[str, RasterInfo] = {}
    for path in paths:
        name = stem(path)
        if name in by_name:
            raise InputError(
                f"--mosaics: {by_name[name]} and {path} are both named {name!r}: annotations and detections could not tell them "
                "apart; rename one, or narrow the pattern"
            )
        try:
            with Raster(path) as raster:
                info = raster.info()
        except InputError as error:
            if bad is None:
                raise
            by_name[name], bad[name] = path, str(error)
            continue
        by_name[name], infos[path] = path, info
    by_digest: dict[str, str] = {}
    mosaics = []
    for (path, info), digest in zip(infos.items(), files.fingerprints(list(infos)), strict=True):
        if digest in by_digest:
            raise InputError(
                f"--mosaics: {by_digest[digest]} and {path} are the same image: it would be counted twice and could leak between "
                "splits; leave one out"
            )
        by_digest[digest] = path
        mosaics.append(Mosaic(name=stem(path), path=path, sha256=digest, **dataclasses.asdict(info)))
    return numbered(mosaics, patch_size=patch_size, overlap_px=overlap_px)


def numbered(mosaics: Sequence[Mosaic], *, patch_size: int, overlap_px: int) -> tuple[Mosaic, ...]:
    """The mosaics in the order of their names, each with the number of its first patch."""
    first, result = 0, []
    for mosaic in sorted(mosaics, key=lambda mosaic: mosaic.name):
        result.append(dataclasses.replace(mosaic, first_patch_id=first))
        first += len(mosaic.grid(patch_size, overlap_px))
    return tuple(result)
