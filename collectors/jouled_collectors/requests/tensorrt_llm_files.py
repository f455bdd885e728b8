"""TensorRT-LLM's request files: a JSON line for each finished request, in one file for each life of a server process.

`trtllm-serve` writes them where its setting `perf_metrics_output_dir` names a folder; the files are called
`perf_metrics-KIND-HOST-PID-START.jsonl`, KIND being `server`, or in a disaggregated deployment the worker's role. Names
and meanings as read in `serve/openai_server.py` at 050f80d (2026), and as read and run in `serve/perf_metrics.py` at
64815b5 of JunyiXu-nv/TensorRT-LLM, for want of that file at 050f80d; no server was met.

- Up to 64 records are appended at once, the file opened anew for each such write; nothing rotates or removes it. What
  the disk does not take, or comes while 1 024 wait, the server drops.
- A line is what `/perf_metrics` told of a request, and a `status`. No code that was read writes another one than
  `complete`: what another would mean is not known, so such a line is refused.
- A line made before the host was booted, or by another host's clock, would lie after the last writing to its file, and
  is refused.
"""

from collections.abc import Sequence
from typing import ClassVar

from jouled.api import EngineHint, FollowSettings, LinesRead, Received, ReceivedRequest
from jouled.model.requests import RequestEvent
from jouled_collectors.requests.checks import RefusedError
from jouled_collectors.requests.each_alone import each_alone, numbered
from jouled_collectors.requests.tensorrt_llm_perf_metrics import (
    USUAL_TOKENS_PER_BLOCK,
    HostClocks,
    Record,
    TokensPerBlock,
    event_of,
    read_record,
)

_COMPLETE = "complete"


class TensorrtLlmFilesSettings(FollowSettings, kw_only=True):
    """Follows the files that `trtllm-serve` writes into its `perf_metrics_output_dir`."""

    tokens_per_block: TokensPerBlock = USUAL_TOKENS_PER_BLOCK


class _Line(Record):
    status: str = _COMPLETE


class TensorrtLlmFilesReceiver:
    """Takes every line that holds a finished request; one that is wrong is refused alone."""

    name: ClassVar[str] = "tensorrt_llm_files"
    settings_type: ClassVar[type[FollowSettings]] = TensorrtLlmFilesSettings
    engine_type: ClassVar[str] = "tensorrt_llm"
    # Without those of kind `disagg`: the front end of a disaggregated deployment repeats what its workers told.
    pattern: ClassVar[str] = "perf_metrics-[!d]*.jsonl"

    def decode_lines(self, lines: Sequence[bytes], read: LinesRead, settings: FollowSettings) -> Received:
        """Turn lines into requests. Positions count the lines given, from 1."""
        assert isinstance(settings, TensorrtLlmFilesSettings)  # noqa: S101 - the runtime gives our own
        clocks = HostClocks(
            unix_ns=read.unix_ns, steady_ns=read.steady_ns, latest_ns=min(read.written_ns, read.unix_ns)
        )
        hint = EngineHint(engine=settings.engine, engine_type=self.engine_type)

        def read_line(line: bytes, position: str) -> ReceivedRequest:
            event = _event(line, clocks, settings.tokens_per_block)
            return ReceivedRequest(event=event, hint=hint, position=position)

        return each_alone(numbered(lines), read_line)


def _event(line: bytes, clocks: HostClocks, tokens_per_block: int) -> RequestEvent:
    record = read_record(line, _Line)
    if record.status != _COMPLETE:
        raise RefusedError("unknown_status", f"not `{_COMPLETE}` - at `$.status`")
    return event_of(record, clocks, tokens_per_block)
