"""A machine under a real systemd: an overlay of this one, booted by systemd-nspawn, thrown away afterwards."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.tools import run, tool

SYSTEM_PYTHON = Path("/usr/bin/python3")
BOOT_SECONDS = 40
# Services of the host that have no business in a test.
MASKED = ("prometheus.service", "prometheus-node-exporter.service", "ssh.service", "cron.service", "docker.service")
MASKED_TIMERS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "dpkg-db-backup.timer",
)

# What the machine writes stays in memory: on the host's disk its syncs would wait for all that others wrote.
# Standard input ends with the test run: the machine that runs by then is ended too, should the run have been killed.
HOLD = """
mount -t tmpfs -o size=512m tmpfs "$0" && mkdir "$0/upper" "$0/work" &&
mount -t overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" overlay "$1" && echo mounted &&
read nspawn && cat && kill -9 $(cat "/proc/$nspawn/task/$nspawn/children") "$nspawn"
"""


class Machine:
    """A booted machine. `root` is its file system as seen from outside."""

    def __init__(self, root: Path, init_pid: int) -> None:
        self.root = root
        self._enter = ["nsenter", "-t", str(init_pid), "-m", "-u", "-i", "-n", "-p", "-C"]

    def run(self, *command: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root."""
        return run([*self._enter, *command], timeout_seconds=timeout_seconds)

    def checked(self, *command: str, timeout_seconds: float = 60) -> str:
        """Output of a command that must succeed."""
        done = self.run(*command, timeout_seconds=timeout_seconds)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def unit(self, name: str) -> str:
        """A property of the service."""
        return self.checked("systemctl", "show", "--value", "-p", name, "jouled.service").strip()

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_seconds: float = 20) -> None:
        """Ask until it holds; on time-out the service's log is the message."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come about:\n{self.log()}")
            time.sleep(0.1)

    def log(self) -> str:
        """The machine's log. Not of the unit alone: journald may not know any more to whom a short process belonged."""
        return self.run("journalctl", "--no-pager", "-n", "400").stdout


@contextlib.contextmanager
def booted(folder: Path, prepare: Callable[[Path], None]) -> Iterator[Machine]:
    """Boot an overlay of this machine after `prepare(root)`; skips where that cannot be done."""
    _require_right_to_boot()
    with _alone(), _overlay(folder) as holder:
        root = Path(f"/proc/{holder.pid}/root{folder / 'root'}")
        _strip(root)
        prepare(root)
        with _container(folder, holder) as init_pid:
            yield Machine(root, init_pid)


def install_python(root: Path, packages: Path) -> None:
    """Make /opt/jouled, an environment of the system's Python with the unpacked wheel and the test's dependencies."""
    home = root / "opt/jouled"
    made = run([SYSTEM_PYTHON, "-m", "venv", "--without-pip", home])
    assert made.returncode == 0, made.stdout
    [site] = home.glob("lib/python3*/site-packages")
    # Not -a: the folder of a test is closed to others, and the copy must not be.
    copied = run(["cp", "-r", f"{packages}/.", site])
    assert copied.returncode == 0, copied.stdout
    (site / "dependencies.pth").write_text("/opt/jouled/dependencies\n")
    (home / "dependencies").mkdir()
    script = home / "bin/jouled"
    script.write_text("#!/opt/jouled/bin/python3\nimport sys\nfrom jouled.app.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)


def _require_right_to_boot() -> None:
    tool("systemd-nspawn")
    if os.geteuid() != 0:
        pytest.skip("booting a machine needs root")
    version = run([SYSTEM_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]).stdout.split()
    if version != [str(part) for part in sys.version_info[:2]]:
        # Homes are hidden from the service, so it cannot use an interpreter that lies in one.
        pytest.skip(f"the service needs {SYSTEM_PYTHON} to be Python {sys.version_info[0]}.{sys.version_info[1]}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other test run has a machine: they would share control groups, and end each other's services."""
    with (Path(tempfile.gettempdir()) / "jouled-test-machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _overlay(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Mount it at `root` of the folder, in the mount namespace of a process that ends with this one; yields that."""
    layers, root = folder / "layers", folder / "root"
    layers.mkdir()
    root.mkdir()
    command = [tool("unshare"), "--mount", "sh", "-c", HOLD, layers, root]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        said = holder.stdout.readline()
        if said != "mounted\n":
            pytest.skip(f"no overlay can be mounted here: {said.strip()}")
        yield holder


def _strip(root: Path) -> None:
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").touch()
    (root / "etc/fstab").write_text("")
    for unit in (*MASKED, *MASKED_TIMERS):
        mask = root / "etc/systemd/system" / unit
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")


@contextlib.contextmanager
def _container(folder: Path, holder: subprocess.Popen[str]) -> Iterator[int]:
    """Boot; yields the pid of its first process once systemd inside says that it is up."""
    dependencies = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    log = folder / "boot.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, log.open("wb") as output:
        notified.bind(str(folder / "notify"))
        notified.settimeout(BOOT_SECONDS)
        command = [
            *("nsenter", "-t", str(holder.pid), "-m"),
            *("systemd-nspawn", f"--directory={folder / 'root'}", "--boot", "--notify-ready=yes", "--private-network"),
            *("--register=no", "--keep-unit", f"--machine=jouled-{os.getpid()}"),
            f"--bind-ro={dependencies}:/opt/jouled/dependencies",
        ]
        process = subprocess.Popen(
            command,
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        print(process.pid, file=holder.stdin, flush=True)
        first = None
        try:
            first = _first_process(notified, process, log)
            yield first
        finally:
            notified.close()  # it waits for ever to notify of its end where nobody reads what came before
            # Not an orderly shutdown: that syncs every file system of the host.
            os.kill(first or process.pid, signal.SIGKILL)
            process.wait(timeout=BOOT_SECONDS)


def _first_process(notified: socket.socket, process: subprocess.Popen[bytes], log: Path) -> int:
    try:
        while b"READY=1" not in notified.recv(4096).split(b"\n"):
            pass
    except TimeoutError:
        pytest.fail(f"the machine did not boot:\n{log.read_text(errors='replace')}")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # nspawn may keep a helper beside the machine's first process, which is the one named systemd.
    [first] = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"]
    return first
