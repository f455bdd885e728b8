"""Finds the Python binding of AMD SMI that fits the library of this node, and calls it.

`import amdsmi` loads `libamd_smi.so`, prints on standard output where it cannot, and raises `KeyError` then,
`AttributeError` where the library lacks a symbol (all seen with amdsmi 7.0.2).
"""

import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.amd_errors import NOT_SUPPORTED, UNEXPECTED_DATA, AmdError

LIBRARY = "libamd_smi.so"
DEFAULT_ROCM = "/opt/rocm"

Handle = Any
"""The binding's opaque processor handle."""


class Library:
    """The loaded binding."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the binding. Raises `AmdError`, whatever the binding raises."""
        function = getattr(self._module, name, None)
        if function is None:
            raise AmdError(name, NOT_SUPPORTED, "this version does not have it")
        try:
            return function(*arguments)
        except Exception as error:  # the binding decodes and looks up what the library wrote, unchecked
            code = getattr(error, "err_code", None)
            message = " ".join(str(error).split()) or type(error).__name__
            raise AmdError(name, code if isinstance(code, int) else UNEXPECTED_DATA, message) from error

    def ask(self, name: str, *arguments: Any) -> Any:
        """As `call`, `None` where it fails: for descriptions, which are no reason to leave joules out."""
        try:
            return self.call(name, *arguments)
        except AmdError:
            return None

    def open(self) -> None:
        """Initialise it, for GPUs only. Raises `AmdError`."""
        self.call("amdsmi_init", self._module.AmdSmiInitFlags.INIT_AMD_GPUS)

    def close(self) -> None:
        """Undo one `open`; a library that lost its driver may refuse, and has nothing left to undo."""
        self.ask("amdsmi_shut_down")


def load(rocm_path: str) -> Library:
    """The binding that ROCm brought, else the installed one. Raises `SourceError`."""
    rocm = Path(rocm_path or os.environ.get("ROCM_HOME") or os.environ.get("ROCM_PATH") or DEFAULT_ROCM)
    # The binding looks for the library by these.
    os.environ["ROCM_HOME"] = os.environ["ROCM_PATH"] = str(rocm)
    shipped = str(rocm / "share" / "amd_smi")
    if (rocm / "share" / "amd_smi" / "amdsmi" / "__init__.py").is_file() and shipped not in sys.path:
        sys.path.insert(0, shipped)
    return Library(_checked(_imported(rocm), rocm))


def _imported(rocm: Path) -> ModuleType:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return importlib.import_module("amdsmi")
    except ModuleNotFoundError as error:
        if error.name != "amdsmi":
            raise _broken(error) from error
        raise _no_binding(rocm) if (rocm / "lib" / LIBRARY).exists() else _no_library(rocm) from error
    except KeyError as error:
        if (rocm / "lib" / LIBRARY).exists():
            why = said.getvalue().strip().partition("\n")[0]
            raise SourceError(
                SourceState.DOWN,
                "library_unloadable",
                f"{rocm / 'lib' / LIBRARY} cannot be loaded: {why}",
                mend=f"Look at what it lacks: ldd {rocm / 'lib' / LIBRARY}",
                fatal=True,
            ) from error
        raise _no_library(rocm) from error
    except AttributeError as error:
        raise _mismatch(f"The binding of AMD SMI does not fit the library of {rocm}: {error}", rocm) from error
    except Exception as error:
        raise _broken(error) from error


def _checked(module: ModuleType, rocm: Path) -> ModuleType:
    """Structures change between versions without a symbol that does: a binding of another ROCm would read nonsense.

    What ROCm brought itself fits. Wheels carry the version of their ROCm (7.0.2), and are compared by it.
    """
    if Path(module.__file__ or "").is_relative_to(rocm):
        return module
    binding, library = _version(str(getattr(module, "__version__", ""))), rocm_version(rocm)
    if binding and library and binding[:2] != library[:2]:
        have, want = (".".join(map(str, version)) for version in (binding, library))
        raise _mismatch(f"The binding of AMD SMI is of ROCm {have}, the library of {want}", rocm)
    return module


def rocm_version(rocm: Path) -> tuple[int, ...]:
    """What `.info/version` says (`7.0.2-56`); empty where it says nothing."""
    try:
        return _version((rocm / ".info" / "version").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ()


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text)
    return tuple(int(part) for part in found.groups(default="0")) if found else ()


def _install(rocm: Path) -> str:
    version = ".".join(map(str, rocm_version(rocm)))
    pinned = f"amdsmi=={version}" if version else "amdsmi==<version of your ROCm>"
    return f"{sys.executable} -m pip install '{pinned}'"


def _no_library(rocm: Path) -> SourceError:
    return SourceError(
        SourceState.ABSENT,
        "library_not_found",
        f"No ROCm here: {LIBRARY} is neither in {rocm / 'lib'} nor known to the linker",
        mend="If this node has AMD GPUs, install amd-smi-lib from ROCm's repository;"
        " if ROCm is elsewhere, set `rocm_path` in [power.amd]",
    )


def _no_binding(rocm: Path) -> SourceError:
    return SourceError(
        SourceState.ABSENT,
        "binding_not_found",
        f"ROCm is in {rocm}, but there is no Python binding of AMD SMI",
        mend=f"Install it: {_install(rocm)} -- or amd-smi-lib from ROCm's repository",
    )


def _mismatch(message: str, rocm: Path) -> SourceError:
    # The library that was loaded stays loaded for as long as the process lives.
    return SourceError(
        SourceState.DOWN,
        "version_mismatch",
        message,
        mend=f"Install the binding of this ROCm: {_install(rocm)} -- or uninstall it,"
        " so that the one of ROCm (share/amd_smi) is used",
        fatal=True,
    )


def _broken(error: Exception) -> SourceError:
    return SourceError(
        SourceState.DOWN,
        "binding_broken",
        f"The binding of AMD SMI cannot be imported: {type(error).__name__}: {error}",
        mend=f"Look at: {sys.executable} -c 'import amdsmi'",
        fatal=True,
    )
