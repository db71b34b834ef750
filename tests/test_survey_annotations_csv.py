"""Tables of boxes and of points, on small files written here, and the sizes that points are given."""

from collections import Counter

import pytest
from test_survey_annotations import CSV_BOXES, objects

from survey.annotations import reading
from survey.annotations.annotation import Length
from survey.annotations.reading import ReadOptions
from survey.errors import InputError
from survey.geometry import Mosaic


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\nnorth.tif,500,300,tern,20,10,40,30\n",  # TensorFlow's object detection
        "mosaic;class;score;y0;x0;y1;x1\r\nnorth;tern;0.9;10;20;30;40\r\n",  # semicolons; and what `rookery predict` writes
        "\ufeffImage\tX1\tY1\tX2\tY2\tLabel\nnorth.tif\t20\t10\t40\t30\ttern\n\n",  # tabs, a byte order mark, a blank line
        'left,top,right,bottom,species,file,\n20,10,40,30, tern ,"a, b/north.tif",\n,,,,,other.tif,\n0,0,0,0,tern,none.tif,\n',
    ],
)
def test_csv_boxes_by_their_usual_names(read_annotations, text):
    assert objects(read_annotations("csv_boxes", text)) == [("tern", 10, 20, 30, 40)]


def test_csv_boxes_name_images_without_objects(read_annotations):
    found = read_annotations("csv_boxes", CSV_BOXES + "south.tif,,,,,\nwest.tif,0,0,0,0,tern\n")
    assert found.images == ("C:\\survey\\north.tif", "north.tif", "south.tif", "west.tif")
    assert found.skipped == Counter(rows_without_object=2)


def test_csv_boxes_counted_from_below(read_annotations):
    # Row 0 is the bottom edge of 300: y 160 to 200 from below is 100 to 140 from above.
    text = "file,xmin,ymin,xmax,ymax,label\nnorth.tif,200,160,280,200,seal\n"
    assert objects(read_annotations("csv_boxes", text, origin="bottom_left")) == [("seal", 100, 200, 140, 280)]


def test_csv_points_of_a_seal_survey(read_annotations):
    text = (
        "file,x,y,image size,layer name\n"
        "D:\\2019\\north.tif,240,180,500x300,adult seal\n"  # from above: row 300 - 180 = 120
        "D:\\2019\\north.tif,30.5,290,500 x 300,pup\n"  # row 10
        "D:\\2019\\south.tif,,,500x300,\n"
    )
    found = read_annotations("csv_points", text, origin="bottom_left", box_size="adult seal=40,pup=10")
    assert objects(found) == [("adult seal", 100, 220, 140, 260), ("pup", 5, 25.5, 15, 35.5)]
    assert {one.image_size for one in found.annotations} == {(300, 500)}
    assert found.images == ("D:\\2019\\north.tif", "D:\\2019\\south.tif")
    assert objects(read_annotations("csv_points", text, box_size="20"))[0] == ("adult seal", 170, 230, 190, 250)  # from above


def test_csv_points_with_sizes_in_metres(read_annotations):
    text = "Name,Row,Column,Label code\nnorth.tif,120,240,seal\n"  # CoralNet's columns
    ground = Mosaic("north", "north.tif", 300, 500, gsd_m=0.05)
    assert objects(read_annotations("csv_points", text, box_size="2m"), ground) == [
        ("seal", 100, 220, 140, 260)
        # 2 m / 0.05 m = 40 px
    ]
    with pytest.raises(InputError, match=r"--box_size gives 2 m, but survey/north.tif has no ground resolution"):
        objects(read_annotations("csv_points", text, box_size="2m"))


HEAD = "image_path,xmin,ymin,xmax,ymax,label\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "csv_boxes",
            "file,xmin,ymin,xmax,label\n",
            "no columns for the corners: it has file, xmin, ymin, xmax, label; xmin,ymin,",
        ),
        ("csv_boxes", "xmin,ymin,xmax,ymax,label\n", "no column for the image: it has xmin, ymin, xmax, ymax, label"),
        ("csv_boxes", "file,xmin,ymin,xmax,ymax,kind\n", r"no column for the class \(--class_column\): it has file, xmin"),
        ("csv_boxes", HEAD + "a.tif,1,2,3,4,x\na.tif,1,2,3,n/a,x\n", "line 3: ymax='n/a' must be a number"),
        ("csv_boxes", HEAD + "a.tif,1,,3,4,x\n", "line 2: ymin='' must be a number"),
        ("csv_boxes", HEAD + "a.tif,1,2,inf,4,x\n", "line 2: xmax='inf' must be a number"),
        ("csv_boxes", HEAD + "a.tif,nan,2,3,4,x\n", "line 2: xmin='nan' must be a number"),
        ("csv_boxes", HEAD + "a.tif,1,2,3,4\n", "line 2 has 5 cells, the header 6"),
        ("csv_boxes", HEAD + "a.tif,1,2,3,4,x,y\n", "line 2 has 7 cells, the header 6"),
        ("csv_boxes", HEAD + "a.tif,1,2,3,4, \n", "line 2 has no class in column 'label'"),
        ("csv_boxes", HEAD + ",1,2,3,4,x\n", "line 2 names no image"),
        ("csv_boxes", HEAD.encode() + b"caf\xe9.tif,1,2,3,4,x\n", "it is not UTF-8 text"),
        ("csv_points", "file,x,layer\n", "no columns for the point: it has file, x, layer"),
        ("csv_points", "file,x,y,layer\na.tif,1,2,seal\n", "marks 'seal' by points, and --box_size gives no size for it: "),
        ("csv_points", "file,x,y,layer\na.tif,1,two,seal\n", "line 2: y='two' must be a number"),
        ("csv_points", "file,x,y,size,layer\na.tif,1,2,big,seal\n", "line 2: image size 'big' must be width x height"),
    ],
)
def test_csv_that_cannot_be_used_is_refused(read_annotations, name, text, words):
    with pytest.raises(InputError, match=words):
        read_annotations(name, text)


def test_csv_with_a_class_column_of_its_own(read_annotations):
    text = "file,xmin,ymin,xmax,ymax,label,Age Class\nnorth.tif,1,2,3,4,seal,pup\n"
    assert read_annotations("csv_boxes", text).annotations[0].class_name == "seal"
    assert read_annotations("csv_boxes", text, class_column="Age Class").annotations[0].class_name == "pup"
    assert read_annotations("csv_boxes", text, class_column="age_class").annotations[0].class_name == "pup"
    with pytest.raises(InputError, match="no column for --class_column=sex: it has file, xmin"):
        read_annotations("csv_boxes", text, class_column="sex")


@pytest.mark.parametrize("text", ["", "0", "-3", "big", "inf", "nan", "a=", "a=1,a=2", "40,50", "=4", "1,5m,pup"])
def test_box_sizes_that_cannot_be_used_are_refused(text):
    with pytest.raises(InputError, match=r"--box_size=.* is no size above 0"):
        reading.parse_box_size(text)


def test_box_sizes_by_class_and_for_all_others():
    options = ReadOptions.parse(box_size="40,pup = 1.5 m,a=b=7px")
    assert options.side("pup", "x.csv") == Length(1.5, "m")
    assert options.side("a=b", "x.csv") == Length(7)
    assert options.side("adult", "x.csv") == Length(40)
