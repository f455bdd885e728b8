"""The values of a snapshot by family: those of its mappings, and those that its objects tell."""

import platform
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from jouled.model.engine import Engine
from jouled.model.errors import SourceState
from jouled.model.snapshot import DeviceView, Labels, Snapshot

Values = Mapping[Labels, float]


def values_of(snapshot: Snapshot, version: str) -> dict[str, Values]:
    """Every family but histograms: metric name to label values to value, as the catalogue says."""
    return {
        **snapshot.counters,
        **snapshot.gauges,
        "build_info": {(version, platform.python_version()): 1.0},
        "device_info": {_device_labels(view): 1.0 for view in (*snapshot.devices, *snapshot.meters)},
        "engine_devices": {(view.engine.name,): float(len(view.engine.devices)) for view in snapshot.engines},
        "engine_info": {_engine_labels(view.engine): 1.0 for view in snapshot.engines},
        "source_up": {(view.source,): float(view.state is SourceState.OK) for view in snapshot.sources},
        "source_state": {
            (view.source, state.value): float(view.state is state)
            for view in snapshot.sources
            for state in sorted(SourceState)
        },
    }


def _device_labels(view: DeviceView) -> Labels:
    device = view.device
    index = "" if device.index is None else str(device.index)
    return (
        device.name,
        device.kind.value,
        device.uuid,
        device.pci_bus_id,
        index,
        device.vendor,
        device.product,
        device.method,
        device.quality.value,
        device.parent,
    )


def _engine_labels(engine: Engine) -> Labels:
    return (
        engine.name,
        engine.type,
        engine.model,
        engine.version,
        engine.precision,
        engine.role,
        engine.parallelism,
        ",".join(engine.devices),
        engine.driver,
        without_credentials(engine.url),
        engine.kv_connector,
        engine.speculation,
        engine.counter_semantics.moves,
    )


def without_credentials(url: str) -> str:
    """The URL as it may be shown: no user, password, query or fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
