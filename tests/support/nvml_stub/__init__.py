"""A stub `libnvidia-ml.so.1` under the real client: compile it, steer it by files, drive it in a child process.

`build(folder)` compiles; a process started with `LD_LIBRARY_PATH=folder` and `NVML_STUB_DIR=controls` finds GPUs.
The controls are described at the head of `nvml_stub.c`.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"


def build(folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Compile the stub into `folder` and return the folder. `without`: ENERGY or FIELDS, symbols to leave out."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("The NVML tests compile a stub library and need gcc: apt-get install gcc libc6-dev")
    folder.mkdir(parents=True, exist_ok=True)
    switches = [f"-DWITHOUT_{name}" for name in without]
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wno-unused-function", "-Werror", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([compiler, *options, *switches, "-o", folder / LIBRARY, SOURCE], check=True, timeout=60)
    return folder


class Controls:
    """The files that steer the stub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def set(self, key: str, value: object) -> None:
        """Write a control, whole: the stub never sees half of it."""
        fresh = self.folder / f"{key}.new"
        fresh.write_text(str(value))
        fresh.replace(self.folder / key)

    def clear(self, key: str) -> None:
        """Back to the default."""
        (self.folder / key).unlink(missing_ok=True)

    def clear_all(self) -> None:
        """Back to all defaults."""
        for path in self.folder.iterdir():
            path.unlink()

    def environment(self, library: Path) -> dict[str, str]:
        """What a process needs in its environment to meet the stub."""
        return {"LD_LIBRARY_PATH": str(library), "NVML_STUB_DIR": str(self.folder)}
