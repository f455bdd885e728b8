"""What MQTT meters do at a real broker: publish, and be cut off so that the broker publishes their last will."""

import json
import socket
from pathlib import Path

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion


class Publisher:
    """A device with its own connection."""

    def __init__(self, port: int, will: tuple[str, str] | None = None, **login: str) -> None:
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        if will is not None:
            self._client.will_set(*will, qos=1, retain=True)
        if login:
            self._client.username_pw_set(login["user"], login["password"])
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def say(self, topic: str, payload: object, *, retain: bool = False, qos: int = 1) -> None:
        """Publish; comes back when the broker has it."""
        body = payload if isinstance(payload, bytes | str) else json.dumps(payload)
        self._client.publish(topic, body, qos=qos, retain=retain).wait_for_publish(5)

    def flood(self, topic: str, payloads: list[bytes]) -> None:
        """Publish all of them as fast as it goes; comes back when the last one is out."""
        for payload in payloads[:-1]:
            self._client.publish(topic, payload, qos=0)
        self.say(topic, payloads[-1])

    def cut(self) -> None:
        """As when the plug loses its Wi-Fi."""
        self._client.socket().shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def close(self) -> None:
        """Say goodbye."""
        self._client.disconnect()
        self._client.loop_stop()


def may_subscribe(directory: Path, *topics: str) -> list[str]:
    """Configuration lines of a broker that refuses every subscription but these.

    By the plugin of the Debian package: what an acl_file forbids to read, mosquitto drops without a word.
    """
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))
    acls = [{"acltype": "subscribePattern", "topic": topic, "allow": True} for topic in topics]
    file = directory / "dynamic-security.json"
    content = {
        "defaultACLAccess": {
            "publishClientSend": True,
            "publishClientReceive": True,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": [],
        "groups": [{"groupname": "all", "roles": [{"rolename": "reader"}], "clients": []}],
        "roles": [{"rolename": "reader", "acls": acls}],
        "anonymousGroup": "all",
    }
    file.write_text(json.dumps(content))
    return [f"plugin {plugin}", f"plugin_opt_config_file {file}"]
