"""Which engine a request belongs to: by what the engine says of itself, or by the server that a client called."""

import ipaddress
import socket

import pytest

from jouled.api import EngineHint
from jouled.app.runtime.engines.find import find_engine, own_hosts, whose
from jouled.model.engine import Engine

BIG = Engine(name="vllm-8000", type="vllm", pid=100, url="http://127.0.0.1:8000", model="big")
SMALL = Engine(name="vllm-8001", type="vllm", pid=200, url="http://10.0.0.7:8001", model="small")
LLAMA = Engine(name="llama", type="llama_cpp")
PREFILL = Engine(name="p", type="sglang", role="prefill")
DECODE = Engine(name="d", type="sglang", role="decode")
HOSTS = frozenset({"node7", "node7.example.com", "192.0.2.7", "2001:db8::7"})


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (EngineHint(pid=200), "vllm-8001"),
        (EngineHint(pid=200, service_name="vllm-8000", engine_type="vllm"), "vllm-8001"),
        (EngineHint(pid=999, service_name="vllm-8000", engine_type="vllm"), "vllm-8000"),
        (EngineHint(pid=999, service_name="unknown", engine_type="vllm"), None),
        (EngineHint(engine_type="llama_cpp"), "llama"),
        (EngineHint(engine="llama"), "llama"),
        (EngineHint(engine="lama", engine_type="llama_cpp"), None),
        (EngineHint(), None),
        (EngineHint(engine_type="sglang"), None),
    ],
)
def test_whose_request_it_is(hint: EngineHint, expected: str | None) -> None:
    found = find_engine(hint, [BIG, SMALL, LLAMA])
    assert (found and found.name) == expected


def test_the_only_engine_needs_no_name() -> None:
    assert find_engine(EngineHint(), [LLAMA]) is LLAMA


@pytest.mark.parametrize(
    ("role", "expected"), [("prefill", PREFILL), ("decode", DECODE), ("", None), ("unified", None)]
)
def test_two_engines_of_a_type_are_told_apart_by_role(role: str, expected: Engine | None) -> None:
    assert find_engine(EngineHint(engine_type="sglang", role=role), [PREFILL, DECODE]) is expected


def test_an_engine_of_the_other_role_is_not_meant() -> None:
    prefill = EngineHint(engine_type="sglang", role="prefill")
    assert find_engine(prefill, [DECODE]) is None
    assert find_engine(prefill, [LLAMA, Engine(name="s", type="sglang")]) is not None  # its role is not known


def test_an_instance_is_told_by_its_id_and_is_no_other() -> None:
    workers = [Engine(name=name, type="dynamo", role="prefill", instance=name * 8) for name in "ab"]
    assert find_engine(EngineHint(engine_type="dynamo", role="prefill", instance="b" * 8), workers) is workers[1]
    assert find_engine(EngineHint(instance="a" * 8, service_name="b"), workers) is workers[0]
    elsewhere = EngineHint(engine_type="dynamo", role="prefill", instance="c" * 8)
    assert find_engine(elsewhere, workers[:1]) is None, "another host's worker of that type and role"
    unread = Engine(name="u", type="dynamo")
    assert find_engine(elsewhere, [unread]) is unread, "its page has not told its id yet"


def test_a_frontend_serves_no_request() -> None:
    frontend = Engine(name="f", type="dynamo_frontend", role="frontend")
    assert find_engine(EngineHint(), [frontend, LLAMA]) is LLAMA
    assert find_engine(EngineHint(), [frontend]) is None


def called(address: str, port: int | None, model: str = "") -> str | None:
    hint = EngineHint(address=address, port=port, model=model, may_be_elsewhere=True)
    found = find_engine(hint, [BIG, SMALL, LLAMA], HOSTS)
    return found and found.name


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "NODE7", "192.0.2.7", "2001:db8::7", "vllm-8000"])
def test_a_client_called_this_host(address: str) -> None:
    assert called(address, 8000) == "vllm-8000"
    assert called(address, 8000, "another name of the model") == "vllm-8000"


def test_a_client_called_the_address_of_an_engine() -> None:
    assert called("10.0.0.7", 8001) == "vllm-8001"
    assert called("vllm-8001", 80, "small") == "vllm-8001"  # behind another port
    assert called("10.0.0.7", 80, "big") is None


def test_the_spelling_of_loopback_does_not_matter_and_an_exact_address_goes_first() -> None:
    here, twin = Engine(name="a", url="http://localhost:8002"), Engine(name="b", url="http://10.0.0.9:8002")
    assert find_engine(EngineHint(address="127.0.0.1", port=8002, may_be_elsewhere=True), [BIG, here]) is here
    assert find_engine(EngineHint(address="localhost", port=8002, may_be_elsewhere=True), [BIG, here, twin]) is here


def test_behind_a_gateway_on_this_host_the_model_tells() -> None:
    assert called("localhost", 4000, "small") == "vllm-8001"
    assert called("localhost", 4000, "unknown") is None
    assert called("localhost", None) is None


def test_a_client_that_tells_no_server_is_known_by_the_model() -> None:
    assert called("", None, "big") == "vllm-8000"
    assert called("", None) is None


def test_a_client_called_a_server_elsewhere() -> None:
    assert called("api.example.com", 443, "big") is None
    assert called("10.0.0.8", 8000, "big") is None
    lonely = EngineHint(address="api.example.com", port=443, model="x", may_be_elsewhere=True)
    assert find_engine(lonely, [LLAMA]) is None


def test_the_names_of_this_host() -> None:
    hosts = own_hosts()
    assert socket.gethostname().lower() in hosts
    assert any(ipaddress.ip_address(host).is_loopback for host in hosts if host.replace(".", "").isdigit())


def test_what_a_sender_calls_its_engine_is_repeated_in_part() -> None:
    assert len(whose(EngineHint(service_name="s" * 1_000_000, engine_type="vllm"), [BIG])) < 1_000
