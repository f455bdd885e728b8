"""One engine's part of a page that tells of several (data parallel replicas behind one server)."""

import re

_ENGINE_LABEL = re.compile(rb'[{,]engine="([^"]*)"')


def of_replica(body: bytes, replica: str) -> bytes:
    """The page without series whose `engine` label names another replica; an empty name keeps everything."""
    if not replica:
        return body
    wanted = replica.encode()
    return b"\n".join(line for line in body.split(b"\n") if _is_of(line, wanted))


def _is_of(line: bytes, replica: bytes) -> bool:
    label = _ENGINE_LABEL.search(line)
    return label is None or label[1] == replica
