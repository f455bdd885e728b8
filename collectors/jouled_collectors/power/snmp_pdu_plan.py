"""Which column each socket of a PDU is read from, found by asking once.

Power or energy: a counter says nothing of when inside a step its energy was used. It is taken where a socket that is
usually loaded makes a step in each interval; where steps take longer, power is read and the ledger integrates it. The
0.1 kWh of APC are 36 s at 10 kW: never taken. The 1 Wh of most others are taken for outlets from 7.2 s on.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import nanoseconds
from jouled_collectors.power import snmp_pdu_values as values
from jouled_collectors.power.snmp_pdu_client import Client, Unreadable
from jouled_collectors.power.snmp_pdu_profile import (
    AUTO,
    Column,
    EnergyColumn,
    PowerColumn,
    Profile,
    Sockets,
    candidates,
)
from jouled_collectors.power.snmp_pdu_settings import PduSettings
from jouled_collectors.power.snmp_pdu_values import NoValueError

USUAL_OUTLET_WATTS, USUAL_INLET_WATTS = 500.0, 5_000.0
"""One power supply of an inference host at rest, and all of such a host's: what decides whether steps are fine."""

SOURCE = "snmp_pdu"


class Meter(Struct, frozen=True, kw_only=True):
    """How one socket is read. id: as configured."""

    id: str
    device: Device
    column: Column
    index: str
    digits: int = 0
    delay_ns: int = 0

    @property
    def oids(self) -> tuple[str, ...]:
        """What to ask for each reading; at most two objects."""
        return tuple(_at(oid, self.index) for oid in (self.column.oid, self.column.available_oid) if oid)

    def reading(self, answers: Mapping[str, int | Unreadable], t_ns: int) -> EnergyReading | PowerReading:
        """The reading out of answers taken at `t_ns`. Raises `NoValueError`."""
        if self.column.available_oid:
            available = _told(answers, _at(self.column.available_oid, self.index))
            if available != values.AVAILABLE:
                raise NoValueError("is marked by the PDU as not available")
        raw = _told(answers, _at(self.column.oid, self.index))
        if isinstance(self.column, EnergyColumn):
            return EnergyReading(self.device.name, t_ns, values.microjoules(self.column, raw, self.digits))
        if isinstance(self.column, PowerColumn):
            watts = values.watts_of(self.column, raw, self.digits)
            return PowerReading(self.device.name, t_ns - self.delay_ns, watts)
        raise TypeError(f"neither power nor energy: {self.column!r}")


class Plan(Struct, frozen=True, kw_only=True):
    """How the sockets of one PDU are read. failures: why others cannot be, by their id. why: for the log."""

    profile: Profile
    meters: tuple[Meter, ...]
    failures: Mapping[str, str]
    why: str

    def requests(self, most_values: int) -> Iterable[Sequence[Meter]]:
        """The meters in groups that one request each can ask for; what belongs to a socket stays together."""
        group: list[Meter] = []
        count = 0
        for meter in self.meters:
            if count + len(meter.oids) > most_values:
                yield group
                group, count = [], 0
            group.append(meter)
            count += len(meter.oids)
        if group:
            yield group


def unplanned(settings: PduSettings, feed: str) -> tuple[Device, ...]:
    """All sockets as devices before anything is known of them: one that cannot be read is missed, not overlooked."""
    return tuple(_device(settings, each, feed) for each in socket_ids(settings))


def socket_ids(settings: PduSettings) -> list[str]:
    """The sockets as configured."""
    return [str(each) for each in settings.outlets or settings.inlets]


async def find_plan(
    client: Client, settings: PduSettings, profiles: Mapping[str, Profile], feed: str, interval_seconds: float
) -> Plan:
    """Find the profile and for each socket the column.

    Raises:
        SourceError: the agent is gone, is no PDU that a profile knows, or has none of the sockets.
    """
    fitting = await _fitting(client, settings, profiles)
    failures: Mapping[str, str] = {}
    for profile in fitting:
        plan = await _try(client, settings, profile, feed, interval_seconds)
        if plan is not None and plan.meters:
            return plan
        failures = failures or (plan.failures if plan is not None else {})
    if failures:
        raise sockets_missing(settings, failures)
    raise _no_sockets(settings, fitting)


