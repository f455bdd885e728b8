"""What a configuration file and the environment become, and how a wrong one is told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouled.api import PowerSettings
from jouled.app.config import load, settings_for
from jouled.app.config.load import MOST_RESEND_SECONDS, sink_settings_for
from jouled.model.errors import ConfigurationError
from jouled.model.parameters import DeviceChange, IdlePolicy, Parameters, Slo, Tier
from jouled.outputs.sinks.influx import InfluxSink
from jouled.outputs.store.spool import LONGEST_UNCERTAIN_NS

WHOLE = """
[state]
directory = "/var/lib/jouled"
[serve]
listen = "[::1]:9000"
token_file = "/run/credentials/token"
[node]
name = "node-7"
[[engines]]
type = "vllm"
url = "http://127.0.0.1:8000"
devices = ["gpu0", "gpu1"]
pid = 12
interval_seconds = 2
parameters = 7e9
[[engines]]
name = "gateway"
[[slo]]
name = "chat"
ttft = 500
tpot = 50.0
[[tier]]
name = "slow"
[[tier]]
name = "fast"
min_tokens_per_second_per_user = 30
[idle]
policy = "dynamic"
[power.nvml]
interval_seconds = 0.5
[requests]
by_tenant = true
otlp = { forward = "http://127.0.0.1:4318" }
[cost]
currency = "USD"
price_per_kwh = -0.02
pue = 1.0
[limits]
tenants = 3
"""


def configuration(tmp_path: Path, text: str, environment: dict[str, str] | None = None):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(path, environment or {})


def complaint(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        configuration(tmp_path, text, environment)
    return str(caught.value)


def test_nothing_given_is_all_defaults():
    config = load(None, {"HOME": "/root", "JOULED_SOCKET": "/run/x"})
    assert config.serve.listen == "127.0.0.1:9966"
    assert config.parameters() == Parameters()


def test_what_is_known_better_of_devices_reaches_the_core(tmp_path):
    text = """
