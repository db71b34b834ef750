"""`rookery decode`: raw heads in a file and a spec -> boxes, for a model that somebody else made; see docs/decoding.md."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference import suppression
from inference.decode import Decoder, DecodeSpec, Found
from survey import files, flags, heads, model
from survey.errors import InputError
from survey.flags import flag

COLUMNS = ("image", "class_id", "class_name", "score", "y0", "x0", "y1", "x1")
_NEEDED = ("image_size", "classes", "heads", "score_floor", "nms_iou")
_KNOWN = (*_NEEDED, "suppression")


@dataclass(frozen=True, slots=True)
class Options:
    """Decodes raw model outputs, saved with numpy.savez, into boxes in patch pixels (y0, x0, y1, x1).

    rookery decode --raw outputs.npz --spec model.json --output detections.csv
    """

    raw: str = flag("an .npz with the raw arrays under the names that the spec's heads have")
    spec: str = flag("a model.json, or a file with image_size, classes, heads, score_floor and nms_iou")
    output: str = flag("file to write: .csv, .json or .npz (default: a table on the screen)", default="")
    image: int | None = flag("decode only this image of the batch, from 0 (default: all)", default=None)

    def __post_init__(self) -> None:
        if self.output and _ending(self.output) not in _WRITERS:
            raise InputError(f"--output={self.output}: must end with {', '.join(_WRITERS)}")
        if self.image is not None and self.image < 0:
            raise InputError(f"--image={self.image}: must be from 0")


def run(argv: Sequence[str]) -> int:
    """Decodes; returns 0."""
    options, _ = flags.parse(Options, argv, prog="rookery decode")
    spec = read_spec(options.spec)
    decoder = Decoder(spec)
    raw = read_raw(options.raw)
    decoder.check(raw)
    images = len(raw[decoder.outputs[0]])
    if options.image is not None and options.image >= images:
        raise InputError(f"--image={options.image}: {options.raw} holds {images} images, 0 to {images - 1}")
    wanted = range(images) if options.image is None else range(options.image, options.image + 1)
    found = {i: decoder({name: raw[name][i : i + 1] for name in decoder.outputs})[0] for i in wanted}
    writer = _WRITERS[_ending(options.output)] if options.output else _as_table
    content = writer(found, spec)
    total = sum(len(one.scores) for one in found.values())
    if options.output:
        files.write(options.output, content)
        print(f"decode: {total} detections of {len(found)} images in {options.output}")
    else:
        print(content.decode(), end="")
        print(f"{total} detections of {len(found)} images; boxes in patch pixels")
    return 0


def read_spec(path: str) -> DecodeSpec:
    """The spec of a model: a whole model.json, or the part that decoding needs.

    Raises:
      InputError: a key is missing or unknown, a value does not fit, or nobody here can decode such heads.
    """
    value = files.read_json(path, "a model spec (docs/decoding.md)")
    if "format_version" in value:
        whole = model.read_file(path)
        return DecodeSpec(whole.image_size, whole.classes, whole.heads, whole.score_floor, whole.nms_iou)
    if missing := [name for name in _NEEDED if name not in value]:
        raise InputError(f"{path} lacks {', '.join(missing)}: the keys are {', '.join(_KNOWN)}")
    if unknown := sorted(set(value) - set(_KNOWN)):
        near = flags.nearest(unknown[0], _KNOWN)
        raise InputError(f"{path} has unknown {', '.join(unknown)} (did you mean {near}?): the keys are {', '.join(_KNOWN)}")
    size, classes = value["image_size"], value["classes"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"{path}: image_size={size!r}: must be the side of the square input, a whole number of pixels")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: classes={classes!r}: must be the list of class names, without a background")
    for name in ("score_floor", "nms_iou"):
        if not isinstance(value[name], (int, float)) or not 0 <= value[name] <= 1:
            raise InputError(f"{path}: {name}={value[name]!r}: must be a number from 0 to 1")
    if (method := value.get("suppression", suppression.CLASS)) not in suppression.METHODS:
        raise InputError(f"{path}: suppression={method!r}: must be one of {', '.join(suppression.METHODS)}")
    return DecodeSpec(size, tuple(classes), heads.from_json(value["heads"], path), value["score_floor"], value["nms_iou"], method)


def read_raw(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz, bfloat16 ones as float32.

    numpy knows no bfloat16: it saves it as two nameless bytes ("|V2"), the upper half of a float32.

    Raises:
      InputError: there is no such file, it is no .npz, or an array does not hold numbers.
    """
    if not files.exists(path):
        raise InputError(f"--raw={path} does not exist: save the outputs of the model with numpy.savez")
    try:
        stored = np.load(io.BytesIO(files.read(path)), allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise InputError(f"--raw={path} holds one array, not several by name: save them with numpy.savez")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, InputError):
            raise
        # numpy's own words advise to load whatever it is as a pickle, which would run the file's code.
        raise InputError(f"--raw={path} is not an .npz of numbers: save the outputs with numpy.savez") from error
    return {name: _as_float(array, f"{path}: {name}") for name, array in arrays.items()}


def _as_float(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype == np.dtype("V2"):
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{what} is of type {array.dtype}: must be float32, float16 or bfloat16")
    return array.astype(np.float32)


def _ending(path: str) -> str:
    return "." + path.rpartition(".")[2]


def _rows(found: dict[int, Found], spec: DecodeSpec) -> list[tuple[Any, ...]]:
    """One row a detection, in the order of COLUMNS."""
    return [
        (image, int(class_id), spec.classes[class_id - 1], *(float(str(value)) for value in (score, *box)))
        for image, one in found.items()
        for box, score, class_id in zip(*one, strict=True)
    ]


def _as_table(found: dict[int, Found], spec: DecodeSpec) -> bytes:
    rows = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in _rows(found, spec)]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [COLUMNS, *rows]]
    return ("\n".join(lines) + "\n").encode()


def _as_csv(found: dict[int, Found], spec: DecodeSpec) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(found, spec))
    return text.getvalue().encode()


def _as_json(found: dict[int, Found], spec: DecodeSpec) -> bytes:
    return (json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in _rows(found, spec)], indent=1) + "\n").encode()


def _as_npz(found: dict[int, Found], spec: DecodeSpec) -> bytes:
    text = io.BytesIO()
    np.savez(
        text,
        image=np.concatenate([np.full(len(one.scores), image, np.int64) for image, one in found.items()]),
        boxes_patch_px=np.concatenate([one.boxes_patch_px for one in found.values()]),
        scores=np.concatenate([one.scores for one in found.values()]),
        class_ids=np.concatenate([one.class_ids for one in found.values()]),
        classes=np.array(spec.classes),
    )
    return text.getvalue()


_WRITERS: dict[str, Callable[[dict[int, Found], DecodeSpec], bytes]] = {".csv": _as_csv, ".json": _as_json, ".npz": _as_npz}

if __name__ == "__main__":
    flags.exit_with(run)
