from collections import Counter

import numpy as np
import pytest

from pipeline import proof, split
from survey.errors import InputError
from survey.geometry import Mosaic, PatchGrid

VAL = {"train": 0.8, "val": 0.2}


def shown(grids, assignment):
    """Every assigned window, for the proof."""
    mosaics, windows, splits = [], [], []
    for i, (name, grid) in enumerate(grids.items()):
        for row, column in zip(*np.nonzero(assignment.cells[name] != split.NONE), strict=True):
            w = grid.window(row, column)
            mosaics.append(i)
            windows.append((w.y0, w.x0, w.y1, w.x1))
            splits.append(assignment.cells[name][row, column])
    return proof.Shown(np.array(mosaics), np.array(windows), np.array(splits))


def leaks(grids, assignment):
    return len(proof.sharing_pixels(shown(grids, assignment))[0])


def by_hand(assignment_cells):
    """Number of patches in each split (0 train, 1 val, ...), and -1 left out."""
    return dict(Counter(assignment_cells.ravel().tolist()))


def test_bands_by_hand():
    # 6 columns, 4 rows: bands of columns, starts 0, 80, ..., 400. One column for val is 1/5 of what is kept when the column
    # beside it (320..420 shares 400..420 with it) is left out: 4 train, 1 val, exactly 0.8 and 0.2.
    cells = split.by_block(PatchGrid(300, 500, 100, 20), VAL)
    assert cells.tolist() == [[0, 0, 0, 0, -1, 1]] * 4


def test_the_end_where_fewer_patches_overlap_is_taken():
    # Rows start at 0, 60, 120, 180, 185 (snapped inward from 240): the last row overlaps three others, the first only one.
    grid = PatchGrid(285, 100, 100, 40)
    assert grid.row_starts == (0, 60, 120, 180, 185)
    assert split.by_block(grid, VAL).tolist() == [[1], [-1], [0], [0], [0]]


def test_without_overlap_nothing_is_left_out():
    assert by_hand(split.by_block(PatchGrid(1000, 100, 100, 0), VAL)) == {0: 8, 1: 2}


def test_a_corner_where_a_band_misses_the_share():
    # The NEON sample: 7 x 7 patches. A band of one column is 7 of 42 kept, 0.167. A corner of 2 x 4 is 8 of 42: 0.190, and
    # costs the same buffer of 7: a row of 4, a column of 2, and where they meet.
    grid = PatchGrid(2472, 2299, 416, 64)
    assert (grid.rows, grid.columns) == (7, 7)
    assert by_hand(split.by_block(grid, VAL)) == {0: 34, 1: 8, -1: 7}
    # With half of each patch shared: 11 x 11, two rows of 11 are 22 of 110 kept, just 0.2.
    assert by_hand(split.by_block(PatchGrid(2472, 2299, 416, 208), VAL)) == {0: 88, 1: 22, -1: 11}


@pytest.mark.parametrize("size", [(2472, 2299, 416, 64), (2472, 2299, 400, 100), (2472, 2299, 256, 128), (900, 3000, 300, 250)])
@pytest.mark.parametrize("shares", ["train=0.8,val=0.2", "train=0.7,val=0.15,test=0.15", "train=0.5,val=0.5"])
def test_no_pixel_is_shared_and_shares_are_near(size, shares):
    fractions = split.parse(shares.split(","))
    grids = {"m": PatchGrid(*size)}
    assignment = split.assign(grids, split.Rule(shares=fractions))
    assert assignment.by == "block"
    assert leaks(grids, assignment) == 0
    count = by_hand(assignment.cells["m"])
    kept = sum(number for i, number in count.items() if i != split.NONE)
    for i, fraction in enumerate(fractions.values()):
        assert count[i] / kept == pytest.approx(fraction, abs=0.07)


