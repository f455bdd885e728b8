"""From the energy of a closed cell to what each unit of work in it costs, and what was used up to any instant of it."""

from collections.abc import Callable
from typing import NamedTuple

from jouled.core.attribution.cells import start_of
from jouled.core.attribution.load import Lost, Row
from jouled.core.attribution.priors import Betas
from jouled.core.attribution.request import ZERO, Integrals, Prefix
from jouled.core.attribution.sharing import SharedTime
from jouled.model.units import NANOSECONDS_PER_SECOND

_NOTHING_LOST = Lost(0.0, 0.0, 0.0, 0.0, 0.0)


class Split(NamedTuple):
    """One cell's energy of one engine, microjoules: `energy` of its devices, of which `idle` is nobody's."""

    energy: int
    idle: int
    static: float


class CellRates(NamedTuple):
    """λ of every channel, microjoules per unit of work; what the channels were given, static first; and what was not.

    spent: empty where nothing is to be learned of the cell. unexplained: energy that no work explains.
    """

    rates: Prefix = ZERO
    spent: tuple[float, ...] = ()
    unexplained: int = 0


def expected_of(row: Row, beta: Betas) -> tuple[float, float, float, float, float]:
    """Expected dynamic energy of the channels in the priors' scale; only ratios of it are used."""
    lost = row.lost or _NOTHING_LOST
    return (
        beta.step * beta.weight_reads(row.steps, row.prefill + lost.prefill + row.decode + lost.decode),
        beta.prefill * (row.prefill + lost.prefill),
        beta.attention * (row.attention + lost.attention),
        beta.decode * (row.decode + lost.decode),
        beta.kv * (row.kv + lost.kv),
    )


def shared_time(cell: int, row: Row) -> SharedTime | None:
    """Where residents change within a cell, who was there when; lost work has members, but no times."""
    if row.lost:
        return None
    changes = [(request.work.begin_ns, 1) for request in row.starting]
    changes += [(request.work.end_ns, -1) for request in row.ending]
    shared = SharedTime(start_of(cell), row.members, changes) if changes else None
    return shared if shared is not None and shared.busy_seconds > 0.0 else None


def cell_rates(row: Row, split: Split, beta: Betas, shared_seconds: float, *, all_dynamic: bool) -> CellRates:
    """What each unit of a cell's work costs. shared_seconds: over which static power and steps are parted.

    all_dynamic: static power is paid like the rest.
    """
    held = split.energy - split.idle
    if not row.active or held <= 0:
        return CellRates(unexplained=max(held, 0))
    expected = expected_of(row, beta)
    total = sum(expected)
    static, dynamic = min(split.static, float(held)), held - min(split.static, float(held))
    if all_dynamic and total > 0.0:
        static, dynamic = 0.0, float(held)
    if total <= 0.0:
        return CellRates(Prefix(resident=static / shared_seconds if shared_seconds else 0.0), (), int(dynamic))
    scale = dynamic / total
    rates = Prefix(
        resident=static / shared_seconds,
        step=scale * expected[0] / shared_seconds,
        prefill=scale * beta.prefill,
        attention=scale * beta.attention,
        decode=scale * beta.decode,
        kv=scale * beta.kv,
    )
    return CellRates(rates, (static, *(scale * share for share in expected)))


def integrals(
    since: Integrals, rates: Prefix, cell: int, row: Row, shared: SharedTime | None
) -> Callable[[int], Integrals]:
    """The integrals up to an instant of a cell, its end included; `since`: up to its begin."""
    cell_ns, pace, elapsed = start_of(cell), row.pace, row.elapsed
    shared_at = None if shared is None else shared.at
    resident, step, prefill, attention, decode, kv, moment = since
    resident_rate, step_rate, prefill_rate, attention_rate, decode_rate, kv_rate, _ = rates

    def at(t_ns: int) -> Integrals:
        seconds = (t_ns - cell_ns) / NANOSECONDS_PER_SECOND
        paced = pace * seconds
        shared_seconds = seconds if shared_at is None else shared_at(t_ns)
        kv_paced = kv_rate * paced
        return (
            resident + resident_rate * shared_seconds,
            step + step_rate * shared_seconds,
            prefill + prefill_rate * seconds,
            attention + attention_rate * seconds,
            decode + decode_rate * paced,
            kv + kv_paced,
            moment + kv_paced * (elapsed + paced / 2),
        )

    return at
