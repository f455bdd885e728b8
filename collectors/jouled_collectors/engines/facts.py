"""How engines' words for what they were started with become the same words for all (`EngineFacts`)."""

from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST = 100
_FORMATS = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}
_NOT_CHOSEN = ("", "auto", "none", "null")
# `moriio` is AMD's MoRI-IO; UMBP is its store for KV blocks (vLLM 0.33.0, kv_connector/v1/umbp).
_CONNECTORS = {"nixl": "nixl", "mooncake": "mooncake", "mori": "mori", "umbp": "mori", "lmcache": "lmcache"}
_KV_ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}
ROLES = {"unified": "unified", "prefill": "prefill", "decode": "decode", "context": "prefill", "generation": "decode"}
"""Engines' words for their part in a disaggregated deployment."""


def parallelism(*, dp: int = 1, ep: int = 1, pp: int = 1, cp: int = 1, tp: int = 1) -> str:
    """Sizes of parallel groups above one, as in `dp2 tp4`."""
    sizes = {"dp": dp, "ep": ep, "pp": pp, "cp": cp, "tp": tp}
    return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1)


def precision(dtype: str, quantization: str) -> str:
    """The quantisation of the weights if there is one, else their number format; empty if the engine chooses."""
    for told in (quantization, dtype):
        word = told.strip().lower().removeprefix("torch.")
        if word not in _NOT_CHOSEN:
            return _FORMATS.get(word, word)[:_LONGEST]
    return ""


def kv_connector(name: str) -> str:
    """What carries the KV cache between pools: `NixlConnector`, `nixl` and `NIXL` are one; an unknown one as told."""
    word = name.strip().lower()
    for part, connector in _CONNECTORS.items():
        if part in word:
            return connector
    word = word.removesuffix("v1").removesuffix("connector")
    return "" if word in _NOT_CHOSEN else word[:_LONGEST]


def kv_transfer(config: Mapping[str, Any]) -> tuple[str, str]:
    """Connector and role that a `KVTransferConfig` of vLLM says; `kv_both` says no role.

    Of a `MultiConnector` the first that carries between pools counts, else its first.
    """
    name = config.get("kv_connector")
    names: Sequence[str] = [name] if isinstance(name, str) else []
    if names == ["MultiConnector"]:
        names = _of_several(config.get("kv_connector_extra_config"))
    connectors = [kv_connector(each) for each in names]
    between = [each for each in connectors if each in ("nixl", "mooncake", "mori")]
    role = config.get("kv_role")
    return (between or connectors or [""])[0], _KV_ROLES.get(role, "") if isinstance(role, str) else ""


def _of_several(extra: Any) -> Sequence[str]:
    connectors = extra.get("connectors") if isinstance(extra, dict) else None
    if not isinstance(connectors, list):
        return []
    names = [each.get("kv_connector") for each in connectors if isinstance(each, dict)]
    return [name for name in names if isinstance(name, str)]


def speculation(config: Mapping[str, Any]) -> str:
    """The method of a `SpeculativeConfig` of vLLM; `draft_model` where only the drafting model is named."""
    method = config.get("method")
    if isinstance(method, str) and method:
        return method.lower()[:_LONGEST]
    return "draft_model" if config.get("model") else ""
