"""What workers are handed: planned shards in one file of the output folder, of which each work item is a piece.

Not in the job's graph: Beam compresses a graph again and again on its way to the workers, and Dataflow refuses graphs of more
than a few megabytes, which a survey of some ten thousand annotated patches fills.
"""

import hashlib
import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import publish
from pipeline.patches import PlannedShard
from survey import byte_ranges, files
from survey.errors import InputError
from survey.geometry import Mosaic

# A photo that ends in the next shard is read twice, which is cheaper than to give a folder of photos to one worker.
SHARDS_WORTH_ONE_PASS = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """One work item as it travels to a worker: where to read it.

    Attributes:
      path: of the file.
      offset, length: of the item in it, in bytes.
      sha256: of these bytes, hex; whoever can write to the folder shall not run code on the workers.
    """

    path: str
    offset: int
    length: int
    sha256: str


def write(folder: str, items: Sequence[tuple[PlannedShard, ...]]) -> list[Piece]:
    """Puts work items where workers find them.

    Args:
      folder: the output folder, of which this process has taken possession.
      items: from `grouped`.

    Returns:
      One piece for each, in order.

    Raises:
      InputError: the folder cannot be written to.
    """
    contents = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
    whole = b"".join(contents)
    # Named by its content: two launchers of the same plan may have different shards left to do.
    path = os.path.join(folder, publish.UNFINISHED, f"work-{hashlib.sha256(whole).hexdigest()[:16]}.pickle")
    with publish.writing(folder):
        files.write(path, whole)
    pieces, offset = [], 0
    for content in contents:
        pieces.append(Piece(path, offset, len(content), hashlib.sha256(content).hexdigest()))
        offset += len(content)
    return pieces


def read(piece: Piece) -> tuple[PlannedShard, ...]:
    """The work item.

    Raises:
      InputError: the file is gone, or is not the one that the launcher wrote.
    """
    try:
        ranges = byte_ranges.open_ranges(piece.path)
        try:
            content = ranges.read_at(piece.offset, piece.length)
        finally:
            ranges.close()
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != piece.sha256:
        raise InputError(
            f"{piece.path} is not the work that was planned: it is gone, was changed, or workers do not see the launcher's "
            "--output; run the same command again with a folder that both see"
        )
    item: tuple[PlannedShard, ...] = pickle.loads(content)
    return item


def grouped(shards: Sequence[PlannedShard], mosaics: Sequence[Mosaic]) -> list[tuple[PlannedShard, ...]]:
    """Which shards are cut together: those of one large mosaic that can only be read front to back, all others alone.

    Args:
      shards: the planned shards.
      mosaics: theirs.

    Returns:
      Every shard once, in the order given.
    """
    one_pass = {mosaic.name for mosaic in mosaics if mosaic.one_pass}
    inside = [one_pass.intersection(shard.mosaics) for shard in shards]
    spans = Counter(name for names in inside for name in names)
    group = list(range(len(shards)))  # of each shard: the first shard that it goes with
    first: dict[str, int] = {}
    for i, names in enumerate(inside):
        for name in sorted(name for name in names if spans[name] >= SHARDS_WORTH_ONE_PASS):
            if name not in first:
                first[name] = group[i]
            elif first[name] != group[i]:
                old, new = sorted((first[name], group[i]), reverse=True)
                group = [new if g == old else g for g in group]
                first = {key: new if g == old else g for key, g in first.items()}
    items: dict[int, list[PlannedShard]] = {}
    for shard, g in zip(shards, group, strict=True):
        items.setdefault(g, []).append(shard)
    return [tuple(item) for item in items.values()]
