import dataclasses
import hashlib

import pytest

from survey import files
from survey.errors import InputError


def test_write_replaces_in_one_step_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(str(path), {"b": 1, "a": "é"})
    files.write_json(str(path), {"b": 2, "a": "é"})
    assert path.read_text() == '{\n "b": 2,\n "a": "é"\n}\n'
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    assert files.read_json(str(path), "x") == {"b": 2, "a": "é"}


def test_not_a_number_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(str(tmp_path / "a.json"), {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist: a spec"), ("{", "is not a spec"), ("[1]", "a list")])
def test_unreadable_json_is_named(tmp_path, content, words):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words):
        files.read_json(str(path), "a spec")


def test_digests(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b" / "c").write_bytes(b"2")
    assert files.sha256(str(tmp_path / "a")) == hashlib.sha256(b"1").hexdigest()
    before = files.sha256_of_folder(str(tmp_path))
    assert before == files.sha256_of_folder(str(tmp_path))
    (tmp_path / "b" / "c").rename(tmp_path / "b" / "d")  # the same content under another name is another folder
    assert files.sha256_of_folder(str(tmp_path)) != before


def test_match_is_sorted_and_refuses_nothing(tmp_path):
    for name in ("b.tif", "a.tif", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tif").mkdir()
    assert files.match(f"{tmp_path}/*.tif", "mosaics") == [f"{tmp_path}/a.tif", f"{tmp_path}/b.tif"]
    with pytest.raises(InputError, match=r"--mosaics=.*\.jpg' matches no file"):
        files.match(f"{tmp_path}/*.jpg", "mosaics")


@dataclasses.dataclass
class Contract:
    needed: int
    optional: int = 0


def test_contracts_are_checked():
    with pytest.raises(InputError, match="format_version 2: this Rookery reads 1"):
        files.check_contract("d.json", {"format_version": 2, "needed": 1}, 1, Contract)
    with pytest.raises(InputError, match=r"d\.json lacks needed; has unknown extra: "):
        files.check_contract("d.json", {"format_version": 1, "extra": 1}, 1, Contract)
    value = {"format_version": 1, "needed": 1}
    files.check_contract("d.json", value, 1, Contract)
    assert value == {"needed": 1}
