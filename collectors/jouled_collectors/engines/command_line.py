"""What a process's command line says: which program runs, and on which port it serves."""

from collections.abc import Sequence
from pathlib import PurePath

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
    if not PurePath(argv[0]).name.startswith("python"):
        return argv[0], argv[1:]
    position = 1
    while position < len(argv) and argv[position].startswith("-"):
        if argv[position] == "-m":
            return (argv[position + 1], argv[position + 2 :]) if position + 1 < len(argv) else ("", ())
        if argv[position] == "-c":
            return "", ()
        position += 2 if argv[position] in _FLAGS_WITH_VALUE else 1
    return (argv[position], argv[position + 1 :]) if position < len(argv) else ("", ())


def port(argv: Sequence[str], default: int) -> int:
    """The value of the last `--port N` or `--port=N` (as argparse has it), or the default if there is no valid one."""
    found = default
    for position, argument in enumerate(argv):
        if argument == "--port":
            text = argv[position + 1] if position + 1 < len(argv) else ""
        elif argument.startswith("--port="):
            text = argument.removeprefix("--port=")
        else:
            continue
        if text.isascii() and text.isdigit() and 0 < int(text) <= _MAXIMUM_PORT:
            found = int(text)
    return found