def random_surveys(number):
    """Grids, overlaps and shares that nobody chose for being easy."""
    rng = np.random.default_rng(7)
    for _ in range(number):
        patch = int(rng.integers(8, 60))
        overlap = int(rng.integers(0, patch))
        if rng.random() < 0.3:
            overlap = min(overlap, patch // 8)
        grids = {}
        for i in range(rng.integers(1, 6)):
            stride = patch - overlap
            grids[f"m{i}"] = PatchGrid(*(int(patch * 0.7 + rng.integers(1, 14) * stride) for _ in range(2)), patch, overlap)
        names = ["train", "val", "test"][: int(rng.integers(2, 4))]
        shares = rng.dirichlet(np.full(len(names), 4.0))
        yield grids, dict(zip(names, (shares / shares.sum()).tolist(), strict=True)), rng


def brute_force(grids, assignment):
    """Colours every pixel with the splits that show it, the slow way."""
    for name, grid in grids.items():
        seen = np.zeros((grid.height + 2 * grid.patch_size, grid.width + 2 * grid.patch_size), np.uint8)
        for (row, column), value in np.ndenumerate(assignment.cells[name]):
            if value != split.NONE:
                w = grid.window(row, column)
                seen[w.y0 : w.y1, w.x0 : w.x1] |= np.uint8(1 << int(value))
        if (seen & (seen - 1)).any():  # more than one bit
            return True
    return False


def test_adversarial_surveys_never_leak_and_the_proof_agrees_with_brute_force():
    made = 0
    for grids, shares, rng in random_surveys(100):
        way = ("auto", "mosaic", "block", "fold")[int(rng.integers(4))]
        rule = split.Rule(way, shares, None, 3 if way == "fold" else 0, int(rng.integers(3)))
        try:
            assignment = split.assign(grids, rule)
        except InputError:  # too small to be divided; worded in test_a_mosaic_of_one_patch_cannot_be_divided
            continue
        made += 1
        assert not brute_force(grids, assignment)
        assert leaks(grids, assignment) == 0
        # Now spoil it: one patch of one split is given to the other. The proof must say what brute force says.
        name = max(grids, key=lambda name: len(grids[name]))
        cells = {**assignment.cells, name: assignment.cells[name].copy()}
        at = tuple(int(rng.integers(side)) for side in cells[name].shape)
        cells[name][at] = (cells[name][at] + 1) % 2
        spoiled = split.Assignment(assignment.by, assignment.names, cells)
        assert bool(leaks(grids, spoiled)) == brute_force(grids, spoiled)
    assert made > 60


def test_whole_mosaics_when_there_are_enough():
    # Ten mosaics of 24 patches: eight to train, two to val.
    grids = {f"m{i}": PatchGrid(300, 500, 100, 20) for i in range(10)}
    assignment = split.assign(grids, split.Rule())
    assert assignment.by == "mosaic"
    assert Counter(int(cells[0, 0]) for cells in assignment.cells.values()) == {0: 8, 1: 2}
    assert all((cells == cells[0, 0]).all() and cells.size == 24 for cells in assignment.cells.values())
    again = split.assign(dict(reversed(grids.items())), split.Rule())
    assert all((again.cells[name] == cells).all() for name, cells in assignment.cells.items())
    assert split.assign(grids, split.Rule("block")).by == "block"


def test_two_mosaics_are_not_halved_when_a_fifth_was_asked_for():
    # By mosaic val would get 24 of 48 patches: 0.5, more than half as much again as 0.2.
    grids = {name: PatchGrid(300, 500, 100, 20) for name in "ab"}
    assert split.by_mosaic(grids, VAL) is None
    assignment = split.assign(grids, split.Rule())
    assert assignment.by == "block"
    assert all(set(cells.ravel().tolist()) == {0, 1, -1} for cells in assignment.cells.values())
    # Unless whole mosaics are asked for.
    assignment = split.assign(grids, split.Rule("mosaic"))
    assert assignment.by == "mosaic"
    assert sorted(int(cells[0, 0]) for cells in assignment.cells.values()) == [0, 1]


def test_mosaics_of_one_ground_stay_together():
    grids = {f"m{i}": PatchGrid(300, 500, 100, 20) for i in range(10)}
    groups = [["m0", "m4", "m7"], *([f"m{i}"] for i in (1, 2, 3, 5, 6, 8, 9))]
    assignment = split.assign(grids, split.Rule(), groups)
    assert assignment.by == "mosaic"
    assert len({int(assignment.cells[name][0, 0]) for name in groups[0]}) == 1


def test_a_single_split_takes_all():
    assignment = split.assign({"a": PatchGrid(300, 500, 100, 20)}, split.Rule(shares={"train": 1.0}))
    assert assignment.by == "all"
    assert by_hand(assignment.cells["a"]) == {0: 24}


def test_a_mosaic_of_one_patch_cannot_be_divided():
    with pytest.raises(InputError, match=r"no patch is left for val: 1 mosaics, the largest with 1 x 1 patches"):
        split.assign({"a": PatchGrid(80, 90, 100, 20)}, split.Rule())
    # Two patches that overlap: one of them has to go.
    with pytest.raises(InputError, match="no patch is left for"):
        split.assign({"a": PatchGrid(100, 180, 100, 20)}, split.Rule())


def test_folds_of_mosaics_and_of_bands_validate_every_patch_once():
    few, many = {"a": PatchGrid(300, 500, 100, 20)}, {f"m{i}": PatchGrid(300, 500, 100, 20) for i in range(10)}
    for grids in (few, many, {**few, "small": PatchGrid(100, 100, 100, 20)}):
        validated = {name: np.zeros((grid.rows, grid.columns), int) for name, grid in grids.items()}
        for fold in range(5):
            assignment = split.assign(grids, split.Rule("fold", VAL, None, 5, fold))
            assert (assignment.by, assignment.names) == ("fold", ("train", "val"))
            assert leaks(grids, assignment) == 0
            for name, cells in assignment.cells.items():
                validated[name] += cells == 1
        assert all((number == 1).all() for number in validated.values())
    # By hand: 6 columns in 3 folds are 2 + 2 + 2; the middle one costs train a column on either side.
    middle = split.assign(few, split.Rule("fold", VAL, None, 3, 1)).cells["a"]
    assert middle.tolist() == [[0, -1, 1, 1, -1, 0]] * 4


def test_a_list_says_it_all(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("mosaic,split,who\nnorth,train,me\nsouth,val,me\nséal bay..1,test,you\nbroken,,\n", encoding="utf-8-sig")
    listed = split.read_list(str(path))
    assert listed == {"north": "train", "south": "val", "séal bay..1": "test", "broken": ""}
    grids = {name: PatchGrid(300, 500, 100, 20) for name in listed}
    assignment = split.assign(grids, split.Rule("list", listed=listed))
    assert assignment.names == ("train", "test", "val")
    assert {name: set(cells.ravel().tolist()) for name, cells in assignment.cells.items()} == {
        "north": {0},
        "south": {2},
        "séal bay..1": {1},
        "broken": {split.NONE},
    }
    with pytest.raises(InputError, match=r"--split_list lacks mosaic 'nort' \(nearest there: 'north'\)"):
        split.assign({"nort": grids["north"]}, split.Rule("list", listed=listed))
    del grids["broken"]
    with pytest.raises(InputError, match=r"names mosaic 'broken', which is not among the 3 mosaics"):
        split.assign(grids, split.Rule("list", listed=listed))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has the columns none: needs the columns mosaic and split"),
        ("file,split\na,train\n", "has the columns file, split"),
        ("mosaic,split\na,train\na,val\n", "line 3: mosaic 'a' stands there twice"),
        ("mosaic,split\na,../val\n", "line 2: '../val' names a split's files"),
        ("mosaic,split\na,val\n", "gives no mosaic to train"),
        (None, "cannot be read as a CSV file"),
    ],
)
def test_bad_lists_are_refused(tmp_path, content, words):
    path = tmp_path / "splits.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words):
        split.read_list(str(path))


