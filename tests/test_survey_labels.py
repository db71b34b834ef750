import pytest

from survey import labels
from survey.errors import InputError


def test_round_trip_keeps_ids_and_names(tmp_path):
    path = str(tmp_path / "labels.pbtxt")
    classes = ('Arctic "tern"', "goélette", "seal")
    labels.write(path, classes)
    assert labels.read(path) == classes
    assert "id: 1" in (tmp_path / "labels.pbtxt").read_text()


def test_reads_what_the_object_detection_api_writes_in_any_order(tmp_path):
    path = tmp_path / "labels.pbtxt"
    path.write_text("item { id: 2 name: 'seal' }\nitem { name: '' id: 1 display_name: 'tern' }\n")
    assert labels.read(str(path)) == ("tern", "seal")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item { id: 0 name: 'a' }", r"class ids \[0\]"),
        ("item { id: 1 name: 'a' } item { id: 3 name: 'b' }", r"class ids \[1, 3\]"),
        ("item { id: 1 name: 'a' } item { id: 1 name: 'b' }", r"class ids \[1, 1\]"),
        ("item { id: 1 name: 'a' } item { id: 2 name: 'a' }", "names a class twice"),
        ("", r"class ids \[\]"),
        ("tern\nseal\n", "not a StringIntLabelMap"),
    ],
)
def test_maps_that_would_shift_classes_are_refused(tmp_path, text, words):
    path = tmp_path / "labels.pbtxt"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        labels.read(str(path))


def test_from_names_does_not_depend_on_order():
    assert labels.from_names(["b", "a", "b"]) == labels.from_names(["a", "b"]) == ("a", "b")


def test_parsed_by_the_object_detection_api_regex(tmp_path):
    # tensorflow/models' own fallback parser reads item blocks of `name: "x"` and `id: n`.
    path = tmp_path / "labels.pbtxt"
    labels.write(str(path), ("tern",))
    assert path.read_text().split() == ["item", "{", "name:", '"tern"', "id:", "1", "}"]
