"""`rookery anchors`: anchor boxes for a YOLO from the boxes of a dataset, or of a table, with a picture of both."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from survey import box_shapes, dataset, files, flags, provenance
from survey.annotations import csv_boxes, csv_table, reading
from survey.errors import InputError
from survey.flags import flag

PROG = "rookery anchors"

# A line of keras-yolo3 and its relatives: the image, then xmin,ymin,xmax,ymax,class for each object, with spaces between.
_NUMBER = r"-?\d+(?:\.\d+)?"
_LISTED_BOX = re.compile(rf"\s({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER}),\d+(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Options:
    """Finds the k anchors that suit the boxes best: k-means on 1 - IoU of widths and heights.

    rookery anchors --dataset survey/ --k 9 --output anchors.json --picture anchors.png
    rookery train --dataset survey/ --model yolo --anchors anchors.json
    """

    dataset: str = flag("folder written by `rookery shard`", default="")
    record_csv: str = flag("instead of a dataset: table with a box a row (xmin,ymin,xmax,ymax), or keras-yolo lines", default="")
    k: int = flag("number of anchors, over all scales of the head", default=9)
    scales: int | None = flag("scales of the head, which share the anchors evenly: k must be a multiple", default=None)
    split: str = flag("split of the dataset whose boxes count", default="train")
    image_size: int | None = flag(
        "scale boxes as if every image were resized to fit a square of so many px (default: boxes as they are, as training crops "
        "without resizing)",
        default=None,
    )
    seed: int = flag("of the search", default=0)
    output: str = flag("the JSON file to write", default="anchors.json")
    picture: str = flag("PNG of the boxes and the anchors to write (default: none)", default="")

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.record_csv):
            raise InputError("--dataset or --record_csv: exactly one must be given, it says whose boxes the anchors shall suit")
        if self.k < 1:
            raise InputError(f"--k={self.k}: must be 1 or more; YOLO v3 has 9, three for each of its three scales")
        if self.scales is not None and self.scales < 1:
            raise InputError(f"--scales={self.scales}: must be the number of scales of the head, 1 or more")
        if self.scales is not None and self.k % self.scales:
            raise InputError(
                f"--k={self.k} --scales={self.scales}: every scale has as many anchors as the others, so that k must be a "
                f"multiple of the scales: give --k={self.scales * max(1, round(self.k / self.scales))}"
            )
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image_size={self.image_size}: must be the side of the model's images in pixels")
        if self.seed < 0:
            raise InputError(f"--seed={self.seed}: must be 0 or more")
        if not self.output.lower().endswith(".json"):
            raise InputError(f"--output={self.output!r}: must be a file name ending in .json")
        if self.picture and not self.picture.lower().endswith(".png"):
            raise InputError(f"--picture={self.picture!r}: must be a file name ending in .png")


@dataclass(frozen=True, slots=True)
class Boxes:
    """What the anchors are to suit.

    Attributes:
      sizes_px: float32 [N, 2], (width, height), scaled to `image_size`.
      image_size: side of the square images in which they are measured, None where images keep their own sizes.
      name: for people.
      source: for the file: names and digests.
      note: how they were scaled.
    """

    sizes_px: np.ndarray
    image_size: int | None
    name: str
    source: dict[str, Any]
    note: str


def run(argv: Sequence[str]) -> int:
    """Finds anchors; returns 0."""
    options, _ = flags.parse(Options, argv, prog=PROG)
    boxes = _of_dataset(options) if options.dataset else _of_table(options)
    found = box_shapes.fit(boxes.sizes_px, options.k, options.seed)
    made_with = provenance.versions("numpy")
    value = box_shapes.to_json(found, image_size=boxes.image_size, seed=options.seed, source=boxes.source, made_with=made_with)
    files.write_json(options.output, value)
    print(f"anchors: {boxes.name}: {found.boxes:,} boxes, {boxes.note}")
    if found.left_out:
        print(f"left out, without area: {found.left_out:,} of {len(boxes.sizes_px):,} boxes")
    print(table(found, options.scales))
    print(f"mean best IoU {found.mean_best_iou:.4f}; {100 * found.share_below_half:.1f} % of the boxes below 0.5")
    print(f"wrote {options.output}: rookery train --model yolo --anchors {options.output}")
    if options.picture:
        from tpu_train import anchors_picture  # here: matplotlib takes a while to import

        files.write(options.picture, anchors_picture.draw(boxes.sizes_px, found, title=boxes.name, seed=options.seed))
        print(f"open {options.picture}")
    return 0


def table(found: box_shapes.Fit, scales: int | None = None) -> str:
    """The anchors for people, one a line; with `scales`, the scale that each belongs to, finest first."""
    header = ["anchor", "width px", "height px", "w / h", "side px", "boxes"]
    rows = []
    for i, ((width, height), boxes) in enumerate(zip(found.anchors_px, found.boxes_per_anchor, strict=True)):
        row = [
            f"{i + 1}",
            f"{width:.2f}",
            f"{height:.2f}",
            f"{width / height:.2f}",
            f"{(width * height) ** 0.5:.1f}",
            f"{boxes:,}",
        ]
        rows.append(row + ([f"{i * scales // len(found.anchors_px) + 1}"] if scales else []))
    lines = [header + (["scale"] if scales else []), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def sizes_of_table(path: str, image_size: int | None) -> np.ndarray:
    """Sizes of the boxes of a table.

    Args:
      path: a CSV file with the columns of `survey.annotations.csv_boxes`; class and image are not needed. Or lines of keras-yolo.
      image_size: side of the square that each image is resized to fit; None to take pixels as they are.

    Returns:
      float32 [N, 2], (width, height) in pixels. A row without a box, or with four zeros, gives none.

    Raises:
      InputError: a column is missing, a value is no number, or the sizes of the images are needed and not in the table.
    """
    head = reading.content(path, csv_boxes.WHAT).lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode(errors="replace")
    if _LISTED_BOX.search(head):
        if image_size is not None:
            raise InputError(
                f"--image_size={image_size}: {path} lists boxes without the sizes of its images: leave --image_size out, or give "
                "a table with the columns width and height"
            )
        found = list(_of_lines(path))
    else:
        found = list(_of_rows(path, image_size))
    return np.array(found, np.float32).reshape(-1, 2)


def _of_dataset(options: Options) -> Boxes:
    from tpu_train import box_sizes

    sizes = box_sizes.of_dataset(options.dataset, options.split)
    patch_size = dataset.read(options.dataset).patch_size
    size = options.image_size or patch_size
    folder = os.path.basename(options.dataset.rstrip("/")) or options.dataset
    name = f"{folder}, {options.split}"
    source = {"dataset": folder, "digest": dataset.digest(options.dataset), "split": options.split}
    return Boxes(sizes * np.float32(size / patch_size), size, name, source, _scaled(f"patches of {patch_size} px", options))


def _of_table(options: Options) -> Boxes:
    if not files.exists(options.record_csv):
        raise InputError(f"--record_csv={options.record_csv} does not exist: a table with a box a row is expected there")
    sizes = sizes_of_table(options.record_csv, options.image_size)
    name = os.path.basename(options.record_csv)
    source = {"record_csv": name, "sha256": files.sha256(options.record_csv)}
    return Boxes(sizes, options.image_size, name, source, _scaled("images", options))


def _scaled(what: str, options: Options) -> str:
    return f"in pixels of the {what}" if options.image_size is None else f"{what} resized to {options.image_size} px"


def _of_rows(path: str, image_size: int | None) -> Iterator[tuple[float, float]]:
    rows = csv_table.table(path, csv_boxes.WHAT)
    corners_at = rows.columns(csv_boxes.CORNER_COLUMNS, "the corners")
    sizes_at = rows.size_columns()
    names = [rows.header[i] for i in corners_at]
    if image_size is not None and not sizes_at:
        raise InputError(
            f"--image_size={image_size}: {path} does not say how large its images are: add the columns width and height, or "
            "leave --image_size out"
        )
    scales: dict[tuple[str, ...], float] = {}
    for line, row in rows.rows:
        given = [row[i].strip() for i in corners_at]
        if not any(given):
            continue
        x0, y0, x1, y1 = reading.numbers(given, f"{path}: line {line}", names)
        if x0 == y0 == x1 == y1 == 0:
            continue
        scale = 1.0
        if image_size is not None:
            cells = tuple(row[i] for i in sizes_at)
            if cells not in scales:
                scales[cells] = image_size / _longest(cells, f"{path}: line {line}")
            scale = scales[cells]
        yield (x1 - x0) * scale, (y1 - y0) * scale


def _longest(cells: tuple[str, ...], where: str) -> int:
    """The longer side of an image: the one that fills the square."""
    size = csv_table.size_of(cells, where)
    if size is None:
        raise InputError(f"{where} does not say how large its image is: fill the cell, or leave --image_size out")
    return max(size)


def _of_lines(path: str) -> Iterator[tuple[float, float]]:
    for number, line in enumerate(files.read(path).decode("utf-8-sig", errors="replace").splitlines(), start=1):
        boxes = _LISTED_BOX.findall(line)
        if not boxes and "," in line:
            raise InputError(
                f"{path}: line {number}: {line.strip()!r} must be an image and xmin,ymin,xmax,ymax,class for each box"
            )
        for x0, y0, x1, y1 in boxes:
            yield float(x1) - float(x0), float(y1) - float(y0)


if __name__ == "__main__":
    flags.exit_with(run)
