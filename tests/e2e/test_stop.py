"""A stop takes no longer than it may, whatever hangs: a sink that does not answer, a name that does not resolve."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import METER, Launch
from tests.support.live import PATIENCE_SECONDS, wait_for

SPOOL = "[spool]\ninterval_seconds = 1\n"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for each in held:
            each.close()


def test_sinks_that_hang_delay_a_stop_by_two_seconds(launch: Launch, silent: int) -> None:
    sinks = [
        f'[sinks.influx]\nurl = "http://127.0.0.1:{silent}"\napi = "v1"\ndatabase = "d"\ntimeout_seconds = 60\n',
        f'[sinks.mqtt]\nhost = "127.0.0.1"\nport = {silent}\ntimeout_seconds = 60\n',
        f'[sinks.second]\ntype = "mqtt"\nhost = "127.0.0.1"\nport = {silent}\ntimeout_seconds = 60\n',
    ]
    daemon = launch(METER + SPOOL + "".join(sinks))
    wait_for(lambda: "jouled_spool_bytes" in daemon.get("/metrics").decode(), PATIENCE_SECONDS, "nothing waits")
    began = time.monotonic()
    assert daemon.stop() == 0, daemon.log_tail()
    assert time.monotonic() - began < 5.5


def test_a_reload_outlives_sinks_that_hang(launch: Launch, silent: int, tmp_path: Path) -> None:
    import signal

    sink = f'[sinks.mqtt]\nhost = "127.0.0.1"\nport = {silent}\ntimeout_seconds = 60\n'
    daemon = launch(METER + SPOOL + sink)
    wait_for(lambda: "jouled_spool_bytes" in daemon.get("/metrics").decode(), PATIENCE_SECONDS, "nothing waits")
    (tmp_path / "config.toml").write_text(METER)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "is in effect" in daemon.log_tail(30), PATIENCE_SECONDS, "no reload")
    daemon.raise_if_ended()
    assert daemon.stop() == 0
