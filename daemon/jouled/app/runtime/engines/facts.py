"""What an engine is beside its counters, and whose word goes first: configuration, page, process."""

from msgspec.structs import asdict

from jouled.api import EngineCollector, EngineFacts, EnginePage, FactsCollector
from jouled.app.runtime.engines.model_files import engine_process
from jouled.core.attribution.roles import role_by_counters
from jouled.model.engine import Engine

_NOTHING = EngineFacts()
_LONGEST = 256


def told_by_process(collector: EngineCollector, pid: int | None) -> EngineFacts:
    """What the server's command line and environment say; nothing where nobody may see them. Blocks."""
    if pid is None or not isinstance(collector, FactsCollector):
        return _NOTHING
    process = engine_process(pid)
    if not process.argv:
        return _NOTHING
    told = collector.facts(process.argv, process.environ)
    return EngineFacts(**{name: shown(value) for name, value in asdict(told).items()})


def told_facts(configured: Engine, configured_role: str, page: EnginePage, process: EngineFacts) -> dict[str, str]:
    """Of an `Engine`'s fields those that facts tell, each by whoever goes first.

    Empty is not known, but for the role: an engine of which nobody says otherwise serves whole requests.
    """
    told = page.facts
    kv_connector = configured.kv_connector or told.kv_connector or process.kv_connector
    by_counters = role_by_counters(page) if kv_connector else ""
    found = {
        "role": configured_role or told.role or process.role or by_counters or "unified",
        "precision": configured.precision or told.precision or process.precision,
        "parallelism": configured.parallelism or told.parallelism or process.parallelism,
        "kv_connector": kv_connector,
        "speculation": configured.speculation or told.speculation or process.speculation,
        "instance": told.instance,
    }
    return {name: shown(value) for name, value in found.items()}


def shown(text: str) -> str:
    """What an engine or its user wrote, as it can be printed and stored: arguments may be no UTF-8, and long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST])
