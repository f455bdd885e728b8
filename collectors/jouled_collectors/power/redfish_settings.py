"""Settings of `[power.redfish]`: which BMCs are asked, as whom, and for which of their meters."""

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta, Struct

from jouled.api import PowerSettings
from jouled_collectors.power.settings import IntervalSeconds

MeterGroup = Literal["node", "psus", "gpus", "shelves"]

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class BmcSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """One `[[power.redfish.bmcs]]`: a BMC, a PDU or a power shelf that speaks Redfish."""

    name: Annotated[
        str,
        Meta(
            description="Its name; the names of its devices begin with it (`bmc1-node`).",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z",
            max_length=64,
        ),
    ]
    url: Annotated[str, Meta(description="Address without a path, for example `https://bmc1.example`.")]
    user: Annotated[str, Meta(description="User with the right to log in and read. Empty: nobody logs in.")] = ""
    password_file: Annotated[str, Meta(description="File that holds the user's password.")] = ""
    ca_file: Annotated[str, Meta(description="Certificates (PEM) to trust instead of those of the system.")] = ""
    certificate_sha256: Annotated[
        str,
        Meta(description="SHA-256 fingerprint of the BMC's own certificate: only this one is trusted, for any name."),
    ] = ""
    insecure: Annotated[
        bool, Meta(description="Trust any certificate, and send the password over `http://` too. For test benches.")
    ] = False
    meters: Annotated[
        list[MeterGroup] | None,
        Meta(
            description="What is read: `node`, `psus` (input of each power supply), `gpus` (of an HGX baseboard; beside"
            " NVML they count once if both tell the same UUID), `shelves` (rack power). Unset: `node`, or nothing but"
            " the outlets where `outlets` are given. Of two BMCs that both show `node` the sum counts: right for a"
            " GPU box beside its host; of two BMCs of one node only one may read it."
        ),
    ] = None
    outlets: Annotated[
        list[str | int], Meta(description="Outlets of a PDU that feed this node, as the PDU calls them.")
    ] = []
    chassis: Annotated[str, Meta(description="Id of the chassis that is the node. Empty: it is recognised.")] = ""
    node_sensor: Annotated[
        str,
        Meta(
            description="Path of the sensor that tells the node's watts, for a BMC that tells them nowhere else, for"
            " example `/redfish/v1/Chassis/DGX/Sensors/TotalPower`.",
            pattern=r"^(/redfish/[!-~]*)?\Z",
        ),
    ] = ""
    pdu: Annotated[str, Meta(description="Id of the PDU, where this address speaks for several.")] = ""
    metric_report: Annotated[
        str,
        Meta(
            description="Id of a telemetry report that holds the meters' values, read in one request, for example"
            " `HGX_PlatformEnvironmentMetrics_0`."
        ),
    ] = ""
    timeout_seconds: Annotated[float, Meta(description="An answer that takes longer counts as none.", gt=0, le=60)] = (
        5.0
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work. Never shows the url, which may hold a password."""
        parts = _url_parts(self.url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("url holds a user or password: write them into user and password_file")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("url is no address: write https://HOST")
        if parts.path not in {"", "/", "/redfish/v1", "/redfish/v1/"} or parts.query or parts.fragment:
            raise ValueError("url has a path: write https://HOST")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file go together: give both or none")
        if self.user and parts.scheme == "http" and not (self.insecure or _is_loopback(parts.hostname)):
            raise ValueError("the password would go over http:// in clear: write https://, or insecure = true")
        if sum([bool(self.ca_file), bool(self.certificate_sha256), self.insecure]) > 1:
            raise ValueError("ca_file, certificate_sha256 and insecure exclude each other")
        if self.certificate_sha256 and not _SHA256_HEX.fullmatch(self.fingerprint):
            raise ValueError("certificate_sha256 is no SHA-256 fingerprint: 64 hexadecimal digits")

    @property
    def fingerprint(self) -> str:
        """`certificate_sha256` without colons, in small letters."""
        return self.certificate_sha256.replace(":", "").lower()

    @property
    def origin(self) -> str:
        """The address as scheme, host and port."""
        parts = _url_parts(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def host_and_port(self) -> str:
        """Where the BMC listens, as `openssl s_client -connect` takes it."""
        parts = _url_parts(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    @property
    def wanted(self) -> frozenset[MeterGroup]:
        """What is read beside the outlets."""
        if self.meters is not None:
            return frozenset(self.meters)
        return frozenset() if self.outlets else frozenset({"node"})


class RedfishSettings(PowerSettings, kw_only=True):
    """Settings of `[power.redfish]`. interval_seconds: unset, 10: a BMC takes 50 to 2 000 ms for an answer."""

    bmcs: Annotated[
        list[BmcSettings], Meta(description="BMCs of this node, and PDUs and shelves that feed it.", min_length=1)
    ]
    interval_seconds: IntervalSeconds | None = None

    def __post_init__(self) -> None:
        """Refuse names that would collide in labels."""
        names = [bmc.name for bmc in self.bmcs]
        if len(set(names)) < len(names):
            raise ValueError("two bmcs have the same name")
        if sum("gpus" in bmc.wanted for bmc in self.bmcs) > 1:
            raise ValueError("a node has one HGX baseboard: name gpus in the meters of one BMC only")


def _url_parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("url is no address: write https://HOST") from None
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
