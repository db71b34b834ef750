"""All annotation files of a survey, as one `Reading`."""

from collections import Counter
from collections.abc import Sequence

from survey.annotations import FORMATS
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError
from survey.mosaics import stem

ONE_FILE_AN_IMAGE = ("voc", "yolo", "labelme")
ORIGIN_MATTERS = ("csv_boxes", "csv_points")


def read(paths: Sequence[str], annotation_format: str, options: ReadOptions) -> Reading:
    """Reads all files, in the order given.

    Args:
      paths: the files.
      annotation_format: key of FORMATS.
      options: for each of them.

    Raises:
      InputError: whatever is wrong with a file; two files for one image, in formats that have one file an image; an option that
        the format does not take.
    """
    if options.frame != "pixels" and annotation_format not in ORIGIN_MATTERS:
        raise InputError(
            f"--origin=bottom_left with --annotation_format={annotation_format}: that format says itself where y starts; the "
            f"flag is for {' and '.join(ORIGIN_MATTERS)}"
        )
    annotations: list[Annotation] = []
    images: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    sources: dict[str, str] = {}
    for path in paths:
        if path.endswith(".aux.xml"):  # GDAL and QGIS write it beside a mosaic, where survey/*.xml finds it
            skipped["gdal_aux_files_left_out"] += 1
            continue
        one = FORMATS[annotation_format].read(path, options)
        if annotation_format in ONE_FILE_AN_IMAGE:
            for name in map(stem, one.images):
                if name in sources:
                    raise InputError(
                        f"{sources[name]} and {path} both annotate mosaic {name}: its objects would be counted twice; narrow "
                        "--annotations to one of them"
                    )
                sources[name] = path
        annotations += one.annotations
        images.update(dict.fromkeys(one.images))
        skipped.update(one.skipped)
    return Reading(annotations, tuple(images), skipped)
