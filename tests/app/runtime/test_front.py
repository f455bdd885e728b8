"""What the door passes on to another collector."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from jouled.app.runtime.front import Front
from jouled.app.runtime.requests.forward import Body


class Kept:
    def __init__(self) -> None:
        self.bodies: list[Body] = []

    def put(self, body: Body) -> None:
        self.bodies.append(body)


@pytest.mark.parametrize(("headers", "marked"), [({}, False), ({"X-Jouled-Forwarded": "1"}, True)])
def test_bodies_that_were_forwarded_are_known_by_their_header(headers: dict[str, str], marked: bool) -> None:
    kept = Kept()
    nothing = cast("Any", SimpleNamespace(pipeline=SimpleNamespace(provisional=None), receipts=None))
    front = Front(
        metering=nothing,
        publisher=nothing,
        store=nothing,
        power=nothing,
        ingest=nothing,
        kept=cast("Any", None),
        forget=cast("Any", None),
        forwarder=cast("Any", kept),
        extra=dict,
    )
    front.forward(cast("Any", SimpleNamespace(name="otlp")), b"{}", {"Content-Type": "application/json"} | headers)
    front.forward(cast("Any", SimpleNamespace(name="http_events")), b"{}", headers)
    assert kept.bodies == [Body(b"{}", "application/json", was_forwarded=marked)]
