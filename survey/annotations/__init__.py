"""Annotation formats, one module each, all with one signature: `read(path) -> Iterator[Annotation]`.

`FORMATS` maps the value of --annotation_format to its module.
"""

from collections.abc import Iterator
from typing import Protocol

from survey.annotations import voc
from survey.annotations.annotation import Annotation


class Format(Protocol):
    """What each module of this package offers."""

    def read(self, path: str) -> Iterator[Annotation]:
        """Annotations of one file, in its order."""


FORMATS: dict[str, Format] = {"voc": voc}
