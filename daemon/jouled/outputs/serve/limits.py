"""How much one peer may take: connections, and wrong credentials."""

from collections import Counter, OrderedDict
from ipaddress import IPv6Address, ip_address

CONNECTIONS = 256
"""Connections by TCP at a time, handshakes included."""
CONNECTIONS_PER_PEER = 64
CONNECTIONS_FROM_LOOPBACK = 192
"""Gateways of this host hold a connection for each event until it is committed; some are left for scrapes."""

_WRONG_IN_A_ROW = 10
"""So many wrong credentials a peer may send at once ..."""
_FORGIVEN_SECONDS = 6.0
"""... and one more each time this has passed. A scraper with a wrong password stays below that."""
_PEERS_REMEMBERED = 4096

_HOST_BITS = 64


def peer_of(host: str) -> str:
    """Whom an address stands for: itself, but one host may have all addresses of an IPv6 network of 64 bits."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    if address.is_loopback:
        return str(address)
    return str(IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS))


class Seats:
    """Connections that are open, in all and from each peer."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def refusal(self, peer: str) -> str:
        """Why this peer gets no more connections now; empty if it does."""
        if self._taken[peer] >= (CONNECTIONS_FROM_LOOPBACK if _is_loopback(peer) else CONNECTIONS_PER_PEER):
            return "connections_per_peer"
        return "connections" if self._taken.total() >= CONNECTIONS else ""

    def take(self, peer: str) -> None:
        """One connection more."""
        self._taken[peer] += 1

    def leave(self, peer: str) -> None:
        """One connection less."""
        self._taken[peer] -= 1
        if self._taken[peer] <= 0:
            del self._taken[peer]


def _is_loopback(peer: str) -> bool:
    try:
        return ip_address(peer).is_loopback
    except ValueError:
        return False


REQUESTS_PER_SECOND = 100.0
"""From one peer in the long run; 32 gateways that post every event by itself stay below it."""
REQUESTS_FROM_LOOPBACK = 2_000.0
_BURST_SECONDS = 10.0


class Rates:
    """Requests of each peer, as many as its rate gives in the long run and so many seconds' worth at once."""

    def __init__(self) -> None:
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By peer: seconds' worth of its rate that is used up, at what time."""

    def wait_seconds(self, peer: str, now: float) -> float:
        """Count a request at this monotonic time; how long the peer has to wait if it is one too many, else 0."""
        used, at = self._used.get(peer, (0.0, now))
        rate = REQUESTS_FROM_LOOPBACK if _is_loopback(peer) else REQUESTS_PER_SECOND
        used = max(0.0, used - (now - at)) + 1.0 / rate
        if used > _BURST_SECONDS:
            return used - _BURST_SECONDS
        self._used[peer] = (used, now)
        self._used.move_to_end(peer)
        if len(self._used) > _PEERS_REMEMBERED:
            self._used.popitem(last=False)
        return 0.0


class Guesses:
    """Wrong credentials of each peer; they are forgiven with time. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By peer: how many were wrong, at what time."""

    def wait_seconds(self, peer: str, now: float) -> float:
        """How long this peer has to wait until it may try again; 0 if it may."""
        return max(0.0, (self._count(peer, now) + 1 - _WRONG_IN_A_ROW) * _FORGIVEN_SECONDS)

    def add(self, peer: str, now: float) -> None:
        """It sent wrong credentials."""
        self._wrong[peer] = (self._count(peer, now) + 1, now)
        self._wrong.move_to_end(peer)
        if len(self._wrong) > _PEERS_REMEMBERED:
            self._wrong.popitem(last=False)

    def _count(self, peer: str, now: float) -> float:
        count, at = self._wrong.get(peer, (0.0, now))
        return max(0.0, count - (now - at) / _FORGIVEN_SECONDS)