def test_the_proof_finds_a_single_shared_pixel():
    def sharing(*patches):
        mosaics, windows, splits = zip(*patches, strict=True)
        return proof.sharing_pixels(proof.Shown(np.array(mosaics), np.array(windows), np.array(splits)))[0].tolist()

    a, b, c = (0, 0, 100, 100), (99, 99, 199, 199), (100, 0, 200, 100)
    assert sharing((0, a, 0), (0, b, 1)) == [[0, 1]]
    assert sharing((0, b, 2), (0, a, 1)) == [[1, 0]]
    assert sharing((0, a, 0), (0, c, 1)) == []  # side by side
    assert sharing((0, a, 0), (1, b, 1)) == []  # another mosaic
    assert sharing((0, a, 0), (0, b, 0)) == []  # the same split


# Two flights over one ground: 100 x 100 px of 0.5 m; the second starts 40 m east, so 20 px (10 m) of their 50 m are shared.
FIRST = Mosaic("first", "a.tif", 100, 100, crs="EPSG:32617", transform=(0.5, 0, 1000, 0, -0.5, 2000), gsd_m=0.5)
SECOND = Mosaic("second", "b.tif", 100, 100, crs="EPSG:32617", transform=(0.5, 0, 1040, 0, -0.5, 2000), gsd_m=0.5)
BESIDE = Mosaic("beside", "c.tif", 100, 100, crs="EPSG:32617", transform=(0.5, 0, 1050, 0, -0.5, 2000), gsd_m=0.5)
ELSEWHERE = Mosaic("elsewhere", "d.tif", 100, 100, crs="EPSG:32618", transform=(0.5, 0, 1000, 0, -0.5, 2000), gsd_m=0.5)
PLAIN = Mosaic("plain", "e.png", 100, 100)


