"""Datagrams to systemd, by path and by abstract name."""

import os
import socket
from pathlib import Path

import pytest

from jouled.app.runtime.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_reach_the_socket(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(5)
        name = f"@jouled-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        systemd.bind("\0" + name[1:] if abstract else name)
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
        notifier.ready("serving\non 127.0.0.1:9966")
        notifier.watchdog()
        notifier.stopping()
        received = [systemd.recv(200).decode() for _ in range(3)]
    assert received == ["READY=1\nSTATUS=serving on 127.0.0.1:9966", "WATCHDOG=1", "STOPPING=1"]
    assert notifier.watchdog_seconds == 3.0


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("serving")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serving")


def test_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).watchdog_seconds is None
