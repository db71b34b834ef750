"""Command lines from frozen options dataclasses: one field is one flag, and a mistyped flag names its nearest neighbour."""

import argparse
import dataclasses
import difflib
import errno
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from survey.errors import InputError

T = TypeVar("T")


def flag(help: str, *, default: Any = dataclasses.MISSING, choices: Sequence[str] | None = None) -> Any:
    """A field of an options dataclass that becomes `--name`.

    Args:
      help: what it is, with its unit; shown by --help beside the default.
      default: value when the flag is absent; without one the flag is required.
      choices: allowed values, None for any.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` lists the flags")


def parse(options: type[T], argv: Sequence[str], *, prog: str, passthrough: bool = False) -> tuple[T, list[str]]:
    """Reads a command line.

    Args:
      options: a frozen dataclass whose fields were made with `flag`; its docstring opens the help. A field of type bool becomes
        `--name / --no-name`, a tuple becomes comma-separated values.
      argv: the arguments after the verb.
      prog: how the command was called, for help and errors.
      passthrough: hand back the flags it does not know (they are Beam's) instead of refusing them.

    Returns:
      (options, the flags not known). The dataclass's own `__post_init__` has validated the values.

    Raises:
      InputError: an unknown flag, a missing one, or a value that does not fit.
    """
    parser = _Parser(
        prog=prog, description=inspect.getdoc(options), allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        _add(parser, field, hints[field.name])
    values, rest = parser.parse_known_args(argv)
    if rest and not passthrough:
        refuse_unknown(rest, names(options), prog=prog)
    return options(**vars(values)), rest


def names(options: type) -> list[str]:
    """The flags of an options dataclass, without dashes."""
    return [field.name for field in dataclasses.fields(options)]


def refuse_unknown(rest: Sequence[str], known: Iterable[str], *, prog: str) -> None:
    """Refuses arguments that no parser took.

    Args:
      rest: the arguments left over; nothing happens when there are none.
      known: every valid flag, without dashes.
      prog: how the command was called.

    Raises:
      InputError: names the first of them, and the valid flag nearest to it.
    """
    if not rest:
        return
    if not rest[0].startswith("-"):
        raise InputError(f"{prog} takes flags only, found {rest[0]!r}: write --name=value")
    given = rest[0].lstrip("-").split("=")[0]
    raise InputError(f"--{given} is not a flag of {prog}: did you mean --{nearest(given.replace('-', '_'), known)}?")


def nearest(given: str, known: Iterable[str]) -> str:
    """The known word most like the given one."""
    return difflib.get_close_matches(given, list(known), n=1, cutoff=0.0)[0]


def exit_with(run: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb and ends the process: 2 with one line for bad input, 1 with one for a service that is away, or its code."""
    try:
        code = run(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except ConnectionError as error:  # the service was away for minutes: the same command is right, and may succeed
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" at {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}: free some space there and give the same command again", file=sys.stderr)
        code = 2
    sys.exit(code)


def _add(parser: argparse.ArgumentParser, field: Any, hint: Any) -> None:
    optional = isinstance(hint, types.UnionType)
    kind = next(a for a in typing.get_args(hint) if a is not types.NoneType) if optional else hint
    required = field.default is dataclasses.MISSING
    described = field.metadata["help"]
    if not required and field.default not in (None, ""):
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        described += f" (default {shown})"
    common: dict[str, Any] = {"help": described.replace("%", "%%"), "required": required}
    if not required:
        common["default"] = field.default
    if kind is bool:
        parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, **common)
        return
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        common["type"] = _described(lambda text: tuple(item(part) for part in text.split(",")), f"list of {item.__name__}")
        common["metavar"] = f"{item.__name__.upper()},..."
    else:
        common["type"] = _described(kind, {int: "whole number", float: "number"}.get(kind, kind.__name__))
        common["metavar"] = kind.__name__.upper()
    if field.metadata["choices"]:
        common["choices"] = list(field.metadata["choices"])
        common["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
    parser.add_argument(f"--{field.name}", **common)


def _described(convert: Callable[[str], Any], name: str) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        return convert(text)

    converted.__name__ = name
    return converted
