"""What Home Assistant needs to find every device's power and energy by itself.

Fields, units and topics by home-assistant.io: "MQTT" (discovery), "MQTT sensor" and "Sensor" (device classes). Energy
goes in kWh, which every version's energy dashboard takes; joules only newer ones do. A sensor of a device that is gone
stays and turns unknown: taking it away would take its history along.
"""

import re
from typing import Any

import msgspec

from jouled.model.points import Points
from jouled.model.units import JOULES_PER_KILOWATT_HOUR
from jouled.outputs.sinks.mqtt_messages import Message, Topics, headline, part

_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")
"""All that Home Assistant does not take in the object id of a discovery topic."""


def configs(prefix: str, topics: Topics, moment: Points) -> list[Message]:
    """One retained message a sensor: power and energy of each device and meter of a moment."""
    shown = headline(moment)
    return [
        _config(prefix, topics, moment.node, group, name, quantity)
        for group in ("devices", "meters")
        for name, fields in shown[group].items()
        for quantity in ("power_watts", "energy_joules")
        if quantity in fields
    ]


def _config(prefix: str, topics: Topics, node: str, group: str, name: str, quantity: str) -> Message:
    what, _, _ = quantity.partition("_")
    host = f"jouled_{part(node, _NOT_IN_AN_ID)}"
    unique_id = f"{host}_{part(name, _NOT_IN_AN_ID)}_{what}"
    # A missing value renders as None, which Home Assistant shows as unknown.
    value = f'value_json.{group}.get({msgspec.json.encode(name).decode()}, {{}}).get("{quantity}")'
    kind: dict[str, Any]
    if what == "power":
        kind = {"unit_of_measurement": "W", "state_class": "measurement", "value_template": f"{{{{ {value} }}}}"}
    else:
        kwh = f"(joules / {JOULES_PER_KILOWATT_HOUR:.0f}) | round(6)"
        template = f"{{% set joules = {value} %}}{{{{ none if joules is none else {kwh} }}}}"
        kind = {"unit_of_measurement": "kWh", "state_class": "total_increasing", "value_template": template}
    fields = {
        "name": f"{name} {what}",
        "unique_id": unique_id,
        "state_topic": f"{topics.prefix}/state",
        "availability_topic": f"{topics.prefix}/status",
        "device_class": what,
        **kind,
        "device": {"identifiers": [host], "name": node, "manufacturer": "jouled"},
        "origin": {"name": "jouled"},
    }
    return Message(f"{prefix}/sensor/{unique_id}/config", msgspec.json.encode(fields), retain=True)