[node]
meters = ["ipmi", "redfish"]
[[device]]
name = "pdu1-outlet-3"
parent = "feed"
max_watts = 2000
[[device]]
name = "dcgm-gpu0"
ignore = true
"""
    parameters = configuration(tmp_path, text).parameters()
    assert parameters.node_meters == ("ipmi", "redfish")
    assert parameters.device_changes == (
        DeviceChange(name="pdu1-outlet-3", parent="feed", max_watts=2000.0),
        DeviceChange(name="dcgm-gpu0", ignore=True),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[device]]\nname = ""', "a device needs a name"),
        ('[[device]]\nname = "a"\nparent = "a"', "nothing contains itself"),
        ('[[device]]\nname = "a"\nmax_watts = 0', "is no limit"),
        ('[[device]]\nname = "a"\n[[device]]\nname = "a"', "Give each device one table"),
        ("[[device]]\nmax_watts = 3", "name"),
    ],
)
def test_devices_that_make_no_sense_are_refused(tmp_path, text, said):
    assert said in complaint(tmp_path, text)


def test_every_section_reaches_its_place(tmp_path):
    config = configuration(tmp_path, WHOLE)
    vllm, gateway = config.engines
    assert (vllm.name, vllm.interval_seconds, vllm.engine().devices) == ("vllm-8000", 2.0, ("gpu0", "gpu1"))
    assert (gateway.name, gateway.engine().devices) == ("gateway", ())
    assert config.power == {"nvml": {"interval_seconds": 0.5}}
    parameters = config.parameters()
    assert parameters.node == "node-7"
    assert parameters.slos == (Slo("chat", ttft=500.0, tpot=50.0),)
    assert parameters.tiers == (Tier("slow"), Tier("fast", 30.0))
    assert parameters.idle_policy is IdlePolicy.DYNAMIC
    assert parameters.by_tenant
    assert (parameters.price.price_per_kwh, parameters.price.grid_grams_per_kwh) == (-0.02, None)
    assert parameters.limits.tenants == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[serve]\nlisen = "x"', ["$.serve.lisen", "unknown key `lisen`", "Did you mean `listen`?"]),
        ('[sreve]\nlisten = "x"', ["$.sreve", "Did you mean `serve`?"]),
        ('[[slo]]\nname = "a"\nttfd = 1', ["$.slo[0].ttfd", "Did you mean `ttft`?"]),
        ("[cost]\nq = 1", ["$.cost.q", "Known here: currency, grid_grams_per_kwh"]),
        ("[serve]\nlisten = 9966", ["$.serve.listen", "expected a string, got a whole number"]),
        ('[engines]\nname = "a"', ["$.engines", "expected a list, got a table"]),
        ("[power]\nnvml = 1", ["$.power", "expected a table"]),
        ("[[slo]]\nttft = 1", ["$.slo[0]", "lacks the key `name`"]),
        ('[[slo]]\nname = "a"', ["$.slo[0]", "no limit", "ttft, tpot or e2el"]),
        ('[[slo]]\nname = "a"\nttft = 0', ["$.slo[0].ttft", "above 0"]),
        ('[[slo]]\nname = "a"\nttft = 1\n[[slo]]\nname = "a"\nttft = 2', ["$.slo[1].name", "given twice"]),
        ("[cost]\npue = 0.9", ["$.cost.pue", "below 1"]),
        ("[cost]\npue = nan", ["$.cost.pue", "no finite number"]),
        ("[power.nvml]\nx = [1.0, inf]", ["$.power.nvml.x[1]", "no finite number"]),
        ('[cost]\ncurrency = "Euro"', ["$.cost.currency", "three letters"]),
        ("[cost]\ngrid_grams_per_kwh = -1", ["$.cost.grid_grams_per_kwh", "below 0"]),
        ('[idle]\npolicy = "dynamo"', ["$.idle.policy", "Did you mean `dynamic`?"]),
        ('[serve]\nlisten = "localhost"', ["$.serve.listen", "HOST:PORT"]),
        ('[serve]\nlisten = "localhost:99999"', ["$.serve.listen", "no port"]),
        ('[serve]\nlisten = "::1:9966"', ["$.serve.listen", "brackets"]),
        ('[[engines]]\ntype = "vllm"\nurl = "ftp://x"', ["$.engines[0].url", "http://"]),
        ('[[engines]]\ntype = "vllm"\nurl = "http://x:abc"', ["$.engines[0].url", "Write it as"]),
        ('[[engines]]\ntype = "vllm"\nurl = "http://[x"', ["$.engines[0].url", "Write it as"]),
        ('[[engines]]\ntype = "vllm"\nurl = "http://u:hush@x"', ["$.engines[0].url", "password"]),
        ('[[engines]]\nurl = "http://x:1"', ["$.engines[0].type", "needs a type"]),
        ("[[engines]]\npid = 4", ["$.engines[0].name", "needs a name"]),
        ('[[engines]]\nname = "a"\ninterval_seconds = -1', ["$.engines[0].interval_seconds", "at least 0.001"]),
        ('[[engines]]\nname = "a"\nlayers = 0', ["$.engines[0].layers"]),
        ('[[engines]]\nname = "a"\nrole = "both"', ["$.engines[0].role", "unified, prefill, decode"]),
        ('[[engines]]\nname = "a"\nexpert_share = 8.0', ["$.engines[0].expert_share", "8 is no share", "at most 1"]),
        ('[[engines]]\nname = "a"\ndevices = ["g", "g"]', ["$.engines[0].devices", "twice"]),
        ('[[engines]]\nname = "a"\n[[engines]]\nname = "a"', ["$.engines[1].name", "given twice"]),
        ('[[partition]]\nname = "m"\nparent = "g"', ["$.partition[0]", "lacks the key `fraction`"]),
        ('[[partition]]\nname = "m"\nparent = ""\nfraction = 1', ["$.partition[0].parent", "needs a parent"]),
        ('[[partition]]\nname = "m"\nparent = "m"\nfraction = 1', ["$.partition[0].parent", "the whole device"]),
        ('[[partition]]\nname = "m"\nparent = "g"\nfraction = 0', ["$.partition[0].fraction", "at most 1"]),
        (
            '[[partition]]\nname = "m"\nparent="g"\nfraction=0.6\n[[partition]]\nname = "n"\nparent="g"\nfraction=1',
            ["$.partition[1].fraction", "are 1.6 of it"],
        ),
        (
            '[[tier]]\nname = "a"\nmin_tokens_per_second_per_user = 9\n[[tier]]\nname = "b"',
            ["$.tier[1].min_tokens_per_second_per_user", "slowest to the fastest"],
        ),
        ("[limits]\nmodels = 0", ["$.limits.models", "at least 1"]),
        ('[requests.otlp]\nforward = "x:1"', ["$.requests.otlp.forward"]),
        ('[requests.otlp]\ngrpc_listen = "4317"', ["$.requests.otlp.grpc_listen", "HOST:PORT"]),
        ('[requests.otlp]\ngrpc_listen = "0.0.0.0:4317"', ["$.requests.otlp.grpc_listen", "no loopback", "127.0.0.1"]),
        ('[requests.otlp]\ngrpc_listen = "node7:4317"', ["$.requests.otlp.grpc_listen", "no loopback"]),
        ('[requests.otlp]\ngrpc_listen = "127.0.0.1:9966"', ["$.requests.otlp.grpc_listen", "serve.listen"]),
        ('[requests.otlp]\nforward = "http://localhost:9966"', ["$.requests.otlp.forward", "jouled itself", "leave"]),
        ('[requests.otlp]\nforward = "http://[::1]:9966/v1/traces"', ["$.requests.otlp.forward", "jouled itself"]),
        (
            '[serve]\nlisten = "10.0.0.5:80"\n[requests.otlp]\nforward = "http://10.0.0.5/v1/traces"',
            ["$.requests.otlp.forward", "jouled itself"],
        ),
        ("[serve\n", ["no valid TOML", "line 1"]),
        ("a = " + "[" * 5000, ["nested too deeply"]),
    ],
)
def test_a_wrong_file_is_told_by_key_reason_and_mend(tmp_path, text, said):
    message = complaint(tmp_path, text)
    assert message.startswith(str(tmp_path / "config.toml"))
    assert all(part in message for part in said), message
    assert "hush" not in message


def test_grpc_is_listened_for_on_loopback(tmp_path):
    for listen in ("127.0.0.1:4317", "[::1]:4317", "localhost:4317"):
        toml = f'[requests.otlp]\ngrpc_listen = "{listen}"'
        assert configuration(tmp_path, toml).requests.otlp.grpc_listen == listen
    assert configuration(tmp_path, "").requests.otlp.grpc_listen is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "http://10.0.0.6:9966", "http://collector:9966/v1/traces"])
def test_forwarding_to_another_collector_is_fine(tmp_path, url):
    assert configuration(tmp_path, f'[requests.otlp]\nforward = "{url}"').requests.otlp.forward == url


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        load(tmp_path / "nothing.toml", {})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path, {})
    (tmp_path / "b.toml").write_bytes(b"a = \xff")
    with pytest.raises(ConfigurationError, match="not UTF-8 text at byte 4"):
        load(tmp_path / "b.toml", {})


def test_the_environment_lies_over_the_file(tmp_path):
    environment = {
        "JOULED_SERVE__LISTEN": "0.0.0.0:1",
        "JOULED_NODE__NAME": "7",
        "JOULED_COST__PUE": "1.2",
        "JOULED_POWER__NVML__INTERVAL_SECONDS": "0.1",
        "JOULED_POWER__TWIN__URL": "http://x",
        "JOULED_REQUESTS__OTLP__FORWARD": "http://c:4318",
        "JOULED_SOCKET": "ignored",
    }
    config = configuration(tmp_path, WHOLE, environment)
    assert config.serve.listen == "0.0.0.0:1"
    assert config.serve.token_file == "/run/credentials/token"
    assert config.node.name == "7"
    assert config.cost.pue == 1.2
    assert config.power == {"nvml": {"interval_seconds": 0.1}, "twin": {"url": "http://x"}}
    assert config.requests.otlp.forward == "http://c:4318"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JOULED_SERVE__LISEN", "x", "JOULED_SERVE__LISEN: $.serve.lisen: unknown key"),
        ("JOULED_COST__PUE", "much", "JOULED_COST__PUE: $.cost.pue: expected a number, got a string"),
        ("JOULED_COST__PUE", "0.5", "JOULED_COST__PUE: $.cost.pue: 0.5 is below 1"),
        ("JOULED_SLO__NAME", "x", "cannot reach into `slo`"),
        ("JOULED_SERVE__LISTEN__PORT", "1", "cannot reach into `listen`"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path, name, value, said):
    assert said in complaint(tmp_path, WHOLE, {name: value})


class MeterSettings(PowerSettings, kw_only=True, frozen=True):
    """A third party's settings."""

    host: str
    version: Literal["v2", "v3"] = "v3"


