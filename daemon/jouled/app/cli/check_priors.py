"""What `jouled check` says of an engine's priors: where its sizes come from, and the lines that would improve them."""

import json
from collections.abc import Iterator

from msgspec.structs import replace

from jouled.app.config.types import EngineConfig
from jouled.app.runtime.engines.model_files import find_file_sizes
from jouled.core.attribution.priors import ARCHITECTURE_SOURCES, Sizes, sizes_for

_ASSUMED = ("parameters", "active_parameters", "layers", "hidden_size", "weight_bytes", "kv_bytes_per_token")
_FROM = {
    "configuration": "from the configuration",
    "config_file": "from the model's config.json (config_file)",
    "known_model": "from the table of known models (known_model)",
    "name": "from the model's name only (name)",
    "generic": "of a generic 8B model, as nothing is known of it (generic)",
}


async def prior_notes(config: EngineConfig, model: str) -> tuple[str, ...]:
    """Lines on the priors of an engine that serves `model`, as the daemon will have them."""
    engine = await find_file_sizes(replace(config.engine(), model=config.model or model))
    sizes = sizes_for(engine)
    told = (
        f"sizes {_FROM[sizes.source]}: {_short(sizes.parameters)} parameters, "
        f"{_short(sizes.active_parameters)} active, "
        f"{_short(sizes.weight_bytes)} bytes of weights, {_short(sizes.kv_bytes_per_token)} bytes of KV cache per token"
    )
    if sizes.source in ARCHITECTURE_SOURCES:
        return (told,)
    return (told, *_lines_to_paste(config, sizes))


def _lines_to_paste(config: EngineConfig, sizes: Sizes) -> Iterator[str]:
    yield "energy is split better with the model's real sizes; correct these and put them into the configuration:"
    yield "  [[engines]]"
    for key in ("name", "type", "url", "model"):
        if getattr(config, key):
            yield f"  {key} = {json.dumps(getattr(config, key))}"
    for key in _ASSUMED:
        yield f"  {key} = {_toml(getattr(sizes, key))}  # assumed"


def _short(number: float) -> str:
    return f"{number:.3g}".replace("e+0", "e").replace("e+", "e")


def _toml(number: float) -> str:
    return str(number) if isinstance(number, int) else _short(number)
