from collections import Counter

import pytest

from pipeline import split
from survey.errors import InputError
from survey.geometry import PatchGrid, Window


def proof(grids, assignment):
    return split.shared_pixels(
        (m, grids[m].window(*cell), name) for m, cells in assignment.cells.items() for cell, name in cells.items()
    )


def test_bands_by_hand():
    # 6 columns, 4 rows: bands of columns, starts 0, 80, ..., 400. One column for val is 1/5 of what is kept when the column
    # beside it (320..420 shares 400..420 with it) is left out: 4 train, 1 val, exactly 0.8 and 0.2.
    grid = PatchGrid(300, 500, 100, 20)
    cells = split.by_block(grid, {"train": 0.8, "val": 0.2})
    assert {column: name for (_, column), name in cells.items()} == {0: "train", 1: "train", 2: "train", 3: "train", 5: "val"}
    assert Counter(cells.values()) == {"train": 16, "val": 4}


def test_the_end_where_fewer_patches_overlap_is_taken():
    # Rows start at 0, 60, 120, 180, 185 (snapped inward from 240): the last row overlaps three others, the first only one.
    grid = PatchGrid(285, 100, 100, 40)
    assert grid.row_starts == (0, 60, 120, 180, 185)
    cells = split.by_block(grid, {"train": 0.8, "val": 0.2})
    assert {row: name for (row, _), name in cells.items()} == {0: "val", 2: "train", 3: "train", 4: "train"}


def test_without_overlap_nothing_is_left_out():
    grid = PatchGrid(1000, 100, 100, 0)
    assert Counter(split.by_block(grid, {"train": 0.8, "val": 0.2}).values()) == {"train": 8, "val": 2}


@pytest.mark.parametrize("size", [(2472, 2299, 416, 64), (2472, 2299, 400, 100), (2472, 2299, 256, 128), (900, 3000, 300, 250)])
@pytest.mark.parametrize("shares", ["train=0.8,val=0.2", "train=0.7,val=0.15,test=0.15", "train=0.5,val=0.5"])
def test_no_pixel_is_shared_and_shares_are_near(size, shares):
    fractions = split.parse(shares.split(","))
    grids = {"m": PatchGrid(*size)}
    assignment = split.assign(grids, fractions)
    assert assignment.by == "block"
    assert proof(grids, assignment) == []
    count = Counter(assignment.cells["m"].values())
    for name, fraction in fractions.items():
        assert count[name] / count.total() == pytest.approx(fraction, abs=0.11)


def test_whole_mosaics_when_there_are_enough():
    # Ten mosaics of 24 patches: eight to train, two to val.
    grids = {f"m{i}": PatchGrid(300, 500, 100, 20) for i in range(10)}
    assignment = split.assign(grids, {"train": 0.8, "val": 0.2})
    assert assignment.by == "mosaic"
    assert Counter(next(iter(cells.values())) for cells in assignment.cells.values()) == {"train": 8, "val": 2}
    assert all(len(set(cells.values())) == 1 and len(cells) == 24 for cells in assignment.cells.values())
    assert assignment == split.assign(dict(reversed(grids.items())), {"train": 0.8, "val": 0.2})


def test_two_mosaics_are_not_halved_when_a_fifth_was_asked_for():
    # By mosaic val would get 24 of 48 patches: 0.5, more than half as much again as 0.2.
    grids = {name: PatchGrid(300, 500, 100, 20) for name in "ab"}
    assert split.by_mosaic(grids, {"train": 0.8, "val": 0.2}) is None
    assignment = split.assign(grids, {"train": 0.8, "val": 0.2})
    assert assignment.by == "block"
    assert all(set(cells.values()) == {"train", "val"} for cells in assignment.cells.values())


def test_a_single_split_takes_all():
    assert Counter(split.assign({"a": PatchGrid(300, 500, 100, 20)}, {"train": 1.0}).cells["a"].values()) == {"train": 24}


def test_a_mosaic_of_one_patch_cannot_be_divided():
    with pytest.raises(InputError, match=r"no patch is left for val: 1 mosaics, the largest with 1 x 1 patches"):
        split.assign({"a": PatchGrid(80, 90, 100, 20)}, {"train": 0.8, "val": 0.2})
    # Two patches that overlap: one of them has to go.
    with pytest.raises(InputError, match="no patch is left for"):
        split.assign({"a": PatchGrid(100, 180, 100, 20)}, {"train": 0.8, "val": 0.2})


def test_the_proof_finds_a_single_shared_pixel():
    a, b, c = Window(0, 0, 100, 100), Window(99, 99, 199, 199), Window(100, 0, 200, 100)
    assert split.shared_pixels([("m", a, "train"), ("m", b, "val")]) == [("m", a, b)]
    assert split.shared_pixels([("m", a, "train"), ("m", c, "val")]) == []  # side by side
    assert split.shared_pixels([("m", a, "train"), ("n", b, "val")]) == []  # another mosaic
    assert split.shared_pixels([("m", a, "train"), ("m", b, "train")]) == []  # the same split


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["train=0.8"], "shares sum to 0.8, must sum to 1"),
        (["train=0.8", "val=0.3"], "shares sum to 1.1"),
        (["train"], "'train' is not name=share"),
        (["train=x", "val=0.2"], "'train=x' is not name=share"),
        (["train=0.5", "train=0.5"], "split train is given twice"),
        (["train=1.2", "val=-0.2"], "share of train must be above 0 and at most 1"),
        (["train=nan"], "share of train must be above 0"),
        (["train=1", "val=0"], "share of val must be above 0"),
        (["learn=0.8", "val=0.2"], "one split must be named train"),
        (["train=0.8", "../val=0.2"], "'../val' names a split's files"),
    ],
)
def test_bad_shares_are_refused(texts, words):
    with pytest.raises(InputError, match=words):
        split.parse(texts)