def sockets_missing(settings: PduSettings, failures: Mapping[str, str]) -> SourceError:
    """Some sockets cannot be read; the others go on."""
    kind = "outlet" if settings.outlets else "inlet"
    told = "; ".join(f"{kind} {each} {why}" for each, why in sorted(failures.items()))
    return SourceError(
        SourceState.DOWN,
        f"{kind}_missing",
        f"{settings.name}: {told}",
        mend=f"Correct `{kind}s` or `profile` of this PDU (many PDUs meter only the whole unit: then use its `inlets`)",
    )


async def _fitting(client: Client, settings: PduSettings, profiles: Mapping[str, Profile]) -> list[Profile]:
    """The profiles to try. Raises `SourceError` where there is none."""
    if settings.profile == AUTO:
        object_id = await client.object_id()
        found = candidates(profiles, object_id)
        what = f"no profile knows its sysObjectID {object_id or '(it tells none)'}"
    else:
        found = [profiles[settings.profile]] if settings.profile in profiles else []
        what = f"there is no profile `{settings.profile}`"
    if found:
        return found
    raise SourceError(
        SourceState.ABSENT,
        "unknown_profile",
        f"{settings.name}: {what}",
        mend=f"Set `profile` to one of {', '.join(sorted(profiles))}, or write one and set profiles_directory",
    )


def _no_sockets(settings: PduSettings, fitting: Iterable[Profile]) -> SourceError:
    kind = "outlets" if settings.outlets else "inlets"
    names = ", ".join(profile.name for profile in fitting)
    return SourceError(
        SourceState.ABSENT,
        f"no_{kind}",
        f"{settings.name}: PDUs of profile {names} do not meter {kind}",
        mend="Use the other one of `outlets` and `inlets`",
    )


async def _try(
    client: Client, settings: PduSettings, profile: Profile, feed: str, interval_seconds: float
) -> Plan | None:
    """What this profile makes of the sockets; `None` if it has no table for them."""
    sockets = profile.outlets if settings.outlets else profile.inlets
    if sockets is None:
        return None
    steps = _fine_steps(sockets, settings, interval_seconds)
    columns = [column for column, fine in ((sockets.energy, steps), (sockets.power, True)) if column and fine]
    indices, refused = _indices(settings, sockets)
    failures = dict.fromkeys(indices, "")
    meters: dict[str, Meter] = {}
    for column in columns:
        found = [_meter(settings, profile, column, each, indices[each], feed) for each in failures]
        for meter, outcome in zip(found, await _probe(client, settings, found), strict=True):
            if isinstance(outcome, Meter):
                meters[meter.id] = outcome
                del failures[meter.id]
            else:
                failures[meter.id] = outcome
    ordered = tuple(meters[each] for each in socket_ids(settings) if each in meters)
    return Plan(
        profile=profile, meters=ordered, failures=failures | refused, why=_why(profile, sockets, ordered, steps)
    )


def _indices(settings: PduSettings, sockets: Sockets) -> tuple[dict[str, str], dict[str, str]]:
    """The table's index of each socket by its id; and why other ids have none of their own."""
    indices: dict[str, str] = {}
    refused: dict[str, str] = {}
    for each in socket_ids(settings):
        index = each if "." in each else sockets.index.replace("{id}", each)
        twin = next((known for known, taken in indices.items() if taken == index), None)
        if twin is not None:
            refused[each] = f"is the same as {twin}"
        elif "{id}" not in sockets.index and each not in {"1", index}:
            refused[each] = "is not there: such PDUs have number 1 only"
        else:
            indices[each] = index
    return indices, refused


