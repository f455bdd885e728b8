"""What ipmitool is told: how the BMC is reached, and that nothing is missing which that needs."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.own_group import group_name
from jouled_collectors.power.secret_file import read_secret

DEVICE_PATHS = ("/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0")
"""Where ipmitool 1.8.19 looks for the BMC of this node, in its order."""

LAN_RETRIES = ("-N", "2", "-R", "1")
"""Two attempts of 2 s each: a dead BMC is told as such within the time limit of a read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bmc:
    """How a BMC is reached: `host` over the network, empty: the one of this node."""

    host: str
    port: int
    user: str
    password_file: str
    privilege: str
    cipher_suite: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """How ipmitool is called for one BMC. where: the BMC in words. The password stands in the environment only."""

    where: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)


def request(bmc: Bmc) -> Request:
    """The call for this BMC, without what it is asked. Raises `SourceError`, state absent or denied."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    if not bmc.host:
        device = _opened_device()
        return Request(f"The BMC at {device}", (_ipmitool(), "-I", "open"), environment)
    session = ["-H", bmc.host, "-p", str(bmc.port), "-U", bmc.user, "-E", "-L", bmc.privilege.upper(), *LAN_RETRIES]
    if bmc.cipher_suite is not None:
        session += ["-C", str(bmc.cipher_suite)]
    return Request(
        f"The BMC {bmc.host}",
        (_ipmitool(), "-I", "lanplus", *session),
        {**environment, "IPMI_PASSWORD": read_secret(bmc.password_file, "password_file", "[power.ipmi]")},
    )


def _ipmitool() -> str:
    path = shutil.which("ipmitool")
    if path is None:
        raise SourceError(
            SourceState.ABSENT,
            "no_ipmitool",
            "A BMC is asked by ipmitool, which is not installed",
            mend="apt-get install ipmitool, or dnf install ipmitool",
        )
    return path


def _opened_device() -> str:
    """The device of this node's BMC, opened once to see that we may: ipmitool's own message hides why it may not."""
    for path in DEVICE_PATHS:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except PermissionError:
            raise _denied(path) from None
        except OSError as error:
            raise SourceError(
                SourceState.DOWN,
                "device",
                f"{path} cannot be opened: {error.strerror}",
                mend="See `dmesg | grep -i ipmi`; modprobe ipmi_si",
            ) from error
        return path
    raise SourceError(
        SourceState.ABSENT,
        "no_device",
        f"No {DEVICE_PATHS[0]}: this node has no BMC, or its driver is not loaded",
        mend="On a server with a BMC: modprobe -a ipmi_devintf ipmi_si; or set host, user and password_file of"
        " [power.ipmi]",
    )


def _denied(path: str) -> SourceError:
    rule = f'SUBSYSTEM=="ipmi", GROUP="{group_name()}", MODE="0660"'
    return SourceError(
        SourceState.DENIED,
        "permission",
        f"{path} may not be opened: it is for root alone, as who may use it commands the whole BMC",
        mend=f"As root: echo '{rule}' > /etc/udev/rules.d/90-jouled-ipmi.rules && udevadm control --reload"
        " && udevadm trigger --subsystem-match=ipmi --action=add; and by `systemctl edit jouled`: [Service]"
        " DeviceAllow=char-ipmidev rw -- or, which gives the daemon less: set host, user and password_file of"
        " [power.ipmi] with a user of the BMC that has the privilege USER",
    )
