"""Why ipmitool gave no reading, from the words it prints."""

import re
from typing import NamedTuple

from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.ipmi_process import Output
from jouled_collectors.power.network import LET_OUT


class _Fault(NamedTuple):
    state: SourceState
    reason: str
    message: str
    mend: str = ""


_CREDENTIALS = _Fault(
    SourceState.DENIED,
    "credentials",
    "refuses user or password",
    "Check user and password_file of [power.ipmi] (a password has at most 20 bytes), and that the BMC lets this user in"
    " by IPMI over LAN: ipmitool user list 1, ipmitool channel getaccess 1",
)
_PRIVILEGE = _Fault(
    SourceState.DENIED,
    "privilege",
    "asks for a higher privilege",
    'Set privilege = "operator" of [power.ipmi], and give the BMC\'s user that privilege',
)
_NO_DCMI = _Fault(
    SourceState.ABSENT, "no_dcmi", "has no DCMI power reading", "Use [power.redfish], or the outlets of a PDU"
)
_DISABLED = _Fault(
    SourceState.ABSENT,
    "dcmi_disabled",
    "has its DCMI power reading turned off",
    "Turn on DCMI (power monitoring) in the BMC's settings; some need a licence for it",
)
_BUSY = _Fault(
    SourceState.DOWN, "busy", "is busy", "If this lasts: ask it less often, or restart it (ipmitool mc reset cold)"
)
_REFUSED = _Fault(
    SourceState.DOWN,
    "refused",
    "refuses to read its power",
    "If this lasts: look for newer firmware, or use [power.redfish]",
)
_CIPHER = _Fault(
    SourceState.DOWN,
    "cipher",
    "refuses the cipher suite",
    "Set cipher_suite = 17 or cipher_suite = 3 of [power.ipmi]; `ipmitool channel getciphers ipmi 1` lists them",
)
_NO_ANSWER = _Fault(
    SourceState.DOWN, "no_answer", "does not answer", "If this lasts: restart it (ipmitool mc reset cold)"
)
_UNREACHABLE = _Fault(
    SourceState.DOWN,
    "unreachable",
    "cannot be reached",
    f"Check host and port of [power.ipmi], IPMI over LAN in the BMC's settings, and the way there (UDP 623); {LET_OUT}",
)

_BY_COMPLETION_CODE = {
    0xC0: _BUSY,
    0xC1: _NO_DCMI,
    0xC2: _NO_DCMI,
    0xC3: _BUSY,
    0xC9: _NO_DCMI,
    0xCB: _NO_DCMI,
    0xCC: _NO_DCMI,
    0xCE: _BUSY,
    0xD2: _BUSY,
    0xD4: _PRIVILEGE,
    0xD6: _DISABLED,
}
"""Completion codes of IPMI 2.0, table 5-2, as far as they say more than that it failed."""

_COMPLETION_CODE = re.compile(r"DCMI request failed because:.{0,80}?\(([0-9a-f]{1,2})\)", re.IGNORECASE)

_BY_WORDS = (
    (r"rakp 2 hmac is invalid|unauthorized name|illegal parameter|is longer than \d+ bytes", _CREDENTIALS),
    (r"unauthorized role|invalid role", _PRIVILEGE),
    (
        r"no response from rakp 1",
        _Fault(
            SourceState.DOWN,
            "no_answer",
            "answers, but not to this user",
            "Check user of [power.ipmi]: some BMCs are silent to one they do not know",
        ),
    ),
    (r"set session privilege level to \w+ failed", _PRIVILEGE),
    (r"a valid dcmi command was not returned", _NO_DCMI),
    (r"insufficient resources", _BUSY),
    (r"(?:confidentiality|integrity|authentication) algorithm|(?:no matching|unsupported) cipher suite", _CIPHER),
    (
        r"does not support ipmi v2",
        _Fault(
            SourceState.DOWN,
            "no_ipmi_2",
            "does not speak IPMI 2.0 (RMCP+)",
            "Turn on IPMI 2.0 over LAN in the BMC's settings, or use [power.redfish]",
        ),
    ),
    (
        r"address lookup for",
        _Fault(
            SourceState.DOWN, "unknown_host", "has an unknown name", "Check host of [power.ipmi], or the name server"
        ),
    ),
    (
        r"could not open device",
        _Fault(
            SourceState.DOWN,
            "device",
            "lost its device",
            "See `dmesg | grep -i ipmi`; modprobe -a ipmi_devintf ipmi_si",
        ),
    ),
    (r"unable to establish|get auth capabilities|could not open socket|operation not permitted", _UNREACHABLE),
    (r"unable to get dcmi information|no data available|unable to send command|error receiving", _NO_ANSWER),
)


def fault(output: Output, where: str) -> SourceError:
    """What this output, which holds no reading, says about the BMC `where`."""
    found = _by_code(output.text) or _by_words(output.text) or _by_end(output)
    return SourceError(found.state, found.reason, f"{where} {found.message}", mend=found.mend)


def _by_code(text: str) -> _Fault | None:
    match = _COMPLETION_CODE.search(text)
    if match is None:
        return None
    code = int(match[1], 16)
    found = _BY_COMPLETION_CODE.get(code, _REFUSED)
    return found._replace(message=f"{found.message} (completion code {code:#04x})")


def _by_words(text: str) -> _Fault | None:
    return next((found for words, found in _BY_WORDS if re.search(words, text, re.IGNORECASE)), None)


def _by_end(output: Output) -> _Fault:
    if output.is_late:
        return _NO_ANSWER._replace(message="does not answer in time")
    told = f"{len(output.text)} characters" + (", and was stopped" if output.is_too_much else "")
    return _Fault(
        SourceState.DOWN,
        "garbage",
        f"cannot be understood: ipmitool gave no power reading ({told})",
        "See what `ipmitool dcmi power reading` prints",
    )
