"""TensorRT-LLM's `/perf_metrics`: finished requests of `trtllm-serve`, told once and forgotten by being read.

The server keeps them with `return_perf_metrics: true` and `perf_metrics_max_requests` above 0. The reader met records
that the methods of `tensorrt_llm/serve/openai_server.py` built at 4bc58bc (2026); no server was met. At 050f80d it
writes files instead (`tensorrt_llm_files`) and answers with 404.
"""

from typing import ClassVar

from msgspec import Raw

from jouled.api import DrainSettings, EngineHint, PageRead, Received, ReceivedRequest
from jouled_collectors.requests import json_body
from jouled_collectors.requests.each_alone import each_alone
from jouled_collectors.requests.tensorrt_llm_perf_metrics import (
    USUAL_TOKENS_PER_BLOCK,
    HostClocks,
    Record,
    TokensPerBlock,
    event_of,
    read_record,
)

_RECORDS_DEPTH = 1


class TensorrtLlmRecordsSettings(DrainSettings, kw_only=True):
    """Reads `/perf_metrics` of `trtllm-serve`, which empties it: with `own` jouled must be the only reader."""

    tokens_per_block: TokensPerBlock = USUAL_TOKENS_PER_BLOCK


class TensorrtLlmRecordsReceiver:
    """Takes every finished request; a record that is wrong is refused with its position, the others are taken."""

    name: ClassVar[str] = "tensorrt_llm_records"
    settings_type: ClassVar[type[DrainSettings]] = TensorrtLlmRecordsSettings
    engine_type: ClassVar[str] = "tensorrt_llm"
    path: ClassVar[str] = "/perf_metrics"

    def decode_page(self, body: bytes, read: PageRead, settings: DrainSettings) -> Received:
        """Read the list of records. Raises `MalformedBodyError`."""
        assert isinstance(settings, TensorrtLlmRecordsSettings)  # noqa: S101 - the runtime gives our own
        json_body.check_records(body, _RECORDS_DEPTH)
        hint = EngineHint(engine=read.engine)
        clocks = HostClocks(unix_ns=read.unix_ns, steady_ns=read.steady_ns, latest_ns=read.unix_ns)

        def read_raw(raw: Raw, position: str) -> ReceivedRequest:
            event = event_of(read_record(raw, Record), clocks, settings.tokens_per_block)
            return ReceivedRequest(event=event, hint=hint, position=position)

        records = json_body.decode(body, list[Raw])
        return each_alone(((f"[{index}]", raw) for index, raw in enumerate(records)), read_raw)
