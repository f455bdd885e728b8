"""What an engine is beside its counters, and whose word goes first: configuration, page, process."""

from jouled.api import EngineCollector, EngineFacts, EnginePage, FactsCollector
from jouled.app.runtime.engines.model_files import engine_process
from jouled.core.attribution.roles import role_by_counters
from jouled.model.engine import Engine

_NOTHING = EngineFacts()


def told_by_process(collector: EngineCollector, pid: int | None) -> EngineFacts:
    """What the server's command line and environment say; nothing where nobody may see them. Blocks."""
    if pid is None or not isinstance(collector, FactsCollector):
        return _NOTHING
    process = engine_process(pid)
    return collector.facts(process.argv, process.environ) if process.argv else _NOTHING


def told_facts(configured: Engine, configured_role: str, page: EnginePage, process: EngineFacts) -> dict[str, str]:
    """Of an `Engine`'s fields those that facts tell, each by whoever goes first.

    Empty is not known, but for the role: an engine of which nobody says otherwise serves whole requests.
    """
    told = page.facts
    kv_connector = configured.kv_connector or told.kv_connector or process.kv_connector
    shown = role_by_counters(page) if kv_connector else ""
    return {
        "role": configured_role or told.role or process.role or shown or "unified",
        "precision": configured.precision or told.precision or process.precision,
        "parallelism": configured.parallelism or told.parallelism or process.parallelism,
        "kv_connector": kv_connector,
        "speculation": configured.speculation or told.speculation or process.speculation,
        "instance": told.instance,
    }
