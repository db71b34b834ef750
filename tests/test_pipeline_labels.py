"""rookery labels, through run(argv)."""

import pytest

from pipeline.labels import run
from survey import labels
from survey.errors import InputError


@pytest.fixture
def survey(tmp_path, write_voc, monkeypatch):
    """Two annotated images: two terns and a seal, and a tern."""
    write_voc(
        tmp_path / "a.xml", "a.png", (50, 50), [("tern", (0, 0, 5, 5)), ("tern", (5, 5, 9, 9)), ("grey seal", (0, 0, 9, 9))]
    )
    write_voc(tmp_path / "b.xml", "b.png", (50, 50), [("tern", (0, 0, 5, 5))])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_writes_the_classes_and_prints_their_counts(survey, capsys):
    assert run(["--annotations=*.xml"]) == 0
    assert labels.read("labels.pbtxt") == ("grey seal", "tern")
    assert capsys.readouterr().out.splitlines() == [
        "   1  grey seal          1",
        "   2  tern               3",
        "labels.pbtxt written, from 4 objects",
    ]


def test_the_same_classes_again_change_nothing(survey, capsys):
    run(["--annotations=*.xml", "--output=here/classes.pbtxt"])
    before = (survey / "here/classes.pbtxt").stat()
    assert run(["--annotations=*.xml", "--output=here/classes.pbtxt"]) == 0
    assert (survey / "here/classes.pbtxt").stat() == before
    assert "has these classes already" in capsys.readouterr().out


def test_other_classes_are_not_overwritten(survey):
    labels.write("labels.pbtxt", ("tern", "grey seal"))  # the same names with other ids
    with pytest.raises(InputError, match="exists with the classes tern, grey seal; the annotations have grey seal, tern"):
        run(["--annotations=*.xml"])
    assert labels.read("labels.pbtxt") == ("tern", "grey seal")


def test_points_need_no_size_here(survey, capsys):
    (survey / "seals.csv").write_text("file,x,y,layer name\na.png,1,2,pup\nb.png,,,\n")
    assert run(["--annotations=*.csv", "--annotation_format=csv_points"]) == 0
    assert labels.read("labels.pbtxt") == ("pup",)
    assert "left out: 1 rows without object" in capsys.readouterr().out


def test_a_class_column_of_its_own(survey):
    (survey / "seals.csv").write_text("file,x,y,layer,age\na.png,1,2,seal,adult\n")
    run(["--annotations=*.csv", "--annotation_format=csv_points", "--class_column=age"])
    assert labels.read("labels.pbtxt") == ("adult",)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--annotations=nowhere/*.xml"], "--annotations=.*matches no file"),
        (["--annotations=*.xml", "--output=classes.txt"], r"must end with \.pbtxt"),
        (["--annotations=*.xml", "--class_names=nowhere"], "--class_names=nowhere does not exist"),
        (["--annotations=*.xml", "--annotation_format=xml"], "invalid choice: 'xml'"),
        (["--annotations=*.xml", "--box_size=4"], "--box_size is not a flag of rookery labels"),
    ],
)
def test_bad_input_is_refused(survey, argv, words):
    with pytest.raises(InputError, match=words):
        run(argv)
    assert not (survey / "labels.pbtxt").exists()


def test_no_object_at_all(survey, write_voc):
    write_voc(survey / "empty.xml", "c.png", (50, 50), [])
    with pytest.raises(InputError, match="the 1 files label no object, so there is no class"):
        run(["--annotations=empty.xml"])
