"""A stub `libhlml.so` under the real pyhlml, which loads one fixed path: a private mount namespace puts the stub there.

`/usr/lib` of the child is an overlay of the stub over the real one, and nobody else sees it. Needs root and overlayfs.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("hlml_stub.c")


def build(folder: Path) -> Path:
    """Compile the stub into `folder/habanalabs` and return the folder, which goes over `/usr/lib`."""
    (folder / "habanalabs").mkdir(parents=True)
    target = folder / "habanalabs" / "libhlml.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run(["gcc", *options, "-o", target, SOURCE], check=True, timeout=60)
    return folder


def over_usr_lib(folder: Path) -> Sequence[str]:
    """What to put in front of a command that is to see this folder over `/usr/lib`."""
    mount = f"mount -t overlay overlay -o lowerdir={folder}:/usr/lib /usr/lib"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def is_possible(folder: Path) -> bool:
    """Whether this user and kernel can do that."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run([*over_usr_lib(folder), "true"], check=False, timeout=10, capture_output=True).returncode == 0
