"""Whole small files in one step, and digests: nothing that Rookery writes is ever seen half-written."""

import glob
import hashlib
import json
import os
from typing import Any

from survey.errors import InputError


def read(path: str) -> bytes:
    """All bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


def write(path: str, content: bytes) -> None:
    """Publishes a file in one step: readers see the old one, or the new one, never a part."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.partial-{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str, value: Any) -> None:
    """Publishes `value` as indented JSON with keys in the order given."""
    write(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: str, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      path: the file.
      what: what the caller hopes to find, for the error.

    Raises:
      InputError: no such file, or not a JSON object.
    """
    try:
        value = json.loads(read(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {what} is expected there") from None
    except ValueError as error:
        raise InputError(f"{path} is not {what}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not {what}: it holds a {type(value).__name__}, not an object")
    return value


def sha256(path: str) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: str) -> str:
    """Hex digest of the names and contents of all files below a folder."""
    total = hashlib.sha256()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            total.update(f"{os.path.relpath(path, folder)} {sha256(path)}\n".encode())
    return total.hexdigest()


def match(pattern: str, flag: str) -> list[str]:
    """Files that match a glob pattern, sorted.

    Raises:
      InputError: none does; names the flag that gave the pattern.
    """
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError(f"--{flag}={pattern!r} matches no file in {os.getcwd()}: quote the pattern and check the folder")
    return paths


def check_version(path: str, value: dict[str, Any], version: int) -> None:
    """Refuses a contract file of another format version.

    Raises:
      InputError: names both versions.
    """
    found = value.pop("format_version", None)
    if found != version:
        raise InputError(f"{path} has format_version {found}: this Rookery reads {version}; write it again with this version")
