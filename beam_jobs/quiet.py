"""Keeps Beam's talk about itself off the terminal, so that what is left there concerns the survey."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Beam says on import that a BigQuery client is missing, which no verb of ours uses.
_IRRELEVANT = ("apitools not found",)


@contextmanager
def importing() -> Iterator[None]:
    """Drops the warnings that importing Beam logs about packages that Rookery has no use for."""
    root = logging.getLogger()
    root.addFilter(_relevant)
    try:
        yield
    finally:
        root.removeFilter(_relevant)


def _relevant(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_IRRELEVANT)
