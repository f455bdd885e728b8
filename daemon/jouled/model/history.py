"""What the store keeps of the past beside receipts: how far the books were, minute by minute, and what engines were."""

from msgspec import Struct


class EngineChange(Struct, frozen=True, kw_only=True):
    """From `since_ns` (Unix nanoseconds) on an engine was like this.

    facts: of `jouled.model.engine.ENGINE_FACTS` those that are known.
    """

    engine: str
    since_ns: int
    facts: dict[str, str]


class EngineMark(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the books of an engine and a model were: counters as published, up to `t_ns` (Unix nanoseconds).

    Empty engine: devices of no engine. Tokens are those of events, and those that no event told of.
    """

    engine: str
    model: str
    t_ns: int
    quality: str = "measured"
    prompt_tokens: int = 0
    generation_tokens: int = 0
    unreported_prompt_tokens: int = 0
    unreported_generation_tokens: int = 0
    owners_uj: dict[str, int] = {}


class History(Struct, frozen=True):
    """All that is known of a time."""

    changes: tuple[EngineChange, ...] = ()
    marks: tuple[EngineMark, ...] = ()
