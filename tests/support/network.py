"""Networks of their own on this machine, each at the other end of one cable. They need root."""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.tools import run


@dataclass(frozen=True, slots=True)
class Network:
    """A network namespace and its cable to this host.

    name: of the namespace. our_end, their_end: the names of the cable's two interfaces, here and over there.
    ours, theirs: their IPv4 addresses.
    """

    name: str
    our_end: str
    their_end: str
    ours: str
    theirs: str

    @classmethod
    def numbered(cls, number: int) -> "Network":
        """The one with this number, 0 to 16383: a /30 of 10.213.0.0/16."""
        name = f"jouled{number}"
        ours, theirs = (f"10.213.{number // 64}.{number % 64 * 4 + end}" for end in (1, 2))
        return cls(name, f"{name}h", f"{name}c", ours, theirs)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network as a container has it: the end of its cable here is its gateway."""
    made = _taken()
    try:
        for command in (
            f"link add {made.our_end} type veth peer name {made.their_end} netns {made.name}",
            f"addr add {made.ours}/30 dev {made.our_end}",
            f"link set {made.our_end} up",
            f"-n {made.name} addr add {made.theirs}/30 dev {made.their_end}",
            f"-n {made.name} link set {made.their_end} up",
            f"-n {made.name} link set lo up",
            f"-n {made.name} route add default via {made.ours}",
        ):
            ip(*command.split())
        yield made
    finally:
        for command in (f"netns del {made.name}", f"link del {made.our_end}"):
            subprocess.run(["ip", *command.split()], check=False, capture_output=True)


def ip(*words: str) -> None:
    """`ip` of iproute2."""
    done = run(["ip", *words])
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stdout}"


def _taken() -> Network:
    # A run that was killed leaves its networks behind, and another may be under way: the kernel gives a name once.
    for number in random.sample(range(16_384), 20):
        candidate = Network.numbered(number)
        if run(["ip", "netns", "add", candidate.name]).returncode == 0:
            return candidate
    raise AssertionError("no network namespace can be made here: `ip netns add` needs root")
