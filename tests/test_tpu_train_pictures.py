"""Pictures of patches: what is drawn where, pixel by pixel, and which patches are chosen to be watched."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from survey.drawing import PALETTE, Style, class_style, rgb
from tpu_train import mosaic, pictures, truncation
from tpu_train.patches import Place
from tpu_train.pictures import Key, Layer, Tile
from tpu_train.truncation import Objects
from tpu_train.validation_pictures import choose

BLUE = rgb(PALETTE[0])
SOLID, DASHED = Style(PALETTE[0], ""), Style(PALETTE[0], "2 3")


def grey(size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), 100, np.uint8)


def coloured(picture: np.ndarray, colour: tuple[int, int, int] = BLUE) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in np.argwhere((picture == colour).all(axis=2))}


def test_pixels_are_enlarged_and_nothing_else() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    drawn = pictures.draw(Tile(pixels, (), ()), 3)
    assert drawn.shape == (15, 21, 3)
    np.testing.assert_array_equal(drawn[1::3, 2::3], pixels)
    np.testing.assert_array_equal(drawn, pixels.repeat(3, axis=0).repeat(3, axis=1))


def test_a_box_is_drawn_inside_its_own_pixels() -> None:
    """[2, 1, 6, 5) of 8 px, twice as large: rows 4..11 and columns 2..9, two pixels wide, with a shadow of one around it."""
    drawn = pictures.draw(Tile(grey(), (Layer(np.array([[2.0, 1, 6, 5]]), SOLID),), ()), 2)
    ring = {(y, x) for y in range(4, 12) for x in range(2, 10)} - {(y, x) for y in range(6, 10) for x in range(4, 8)}
    assert coloured(drawn) == ring
    shadow = {(y, x) for y in range(3, 13) for x in range(1, 11)} - {(y, x) for y in range(4, 12) for x in range(2, 10)}
    dark = {(int(y), int(x)) for y, x in np.argwhere((drawn < 100).all(axis=2))}
    assert dark == shadow
    assert (drawn[6:10, 4:8] == 100).all()  # what is in the box stays as it is


def test_thin_and_dashed_boxes() -> None:
    """Two on, three off, from each corner on: of a side of 8 the pixels 0, 1, 5 and 6, dark in between, and nothing around."""
    box = np.array([[0.0, 0, 8, 8]])
    drawn = pictures.draw(Tile(grey(10), (Layer(box, DASHED, thin=True),), ()), 1)
    on = {0, 1, 5, 6}
    assert coloured(drawn) == {(a, b) for a in on for b in (0, 7)} | {(b, a) for a in on for b in (0, 7)}
    assert (drawn[0, [2, 3, 4]] < 100).all()
    assert (drawn[8:] == 100).all()
    assert (drawn[1:7, 1:7] == 100).all()


def test_labels_hide_no_other_box() -> None:
    """The label of the box in the middle fits above it; where small boxes are all around, it is left out."""
    middle, style = np.array([[60.0, 40, 80, 60]]), class_style(0)
    around = np.array([[y, x, y + 8, x + 8] for y in range(2, 130, 9) for x in range(2, 110, 9)], float)
    around = around[(np.abs(around[:, 0] - 66) > 18) | (np.abs(around[:, 1] - 46) > 18)]

    def differs(layers: tuple[Layer, ...]) -> bool:
        bare = tuple(Layer(layer.boxes, layer.style) for layer in layers)
        return bool((pictures.draw(Tile(grey(140), layers, ()), 1) != pictures.draw(Tile(grey(140), bare, ()), 1)).any())

    labelled = Layer(middle, style, ("gull",))
    assert differs((labelled,))
    assert differs((Layer(around[:0], class_style(1)), labelled))
    assert not differs((Layer(around, class_style(1)), Layer(middle, style, ("a cormorant on its nest",))))


def test_sheet() -> None:
    """Eight patches of 100 px, four times as large: four columns and two rows, as on a wide screen, and the same bytes again."""
    tiles = [Tile(grey(100), (), (f"patch {i}", "3 boxes")) for i in range(8)]
    legend = [Key(f"a class with a long name, number {i}", class_style(i)) for i in range(9)] + [Key("anchor", None)]
    sheet = pictures.sheet(tiles, 4, ("survey, train, step 3", "8 crops"), legend)
    assert sheet.shape[1] == 4 * 400 + 5 * 13  # text of 13 px, and gaps as wide
    assert 2 * 400 < sheet.shape[0] < 2 * 400 + 300
    encoded = pictures.png(sheet)
    assert encoded == pictures.png(pictures.sheet(tiles, 4, ("survey, train, step 3", "8 crops"), legend))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), sheet)
    one = pictures.sheet(tiles[:1], 4, ("a heading that is much wider than the only patch below it, so it is broken, " * 2,), [])
    assert one.shape[1] == 400 + 2 * 13


def test_objects_by_fate() -> None:
    """Six in the record, of which four rows hold three: one learned, one outside (empty on the border), one barely visible."""
    boxes = tf.constant([[[10.0, 10, 20, 20], [0, 5, 0, 9], [0, 30, 2, 40], [0, 0, 0, 0]]])
    inputs = {"classes": tf.constant([[1, 2, 1, 0]]), "objects": tf.constant([6])}
    found = Objects(*mosaic.fates_of(inputs, boxes, tf.constant([[1, 0, 0, 0]]))[0].numpy().tolist())
    assert found == Objects(seen=6, capped=3, outside=1, barely=1)
    assert found.learned == 1
    assert found + found == Objects(12, 6, 2, 2)
    text = truncation.meter(found, max_boxes=3, min_visible=0.3)
    assert "1 learned from (16.7 %)" in text
    assert "WARNING: the cap of 3 a patch (--max_boxes) cut off 3 (50.0 %)" in text


def place(patch_id: int, objects: int, x0: int) -> Place:
    return Place(patch_id, "m", 0, patch_id, (0, x0, 100, x0 + 100), "val", "s", patch_id, objects)


def test_watched_patches_go_from_crowded_to_empty() -> None:
    """Nine patches of 9, 8 .. 1 objects: the ranks 0, 4 and 8 hold 9, 5 and 1. Of the patches without any, the middle one."""
    apart = [place(i, max(0, 9 - i), 100 * i) for i in range(12)]
    assert [(chosen.objects, chosen.patch_id) for chosen in choose(apart, 4)] == [(9, 0), (5, 4), (1, 8), (0, 10)]
    assert choose(apart[::-1], 4) == choose(apart, 4)
    assert [chosen.objects for chosen in choose(apart[:9], 3)] == [9, 5, 1]  # none is empty
    assert [chosen.patch_id for chosen in choose(apart, 50)] == [*range(9), 10]
    assert [chosen.patch_id for chosen in choose(apart[9:], 4)] == [10]
    assert choose([], 4) == []


@pytest.mark.parametrize(("x_of_the_second", "expected"), [(300, [0, 1]), (20, [0, 2])])
def test_watched_patches_share_no_ground(x_of_the_second: int, expected: list[int]) -> None:
    """The sparsest of three shows half of the fullest's ground: the next one is taken, if it lies apart itself."""
    three = [place(0, 9, 0), place(1, 8, x_of_the_second), place(2, 7, 50)]
    assert [chosen.patch_id for chosen in choose(three, 2)] == expected
