"""Loads pyhlml and calls it.

pyhlml 1.9.0.580 loads `/usr/lib/habanalabs/libhlml.so` and nothing else, prints on standard output where it cannot,
returns bytes for text, and hands out one and the same handle object for every card, overwritten by each call.
"""

import contextlib
import ctypes
import importlib
import io
import sys
from pathlib import Path
from typing import Any

from jouled.model.errors import SourceError, SourceState

LIBRARY = Path("/usr/lib/habanalabs/libhlml.so")

UNINITIALISED, DRIVER_NOT_LOADED, UNKNOWN = 1, 9, 49
"""Values of `hlml_return_t` (hlml.h), as NVML's."""

SOURCE_GONE = frozenset({UNINITIALISED, DRIVER_NOT_LOADED})
"""No call on any card can succeed any more."""

Handle = Any
"""An opaque handle of a card."""


class HlmlError(Exception):
    """A call of the library failed. code: `hlml_return_t`."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: HLML error {code}")
        self.code = code


class Library:
    """The loaded binding."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the binding. Raises `HlmlError`."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return getattr(self._module, name)(*arguments)
        except Exception as error:  # the binding raises what it likes where nothing was initialised
            code = getattr(error, "value", None)
            raise HlmlError(name, code if isinstance(code, int) else UNKNOWN) from error

    def text(self, name: str, *arguments: Any) -> str:
        """A description, empty where it is not told: no reason to leave joules out."""
        try:
            told = self.call(name, *arguments)
        except HlmlError:
            return ""
        return told.decode(errors="replace").strip() if isinstance(told, bytes) else ""

    def handle(self, index: int) -> Handle:
        """A handle of the card's own. Raises `HlmlError`."""
        return ctypes.c_void_p(self.call("hlmlDeviceGetHandleByIndex", index).value)


def load() -> Library:
    """Load the binding; the library itself is loaded when it is initialised. Raises `SourceError`."""
    try:
        return Library(importlib.import_module("pyhlml"))
    except ModuleNotFoundError as error:
        if not LIBRARY.exists():
            raise no_library() from error
        raise SourceError(
            SourceState.ABSENT,
            "binding_not_found",
            f"{LIBRARY} is here, but there is no Python binding of it",
            mend=f"Install it: {sys.executable} -m pip install pyhlml",
        ) from error


def no_library() -> SourceError:
    """No driver of Gaudi on this node."""
    return SourceError(
        SourceState.ABSENT,
        "library_not_found",
        f"No Gaudi driver here: {LIBRARY} is not found",
        mend="If this node has Gaudi cards, install habanalabs-firmware-tools",
    )


def source_error(error: HlmlError, *, running: bool = False) -> SourceError:
    """The decision that an error carries for the whole source. running: it had been open."""
    if error.code == DRIVER_NOT_LOADED:
        return SourceError(
            SourceState.DOWN,
            "driver_not_loaded",
            "The Gaudi kernel driver is not loaded",
            mend="Load it: modprobe habanalabs",
            fatal=running,
        )
    if error.code == UNINITIALISED and not running:
        if not LIBRARY.exists():
            return no_library()
        return SourceError(
            SourceState.DOWN,
            "library_unloadable",
            f"{LIBRARY} cannot be loaded",
            mend=f"Look at what it lacks: ldd {LIBRARY}",
        )
    return SourceError(SourceState.DOWN, f"hlml_{error.code}", f"HLML failed: {error}", fatal=running)
