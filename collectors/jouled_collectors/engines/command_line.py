"""What a process's command line says: which program runs, on which port it serves, and with which options.

Options are spelled as argparse has them: `--name value` or `--name=value`, of several the last counts. Underscores and
dashes are the same, as in vLLM's parser.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_FLAGS_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")
_MAXIMUM_PORT = 65_535


def program(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The program and its arguments; a Python interpreter is looked through.

    Returns:
        The program as called (a path, or the dotted name of the module after `python -m`) and what follows it. An
        empty program if there is none.
    """
    if not argv:
        return "", ()
    if not file_name(argv[0]).startswith("python"):
        return argv[0], argv[1:]
    position = 1
    while position < len(argv) and argv[position].startswith("-"):
        if argv[position] == "-m":
            return (argv[position + 1], argv[position + 2 :]) if position + 1 < len(argv) else ("", ())
        if argv[position] == "-c":
            return "", ()
        position += 2 if argv[position] in _FLAGS_WITH_VALUE else 1
    return (argv[position], argv[position + 1 :]) if position < len(argv) else ("", ())


def file_name(program: str) -> str:
    """The last part of a path; `pathlib` takes four times as long, for every process of the host."""
    return program.rpartition("/")[2]


def port(argv: Sequence[str], default: int) -> int:
    """The value of the last `--port N` or `--port=N` (as argparse has it), or the default if there is no valid one."""
    found = default
    for text in _values(argv, ("--port",)):
        if text.isascii() and text.isdigit() and 0 < int(text) <= _MAXIMUM_PORT:
            found = int(text)
    return found


def option(argv: Sequence[str], *names: str) -> str:
    """The value of an option that has these names; empty if it is not given."""
    values = _values(argv, names)
    return values[-1] if values else ""


def size(argv: Sequence[str], *names: str) -> int:
    """The value of an option that is a size, such as of a parallel group; 1 if it is not given or none."""
    text = option(argv, *names)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1


def has_flag(argv: Sequence[str], *names: str) -> bool:
    """Whether an option without a value is given."""
    return any(_dashed(argument) in names for argument in argv)


def json_option(argv: Sequence[str], *names: str) -> Mapping[str, Any]:
    """An option that is a JSON object, with what `--name.key value` adds to it, as vLLM has it; empty if unreadable."""
    try:
        told = msgspec.json.decode(option(argv, *names) or "{}")
    except (ValueError, RecursionError):
        told = {}
    found = dict(told) if isinstance(told, dict) else {}
    prefixes = tuple(f"{name}." for name in names)
    for argument in argv:
        name = _dashed(argument.partition("=")[0])
        if name.startswith(prefixes):
            key = argument.partition("=")[0].partition(".")[2]
            found[key] = option(argv, name)
    return found


def positional(arguments: Sequence[str]) -> str:
    """The first argument if it is no option, as in `serve MODEL …`; else empty."""
    return arguments[0] if arguments and not arguments[0].startswith("-") else ""


def _values(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """All values given to an option, in order; one that another option follows has none."""
    found = []
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if _dashed(name) not in names:
            continue
        if equals:
            found.append(value)
        elif position + 1 < len(argv) and not argv[position + 1].startswith("--"):
            found.append(argv[position + 1])
    return found


def _dashed(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name
