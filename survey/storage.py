"""Objects in Google Cloud Storage by their gs:// address: what `survey.files` does where a path is no local one.

The client honours STORAGE_EMULATOR_HOST, as Google's own does, and then needs no credentials. An object appears whole or not
at all, its checksum is compared by the server, and requests that fail with 429 or 503, or whose connection breaks before or
within the answer, are tried again for two minutes: all of that is the client's doing. This module adds folders, patterns, what
the client leaves open (an upload that the service forgot, an answer that was lost), and errors that say what to do.
"""

import base64
import functools
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from survey import glob_pattern
from survey.errors import InputError

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

SCHEME = "gs://"
# Custom metadata of the objects that we write: lets a later run check them without reading them.
_SHA256 = "rookery-sha256"
# And of those that only one writer may write: whose it is. A random number for each call.
_WRITER = "rookery-writer"
# The service may forget an upload in pieces and then says 404 or 410 of it: https://cloud.google.com/storage/docs/resumable-uploads
_UPLOADS = 3
# Requests are a few kilobytes and wait for the network: more of them at once than cores, fewer than the client's ten sockets.
_AT_ONCE = 8


def is_remote(path: str) -> bool:
    """Whether a path is an address of Cloud Storage.

    Raises:
      InputError: an address of something else, such as s3:// or https://.
    """
    scheme, separator, _ = path.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return False
    if f"{scheme}://" != SCHEME:
        raise InputError(f"{path}: must be a local path or a gs:// address; {scheme}:// cannot be read or written")
    return True


def split(url: str) -> tuple[str, str]:
    """Bucket and object name of an address; the name is empty for the bucket itself.

    Raises:
      InputError: not an address that can exist.

    >>> split("gs://seals/2024/north.tif")
    ('seals', '2024/north.tif')
    """
    bucket, _, name = url.removeprefix(SCHEME).partition("/")
    # https://cloud.google.com/storage/docs/buckets#naming
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise InputError(
            f"{url}: {bucket!r} is not the name of a bucket (lower-case letters, digits, '-', '_', '.'): must be gs://BUCKET/NAME"
        )
    if name.startswith("/") or "//" in name or len(name.encode()) > 1024:
        raise InputError(f"{url}: must be gs://BUCKET/NAME, with single slashes and a name of at most 1024 bytes")
    return bucket, name


def read(url: str) -> bytes:
    """All bytes of an object.

    Raises:
      FileNotFoundError: there is no such object.
      InputError: there is no such bucket, or no access to it.
    """
    with _explained(url):
        return _blob(url).download_as_bytes()


def read_range(url: str, first: int, last: int) -> bytes:
    """Bytes of an object by position, both ends included; fewer, or none, where the object ends.

    Raises:
      FileNotFoundError: there is no such object.
    """
    from google.api_core.exceptions import RequestRangeNotSatisfiable

    with _explained(url):
        try:
            return _blob(url).download_as_bytes(start=first, end=last)
        except RequestRangeNotSatisfiable:
            return b""


def download(url: str, local: str) -> None:
    """Copies an object to a local file, and compares its checksum.

    Raises:
      FileNotFoundError: there is no such object.
    """
    with _explained(url):
        _blob(url).download_to_filename(local)


def write(url: str, content: bytes, *, only_if_new: bool = False) -> bool:
    """Writes an object in one step.

    Args:
      url: where.
      content: its bytes.
      only_if_new: leave an object that is there as it is; the server decides, so of two writers one wins.

    Returns:
      False if there was one and `only_if_new`.
    """
    from google.api_core.exceptions import PreconditionFailed

    blob = _blob(url)
    blob.metadata = {_SHA256: hashlib.sha256(content).hexdigest()}
    if not only_if_new:
        with _explained(url):
            blob.upload_from_string(content)
        return True
    writer = uuid.uuid4().hex
    blob.metadata |= {_WRITER: writer}
    try:
        with _explained(url):
            blob.upload_from_string(content, if_generation_match=0)
    except PreconditionFailed:
        # Perhaps by ourselves: the answer to our first try was lost, and the client tried again.
        found = _found(url)
        return found is not None and (found.metadata or {}).get(_WRITER) == writer
    return True


def upload(local: str, url: str, sha256: str) -> None:
    """Writes an object from a local file, in pieces that are sent again where the connection breaks.

    Args:
      local: the file.
      url: where.
      sha256: of the file, hex; kept with the object.
    """
    from google.api_core.exceptions import GoogleAPICallError

    bucket, _ = split(url)
    for left in reversed(range(_UPLOADS)):
        blob = _blob(url)
        blob.metadata = {_SHA256: sha256}
        with _explained(url):
            try:
                blob.upload_from_filename(local)
                return
            except GoogleAPICallError as error:
                if error.code not in (404, 410) or not left or not _bucket_exists(bucket):
                    raise


