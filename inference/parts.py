"""What a prediction has finished so far: one small file for each part, kept until the whole is done.

    parts/job.json                                       what the parts belong to
    parts/3f2a91c07bd8e645-00000032-00000064.parquet     patches 32 to 63 of one mosaic

A part is published in one step, so its presence says that its patches are done: a run that was cut short goes on from there. Its
name begins with a digest of all that decides what is in it (models, options, the mosaic's content), so a part of other input is
never taken for it, and parts survive a change of the other mosaics.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from survey import files
from survey.detections import Detections
from survey.errors import InputError

FOLDER = "parts"
JOB = "job.json"
_ENDING = ".parquet"
# Each is a few kilobytes: opening them costs more than reading, above all in a bucket.
_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring patches of one mosaic, and what decides what is found in them.

    Attributes:
      key: from `key`.
      start, stop: their numbers within the mosaic, half-open.
    """

    key: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file(self) -> str:
        """Its name in the folder of parts."""
        return f"{self.key}-{self.start:08d}-{self.stop:08d}{_ENDING}"


def key(settings: Mapping[str, Any], sha256: str) -> str:
    """Names the search of one mosaic.

    Args:
      settings: plain values, all that decides what is found in its pixels.
      sha256: of its content.
    """
    return hashlib.sha256(f"{json.dumps(settings, sort_keys=True)} {sha256}".encode()).hexdigest()[:16]


def begin(output: str, settings: Mapping[str, Any], mosaics: Mapping[str, str]) -> list[str]:
    """Takes a folder for a prediction, or goes on with the one that was begun there.

    Args:
      output: folder of the prediction.
      settings: plain values, all that decides what is found besides the mosaics.
      mosaics: digest of each mosaic, by name.

    Returns:
      The mosaics whose content has changed since, by name: they are searched anew.

    Raises:
      InputError: the parts there are of another prediction: other settings, mosaics that it did not have, or none it had.
    """
    path = os.path.join(output, FOLDER, JOB)
    mine = json.loads(json.dumps({"settings": settings, "mosaics": mosaics}))
    if files.create(path, files.as_json(mine)):
        strangers = [name for name in files.names(os.path.join(output, FOLDER)) if name.endswith(_ENDING)]
        if strangers:
            files.remove(path)
            raise _refused(output, "it does not say which")
        return []
    theirs = files.read_json(path, "the job of a prediction that was cut short")
    before, now = theirs.get("settings", {}), mine["settings"]
    differing = [f"{name} {before.get(name)} there, {now.get(name)} now" for name in now if before.get(name) != now.get(name)]
    was = theirs.get("mosaics", {})
    if added := [name for name in mosaics if name not in was]:
        differing.append(f"mosaics it did not have: {', '.join(added[:3])}{', ...' if len(added) > 3 else ''}")
    changed = [name for name, digest in mosaics.items() if was.get(name) not in (None, digest)]
    if not added and len(changed) == len(mosaics):
        differing.append("no mosaic is the same")
    if differing:
        raise _refused(output, "; ".join(differing))
    return changed


def write(output: str, part: Part, claimed: Detections, counters: Mapping[str, int]) -> None:
    """Publishes a part.

    Args:
      output: folder of the prediction.
      part: whose.
      claimed: what its patches found, `patch_ids` numbered within the mosaic.
      counters: what was counted on the way, by name.
    """
    columns = {side: claimed.boxes_mosaic_px[:, i] for i, side in enumerate(("y0", "x0", "y1", "x1"))}
    columns |= {"score": claimed.scores, "class_id": claimed.class_ids, "patch_id": claimed.patch_ids}
    table = pa.table(columns).replace_schema_metadata({"counters": json.dumps(dict(counters))})
    files.write_table(os.path.join(output, FOLDER, part.file), table)


def read(output: str, wanted: Sequence[Part]) -> tuple[Detections, dict[str, int]]:
    """What some parts hold, one after the other, and the sums of their counters."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        there = list(pool.map(lambda part: _read(output, part), wanted))
    total: dict[str, int] = {}
    for _, counters in there:
        add(total, counters)
    return concatenate([found for found, _ in there]), total


def missing(output: str, wanted: Sequence[Part]) -> list[Part]:
    """Which parts are not there yet."""
    there = set(files.names(os.path.join(output, FOLDER)))
    return [part for part in wanted if part.file not in there]


def patches_done(output: str, wanted: Sequence[Part]) -> int:
    """Patches in those of the parts that are finished."""
    return sum(map(len, wanted)) - sum(map(len, missing(output, wanted)))


def clear(output: str) -> None:
    """Removes all parts."""
    files.remove_folder(os.path.join(output, FOLDER))


def concatenate(found: Sequence[Detections]) -> Detections:
    """Detections one after the other; none for an empty list."""
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64))
    names = [field.name for field in dataclasses.fields(Detections)]
    return Detections(**{name: np.concatenate([getattr(one, name) for one in [empty, *found]]) for name in names})


def add(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Adds counters to counters."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _read(output: str, part: Part) -> tuple[Detections, dict[str, int]]:
    table = files.read_table(os.path.join(output, FOLDER, part.file))
    found = np.stack([table[side].to_numpy() for side in ("y0", "x0", "y1", "x1")], axis=1)
    claimed = Detections(found, table["score"].to_numpy(), table["class_id"].to_numpy(), table["patch_id"].to_numpy())
    return claimed, json.loads(table.schema.metadata[b"counters"])


def _refused(output: str, why: str) -> InputError:
    return InputError(
        f"--output={output} holds the unfinished parts of another prediction ({why}): run the command that began it, give "
        f"another folder, or remove {os.path.join(output, FOLDER)}"
    )
