import pytest

from survey.annotations import FORMATS, voc
from survey.annotations.annotation import Annotation
from survey.errors import InputError


def test_voc_by_hand(tmp_path, write_voc):
    path = write_voc(tmp_path / "a.xml", "north.tif", (300, 500), [("tern", (10, 20, 30.5, 40)), ("seal", (1, 2, 3, 4))])
    assert list(FORMATS["voc"].read(path)) == [
        Annotation("north.tif", (300, 500), "tern", (10, 20, 30.5, 40), path),
        Annotation("north.tif", (300, 500), "seal", (1, 2, 3, 4), path),
    ]


def test_voc_without_objects_or_size(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<annotation><filename>a.png</filename></annotation>")
    assert list(voc.read(str(path))) == []
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    path.write_text(f"<annotation><filename>a.png</filename><object><name>x</name>{box}</object></annotation>")
    assert next(voc.read(str(path))) == Annotation("a.png", None, "x", (2, 1, 4, 3), str(path))


BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "not a Pascal VOC file: EntitiesForbidden"),
        ("", "not a Pascal VOC file"),
        ("<annotation><filename>a</filename>", "not a Pascal VOC file"),
        ("<svg/>", "<annotation> with <filename> expected, found <svg>"),
        ("<annotation/>", "<filename> expected"),
        ("<annotation><filename>a</filename><object><name>x</name></object></annotation>", r"object 1 \(x\) has no numeric"),
        (
            "<annotation><filename>a</filename><object><name>x</name><bndbox><xmin>1</xmin><ymin>?</ymin><xmax>2</xmax>"
            "<ymax>2</ymax></bndbox></object></annotation>",
            "no numeric <bndbox>",
        ),
        (
            "<annotation><filename>a</filename><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
            "</object></annotation>",
            "object 1 has no <name>",
        ),
    ],
)
def test_voc_that_cannot_be_used_is_refused(tmp_path, text, words):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        list(voc.read(str(path)))
