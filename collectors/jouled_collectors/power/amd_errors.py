"""What AMD SMI's return codes mean for a device and for the source as a whole."""

import os
from collections.abc import Iterable
from pathlib import Path

from jouled.model.errors import SourceError, SourceState

NOT_SUPPORTED, NO_PERMISSION, NOT_INITIALISED, DRIVER_NOT_LOADED, NO_DATA, UNEXPECTED_DATA = 2, 10, 32, 34, 40, 43
"""Values of `amdsmi_status_t` (amdsmi.h)."""

SOURCE_GONE = frozenset({NOT_INITIALISED, DRIVER_NOT_LOADED})
"""No call on any device can succeed any more."""

NO_METER = frozenset({NOT_SUPPORTED, NO_DATA, UNEXPECTED_DATA})
"""What a GPU without a meter answers: a virtual one, a part without the counter (MI350: UNEXPECTED_DATA)."""

GROUPS = ("render", "video")
"""Groups that own /dev/kfd and /dev/dri (udev rules of ROCm and of the distributions)."""


DEV = Path("/dev")


class AmdError(Exception):
    """A call of the library failed. code: `amdsmi_status_t`, `UNEXPECTED_DATA` where the binding itself failed."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text}")
        self.code = code


def source_error(error: AmdError, *, running: bool = False) -> SourceError:
    """The decision that an error carries for the whole source. running: it had been open."""
    closed = closed_nodes(DEV)
    if error.code == NO_PERMISSION or (closed and error.code not in SOURCE_GONE):
        return denied(closed)
    if error.code == DRIVER_NOT_LOADED:
        # The library keeps paths of the driver that it found first.
        return SourceError(
            SourceState.DOWN,
            "driver_not_loaded",
            "The AMD kernel driver is not loaded",
            mend="Load it: modprobe amdgpu",
            fatal=running,
        )
    if error.code == NOT_INITIALISED:
        return SourceError(SourceState.DOWN, "uninitialized", "AMD SMI was shut down", fatal=running)
    return SourceError(SourceState.DOWN, f"amdsmi_{error.code}", f"AMD SMI failed: {error}")


def gpu_lost(names: str, failure: AmdError | None) -> SourceError:
    """What told its energy or power and does no more; failure: of the last call, `None` where it succeeded."""
    if failure is not None and failure.code == NO_PERMISSION:
        return denied(closed_nodes(DEV))
    return SourceError(
        SourceState.DOWN,
        "gpu_lost",
        f"No energy or power is told any more of {names} ({failure or 'all answers are marked as not known'})",
        mend="Look for amdgpu in `dmesg`, then reset it: amd-smi reset --gpureset",
    )


def no_meter(name: str, failure: AmdError | None) -> SourceError:
    """What tells nothing from the start; failure: of the call for its energy, `None` where it succeeded."""
    if failure is not None and failure.code not in NO_METER:
        return source_error(failure)
    return SourceError(
        SourceState.ABSENT,
        "no_meter",
        f"{name} tells neither energy nor power ({failure or 'all answers are marked as not known'})",
        mend="A virtual GPU has no meter: read the node from its host, its BMC or its PDU;"
        " the second die of a package (MI250) is in the meter of the first",
    )


def frozen(name: str) -> SourceError:
    """What gives the same readings for ever."""
    return SourceError(
        SourceState.DOWN,
        "frozen",
        f"AMD SMI gives the same reading of {name} again and again, time stamp and all",
        mend="A new process mends it on MI100 (ROCm/amdsmi issue 22); if not: amd-smi reset --gpureset, or reboot",
        fatal=True,
    )


def no_gpu() -> SourceError:
    """The library lists none: as the user may see none, or as there is none."""
    closed = closed_nodes(DEV)
    if closed:
        return denied(closed)
    return SourceError(
        SourceState.ABSENT, "no_gpu", "AMD SMI lists no GPU to read", mend="Look at: amd-smi list; ls /dev/dri"
    )


def denied(closed: Iterable[Path]) -> SourceError:
    """How to let the daemon in for good: groups for the files, device rules for its unit."""
    named = " ".join(map(str, closed)) or "/dev/kfd and /dev/dri/renderD*"
    lines = f"[Service]\\nSupplementaryGroups={' '.join(GROUPS)}\\nDeviceAllow=char-kfd rw\\nDeviceAllow=char-drm rw\\n"
    return SourceError(
        SourceState.DENIED,
        "no_permission",
        f"AMD SMI may not be used by this user: {named}",
        mend="As root: mkdir -p /etc/systemd/system/jouled.service.d"
        f" && printf '{lines}' > /etc/systemd/system/jouled.service.d/amd.conf"
        " && systemctl daemon-reload && systemctl restart jouled"
        f" -- started by hand: usermod -aG {','.join(GROUPS)} $USER, then log in again",
    )


def closed_nodes(dev: Path) -> list[Path]:
    """Device files of AMD's driver that are there and that this process may not open."""
    nodes = [dev / "kfd", *sorted((dev / "dri").glob("renderD*"))] if (dev / "kfd").exists() else []
    return [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
