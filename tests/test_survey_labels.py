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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "tern\nArctic seal\n\n"),
        ("obj.names", "\ufefftern\r\nArctic seal"),
        ("data.yaml", "nc: 2\nnames: [tern, Arctic seal]\n"),
        ("data.yml", "names:\n  1: Arctic seal\n  0: tern\n"),
        ("labels.txt", "item {\n  id: 1\n  name: 'tern'\n}\nitem {\n  id: 2\n  name: 'Arctic seal'\n}\n"),  # a .pbtxt by content
    ],
)
def test_reads_lists_of_names(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert labels.read(str(path)) == ("tern", "Arctic seal")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classes.txt", "\n \n", "names no class"),
        ("classes.txt", "tern\n\nseal\n", r"no name for class 2 \(line 2 of a list of names\): the classes after it would shift"),
        ("classes.txt", "tern\nseal\ntern\n", "names a class twice"),
        ("data.yaml", "nc: 2\n", "has no `names`"),
        ("data.yaml", "names: [a, b\n", "is not YAML"),
        ("data.yaml", "names: {1: a, 2: b}\n", r"numbers its names \[1, 2\]: must be 0 to"),
        ("data.yaml", "names: []\n", "names no class"),
    ],
)
def test_lists_of_names_that_would_shift_classes_are_refused(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        labels.read(str(path))


def test_a_label_map_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match=r"labels\.pbtxt does not exist: a label map is expected"):
        labels.read(str(tmp_path / "labels.pbtxt"))
    (tmp_path / "classes.txt").write_bytes(b"go\xe9land\n")
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        labels.read(str(tmp_path / "classes.txt"))
