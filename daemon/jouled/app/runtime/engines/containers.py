"""Which container and which Kubernetes pod a process is in, by its control group; any user may read it."""

import re
from pathlib import Path

from msgspec import Struct

SHOWN_DIGITS = 12
"""Of a container's id, as `docker ps` and `crictl ps` show it."""

# Names of containerd, CRI-O, Docker and Podman, with either cgroup driver: the id is the last 64 hexadecimal digits.
# The driver `systemd` writes the pod's uid with underscores (kubelet, pkg/kubelet/cm/cgroup_manager_linux.go).
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?=$|[./])")
_POD = re.compile(r"(?:^|[/-])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?=$|[./])")


class Container(Struct, frozen=True):
    """A container and, under Kubernetes, its pod."""

    id: str
    pod_uid: str = ""

    def __str__(self) -> str:
        shown = f"container {self.id[:SHOWN_DIGITS]}"
        return f"{shown} of pod {self.pod_uid}" if self.pod_uid else shown


def container_of(pid: int) -> Container | None:
    """The container of a process; `None` if it is in none or its control group does not tell."""
    try:
        return parse_cgroup(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def parse_cgroup(text: str) -> Container | None:
    """Read a `/proc/PID/cgroup`; of containers in one another the innermost."""
    for line in text.splitlines():
        ids = _CONTAINER.findall(line)
        if ids:
            pods = _POD.findall(line)
            return Container(ids[-1], pods[-1].replace("_", "-") if pods else "")
    return None