METER = SimpleNamespace(name="meter", settings_type=MeterSettings)


def test_a_collectors_table_becomes_its_settings():
    settings = settings_for(METER, {"host": "pdu", "startup": "require"})
    assert settings == MeterSettings(host="pdu", startup="require")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"host": "a", "vesion": "v3"}, "$.power.meter.vesion: unknown key `vesion`. Did you mean `version`?"),
        ({"host": 1}, "$.power.meter.host: expected a string, got a whole number"),
        ({}, "$.power.meter: lacks the key `host`"),
        ({"host": "a", "version": "v1"}, "$.power.meter.version: unknown value `v1`"),
        ({"host": "a", "startup": "always"}, "$.power.meter.startup: unknown value `always`"),
        ({"host": "a", "interval_seconds": 0}, "$.power.meter.interval_seconds"),
    ],
)
def test_a_collectors_wrong_table_is_told_the_same_way(table, said):
    with pytest.raises(ConfigurationError) as caught:
        settings_for(METER, table, "/etc/c.toml")
    assert str(caught.value).startswith("/etc/c.toml: ")
    assert said in str(caught.value)


def refusal(path: Path | None, environment: dict[str, str]) -> str | None:
    try:
        load(path, environment)
    except ConfigurationError as error:
        return str(error)
    return None


