"""A second truth for request joules: exact Shapley values of small engine steps with roofline time.

Independent of the attribution under test in both code and axiom: the energy of a step is a function of the set of its
members that is not affine (a step takes as long as its slower half, arithmetic or memory), and every request owes the
mean, over all orders of joining, of what it adds. At most eight requests run at once, so all 2⁸ subsets can be counted.
"""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations
from math import factorial
from typing import NamedTuple, TypeVar

MEMBERS_MAX = 8
CHUNK_TOKENS = 1024

Number = TypeVar("Number", int, float, Fraction)


def shapley(costs: Sequence[Number], members: int) -> list[Number]:
    """Shapley values of a game; `costs` by subset, as a bit mask; exact where the costs are fractions."""
    values = []
    weights = [Fraction(factorial(k) * factorial(members - k - 1), factorial(members)) for k in range(members)]
    exact = isinstance(costs[-1], Fraction)
    told = weights if exact else [float(weight) for weight in weights]
    for member in range(members):
        bit = 1 << member
        added = [0 * costs[0]] * members
        for subset in range(1 << members):
            if not subset & bit:
                added[subset.bit_count()] += costs[subset | bit] - costs[subset]
        values.append(sum((weight * total for weight, total in zip(told, added, strict=True)), 0 * costs[0]))
    return values


def shapley_by_permutations(cost: Callable[[frozenset[int]], Fraction], members: int) -> list[Fraction]:
    """The same by its definition: the mean over all orders of what each member adds when it joins."""
    values = [Fraction(0)] * members
    for order in permutations(range(members)):
        for position, member in enumerate(order):
            before = frozenset(order[:position])
            values[member] += cost(before | {member}) - cost(before)
    return [value / factorial(members) for value in values]


class Machine(NamedTuple):
    """A device with a dense model on it; joules, seconds, bytes and FLOPs in SI units."""

    idle_watts: float = 110.0
    uplift_watts: float = 60.0
    flops_per_second: float = 420e12
    bytes_per_second: float = 2.6e12
    joules_per_flop: float = 0.5e-12
    joules_per_byte: float = 52e-12
    launch_seconds: float = 2e-3
    parameters: float = 70e9
    weight_bytes: float = 140e9
    layers: int = 80
    hidden: int = 8192
    kv_bytes_per_token: float = 327_680.0

    def own_joules(self, flops: float, kv_bytes: float) -> float:
        """Energy of a member's own arithmetic and KV reads."""
        return self.joules_per_flop * flops + self.joules_per_byte * kv_bytes

    def step_joules(self, flops: float, kv_bytes: float) -> float:
        """Energy of one step: power for as long as the slower of arithmetic and memory takes, and the work itself."""
        watts = self.idle_watts + self.uplift_watts
        work = self.own_joules(flops, kv_bytes) + self.joules_per_byte * self.weight_bytes
        return watts * self.step_seconds(flops, kv_bytes) + work

    def step_seconds(self, flops: float, kv_bytes: float) -> float:
        """How long a step takes (roofline)."""
        moved = self.weight_bytes + kv_bytes
        return self.launch_seconds + max(flops / self.flops_per_second, moved / self.bytes_per_second)

    def member(self, tokens: int, context: int) -> tuple[float, float]:
        """(FLOPs, KV bytes) of a member that computes `tokens` behind `context` others."""
        attended = tokens * (context + tokens / 2)
        flops = 2 * self.parameters * tokens + 4 * self.layers * self.hidden * attended
        return flops, self.kv_bytes_per_token * (context + tokens)

    def shares(self, members: Sequence[tuple[float, float]]) -> list[float]:
        """Shapley values of one step, joules."""
        flops, moved, costs = [0.0], [0.0], [0.0]
        for own_flops, own_bytes in members:
            flops += [total + own_flops for total in flops]
            moved += [total + own_bytes for total in moved]
        costs += [self.step_joules(f, b) for f, b in zip(flops[1:], moved[1:], strict=True)]
        return shapley(costs, len(members))


