"""Work items on their way to the workers: a file in pieces, checked before it is unpickled."""

import os

import pytest
from test_pipeline_transforms import planned

from pipeline import work
from survey.errors import InputError


def test_every_item_comes_back_whole(tmp_path):
    shards = planned(one_pass=False).shards
    items = [shards[:2], shards[2:3], shards[3:]]
    pieces = work.write(str(tmp_path), items)
    assert [[shard.file for shard in work.read(piece)] for piece in pieces] == [[shard.file for shard in item] for item in items]
    (there,) = work.read(pieces[1])
    assert there.table.patch_ids.tolist() == shards[2].table.patch_ids.tolist()
    assert [piece.offset for piece in pieces] == [0, pieces[0].length, pieces[0].length + pieces[1].length]
    # The same work has the same name, other work another: two launchers do not overwrite each other's.
    assert work.write(str(tmp_path), items) == pieces
    assert work.write(str(tmp_path), items[:1])[0].path != pieces[0].path


def test_what_somebody_else_wrote_is_not_run(tmp_path):
    (piece,) = work.write(str(tmp_path), [planned(one_pass=False).shards])
    with open(piece.path, "r+b") as file:
        file.seek(piece.length // 2)
        byte = file.read(1)
        file.seek(piece.length // 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(InputError, match=r"is not the work that was planned: it is gone, was changed"):
        work.read(piece)
    os.remove(piece.path)
    with pytest.raises(InputError, match=r"is not the work that was planned: it is gone"):
        work.read(piece)
