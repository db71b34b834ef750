"""Formats that name their image, on small files written here. The map formats are in test_survey_annotations_map."""

import json

import pytest

from survey import truth
from survey.annotations import FORMATS, every
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError
from survey.geometry import Mosaic

NORTH = Mosaic("north", "survey/north.tif", 300, 500)

# The same two objects in every format, yxyx: a tern (10, 20, 30, 40) and a seal (100, 200, 140, 280) in 300 rows, 500 columns.
VOC = """<annotation><filename>north.tif</filename><size><width>500</width><height>300</height><depth>3</depth></size>
<object><name>tern</name><bndbox><xmin>20</xmin><ymin>10</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
<object><name>seal</name><bndbox><xmin>200</xmin><ymin>100</ymin><xmax>280</xmax><ymax>140</ymax></bndbox></object>
</annotation>"""
COCO = {
    "images": [
        {"id": 7, "file_name": "flight 1/north.tif", "height": 300, "width": 500},
        {"id": 8, "file_name": "flight 1/south.tif", "height": 300, "width": 500},
    ],
    "categories": [{"id": 3, "name": "seal"}, {"id": 9, "name": "tern"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [20, 10, 20, 20], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [200, 100, 80, 40]},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [0, 0, 500, 300], "iscrowd": 1},
    ],
}
CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><name>seals</name></task></meta>
<image id="0" name="flight 1/north.tif" width="500" height="300">
<box label="tern" occluded="0" xtl="20.00" ytl="10.00" xbr="40.00" ybr="30.00" z_order="0"></box>
<polygon label="seal" occluded="0" points="200.00,120.00;240.00,100.00;280.00,130.00;230.00,140.00" z_order="0"></polygon>
<polyline label="seal" points="1,1;2,2"></polyline><tag label="foggy"></tag>
</image></annotations>"""
# Divided by 500 and 300: the tern's centre is (20, 30) and its sides are 20, the seal's centre (120, 240), its sides 40 and 80.
YOLO = f"1 {30 / 500!r} {20 / 300!r} {20 / 500!r} {20 / 300!r}\n0 {240 / 500!r} {120 / 300!r} {80 / 500!r} {40 / 300!r}\n"
CSV_BOXES = "image_path,xmin,ymin,xmax,ymax,label\nC:\\survey\\north.tif,20,10,40,30,tern\nnorth.tif,200,100,280,140,seal\n"
LABELME = {
    "imagePath": "../north.tif",
    "imageHeight": 300,
    "imageWidth": 500,
    "imageData": None,
    "shapes": [
        {"label": "tern", "shape_type": "circle", "points": [[30, 20], [30, 30]]},  # centre and rim: radius 10
        {"label": "seal", "shape_type": "rectangle", "points": [[280, 140], [200, 100]]},  # dragged from the lower right
        {"label": "seal", "shape_type": "line", "points": [[1, 1], [2, 2]]},
    ],
}
TEXTS = {
    "voc": ("north.xml", VOC),
    "coco": ("north.json", json.dumps(COCO)),
    "cvat": ("north.xml", CVAT),
    "yolo": ("north.txt", YOLO),
    "csv_boxes": ("boxes.csv", CSV_BOXES),
    "labelme": ("north.json", json.dumps(LABELME)),
}


def objects(found: Reading, mosaic: Mosaic = NORTH):
    """[(class, box), ...] of one mosaic."""
    classes = tuple(sorted({one.class_name for one in found.annotations}))
    here = truth.by_mosaic(found.annotations, [mosaic], classes, named_in="the test", images=found.images).objects[mosaic.name]
    return [
        (classes[i - 1], *box) for i, box in zip(here.class_ids.tolist(), here.boxes_mosaic_px.round(9).tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_the_same_objects_in_every_format(tmp_path, read_annotations, name):
    (tmp_path / "classes.txt").write_text("seal\ntern\n")
    file, text = TEXTS[name]
    assert objects(read_annotations(name, text, file)) == [("tern", 10, 20, 30, 40), ("seal", 100, 200, 140, 280)]


def test_what_is_left_out_is_counted(tmp_path, read_annotations):
    (tmp_path / "classes.txt").write_text("seal\ntern\n")
    skipped = {name: read_annotations(name, text, file).skipped for name, (file, text) in TEXTS.items()}
    assert skipped == {
        "voc": {},
        "coco": {"crowd_annotations_left_out": 1},
        "cvat": {"shapes_left_out": 1},
        "yolo": {},
        "csv_boxes": {},
        "labelme": {"shapes_left_out": 1},
    }


def test_images_are_named_with_and_without_objects(tmp_path, read_annotations):
    (tmp_path / "classes.txt").write_text("seal\ntern\n")
    images = {name: read_annotations(name, text, file).images for name, (file, text) in TEXTS.items()}
    assert images == {
        "voc": ("north.tif",),
        "coco": ("flight 1/north.tif", "flight 1/south.tif"),
        "cvat": ("flight 1/north.tif",),
        "yolo": ("north.txt",),
        "csv_boxes": ("C:\\survey\\north.tif", "north.tif"),
        "labelme": ("../north.tif",),
    }


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"yolo"}))
def test_a_file_of_0_bytes_is_named(read_annotations, name):
    with pytest.raises(InputError, match=r"north\.x is empty \(0 bytes\)"):
        read_annotations(name, "", "north.x", box_size="10")


BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("voc", f"{BOMB}<annotation><filename>&b;</filename></annotation>"),
        ("cvat", f"{BOMB}<annotations><image name='&b;'/></annotations>"),
        ("cvat", "<!DOCTYPE b [<!ENTITY a SYSTEM 'file:///etc/hostname'>]><annotations><image name='&a;'/></annotations>"),
    ],
)
def test_entities_are_refused(read_annotations, name, text):
    with pytest.raises(InputError, match="EntitiesForbidden"):
        read_annotations(name, text)


# VOC


def test_voc_by_hand(tmp_path, write_voc):
    path = write_voc(tmp_path / "a.xml", "north.tif", (300, 500), [("tern", (10, 20, 30.5, 40)), ("seal", (1, 2, 3, 4))])
    assert FORMATS["voc"].read(path, ReadOptions()) == Reading(
        [
            Annotation("north.tif", (300, 500), "tern", (10, 20, 30.5, 40), path),
            Annotation("north.tif", (300, 500), "seal", (1, 2, 3, 4), path),
        ],
        ("north.tif",),
    )


def test_voc_without_objects_or_size(read_annotations):
    assert read_annotations("voc", "<annotation><filename>a.png</filename></annotation>") == Reading([], ("a.png",))
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    found = read_annotations("voc", f"<annotation><filename>a.png</filename><object><name>x</name>{box}</object></annotation>")
    assert (found.annotations[0].image_size, found.annotations[0].box) == (None, (2, 1, 4, 3))


def voc(objects, size=""):
    return f"<annotation><filename>a</filename>{size}{objects}</annotation>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation><filename>a</filename>", "not a Pascal VOC file"),
        ("<svg/>", "<annotation> expected, found <svg>"),
        ("<annotation/>", "<filename> expected"),
        (voc("<object><name>x</name></object>"), r"object 1 \(x\) has no <bndbox>"),
        (
            voc("<object><name>x</name><bndbox><xmin>1</xmin><ymin>?</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"),
            r"object 1 \(x\): ymin='\?' must be a number",
        ),
        (
            voc("<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"),
            "object 1 has no <name>",
        ),
        (voc("", "<size><height>tall</height><width>5</width></size>"), "image height='tall' must be a number"),
        (voc("", "<size><height>4.5</height><width>5</width></size>"), "must be whole numbers of pixels"),
    ],
)
def test_voc_that_cannot_be_used_is_refused(read_annotations, text, words):
    with pytest.raises(InputError, match=words):
        read_annotations("voc", text)


# COCO


def changed(**changes):
    return json.dumps({**COCO, **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a COCO annotation file"),
        ("[]", "no list 'images'"),  # a file of results is a bare list
        (changed(categories=None), "no list 'categories'"),
        (
            changed(annotations=[{"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]),
            "annotation 5 is of image_id 1",
        ),
        (
            changed(annotations=[{"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}]),
            r"annotation 5 has category_id 1, which the file does not name \(it has 3 seal, 9 tern\)",
        ),
        (changed(annotations=[{"id": 5, "image_id": 7, "category_id": 3}]), "annotation 5 has an entry without 'bbox'"),
        (changed(annotations=[{"id": 5, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1]}]), "3 values, must be 4"),
        (
            changed(annotations=[{"id": 5, "image_id": 7, "category_id": 3, "bbox": [0, 0, None, 1]}]),
            "annotation 5: width=None must be a number",
        ),
        (
            changed(images=[*COCO["images"], {"id": 7, "file_name": "west.tif"}]),
            "image 7 is listed twice, as 'flight 1/north.tif'",
        ),
    ],
)
def test_coco_that_cannot_be_used_is_refused(read_annotations, text, words):
    with pytest.raises(InputError, match=words):
        read_annotations("coco", text)


# CVAT


def cvat(shape):
    return f'<annotations><image name="a.png" width="100" height="100">{shape}</image></annotations>'


def test_cvat_points_are_objects_with_the_size_of_their_class(read_annotations):
    text = cvat('<points label="pup" points="30,20;50.5,60"/><points label="adult" points="70,10"/>')
    mosaic = Mosaic("a", "a.png", 100, 100)
    # Half of 8 px and of 20 px to each side; the adult at row 10 touches the border with its 10 px.
    assert objects(read_annotations("cvat", text, box_size="pup=8,adult=20"), mosaic) == [
        ("pup", 16, 26, 24, 34),
        ("pup", 56, 46.5, 64, 54.5),
        ("adult", 0, 60, 20, 80),
    ]
    with pytest.raises(InputError, match=r"marks 'adult' by points, and --box_size gives no size for it \(only for pup\)"):
        read_annotations("cvat", text, box_size="pup=8")


def test_cvat_box_turned_becomes_the_box_around_it(read_annotations):
    # 40 wide and 20 high about (x 50, y 50), turned by 90 degrees: 20 wide and 40 high.
    text = cvat('<box label="x" xtl="30" ytl="40" xbr="70" ybr="60" rotation="90.0"/>')
    assert objects(read_annotations("cvat", text), Mosaic("a", "a.png", 100, 100)) == [("x", 30, 40, 70, 60)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><track id='0'/></annotations>", "tracks of a video"),
        ("<annotations><image/></annotations>", "image 1 has no name"),
        (cvat('<box xtl="1" ytl="1" xbr="2" ybr="2"/>'), "<box> without label of image a.png has no label"),
        (cvat('<box label="x" xtl="1" ytl="1" xbr="2"/>'), "<box> x of image a.png: ybr=None must be a number"),
        (cvat('<polygon label="x" points="1,2;3"/>'), r"1 values, must be 2 \(x, y\)"),
    ],
)
def test_cvat_that_cannot_be_used_is_refused(read_annotations, text, words):
    with pytest.raises(InputError, match=words):
        read_annotations("cvat", text)


# YOLO


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("classes.txt", "seal\ntern\n"),
        ("../obj.names", "seal\r\ntern\r\n"),
        ("../../data.yaml", "train: images/train\nnc: 2\nnames: [seal, tern]\n"),
        ("../../data.yaml", "names:\n  0: seal\n  1: tern\n"),
    ],
)
def test_yolo_finds_the_names_of_its_classes(tmp_path, place, text):
    folder = tmp_path / "labels" / "train"
    folder.mkdir(parents=True)
    (folder / place).resolve().write_text(text)
    (folder / "north.1.txt").write_text(YOLO)
    paths = sorted(str(path) for path in folder.glob("*.txt"))  # classes.txt among them: it is no annotation file
    found = every.read(paths, "yolo", ReadOptions())
    assert [one.class_name for one in found.annotations] == ["tern", "seal"]
    assert objects(found, Mosaic("north.1", "north.1.tif", 300, 500))[0] == ("tern", 10, 20, 30, 40)


def test_yolo_polygons_and_images_without_objects(tmp_path, read_annotations):
    (tmp_path / "names").write_text("tern\n")
    found = read_annotations("yolo", "0 0.1 0.2 0.3 0.2 0.2 0.6\n\n", "north.txt", class_names=str(tmp_path / "names"))
    assert objects(found) == [("tern", 60, 50, 180, 150)]  # x .1 to .3 of 500, y .2 to .6 of 300
    assert read_annotations("yolo", "", "north.txt") == Reading([], ("north.txt",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 .5 .5 .1\n", "line 1: 4 values, must be 5"),
        ("0 .5 .5 .1 .1\n0 .5 y .1 .1", "line 2: y='y' must be a number"),
        ("2 .5 .5 .1 .1", "line 1: class 2 has no name: .*classes.txt names 0 to 1"),
        ("0 250 100 20 20", "must be shares of the image's width and height"),
        (b"\xff\xfe0", "not a YOLO file"),
    ],
)
def test_yolo_that_cannot_be_used_is_refused(tmp_path, read_annotations, text, words):
    (tmp_path / "classes.txt").write_text("seal\ntern\n")
    with pytest.raises(InputError, match=words):
        read_annotations("yolo", text, "north.txt")


def test_yolo_without_names(tmp_path, read_annotations):
    with pytest.raises(InputError, match=r"none of classes.txt, obj.names, data.yaml lies beside it: give --class_names"):
        read_annotations("yolo", "0 .5 .5 .1 .1", "north.txt")
    with pytest.raises(InputError, match="--class_names=nowhere does not exist"):
        read_annotations("yolo", "0 .5 .5 .1 .1", "north.txt", class_names="nowhere")


# LabelMe


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "'imagePath' and a list 'shapes' expected"),
        ({"imagePath": "a.png", "shapes": [{"points": []}]}, r"shape 1 \(no label\) has no label"),
        ({"imagePath": "a.png", "shapes": [{"label": "x", "points": [[1, 2]]}]}, r"shape 1 \(x\) is a polygon of 1 points"),
        ({"imagePath": "a.png", "shapes": [{"label": "x", "points": [[1, 2], [3], [4, 5]]}]}, "1 values, must be 2"),
        (
            {"imagePath": "a.png", "shapes": [{"label": "x", "shape_type": "point", "points": [[1, 2]]}]},
            "marks 'x' by points, and --box_size gives no size",
        ),
    ],
)
def test_labelme_that_cannot_be_used_is_refused(read_annotations, value, words):
    with pytest.raises(InputError, match=words):
        read_annotations("labelme", json.dumps(value))


# What all share


def test_two_files_for_one_image_are_refused(tmp_path):
    for name in ("north.xml", "north (copy).xml"):
        (tmp_path / name).write_text(VOC)
    with pytest.raises(InputError, match=r"north \(copy\)\.xml and .*north\.xml both annotate mosaic north"):
        every.read(sorted(map(str, tmp_path.glob("*.xml"))), "voc", ReadOptions())


def test_the_files_that_gdal_writes_beside_mosaics_are_left_out(tmp_path):
    (tmp_path / "north.xml").write_text(VOC)
    (tmp_path / "north.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    found = every.read(sorted(map(str, tmp_path.glob("*.xml"))), "voc", ReadOptions())
    assert (len(found.annotations), found.skipped) == (2, {"gdal_aux_files_left_out": 1})


def test_the_origin_is_for_csv_only(read_annotations):
    with pytest.raises(InputError, match="--origin=bottom_left with --annotation_format=voc"):
        read_annotations("voc", VOC, origin="bottom_left")