async def _probe(client: Client, settings: PduSettings, meters: Sequence[Meter]) -> list[Meter | str]:
    """Read each once: the meter with its digits, or why it cannot be read."""
    answers = await ask(client, _everything(meters), settings.values_per_request)
    return [_probed(meter, answers) for meter in meters]


async def ask(client: Client, oids: Sequence[str], most_values: int) -> dict[str, int | Unreadable]:
    """Ask for many objects, as many at once as the agent bears. Raises `SourceError`."""
    answers: dict[str, int | Unreadable] = {}
    for start in range(0, len(oids), most_values):
        answers.update(await client.numbers(oids[start : start + most_values]))
    return answers


def _everything(meters: Iterable[Meter]) -> list[str]:
    return [oid for meter in meters for oid in (*meter.oids, *_digits_oid(meter))]


def _digits_oid(meter: Meter) -> tuple[str, ...]:
    return (_at(meter.column.digits_oid, meter.index),) if meter.column.digits_oid else ()


def _probed(meter: Meter, answers: Mapping[str, int | Unreadable]) -> Meter | str:
    try:
        digits = [values.checked_digits(_told(answers, oid)) for oid in _digits_oid(meter)]
        meter.reading(answers, 0)
    except NoValueError as error:
        return str(error)
    known = replace(meter, digits=digits[0] if digits else 0)
    if isinstance(known.column, EnergyColumn):
        wrap = values.wrap_microjoules(known.column, known.digits)
        return replace(known, device=replace(known.device, wrap_microjoules=wrap))
    return known


def _meter(settings: PduSettings, profile: Profile, column: Column, socket_id: str, index: str, feed: str) -> Meter:
    # A column of energy counts up to now, one of power is the mean of the time before.
    return Meter(
        id=socket_id,
        device=_device(settings, socket_id, feed, profile.vendor, _method(column)),
        column=column,
        index=index,
        delay_ns=nanoseconds(profile.averaging_seconds) // 2,
    )


def _device(settings: PduSettings, socket_id: str, feed: str, vendor: str = "", method: str = "") -> Device:
    """A socket. An inlet that feeds only this node is a member of the node's feed just as an outlet is."""
    kind = "outlet" if settings.outlets else "inlet"
    return Device(
        name=f"{settings.name}-{kind}-{socket_id}",
        kind=DeviceKind.OUTLET,
        parent=feed,
        vendor=vendor,
        source=SOURCE,
        method=method,
        max_watts=settings.max_watts,
    )


def _method(column: Column) -> str:
    quantity = "energy" if isinstance(column, EnergyColumn) else "power"
    return f"snmp_{quantity}" if column.verified else f"snmp_{quantity}_unverified"


def _fine_steps(sockets: Sockets, settings: PduSettings, interval_seconds: float) -> bool:
    usual_watts = USUAL_OUTLET_WATTS if settings.outlets else USUAL_INLET_WATTS
    return sockets.energy is not None and values.step_joules(sockets.energy) <= usual_watts * interval_seconds


def _why(profile: Profile, sockets: Sockets, meters: Sequence[Meter], fine_steps: bool) -> str:
    energy = sum(isinstance(meter.column, EnergyColumn) for meter in meters)
    words = [f"profile {profile.name}", f"{energy} by energy, {len(meters) - energy} by power"]
    if sockets.energy is None:
        words.append("it has no energy counter")
    elif not fine_steps:
        words.append(f"a step of its energy counter, {values.step_joules(sockets.energy):g} J, is too coarse here")
    elif energy < len(meters):
        words.append("some have no energy counter")
    if not all(meter.column.verified for meter in meters):
        words.append("NOT VERIFIED on such a PDU: compare with its own page")
    return "; ".join(words)


def _told(answers: Mapping[str, int | Unreadable], oid: str) -> int:
    """The number told of an object. Raises `NoValueError` if there is none."""
    answer = answers.get(oid, Unreadable("was not asked for"))
    if isinstance(answer, Unreadable):
        raise NoValueError(f"{answer.reason} ({oid})")
    return answer


def _at(column_oid: str, index: str) -> str:
    return column_oid.replace("{index}", index)
