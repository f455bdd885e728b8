"""One node with all its levels, each over its wire: two PDUs by SNMP, the BMC by Redfish over TLS, RAPL, a meter."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.collectors.power.test_rapl import make_zone
from tests.e2e.conftest import Launch
from tests.support.live import PATIENCE_SECONDS, LiveDaemon, wait_for
from tests.support.redfish import PASSWORD, USER, certificates, running
from tests.support.redfish_trees import supermicro
from tests.support.snmp_pdu_agent import Agent

APC = "1.3.6.1.4.1.318.1.3.4.6"
OUTLET_POWER = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.7"
OUTLET_WATTS, BMC_WATTS = 2700, 5120.0


class Node:
    """The fakes, and the configuration that reads them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.pdus = {name: Agent({f"{OUTLET_POWER}.3": OUTLET_WATTS}, APC) for name in ("pdu-a", "pdu-b")}
        for agent in self.pdus.values():
            stack.callback(agent.close)
        tls = certificates(folder / "tls")
        self.bmc = stack.enter_context(running(supermicro(watts=BMC_WATTS), tls))
        make_zone(folder / "sys", "intel-rapl:0", "package-0", 1_000_000)
        for name, text in (("community", "public"), ("password", PASSWORD)):
            (folder / name).write_text(f"{text}\n")
        pdus = "\n".join(
            f'[[power.snmp_pdu.pdus]]\nname = "{name}"\nhost = "127.0.0.1"\nport = {agent.port}\n'
            f'community_file = "{folder / "community"}"\noutlets = [3]\ntimeout_seconds = 2'
            for name, agent in self.pdus.items()
        )
        self.configuration = f"""
[power.fake]
[power.rapl]
sysfs_root = "{folder / "sys"}"
[power.redfish]
interval_seconds = 1
[[power.redfish.bmcs]]
name = "bmc1"
url = "{self.bmc.url}"
user = "{USER}"
password_file = "{folder / "password"}"
ca_file = "{tls / "ca.crt"}"
[power.snmp_pdu]
interval_seconds = 0.5
{pdus}
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(tmp_path, stack)


def speaks(daemon: LiveDaemon, level: str) -> bool:
    page = daemon.page().values
    return page.get(f'jouled_node_level_speaks{{level="{level}"}}') == 1.0


def heard(daemon: LiveDaemon, level: str) -> tuple[float | None, float | None]:
    page = daemon.page().values
    return tuple(page.get(f'jouled_node_meters_{which}{{level="{level}"}}') for which in ("heard", "expected"))


def watts(daemon: LiveDaemon) -> int:
    return round(daemon.page().values.get("jouled_node_power_watts", 0.0))


def test_outlets_speak_for_the_node_and_the_bmc_while_one_is_away(node: Node, launch: Launch) -> None:
    daemon = launch(node.configuration)
    wait_for(lambda: speaks(daemon, "outlet") and heard(daemon, "outlet") == (2.0, 2.0), PATIENCE_SECONDS, "no outlets")
    wait_for(lambda: heard(daemon, "node") == (1.0, 1.0), PATIENCE_SECONDS, "no BMC")
    wait_for(lambda: watts(daemon) == 2 * OUTLET_WATTS, PATIENCE_SECONDS, "another power")
    node.pdus["pdu-b"].is_silent = True
    wait_for(lambda: speaks(daemon, "node"), PATIENCE_SECONDS, "half of the feed speaks for the node")
    assert heard(daemon, "outlet") == (1.0, 2.0)
    wait_for(lambda: watts(daemon) == BMC_WATTS, PATIENCE_SECONDS, "another power")
    told = daemon.json("/api/v1/snapshot")
    assert told["node_power"]["incomplete"] == [{"level": "outlet", "heard": 1, "expected": 2}]
    parts = {source["source"]: (source["state"], source["reason"]) for source in told["sources"]}
    assert parts["snmp_pdu/pdu-a"] == ("ok", "")
    assert parts["snmp_pdu/pdu-b"] == ("down", "timeout")
    before = daemon.page().total("jouled_boundary_energy_joules_total", boundary="node")
    node.pdus["pdu-b"].is_silent = False
    wait_for(lambda: speaks(daemon, "outlet"), PATIENCE_SECONDS, "the outlets are not back")
    page = daemon.page()
    assert page.total("jouled_boundary_energy_joules_total", boundary="node") >= before
    assert page.total("jouled_meter_energy_joules_total", meter="pdu-a-outlet-3") > 0
    assert page.total("jouled_device_energy_joules_total") > 0
    assert "public" not in (told_text := str(told))
    assert PASSWORD not in told_text
