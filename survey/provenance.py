"""Which software made a result, and when. No git: a result must name its makers also where Rookery was installed from a wheel."""

import platform
from datetime import UTC, datetime
from importlib import metadata


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, Rookery and the packages that shaped a result.

    Args:
      packages: distribution names, as pip knows them. One that is not installed is left out.

    Returns:
      Versions by name; read from the installed metadata, so nothing is imported.
    """
    found = {"python": platform.python_version()}
    for package in ("rookery", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now_utc() -> str:
    """The time in ISO 8601 to the second, as in "2025-01-31T12:00:00Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