def exists(url: str) -> bool:
    """Whether there is an object of just this name."""
    return _found(url) is not None


def size(url: str) -> int:
    """Bytes of an object."""
    return int(_existing(url).size)


def sha256(url: str) -> str:
    """Hex digest of an object, read in pieces."""
    digest = _Digest()
    with _explained(url):
        _blob(url).download_to_file(digest)
    return digest.total.hexdigest()


def recorded_sha256s(folder: str) -> dict[str, str]:
    """Digests, hex, of the objects directly in a folder that we wrote, by name; one listing, nothing is read.

    Whoever replaces an object also replaces its metadata, so a digest that is there is that of these bytes.
    """
    bucket, prefix = _prefix(folder)
    with _explained(folder):
        found = {blob.name: blob.metadata or {} for blob in _client().list_blobs(bucket, prefix=prefix, delimiter="/")}
    return {name.removeprefix(prefix): metadata[_SHA256] for name, metadata in found.items() if _SHA256 in metadata}


def all_ours(folder: str) -> bool:
    """Whether we wrote every object below a folder, as far as their metadata say; one listing, nothing is read."""
    bucket, prefix = _prefix(folder)
    with _explained(folder):
        return all(_SHA256 in (blob.metadata or {}) for blob in _client().list_blobs(bucket, prefix=prefix))


def fingerprint(url: str) -> str:
    """Names the content of an object by the checksum that Cloud Storage keeps of it: no byte of it is read.

    Returns:
      "gs-md5:" and 32 hex digits, or for a composed object, which has no MD5, "gs-crc32c:" with 8, and its size. The same bytes
      uploaded again, or copied, have the same fingerprint.
    """
    blob = _existing(url)
    if blob.md5_hash:
        return f"gs-md5:{base64.b64decode(blob.md5_hash).hex()}"
    return f"gs-crc32c:{base64.b64decode(blob.crc32c).hex()}-{blob.size}"


def names(folder: str) -> list[str]:
    """What lies directly in a folder, objects and folders, sorted; empty for a folder that does not exist."""
    bucket, prefix = _prefix(folder)
    with _explained(folder):
        listing = _client().list_blobs(bucket, prefix=prefix, delimiter="/")
        found = {blob.name for blob in listing}  # prefixes are known only after the objects
        found |= set(listing.prefixes)
    return sorted(name.removeprefix(prefix).rstrip("/") for name in found if name != prefix)


def below(folder: str) -> list[str]:
    """Names of all objects below a folder, relative to it, sorted."""
    bucket, prefix = _prefix(folder)
    with _explained(folder):
        found = [blob.name for blob in _client().list_blobs(bucket, prefix=prefix)]
    # "folder/" itself may be an object: the console makes one for an empty folder.
    return sorted(name.removeprefix(prefix) for name in found if not name.endswith("/"))


def match(pattern: str) -> list[str]:
    """Addresses of the objects that match a glob pattern, sorted; the signs mean what they mean in Python's glob.

    Objects are listed below the part of the pattern without signs only, so gs://bucket/2024/*.tif never lists another year.
    """
    bucket, name = split(pattern)
    fixed = re.split(r"[*?\[]", name)[0]
    # One level is enough where only the last part has signs.
    delimiter = None if "/" in name[len(fixed) :] or "**" in name else "/"
    wanted = re.compile(glob_pattern.expression(name))
    with _explained(pattern):
        found = [blob.name for blob in _client().list_blobs(bucket, prefix=fixed, delimiter=delimiter)]
    return sorted(f"{SCHEME}{bucket}/{name}" for name in found if not name.endswith("/") and wanted.fullmatch(name))


def remove(url: str) -> None:
    """Removes an object; it is no error if there is none."""
    from google.api_core.exceptions import NotFound

    with _explained(url):
        try:
            _blob(url).delete()
        except NotFound:
            return


def remove_folder(folder: str) -> None:
    """Removes all objects below a folder."""
    in_parallel(remove, [f"{folder.rstrip('/')}/{name}" for name in below(folder)])


