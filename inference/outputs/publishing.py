"""Files written piece by piece and published whole: on a disk or in Cloud Storage nobody sees a half-written one."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from survey import files, storage


@contextmanager
def stream(path: str) -> Iterator[Callable[[bytes], None]]:
    """A file to be written in pieces; it appears when the context ends without an error.

    Args:
      path: local or gs://.

    Yields:
      What writes the next piece.
    """
    with files.scratch(path, beside=os.path.dirname(path) or ".") as temporary:
        digest = hashlib.sha256()
        with open(temporary, "wb") as file:

            def write(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)

            yield write
            file.flush()
            os.fsync(file.fileno())
        files.publish(temporary, path, digest.hexdigest())


@contextmanager
def by_gdal(path: str) -> Iterator[str]:
    """A file that GDAL writes, which needs a local one with the right ending and may put others beside it while it works.

    Args:
      path: local or gs://.

    Yields:
      Where GDAL is to write; published when the context ends without an error.
    """
    beside = None if storage.is_remote(path) else os.path.dirname(path) or "."
    if beside is not None:
        os.makedirs(beside, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=beside) as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        yield temporary
        files.publish(temporary, path, files.sha256(temporary))
