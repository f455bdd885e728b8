"""Settings of the PDUs: where each one is, how to log in, and which of its sockets feed this node."""

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from jouled.api import PowerSettings
from jouled_collectors.power.settings import FEED, IntervalSeconds, Watts

SocketId = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)*$")] | Annotated[int, Meta(ge=0)]
"""A number as on the housing, or the whole index of the table with its dots (`2.14`: outlet 14 of the second unit)."""

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")


class PduSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """One PDU, and those of its sockets that feed this node: `outlets`, or `inlets` where it feeds nothing else."""

    name: Annotated[str, Meta(description="Short name; it stands in the names of devices, so keep it.")]
    host: Annotated[str, Meta(description="Address or host name.", min_length=1)]
    port: Annotated[int, Meta(description="UDP port.", ge=1, le=65_535)] = 161
    version: Annotated[Literal["2c", "3"], Meta(description="SNMP version.")] = "2c"
    community_file: Annotated[str, Meta(description="File with the community that may read; `2c` only.")] = ""
    user: Annotated[str, Meta(description="User; `3` only.")] = ""
    auth_key_file: Annotated[str, Meta(description="File with the user's authentication password; `3` only.")] = ""
    auth_protocol: Annotated[
        Literal["MD5", "SHA", "SHA224", "SHA256", "SHA384", "SHA512"], Meta(description="Digest of that password.")
    ] = "SHA256"
    privacy_key_file: Annotated[
        str, Meta(description="File with the user's privacy password; `3` only. Empty: messages are not encrypted.")
    ] = ""
    privacy_protocol: Annotated[
        Literal["DES", "AES128", "AES192", "AES256"], Meta(description="Cipher of that password.")
    ] = "AES128"
    context: Annotated[str, Meta(description="Context name; `3` only, and only where the agent wants one.")] = ""
    profile: Annotated[
        str, Meta(description="Which tables to read; `auto` asks the PDU what it is (its sysObjectID).", min_length=1)
    ] = "auto"
    outlets: Annotated[
        list[SocketId],
        Meta(description="This node's outlets: numbers as on the housing, or whole indices such as `2.14`."),
    ] = []
    inlets: Annotated[
        list[SocketId], Meta(description="Inlets of a PDU (or of a unit) that feeds nothing but this node.")
    ] = []
    max_watts: Annotated[
        Watts | None, Meta(description="Limit of each of them; a reading beyond three times this is refused.")
    ] = None
    timeout_seconds: Annotated[
        float, Meta(description="How long an answer may take; it is asked for twice.", ge=0.1, le=10)
    ] = 1.0
    values_per_request: Annotated[
        int, Meta(description="Values asked for at once; less for an agent that is silent at more.", ge=2, le=64)
    ] = 16

    def __post_init__(self) -> None:
        """Refuse what would read nothing, or the same energy twice."""
        if not _NAME.match(self.name):
            raise ValueError(f"name `{self.name}` is not made of letters, digits, `-` and `_`")
        if bool(self.outlets) == bool(self.inlets):
            raise ValueError(f"`{self.name}` needs either outlets or inlets (an inlet contains its outlets)")
        ids = [str(each) for each in (*self.outlets, *self.inlets)]
        if len(set(ids)) != len(ids):
            raise ValueError(f"`{self.name}` lists a socket twice")
        if self.version == "2c" and not self.community_file:
            raise ValueError(f"`{self.name}` needs community_file")
        if self.version == "3" and not self.user:
            raise ValueError(f"`{self.name}` needs user")
        if self.privacy_key_file and not self.auth_key_file:
            raise ValueError(f"`{self.name}` has privacy_key_file and needs auth_key_file with it")


class SnmpPduSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.snmp_pdu]`. interval_seconds: unset, 5; sensors of PDUs are renewed every 1 to 5 s.

    Each PDU is a table `[[power.snmp_pdu.pdus]]`.
    """

    interval_seconds: IntervalSeconds | None = None
    pdus: Annotated[list[PduSettings], Meta(description="The PDUs that feed this node.", min_length=1)]
    feed: Annotated[
        str, Meta(description="Name of the virtual feed that all these sockets together are.", min_length=1)
    ] = FEED
    profiles_directory: Annotated[
        str, Meta(description="Folder with own profiles (`*.toml`); they win over the shipped ones of the same name.")
    ] = ""

    def __post_init__(self) -> None:
        """Refuse PDUs that stand there twice: their sockets would be counted twice."""
        names = [pdu.name for pdu in self.pdus]
        if len(set(names)) != len(names):
            raise ValueError("two pdus have the same name")
        agents = [(pdu.host, pdu.port, pdu.community_file, pdu.user, pdu.context) for pdu in self.pdus]
        if len(set(agents)) != len(agents):
            raise ValueError("two pdus are the same agent; list all its outlets under one of them")
