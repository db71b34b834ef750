"""What in the data or in the run deserves a second look before the numbers are used; the report lists it."""

from collections.abc import Iterator
from dataclasses import dataclass

from inference.evaluation import Evaluation
from survey.detections import Manifest
from survey.model import ModelSpec

# Objects of one kind differ more than this among themselves; as `rookery predict` judges it.
GSD_TOLERANCE = 0.05
NAMED = 8  # mosaics named in a remark; of more the number is enough


@dataclass(frozen=True, slots=True)
class Remark:
    """A line of the list: `serious` ones can make the numbers wrong, the others say what was done."""

    serious: bool
    text: str


def remarks(
    manifest: Manifest, spec: ModelSpec | None, judged: Evaluation | None, *, estimated: bool, at_threshold: int, detections: int
) -> list[Remark]:
    """Everything worth saying, serious things first.

    Args:
      manifest: of the detections.
      spec: of the model, if it is still there.
      judged: the evaluation, if any.
      estimated: whether there are estimates with intervals.
      at_threshold: detections that count.
      detections: detections of any score.
    """
    found = [
        *_of_the_run(manifest),
        *_of_the_model(manifest, spec),
        *_of_the_annotations(judged),
        *_of_the_result(manifest, judged, estimated, at_threshold, detections),
    ]
    return sorted(found, key=lambda remark: not remark.serious)


def _of_the_run(manifest: Manifest) -> Iterator[Remark]:
    warnings = manifest.options.get("warnings") or ()
    for warning in [warnings] if isinstance(warnings, str) else warnings:
        yield Remark(True, f"The prediction warned: {warning}")


def _of_the_model(manifest: Manifest, spec: ModelSpec | None) -> Iterator[Remark]:
    if "warnings" in manifest.options:
        return  # the prediction compared them itself
    if spec is None:
        yield Remark(False, "The model is not in its folder now or of another format: not compared with the mosaics.")
        return
    if spec.gsd_m is None:
        yield Remark(False, "The ground resolution of the training images is not known: not compared with the mosaics.")
    else:
        low, high = spec.gsd_m
        trained = f"{low:g} m" if low == high else f"{low:g} to {high:g} m"
        known = [mosaic for mosaic in manifest.mosaics if mosaic.gsd_m is not None]
        unknown = [mosaic.name for mosaic in manifest.mosaics if mosaic.gsd_m is None]
        if unknown:
            yield Remark(
                True, f"The model was trained at {trained} a pixel; nobody knows how large a pixel is in {_names(unknown)}."
            )
        within = (low * (1 - GSD_TOLERANCE), high * (1 + GSD_TOLERANCE))
        outside = [f"{m.name} ({m.gsd_m:g} m)" for m in known if not within[0] <= (m.gsd_m or 0) <= within[1]]
        if outside and manifest.options.get("gsd_m") is None:
            yield Remark(
                True,
                f"The model was trained at {trained} a pixel, and objects have another size in pixels in {_names(outside)}: "
                "`rookery predict --gsd_m` resamples.",
            )
    others = [f"{m.name} ({m.bands})" for m in manifest.mosaics if spec.bands and m.bands not in spec.bands]
    if others:
        trained = " or ".join(map(str, spec.bands))
        yield Remark(True, f"The model was trained on mosaics of {trained} bands, of another number are {_names(others)}.")


def _of_the_annotations(judged: Evaluation | None) -> Iterator[Remark]:
    if judged is None:
        return
    if judged.unannotated:
        yield Remark(False, f"Not annotated, so in no figure of quality: {', '.join(judged.unannotated)}.")
    for name, value in judged.truth.items():
        if value and name != "objects_read":
            yield Remark(name == "objects_empty_or_outside_mosaic", f"Annotations: {value:,} {name.replace('_', ' ')}.")


def _of_the_result(
    manifest: Manifest, judged: Evaluation | None, estimated: bool, at_threshold: int, detections: int
) -> Iterator[Remark]:
    if not at_threshold:
        yield Remark(True, f"No detection reaches the threshold; {detections:,} lie below it.")
    if judged is None and not estimated:
        yield Remark(True, "Nothing here tells how right the counts are: no evaluation, and no estimate with an interval.")
    empty = [mosaic.name for mosaic in manifest.mosaics if not sum(manifest.counts.get(mosaic.name, {}).values())]
    if empty and at_threshold and manifest.counts:
        yield Remark(False, f"Nothing was found in {_names(empty)}.")


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
