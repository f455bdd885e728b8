"""`jouled check`: sources, permissions, engines and sinks: what works, what does not, and what mends it."""

import argparse
import asyncio
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from jouled.api import EngineCollector
from jouled.app.cli.check_discovery import look_for_engines
from jouled.app.cli.check_outputs import look_at_outputs, output_lines
from jouled.app.cli.check_priors import prior_notes
from jouled.app.cli.check_receivers import look_at_receivers, receiver_lines
from jouled.app.cli.console import config_argument, loaded, say, seconds, tell
from jouled.app.config.faults import nearest
from jouled.app.config.types import Config, EngineConfig
from jouled.app.runtime.plugins import Plugins, load_plugins
from jouled.app.runtime.probe import TIMEOUT_SECONDS, Probe, probe_all
from jouled.core.accounting.attainment import off_bounds
from jouled.model.errors import SourceError, SourceState
from jouled.model.parameters import Slo
from jouled.model.units import joules

NAME = "check"
SUMMARY = "what works on this node, what does not, and what mends it"

MILLISECONDS = 1000.0

_WANTED = (
    "model",
    "prompt_tokens",
    "cached_prompt_tokens",
    "generation_tokens",
    "requests_running",
    "requests_waiting",
    "steps",
)
"""What makes energy shares better if an engine's page tells it."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    config_argument(parser)
    parser.add_argument(
        "--timeout", type=seconds, default=TIMEOUT_SECONDS, metavar="TIME", help="for each source (default 10s)"
    )


class EngineLook(Struct, frozen=True, kw_only=True):
    """What one look at an engine found. `missing`: what its page does not tell; `notes`: on its sizes and its SLOs."""

    name: str
    url: str
    works: bool
    message: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def execute(arguments: argparse.Namespace) -> int:
    """Look at everything once; 0 if all of it works."""
    config = loaded(arguments)
    plugins = load_plugins()
    for refused in plugins.refused:
        tell(f"jouled: {refused}")
    origin = str(arguments.config or "configuration")
    probes = _power(config, plugins, origin, arguments.timeout)
    processes = {device: pids for probe in probes for device, pids in probe.processes.items()}
    devices = [device for probe in probes for device in probe.devices]
    to_look_at, notes = look_for_engines(config.engines, plugins.engines, processes, devices)
    engines = asyncio.run(_look_at(to_look_at, plugins.engines, config.slo))
    receivers = look_at_receivers(config, plugins, origin)
    outputs = asyncio.run(look_at_outputs(config, plugins, origin))
    for line in [
        *_power_lines(probes),
        "",
        *_engine_lines(engines),
        *(f"  note   {note}" for note in notes),
        *receiver_lines(receivers),
        *output_lines(outputs),
    ]:
        say(line)
    good = _all_good(probes, engines, configured=bool(config.power))
    works = [*(look.works for look in receivers), *(look.works for look in outputs)]
    return 0 if good and all(works) else 1


def _power(config: Config, plugins: Plugins, origin: str, timeout_seconds: float) -> list[Probe]:
    settings = plugins.power_settings(config.power, origin) if config.power else plugins.discoverable()
    return probe_all(plugins.power, settings, timeout_seconds)


async def _look_at(
    engines: Sequence[EngineConfig], collectors: Mapping[str, EngineCollector], slos: Sequence[Slo]
) -> list[EngineLook]:
    return await asyncio.gather(*(_look(engine, collectors, slos) for engine in engines))


async def _look(engine: EngineConfig, collectors: Mapping[str, EngineCollector], slos: Sequence[Slo]) -> EngineLook:
    from jouled.app.runtime.engines.facts import shown, told_by_process
    from jouled.app.runtime.engines.pages import fetch, open_session

    def told(
        message: str, *, works: bool = False, missing: tuple[str, ...] = (), notes: tuple[str, ...] = ()
    ) -> EngineLook:
        return EngineLook(name=engine.name, url=engine.url, works=works, message=message, missing=missing, notes=notes)

    if not engine.url:
        return told("no page to read, request events only", works=True, notes=await prior_notes(engine, ""))
    collector = collectors.get(engine.type)
    if collector is None:
        return told(f"no engine collector is called `{engine.type}`. {nearest(engine.type, collectors)}")
    try:
        async with open_session() as session:
            body = await fetch(session, engine.url.rstrip("/") + collector.page_path, engine.token_file)
        page = collector.page(body)
        process = await asyncio.to_thread(told_by_process, collector, engine.pid)
    except (SourceError, ValueError) as error:
        return told(str(error))
    except Exception as error:  # noqa: BLE001 - the boundary to plug-ins: the rest of the node is looked at all the same
        return told(f"its collector {engine.type} failed unexpectedly: {type(error).__name__}: {error}")
    model = engine.model or page.model or page.facts.model or process.model
    told_elsewhere = {"model"} if model else set()
    missing = tuple(name for name in _WANTED if name not in told_elsewhere and getattr(page, name) in {None, ""})
    notes = (*await prior_notes(engine, model), *_on_slos(collector, body, slos))
    return told(shown(model) or "model not told", works=True, missing=missing, notes=notes)


def _on_slos(collector: EngineCollector, body: bytes, slos: Sequence[Slo]) -> tuple[str, ...]:
    from jouled.app.runtime.engines.poller import read_latencies, wanted_latencies

    try:
        return tuple(off_bounds(slos, read_latencies(collector, body, wanted_latencies(slos))))
    except ValueError as error:
        return (f"its histograms of latencies cannot be read: {error}",)


def _all_good(probes: Sequence[Probe], engines: Sequence[EngineLook], *, configured: bool) -> bool:
    # What nobody asked for may be absent; what is there and refuses needs mending.
    accepted = {SourceState.OK} if configured else {SourceState.OK, SourceState.ABSENT}
    return (
        any(probe.state is SourceState.OK for probe in probes)
        and all(probe.state in accepted and not probe.parts for probe in probes)
        and all(engine.works for engine in engines)
    )


def _power_lines(probes: Sequence[Probe], title: str = "Power sources") -> Iterator[str]:
    if title:
        yield title
    for probe in probes:
        read = f"{probe.read_seconds * MILLISECONDS:.2f} ms a read" if probe.read_seconds is not None else ""
        count = f"{len(probe.devices)} device{'' if len(probe.devices) == 1 else 's'}" if probe.devices else ""
        yield f"  {probe.source:<12} {probe.state.value:<9} " + ", ".join(
            part for part in (count, read, probe.message) if part
        )
        if probe.mend:
            yield f"  {'':<12} {'mend':<9} {probe.mend}"
        values = {reading.device: f"{joules(reading.microjoules):.3f} J" for reading in probe.energies}
        values |= {reading.device: f"{reading.watts:.1f} W" for reading in probe.powers}
        for device in probe.devices:
            value = values.get(device.name, "no value yet")
            yield f"    {device.name:<20} {device.kind.value:<12} {device.quality.value:<10} {value}"
        yield from _power_lines(probe.parts, "")


def _engine_lines(engines: Sequence[EngineLook]) -> Iterator[str]:
    yield "Engines"
    if not engines:
        yield "  none found; name them in [[engines]] if there are any"
    for engine in engines:
        yield f"  {engine.name:<20} {'ok' if engine.works else 'down':<5} {engine.url:<28} {engine.message}"
        if engine.missing:
            yield f"  {'':<20} {'':<5} its page does not tell: {', '.join(engine.missing)}"
        for note in engine.notes:
            yield f"  {'':<20} {'':<5} {note}"