class Served:
    """A request and its true joules; times in seconds.

    Beside the Shapley value: what it owes if the time of a step is simply shared (own work + equal share of the rest),
    and if all of the step's energy is.
    """

    def __init__(self, name: str, arrival: float, prompt: int, generated: int) -> None:
        self.name = name
        self.arrival = arrival
        self.prompt = prompt
        self.generated = generated
        self.start = self.first = self.last = 0.0
        self.computed = self.told = 0
        self.joules = 0.0
        self.affine_joules = 0.0
        self.equal_share_joules = 0.0


class History(NamedTuple):
    """What an engine did: its requests and its energy so far, as (seconds, joules, steps, prompt and output tokens)."""

    requests: list[Served]
    course: list[tuple[float, float, int, int, int]]


class Workload(NamedTuple):
    """Poisson arrivals, bursts of them if `burst` > 1; lengths are drawn evenly in log space."""

    requests: int = 60
    per_second: float = 0.8
    burst: int = 1
    pause_seconds: float = 0.0
    prompt: tuple[int, int] = (50, 3000)
    generated: tuple[int, int] = (1, 160)


def arrivals(workload: Workload, rng: random.Random) -> list[Served]:
    """The requests of a workload in order of arrival."""
    now, drawn = 1.0, []
    for index in range(workload.requests):
        now += rng.expovariate(workload.per_second)
        now += workload.pause_seconds if workload.burst > 1 and index % workload.burst == 0 else 0.0
        lengths = [round(low * (high / low) ** rng.random()) for low, high in (workload.prompt, workload.generated)]
        drawn.append(Served(f"r{index:03d}", now, *lengths))
    return drawn


def simulate(machine: Machine, workload: Workload, seed: int) -> History:
    """Continuous batching, first come first served, prompts in chunks; every step's energy by Shapley."""
    queue = arrivals(workload, random.Random(seed))
    requests, running = list(queue), []
    now = joules = 0.0
    steps = prompts = tokens = 0
    course = [(now, joules, steps, prompts, tokens)]
    while queue or running:
        if not running and queue[0].arrival > now:
            joules += machine.idle_watts * (queue[0].arrival - now)
            now = queue[0].arrival
            course.append((now, joules, steps, prompts, tokens))
        while queue and queue[0].arrival <= now and len(running) < MEMBERS_MAX:
            running.append(queue.pop(0))
        members, chunks = _members(running)
        work = [machine.member(n, r.computed + max(r.told - 1, 0)) for r, n in zip(members, chunks, strict=True)]
        totals = sum(flops for flops, _ in work), sum(moved for _, moved in work)
        begun, spent = now, machine.step_joules(*totals)
        now, joules, steps = now + machine.step_seconds(*totals), joules + spent, steps + 1
        own = [machine.own_joules(*figures) for figures in work]
        for request, count, share, alone in zip(members, chunks, machine.shares(work), own, strict=True):
            request.joules += share
            request.affine_joules += alone + (spent - sum(own)) / len(members)
            request.equal_share_joules += spent / len(members)
            _progress(request, count, begun, now)
        prompts += sum(request.prompt for request in members if request.first == now)
        tokens += sum(1 for request in members if request.told and request.computed == request.prompt)
        running = [request for request in running if request.told < request.generated or not request.told]
        course.append((now, joules, steps, prompts, tokens))
    course.append((now + 5.0, joules + 5.0 * machine.idle_watts, steps, prompts, tokens))
    return History(requests, course)


def _members(running: Sequence[Served]) -> tuple[list[Served], list[int]]:
    """Who takes part in a step, with how many tokens: all that decode, and prompts as far as the chunk reaches."""
    members, chunks, left = [], [], CHUNK_TOKENS
    for request in running:
        count = 1 if request.computed == request.prompt else min(request.prompt - request.computed, left)
        left -= count if request.computed < request.prompt else 0
        if count:
            members.append(request)
            chunks.append(count)
    return members, chunks


def _progress(request: Served, count: int, begun: float, now: float) -> None:
    if request.computed == 0:
        request.start = begun
    if request.computed < request.prompt:
        request.computed += count
        if request.computed < request.prompt:
            return
        request.first = now
    request.told += 1
    request.last = now
