"""The mosaics of a survey as files: what their headers say, names that tell them apart, and numbers for their patches."""

import dataclasses
from collections.abc import Mapping, Sequence

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


def read(paths: Sequence[str], *, patch_size: int, overlap_px: int) -> tuple[Mosaic, ...]:
    """Headers and digests of mosaics; pixels are read only to digest the file.

    Args:
      paths: the image files.
      patch_size: side of a patch in pixels.
      overlap_px: pixels that neighbouring patches share, at least.

    Returns:
      The mosaics in the order of their names, each with the number of its first patch.

    Raises:
      InputError: a file that is no image, or two that would be confused.
    """
    infos = headers(paths)
    found = identified(infos, files.fingerprints(list(infos)))
    return numbered(found, patch_size=patch_size, overlap_px=overlap_px)


def headers(paths: Sequence[str], *, bad: dict[str, str] | None = None) -> dict[str, RasterInfo]:
    """What the headers of mosaics say, by path.

    Args:
      paths: the image files.
      bad: gets the names of files that are no image, each with the reason, and they are left out; by default they are an error.

    Raises:
      InputError: a file that is no image, or two of one name.
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
        by_name[name] = path
        try:
            with Raster(path) as raster:
                infos[path] = raster.info()
        except InputError as error:
            if bad is None:
                raise
            bad[name] = str(error)
    return infos


def identified(infos: Mapping[str, RasterInfo], digests: Sequence[str]) -> list[Mosaic]:
    """Mosaics from their headers and the fingerprints of their files.

    Args:
      infos: from `headers`.
      digests: `survey.files.fingerprints` of the same files.

    Raises:
      InputError: two files are the same image.
    """
    by_digest: dict[str, str] = {}
    for path, digest in zip(infos, digests, strict=True):
        if digest in by_digest:
            raise InputError(
                f"--mosaics: {by_digest[digest]} and {path} are the same image: it would be counted twice and could leak between "
                "splits; leave one out"
            )
        by_digest[digest] = path
    return [
        Mosaic(name=stem(path), path=path, sha256=digest, **dataclasses.asdict(info))
        for (path, info), digest in zip(infos.items(), digests, strict=True)
    ]


def numbered(mosaics: Sequence[Mosaic], *, patch_size: int, overlap_px: int) -> tuple[Mosaic, ...]:
    """The mosaics in the order of their names, each with the number of its first patch."""
    first, result = 0, []
    for mosaic in sorted(mosaics, key=lambda mosaic: mosaic.name):
        result.append(dataclasses.replace(mosaic, first_patch_id=first))
        first += len(mosaic.grid(patch_size, overlap_px))
    return tuple(result)
