"""BCCD's photos laid side by side into two large images, one for each split: mosaics larger than any patch of the seal study.

    python benchmarks/bccd_sheets.py [--bccd ../shared/data/bccd] --output runs/sheets

A photo of BCCD has 640 x 480 px: patches of 800 px would have a black frame, and a comparison of sizes would compare frames. In a
sheet a patch of any size shows cells everywhere. OUTPUT gets train.tif and val.tif, one tile a photo and no pixel changed,
annotations.json (COCO) and splits.csv; the flags of `rookery shard` for them are printed, as `size_sweep.sh --shard` takes them.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import measure
import numpy as np
import simplejpeg
import tifffile

sys.path.insert(0, str(measure.ROOT))

from survey.annotations import voc
from survey.annotations.reading import ReadOptions

HEIGHT, WIDTH = 480, 640  # of each photo in px
COLUMNS = 5  # at most


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the sheets and prints the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, default=measure.ROOT / "../shared/data/bccd", help="folder of the BCCD dataset")
    parser.add_argument("--output", type=Path, required=True, help="folder of the sheets")
    options = parser.parse_args(argv)
    if not (options.bccd / "train.txt").exists():
        raise SystemExit(
            f"--bccd={options.bccd}: there is no train.txt: give the folder of BCCD, with images/ and annotations/ in it"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    splits = {split: (options.bccd / f"{split}.txt").read_text().split() for split in ("train", "val")}
    images, objects = [], []
    for number, (split, names) in enumerate(splits.items(), start=1):
        columns = columns_of(len(names))
        rows = len(names) // columns
        tifffile.imwrite(
            options.output / f"{split}.tif",
            (photo(options.bccd / "images" / f"{name}.jpg") for name in names),
            shape=(rows * HEIGHT, columns * WIDTH, 3),
            dtype="uint8",
            tile=(HEIGHT, WIDTH),
            compression="zlib",
            photometric="rgb",
        )
        images.append({"id": number, "file_name": f"{split}.tif", "height": rows * HEIGHT, "width": columns * WIDTH})
        for place, name in enumerate(names):
            top, left = place // columns * HEIGHT, place % columns * WIDTH
            for found in voc.read(str(options.bccd / "annotations" / f"{name}.xml"), ReadOptions()).annotations:
                y0, x0, y1, x1 = np.clip(found.box, 0, (HEIGHT, WIDTH) * 2).tolist()  # some reach a pixel beyond their photo
                objects.append((number, found.class_name, [left + x0, top + y0, x1 - x0, y1 - y0]))
    classes = {name: number for number, name in enumerate(sorted({name for _, name, _ in objects}), start=1)}
    document = {
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in classes.items()],
        "annotations": [
            {"id": number, "image_id": image, "category_id": classes[name], "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, (image, name, box) in enumerate(objects, start=1)
        ],
    }
    (options.output / "annotations.json").write_text(json.dumps(document))
    with (options.output / "splits.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("mosaic", "split"), *((split, split) for split in splits)])
    where = options.output
    print(
        f"--mosaics={where}/*.tif --annotations={where}/annotations.json --annotation_format=coco "
        f"--split_list={where}/splits.csv --overlap=0"
    )


def columns_of(photos: int) -> int:
    """The most columns up to COLUMNS that leave no place of a sheet empty.

    >>> columns_of(205), columns_of(87)
    (5, 3)
    """
    return max(columns for columns in range(1, COLUMNS + 1) if photos % columns == 0)


def photo(path: Path) -> np.ndarray:
    """uint8 [480, 640, 3]."""
    pixels = simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")
    if pixels.shape != (HEIGHT, WIDTH, 3):
        raise SystemExit(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} px: all photos of BCCD have {WIDTH} x {HEIGHT}")
    return pixels


if __name__ == "__main__":
    main()