@given(st.text())
def test_any_text_is_a_configuration_or_a_sentence(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "c.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    said = refusal(path, {})
    assert said is None or said.startswith(str(path))


@given(st.text(), st.sampled_from(["SERVE__LISTEN", "COST__PUE", "POWER__NVML", "POWER__NVML__X", "ENGINES__0", "__"]))
def test_any_variable_is_a_configuration_or_a_sentence(value, name):
    said = refusal(None, {f"JOULED_{name}": value})
    assert said is None or name in said


def test_partitions_of_a_device_become_devices_without_a_meter(tmp_path):
    path = tmp_path / "jouled.toml"
    path.write_text(
        '[[partition]]\nname = "gpu0/mig1"\nparent = "gpu0"\nfraction = 0.25\n'
        '[[engines]]\nname = "small"\ndevices = ["gpu0/mig1"]\nreplica = "1"'
    )
    config = load(path, {})
    [device] = [partition.device() for partition in config.partition]
    assert (device.name, device.kind, device.parent, device.fraction) == ("gpu0/mig1", "partition", "gpu0", 0.25)
    assert config.engines[0].engine().devices == ("gpu0/mig1",)
    assert config.engines[0].replica == "1"


@pytest.mark.parametrize("seconds", [-1.0, MOST_RESEND_SECONDS + 1.0])
def test_what_is_sent_again_is_limited_to_what_the_spool_keeps(seconds):
    assert MOST_RESEND_SECONDS * 1_000_000_000 < LONGEST_UNCERTAIN_NS
    assert sink_settings_for(InfluxSink, "x", {"url": "http://h", "resend_seconds": 300}).resend_seconds == 300.0
    with pytest.raises(ConfigurationError, match=r"sinks\.x\.resend_seconds: out of range"):
        sink_settings_for(InfluxSink, "x", {"url": "http://h", "resend_seconds": seconds})
