"""A stub `libamd_smi.so` under the real binding: compile it, steer it by files, drive it in a child process.

`build(folder)` makes a ROCm tree (`lib/libamd_smi.so`); a process started with `ROCM_PATH=folder` and
`AMDSMI_STUB_DIR=controls` finds GPUs. The controls are described at the head of `amdsmi_stub.c`.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("amdsmi_stub.c")
LIBRARY = "libamd_smi.so"


def binding_folder() -> Path:
    """Where the binding of PyPI is installed; it cannot be imported without the library."""
    found = importlib.util.find_spec("amdsmi")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("The AMD tests drive the real binding: pip install amdsmi==7.0.2")
    return Path(found.submodule_search_locations[0])


def build(folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Compile the stub into `folder/lib` and return the folder. `without`: symbols to leave out."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("The AMD tests compile a stub library and need gcc: apt-get install gcc libc6-dev")
    (folder / "lib").mkdir(parents=True)
    wrapper = (binding_folder() / "amdsmi_wrapper.py").read_text()
    symbols = sorted(set(re.findall(r"_libraries\['libamd_smi.so'\]\.(\w+)", wrapper)) - set(without))
    weak = folder / "weak.c"
    weak.write_text("".join(f"__attribute__((weak)) int {name}(void) {{ return 2; }}\n" for name in symbols))
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", *(f"-D{name}=left_out_{name}" for name in without)]
    target = folder / "lib" / LIBRARY
    subprocess.run([compiler, *options, "-o", target, weak, SOURCE], check=True, timeout=60)
    return folder


class Controls:
    """The files that steer the stub, and a /sys beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "controls"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sysfs = folder / "sys"
        self.bound = self.sysfs / "bus" / "pci" / "drivers" / "amdgpu"
        self.bound.mkdir(parents=True, exist_ok=True)

    def compute(self, pid: int, **vram: int) -> None:
        """A process on the compute driver's list: bytes by GPU, as `_1000=4096`."""
        folder = self.sysfs / "class" / "kfd" / "kfd" / "proc" / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        for gpu, held in vram.items():
            (folder / f"vram{gpu}").write_text(f"{held}\n")

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
        for path in [*self.folder.iterdir(), *self.bound.iterdir()]:
            path.unlink()

    def environment(self, rocm: Path) -> dict[str, str]:
        """What a process needs in its environment to meet the stub."""
        return {"ROCM_PATH": str(rocm), "AMDSMI_STUB_DIR": str(self.folder)}
