"""Where mosaics are unlike those that a model was trained on: said before the search, with numbers, and the search goes on."""

import math
from collections.abc import Sequence

from survey.geometry import Mosaic
from survey.model import ModelSpec

# Objects of one kind differ more than this among themselves, and training varies the scale by more.
GSD_TOLERANCE = 0.05
# Names of mosaics in one warning.
_NAMED = 3


def warnings(spec: ModelSpec, mosaics: Sequence[Mosaic], gsd_m: float | None, *, model: str) -> list[str]:
    """What the user should know before trusting the result, one line each.

    Args:
      spec: of a model.
      mosaics: the files.
      gsd_m: metres a pixel that they are resampled to; None where they stay as they are.
      model: its folder, for the text.
    """
    return _resolution(spec, mosaics, gsd_m, model) + _bands(spec, mosaics, model)


def _resolution(spec: ModelSpec, mosaics: Sequence[Mosaic], gsd_m: float | None, model: str) -> list[str]:
    if spec.gsd_m is None:
        return []
    low, high = spec.gsd_m
    trained = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    trained = f"{model} was trained at {trained} m a pixel"
    # The middle of the range by ratio, since that is how sizes compare.
    middle = f"{math.sqrt(low * high):.4g}"

    def outside(value: float) -> bool:
        return value < low * (1 - GSD_TOLERANCE) or value > high * (1 + GSD_TOLERANCE)

    if gsd_m is not None:
        if not outside(gsd_m):
            return []
        return [f"--gsd_m={gsd_m:g}: {trained}: objects have another size than it knows; --gsd_m={middle} is right for it"]
    unknown = [mosaic for mosaic in mosaics if mosaic.gsd_m is None]
    others: dict[str, list[Mosaic]] = {}
    for mosaic in mosaics:
        if mosaic.gsd_m is not None and outside(mosaic.gsd_m):
            others.setdefault(f"{mosaic.gsd_m:.4g}", []).append(mosaic)
    result = [
        f"{_named(group)} {_has(group)} {value} m a pixel, {trained}: objects have another size than it knows; "
        f"--gsd_m={middle} resamples the mosaics"
        for value, group in sorted(others.items())
    ]
    if unknown:
        result.append(
            f"{_named(unknown)} {_has(unknown)} no known ground resolution, {trained}: nothing tells whether objects have the "
            "size that it knows; georeference the mosaic (gdal_translate -a_srs EPSG:... -a_ullr ...), then "
            f"--gsd_m={middle} resamples it"
        )
    return result


def _bands(spec: ModelSpec, mosaics: Sequence[Mosaic], model: str) -> list[str]:
    others: dict[int, list[Mosaic]] = {}
    for mosaic in mosaics:
        if spec.bands and mosaic.bands not in spec.bands:
            others.setdefault(mosaic.bands, []).append(mosaic)
    trained = " or ".join(map(str, spec.bands))
    return [
        f"{_named(group)} {_has(group)} {bands} colour band{'s' * (bands != 1)}, {model} was trained on mosaics with {trained}: "
        f"{'the first is' if bands < 3 else 'the first three are'} taken for red, green and blue; give the mosaics the bands of "
        "the training data (gdal_translate -b ...)"
        for bands, group in sorted(others.items())
    ]


def _named(mosaics: Sequence[Mosaic]) -> str:
    names = ", ".join(mosaic.name for mosaic in mosaics[:_NAMED])
    return names if len(mosaics) <= _NAMED else f"{len(mosaics)} mosaics ({names}, ...)"


def _has(mosaics: Sequence[Mosaic]) -> str:
    return "has" if len(mosaics) == 1 else "have"
