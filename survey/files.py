"""Files on local disks and in Cloud Storage alike: a path may be a gs:// address wherever this module takes one.

Nothing that Rookery writes is ever seen half-written. On a disk a file is written beside its place and moved there; in Cloud
Storage (`survey.storage`) an object appears when its upload is complete, and folders exist as parts of names only.
"""

import dataclasses
import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from survey import storage
from survey.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def read(path: str) -> bytes:
    """All bytes of a file.

    Raises:
      FileNotFoundError: there is none.
    """
    if storage.is_remote(path):
        return storage.read(path)
    with open(path, "rb") as file:
        return file.read()


def read_range(path: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset`, or as many as there are.

    Raises:
      FileNotFoundError: there is none.
    """
    if storage.is_remote(path):
        return storage.read_range(path, offset, offset + length - 1) if length > 0 else b""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def write(path: str, content: bytes) -> None:
    """Publishes a file in one step: readers see the old one, or the new one, never a part."""
    if storage.is_remote(path):
        storage.write(path, content)
        return
    temporary = _written_beside(path, content)
    os.replace(temporary, path)


def create(path: str, content: bytes) -> bool:
    """Publishes a file in one step unless there is one: of several that try, one succeeds.

    Returns:
      Whether it was this call.
    """
    if storage.is_remote(path):
        return storage.write(path, content, only_if_new=True)
    temporary = _written_beside(path, content)
    try:
        os.link(temporary, path)  # unlike a move it fails where there is a file already
        os.remove(temporary)
    except FileExistsError:
        os.remove(temporary)
        return False
    except OSError:  # a file system without links, such as a USB stick's: two that start in the same moment are not told apart
        if os.path.exists(path):
            os.remove(temporary)
            return False
        os.replace(temporary, path)
    return True


@contextmanager
def scratch(path: str, *, beside: str) -> Iterator[str]:
    """A local file to be written piece by piece and then published; gone when the context ends.

    Args:
      path: where it will be published.
      beside: folder for the unfinished file, on the same disk as `path`; not used in Cloud Storage, where it lies in the
        temporary folder of this machine (TMPDIR).

    Yields:
      Its path, of a name that no other process uses.
    """
    folder = tempfile.gettempdir() if storage.is_remote(path) else beside
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{os.path.basename(path)}.{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


def publish(temporary: str, path: str, sha256: str) -> None:
    """Publishes a file from `scratch` in one step.

    Args:
      temporary: the finished file.
      path: as given to `scratch`.
      sha256: its digest, hex; in Cloud Storage it is kept with the object.
    """
    if storage.is_remote(path):
        storage.upload(temporary, path, sha256)
    else:
        os.replace(temporary, path)


def publish_folder(temporary: str, folder: str, *, last: str) -> None:
    """Publishes a local folder: on a disk, where it must lie beside its place, in one step; in Cloud Storage file by file.

    Args:
      temporary: the finished folder; on a disk it is moved.
      folder: where; there must be none, or on a disk an empty one.
      last: name of the file in it that says that the folder is complete: it is uploaded when all others are there.
    """
    if not storage.is_remote(folder):
        with suppress(FileNotFoundError):
            os.rmdir(folder)
        os.replace(temporary, folder)
        return
    found = [os.path.relpath(os.path.join(top, name), temporary) for top, _, names in os.walk(temporary) for name in names]

    def send(name: str) -> None:
        local = os.path.join(temporary, name)
        storage.upload(local, f"{folder.rstrip('/')}/{name}", sha256(local))

    storage.in_parallel(send, sorted(name for name in found if name != last))
    send(last)


def exists(path: str) -> bool:
    """Whether there is a file, or on a disk a folder, of this name; in Cloud Storage use `names` for a folder."""
    return storage.exists(path) if storage.is_remote(path) else os.path.exists(path)


def names(folder: str) -> list[str]:
    """Files and folders directly in a folder, sorted; none where there is no such folder."""
    if storage.is_remote(folder):
        return storage.names(folder)
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def size(path: str) -> int:
    """Bytes of a file."""
    return storage.size(path) if storage.is_remote(path) else os.path.getsize(path)


def make_folder(path: str) -> None:
    """Makes a folder and those above it; nothing to do in Cloud Storage."""
    if not storage.is_remote(path):
        os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file, if there is one."""
    if storage.is_remote(path):
        storage.remove(path)
        return
    with suppress(FileNotFoundError):
        os.remove(path)


def remove_empty_folder(path: str) -> None:
    """Removes a folder if nothing is in it; in Cloud Storage there is no such folder."""
    if not storage.is_remote(path):
        with suppress(OSError):
            os.rmdir(path)


def remove_folder(path: str) -> None:
    """Removes a folder and all that is below it, if there is one."""
    if storage.is_remote(path):
        storage.remove_folder(path)
        return
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def write_json(path: str, value: Any) -> None:
    """Publishes `value` as JSON, see `as_json`."""
    write(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Indented JSON with keys in the order given."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_all(paths: Sequence[str]) -> list[bytes]:
    """Contents of many small files, in their order; from Cloud Storage several at a time."""
    if paths and storage.is_remote(paths[0]):
        return storage.in_parallel(read, paths)
    return [read(path) for path in paths]


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


def read_table(path: str, columns: Sequence[str] | None = None) -> "pa.Table":
    """A Parquet file. Arrow would read gs:// by a client of its own, which knows neither our credentials nor our errors.

    Args:
      path: the file.
      columns: those to read; None for all.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no Parquet file, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not `pq.read_table`, which takes a folder named a=1 on the way for a column.
    with pq.ParquetFile(pa.BufferReader(read(path)) if storage.is_remote(path) else path) as file:
        if lacking := set(columns or ()) - set(file.schema_arrow.names):
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(lacking))}")
        return file.read(columns)


def write_table(path: str, table: "pa.Table") -> None:
    """Publishes a table as a Parquet file in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write(path, sink.getvalue().to_pybytes())


def sha256(path: str) -> str:
    """Hex digest of a file, read in pieces. In Cloud Storage that is a whole download: see `fingerprint` for large files."""
    if storage.is_remote(path):
        return storage.sha256(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(folder: str, digests: Mapping[str, str]) -> set[str]:
    """Which files of a folder are there and still have the bytes that we wrote.

    What we wrote to Cloud Storage is not read again, one listing tells: the server compared the checksum on arrival, and the
    digest recorded with an object goes away when somebody replaces it.

    Args:
      folder: the folder.
      digests: sha256 of its files, hex, by name.
    """
    if storage.is_remote(folder):
        recorded = storage.recorded_sha256s(folder)
        return {name for name, digest in digests.items() if recorded.get(name) == digest}
    paths = {name: os.path.join(folder, name) for name in digests}
    return {name for name, path in paths.items() if os.path.exists(path) and sha256(path) == digests[name]}


def fingerprint(path: str) -> str:
    """Names the content of a file that may be too large to be downloaded for it.

    Returns:
      The sha256 of a local file; of an object in Cloud Storage the checksum that is kept with it (`storage.fingerprint`).
    """
    return storage.fingerprint(path) if storage.is_remote(path) else sha256(path)


def fingerprints(paths: Sequence[str]) -> list[str]:
    """The fingerprints of many files, in their order; several at a time."""
    if paths and storage.is_remote(paths[0]):
        return storage.in_parallel(fingerprint, paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and reading both let other threads run
        return list(pool.map(fingerprint, paths))


def sha256_of_folder(folder: str) -> str:
    """Hex digest of the names and contents of all files below a folder, the same wherever the folder lies."""
    if storage.is_remote(folder):
        found = storage.below(folder)
    else:
        found = [os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names]
    total = hashlib.sha256()
    for name in sorted(found, key=_files_first):
        total.update(f"{name} {sha256(os.path.join(folder, name))}\n".encode())
    return total.hexdigest()


def match(pattern: str, flag: str) -> list[str]:
    """Files that match a glob pattern, sorted.

    Raises:
      InputError: none does; names the flag that gave the pattern.
    """
    if storage.is_remote(pattern):
        if not (urls := storage.match(pattern)):
            raise InputError(f"--{flag}={pattern!r} matches no object: quote the pattern, and check it with gcloud storage ls")
        return urls
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError(f"--{flag}={pattern!r} matches no file in {os.getcwd()}: quote the pattern and check the folder")
    return paths


def check_contract(path: str, value: dict[str, Any], version: int, kind: type) -> None:
    """Refuses a contract file that this Rookery cannot have written; takes `format_version` out of the others.

    Args:
      path: of the file, for the error.
      value: what it holds.
      version: the format version that is read.
      kind: the dataclass that the contract is; its fields are the file's.

    Raises:
      InputError: names both versions, or the fields that are missing or unknown.
    """
    found = value.pop("format_version", None)
    if found != version:
        raise InputError(f"{path} has format_version {found}: this Rookery reads {version}; write it again with this version")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    absent = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [name for name, field in fields.items() if (field.default, field.default_factory) == absent]
    missing, unknown = sorted(set(needed) - set(value)), sorted(set(value) - set(fields))
    if missing or unknown:
        wrong = "; ".join(f"{what} {', '.join(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names)
        raise InputError(
            f"{path} {wrong}: it was written by another version of Rookery, or by hand; write it again with this one"
        )


def _written_beside(path: str, content: bytes) -> str:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.partial-{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _files_first(name: str) -> list[tuple[bool, str]]:
    """Sorts names as a walk meets them: the files of a folder, then its folders one by one."""
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]
