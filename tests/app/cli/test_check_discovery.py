"""What `jouled check` says of engines that it found: where they are, what cannot be seen, what to paste."""

import os
import subprocess
import sys
import tomllib

import pytest
from tests.support.engine_process import OTHER_USER, EngineProcess, engine_port, engine_process
from tests.support.network import network
from tests.support.unprivileged import unprivileged

from jouled.app.cli import check_discovery
from jouled.app.cli.check_discovery import look_for_engines
from jouled.app.config import EngineConfig
from jouled.app.runtime.engines.engine_processes import read_processes
from jouled.model.device import Device, DeviceKind
from jouled_collectors.engines.vllm import VllmCollector

COLLECTORS = {"vllm": VllmCollector()}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="processes of several users need root")


def look(monkeypatch, *engines: EngineProcess, configured=(), processes=None, devices=()):
    """At these engines; others on this machine are none of ours."""
    pids = {engine.pid for engine in engines}
    only = lambda collectors: [each for each in read_processes(collectors) if each.pid in pids]  # noqa: E731
    monkeypatch.setattr(check_discovery, "read_processes", only)
    found, notes = look_for_engines(configured, COLLECTORS, processes or {}, devices)
    return list(found), "\n".join(notes)


def test_an_engine_that_anybody_can_find_needs_no_note(monkeypatch):
    with engine_process("--port", str(engine_port())) as engine:
        [found], notes = look(monkeypatch, engine)
    assert found.url == f"http://127.0.0.1:{engine.port}"
    assert notes == ""


@needs_root
def test_what_root_finds_and_the_service_cannot_is_told_with_the_lines_to_paste(monkeypatch):
    port = engine_port()
    monkeypatch.setattr(VllmCollector, "default_port", port)
    named = EngineConfig(name="chat", type="vllm", url=f"http://localhost:{port}")
    with engine_process("--config", "engine.yaml", user=OTHER_USER, environ={"TEST_PORT": str(port)}) as engine:
        [found], notes = look(monkeypatch, engine)
        assert look(monkeypatch, engine, configured=[named]) == ([named], "")
    assert found.url == f"http://127.0.0.1:{port}"
    assert "cannot the service as shipped" in notes
    assert "systemd/drop-ins/discovery.conf" in notes
    pasted = tomllib.loads(notes[notes.index("[[engines]]") :])
    assert pasted == {"engines": [{"type": "vllm", "url": found.url}]}


@needs_root
def test_an_environment_that_may_not_be_seen_is_told(monkeypatch):
    with engine_process("--port", str(engine_port()), user=OTHER_USER) as engine, unprivileged():
        [_], notes = look(monkeypatch, engine)
    assert f"may not see the environment of process {engine.pid}" in notes
    assert "sudo jouled check" in notes


@needs_root
def test_a_mask_that_only_root_sees_is_told_and_nothing_else_of_the_environment(monkeypatch):
    environ = {"CUDA_VISIBLE_DEVICES": "2\x1b[1m", "HF_TOKEN": "s3cr3t"}
    with engine_process("--port", str(engine_port()), environ=environ) as engine:
        _, notes = look(monkeypatch, engine)
    assert "was started with CUDA_VISIBLE_DEVICES=2?[1m, which the service as shipped may not see" in notes
    assert "s3cr3t" not in notes


@needs_root
def test_the_devices_of_a_mask_are_in_the_lines_to_paste_unless_the_configuration_names_some(monkeypatch):
    gpus = [
        Device(name=f"gpu{index}", kind=DeviceKind.GPU, source="nvml", vendor="nvidia", product="H100", pci_bus_id=bus)
        for index, bus in enumerate(("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"))
    ]
    with engine_process("--port", str(engine_port()), environ={"CUDA_VISIBLE_DEVICES": "2,0"}) as engine:
        [found], notes = look(monkeypatch, engine, devices=gpus)
        named = EngineConfig(name="chat", type="vllm", url=found.url, devices=("gpu2", "gpu0"))
        assert look(monkeypatch, engine, devices=gpus, configured=[named]) == ([named], "")
    pasted = tomllib.loads(notes[notes.index("[[engines]]\n") :])
    assert pasted == {"engines": [{"type": "vllm", "url": found.url, "devices": ["gpu2", "gpu0"]}]}


@needs_root
def test_an_address_that_the_unit_does_not_let_through_is_told(monkeypatch):
    with (
        network() as box,
        engine_process("--port", "8000", namespace=box.name) as engine,
    ):
        [found], notes = look(monkeypatch, engine)
    assert found.name == f"vllm-{box.theirs}-8000"
    assert f"IPAddressAllow={box.theirs}" in notes


def test_beside_configured_engines_others_are_told_of(monkeypatch):
    configured = [EngineConfig(name="gateway", type="vllm", url="http://127.0.0.1:1")]
    with engine_process("--port", str(engine_port())) as engine:
        looked_at, notes = look(monkeypatch, engine, configured=configured)
    assert looked_at == configured
    assert f"process {engine.pid} is a vllm engine that no [[engines]] names" in notes


def test_what_computes_on_a_device_without_an_engine_is_told(monkeypatch):
    with (
        engine_process("--port", str(engine_port())) as engine,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
    ):
        _, notes = look(monkeypatch, engine, processes={"gpu0": (engine.pid,), "gpu1": (other.pid,)})
        other.stdin.close()
    assert f"process {other.pid} (python" in notes
    assert "computes on gpu1 and belongs to no known engine" in notes
    assert "gpu0" not in notes