def test_mosaics_that_show_the_same_ground_are_found():
    mosaics = [FIRST, SECOND, BESIDE, ELSEWHERE, PLAIN]
    assert proof.map_frames(FIRST, np.array([[0, 0, 100, 100]])).tolist() == [[1950, 1000, 2000, 1050]]
    # First ends at 1050, where Beside begins; Second reaches from 1040 to 1090 into both.
    assert proof.overlapping_mosaics(mosaics) == [(0, 1), (1, 2)]
    assert proof.groups(mosaics) == [["first", "second", "beside"], ["elsewhere"], ["plain"]]
    whole = np.array([[0, 0, 100, 100]] * 5)
    shown = proof.Shown(np.arange(5), whole, np.array([0, 1, 0, 1, 1]))
    pairs, compared = proof.sharing_ground(mosaics, shown, [(0, 1), (1, 2)])
    assert (sorted(map(sorted, pairs.tolist())), compared) == ([[0, 1], [1, 2]], 2)
    made = proof.check(mosaics, shown)
    assert (made.holds, made.pairs_sharing, made.ground_pairs_sharing, made.mosaics_without_place) == (False, 0, 2, 1)
    # Patches of 50 px: of the first only the right ones (px 80 on are shared), of the second only the left ones.
    windows = np.array([[0, 0, 50, 50], [0, 50, 50, 100], [0, 0, 50, 50], [0, 50, 50, 100]])
    shown = proof.Shown(np.array([0, 0, 1, 1]), windows, np.array([0, 0, 1, 1]))
    assert proof.sharing_ground(mosaics[:2], shown, [(0, 1)])[0].tolist() == [[1, 2]]


def test_the_proof_is_fast_for_a_million_patches():
    grid = PatchGrid(448_064, 448_064, 512, 64)  # 1000 x 1000 patches
    cells = split.by_block(grid, VAL)
    rows, columns = np.nonzero(cells != split.NONE)
    corner = np.stack([np.array(grid.row_starts)[rows], np.array(grid.column_starts)[columns]], axis=1)
    shown = proof.Shown(np.zeros(len(rows), int), np.concatenate([corner, corner + 512], axis=1), cells[rows, columns])
    made = proof.check([Mosaic("m", "m.tif", grid.height, grid.width)], shown)
    assert made.holds
    assert made.patches == len(rows) > 990_000


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