def in_parallel(function: Callable[[str], Any], urls: Iterable[str]) -> list[Any]:
    """Results of a function for many objects, in their order; the requests wait for the network side by side."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, urls))


def gdal_path(url: str) -> str:
    """The path by which GDAL reads an object in ranges, and GDAL made ready for it.

    GDAL does not know two things that Google's client knows: where `gcloud auth application-default login` leaves credentials,
    and STORAGE_EMULATOR_HOST. Both go into the environment, which GDAL reads as its configuration in every thread.
    """
    bucket, name = split(url)
    environ = os.environ
    if emulator := _emulator():
        environ["CPL_GS_ENDPOINT"], environ["GS_NO_SIGN_REQUEST"] = f"{emulator}/", "YES"
    elif not any(key.startswith("GS_") or key == "GOOGLE_APPLICATION_CREDENTIALS" for key in environ):
        folder = environ.get("CLOUDSDK_CONFIG") or os.path.join(os.path.expanduser("~"), ".config", "gcloud")
        login = os.path.join(folder, "application_default_credentials.json")
        if os.path.isfile(login):
            environ["GOOGLE_APPLICATION_CREDENTIALS"] = login
    environ.setdefault("GDAL_HTTP_MAX_RETRY", "6")  # of 429 and 503; GDAL waits 2 s, then about twice as long each time
    environ.setdefault("GDAL_HTTP_RETRY_DELAY", "2")
    return f"/vsigs/{bucket}/{name}"


class _Digest:
    """A file that keeps nothing but the digest of what is written to it."""

    def __init__(self) -> None:
        self.total = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.total.update(content)
        return len(content)


def _emulator() -> str | None:
    """Address of the emulator, without a slash at its end."""
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    return None if not host else (host if "://" in host else f"http://{host}").rstrip("/")


def _client() -> "Client":
    return _client_of(os.getpid(), _emulator())


@functools.lru_cache(maxsize=1)
def _client_of(pid: int, emulator: str | None) -> "Client":
    """One client for the process, whose connections it keeps; a forked process must not share them."""
    # Imported late: it takes as long as everything else that `rookery --help` does, and local surveys never need it.
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if emulator:
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    return storage.Client()


def _blob(url: str) -> "Blob":
    bucket, name = split(url)
    if not name or name.endswith("/"):
        raise InputError(f"{url} is a folder: must be gs://BUCKET/NAME")
    with _explained(url):
        return _client().bucket(bucket).blob(name)


def _found(url: str) -> "Blob | None":
    """The object with its metadata, None if there is none."""
    with _explained(url):
        return _blob(url).bucket.get_blob(_blob(url).name)


def _existing(url: str) -> "Blob":
    blob = _found(url)
    if blob is None:
        raise FileNotFoundError(f"{url} does not exist")
    return blob


def _prefix(folder: str) -> tuple[str, str]:
    bucket, name = split(folder)
    return bucket, f"{name.rstrip('/')}/" if name else ""


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns the client's errors that the user can mend into ones that say how."""
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError, RefreshError

    try:
        yield
    except exceptions.NotFound as error:
        bucket, _ = split(url)
        if not _bucket_exists(bucket):
            raise InputError(
                f"{url}: the bucket {bucket!r} does not exist: check the name, or make it with "
                f"gcloud storage buckets create {SCHEME}{bucket}"
            ) from error
        raise FileNotFoundError(f"{url} does not exist") from error
    except _unanswered() as error:
        raise ConnectionError(
            f"{url}: Cloud Storage did not answer for two minutes ({_reason(error)}): look at the network and at "
            "https://status.cloud.google.com, then give the same command again; what is finished is kept"
        ) from error
    except (DefaultCredentialsError, RefreshError, exceptions.Unauthorized) as error:
        raise InputError(f"{url}: no valid Google credentials: run gcloud auth application-default login") from error
    except exceptions.Forbidden as error:
        raise InputError(
            f"{url}: access denied ({error.message}): ask for the role Storage Object User on the bucket, or log in as someone "
            "who has it with gcloud auth application-default login"
        ) from error


def _unanswered() -> tuple[type[Exception], ...]:
    """What the client raises when it has tried again for as long as it does."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import TransportError

    return exceptions.RetryError, exceptions.ServerError, exceptions.TooManyRequests, requests.RequestException, TransportError


def _reason(error: Exception) -> str:
    """The last thing that went wrong, in a line."""
    return (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0][:200]


def _bucket_exists(bucket: str) -> bool:
    """Asks by listing, which needs no right beyond that to its objects, unlike reading the bucket's own metadata."""
    from google.api_core.exceptions import NotFound

    try:
        list(_client().list_blobs(bucket, max_results=1))
    except NotFound:
        return False
    return True
