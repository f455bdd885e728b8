"""Request, trace and span ids under other names, where the operator wants no id of a client to be kept.

A name is a keyed hash (HMAC-SHA-256, RFC 2104): the same id has the same name on this node, and nobody without the key
can try ids until one fits. The shape stays, so that receipts are found by all the forms of an id that an engine uses.
"""

import hmac
import logging
import os
import re
import secrets
from pathlib import Path

from msgspec.structs import replace

from jouled.model.errors import JouledError
from jouled.model.requests import RequestEvent, RequestStart

KEY_FILE = "id.key"
_KEY_BYTES = 32
_DIGITS = 32
_SPAN_DIGITS = 16
_CHAT, _COMPLETION = "chatcmpl-", "cmpl-"
_PROMPT = re.compile(r"-\d{1,3}\Z")
_LONGEST_PROMPT = 4
"""More than three digits are the end of an id (a UUID), not the number of a prompt."""

_log = logging.getLogger(__name__)


class Pseudonyms:
    """Names by one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of_event(self, event: RequestEvent | RequestStart) -> RequestEvent | RequestStart:
        """The event with its ids replaced; nothing else of it changes."""
        if isinstance(event, RequestStart):
            return replace(event, id=self.request_id(event.id))
        return replace(
            event,
            id=self.request_id(event.id),
            trace_id=self._name(event.trace_id, _DIGITS),
            span_id=self._name(event.span_id, _SPAN_DIGITS),
        )

    def request_id(self, request_id: str) -> str:
        """The name of a request id, or of what a client knows of it; prefix and number of the prompt stay.

        vLLM answers with `chatcmpl-<X-Request-Id>` or `cmpl-<X-Request-Id>-<number>`. A client may send the id of an
        answer as its own: then prefixes pile up.
        """
        before, behind = "", ""
        while True:
            if request_id.startswith(_CHAT):
                before += _CHAT
                request_id = request_id.removeprefix(_CHAT)
            elif request_id.startswith(_COMPLETION):
                before += _COMPLETION
                request_id = request_id.removeprefix(_COMPLETION)
                number = _PROMPT.search(request_id, max(len(request_id) - _LONGEST_PROMPT, 0))
                if number:
                    behind = number[0] + behind
                    request_id = request_id[: number.start()]
            else:
                return before + self._name(request_id, _DIGITS) + behind

    def _name(self, text: str, digits: int) -> str:
        if not text:
            return ""
        return hmac.digest(self._key, text.encode(errors="surrogatepass"), "sha256").hex()[:digits]


def load_or_make(directory: Path) -> Pseudonyms:
    """The names of this node; the key is made when there is none.

    Raises:
        JouledError: it can neither be read nor written, or is too short to hide anything.
    """
    path = directory / KEY_FILE
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        raise JouledError(f"the key of the ids {path} cannot be used: {error.strerror}") from error
    if len(key) < _KEY_BYTES:
        raise JouledError(
            f"the key of the ids {path} is damaged", mend="Remove it: a new one is made, old ids stay hidden"
        )
    return Pseudonyms(key)


def _make(path: Path) -> None:
    fresh = path.with_name(f"{path.name}.next")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _log.info("ids are replaced by keyed hashes from now on; the key is %s", path)
