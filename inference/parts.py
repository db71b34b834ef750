"""Part files of a prediction: what each work item found, before the seams are stitched.

    parts/0000000016-0000000032.parquet    patches 16 to 31

A part is published in one step, so its presence says that its patches are done: progress counts parts.
"""

import json
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from survey import files
from survey.detections import Detections

FOLDER = "parts"
_ENDING = ".parquet"


def write(output: str, patch_ids: range, claimed: Detections, counters: dict[str, int]) -> None:
    """Publishes the part of some patches.

    Args:
      output: folder of the prediction.
      patch_ids: the patches, all of them, also those that found nothing.
      claimed: what they found, boxes in mosaic pixels.
      counters: what was counted on the way, by name.
    """
    columns = {side: claimed.boxes_mosaic_px[:, i] for i, side in enumerate(("y0", "x0", "y1", "x1"))}
    columns |= {"score": claimed.scores, "class_id": claimed.class_ids, "patch_id": claimed.patch_ids}
    table = pa.table(columns).replace_schema_metadata({"counters": json.dumps(counters)})
    files.write_table(os.path.join(output, FOLDER, _name(patch_ids)), table)


def read(output: str, patch_ids: range) -> tuple[Detections, dict[str, int]]:
    """The part of some patches; the counterpart of `write`."""
    table = files.read_table(os.path.join(output, FOLDER, _name(patch_ids)))
    found = np.stack([table[side].to_numpy() for side in ("y0", "x0", "y1", "x1")], axis=1)
    claimed = Detections(found, table["score"].to_numpy(), table["class_id"].to_numpy(), table["patch_id"].to_numpy())
    return claimed, json.loads(table.schema.metadata[b"counters"])


def missing(output: str, wanted: Sequence[range]) -> list[range]:
    """Which parts are not there yet."""
    there = _names(output)
    return [patch_ids for patch_ids in wanted if _name(patch_ids) not in there]


def patches_done(output: str) -> int:
    """Patches in finished parts."""
    spans = (name.removesuffix(_ENDING).split("-") for name in _names(output))
    return sum(int(stop) - int(start) for start, stop in spans)


def clear(output: str) -> None:
    """Removes all parts."""
    files.remove_folder(os.path.join(output, FOLDER))


def concatenate(found: Sequence[Detections]) -> Detections:
    """Detections one after the other; none for an empty list."""
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64))
    everything = [empty, *found]
    return Detections(
        np.concatenate([one.boxes_mosaic_px for one in everything]),
        np.concatenate([one.scores for one in everything]),
        np.concatenate([one.class_ids for one in everything]),
        np.concatenate([one.patch_ids for one in everything]),
    )


def _name(patch_ids: range) -> str:
    return f"{patch_ids.start:010d}-{patch_ids.stop:010d}{_ENDING}"


def _names(output: str) -> set[str]:
    # A name that does not end so is a part still being written.
    return {name for name in files.names(os.path.join(output, FOLDER)) if name.endswith(_ENDING)}
