"""Results that took long to make, in a JSON file: a benchmark that was stopped goes on where it was, on another machine, too."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure

sys.path.insert(0, str(measure.ROOT))

from survey import files


class Kept:
    """Results by subject and part. A part counts as done as long as it was made with the same settings.

    Args:
      path: of the file; made, with its folder, when the first result is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def subjects(self) -> list[str]:
        """Of which something is there, oldest first."""
        return list(self._everything())

    def of(self, subject: str) -> dict[str, Any]:
        """All parts of a subject, whatever they were made with."""
        found: dict[str, Any] = self._everything().get(subject, {})
        return found

    def done(self, subject: str, part: str, settings: Mapping[str, Any]) -> bool:
        """Whether a part is there, made with these settings."""
        return self.of(subject).get(part, {}).get("settings") == settings

    def keep(self, subject: str, part: str, settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Remembers a part, in one step."""
        everything = self._everything()
        everything[subject] = {**everything.get(subject, {}), part: {"settings": settings, **found}}
        files.make_folder(str(self._path.parent))
        files.write_json(str(self._path), everything)

    def _everything(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return found
