"""llama.cpp's `llama-server`: `/metrics` (with `--metrics`) and `/props`."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import ClassVar

from msgspec import Struct

from jouled.api import EnginePage
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines import answers, command_line
from jouled_collectors.engines.exposition import PageReader, total

# Never the `*_seconds` gauges: they are means since the last read, so that reading spoils them for everybody else.
_READER = PageReader(
    "llamacpp",
    (
        "prompt_tokens",
        "prompt_tokens_cached",
        "tokens_predicted",
        "n_decode",
        "requests_processing",
        "requests_deferred",
    ),
)


class _Properties(Struct):
    build_info: str


class LlamaCppCollector:
    """Reads llama-server's page, which has no labels: the model's name belongs into the configuration.

    As measured on commit 0c1e570: `prompt_tokens_total` has the computed tokens alone and moves with every batch;
    tokens from the cache are counted apart. `tokens_predicted_total` has all generated tokens, aborted requests'
    included, but moves only when a request ends. Values have six digits: above a million they move in steps of ten.
    """

    name: ClassVar[str] = "llama_cpp"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = "/props"
    default_port: ClassVar[int] = 8080
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="computed", prompt_at="step", generation="all", generation_at="finish"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is a `llama-server`."""
        program, _ = command_line.program(argv)
        return PurePath(program).name == "llama-server"

    def port(self, argv: Sequence[str]) -> int:
        """The port of `--port`, else 8080."""
        return command_line.port(argv, self.default_port)

    def page(self, body: bytes) -> EnginePage:
        """Read `/metrics`: `prompt_tokens` are the computed ones. Raises `ValueError` with the reason if it is none.

        Builds around b7050 sent the page as one quoted JSON string (llama.cpp issue 17384); that is undone.
        """
        if body.startswith(b'"'):
            body = answers.decode(body, str).encode()
        elif body.startswith(b"{"):
            raise ValueError("a JSON document, not a metrics page: start llama-server with --metrics")
        families = _READER.read(body)
        return EnginePage(
            steps=total(families.get("n_decode")),
            prompt_tokens=total(families.get("prompt_tokens")),
            cached_prompt_tokens=total(families.get("prompt_tokens_cached")),
            generation_tokens=total(families.get("tokens_predicted")),
            requests_running=total(families.get("requests_processing")),
            requests_waiting=total(families.get("requests_deferred")),
        )

    def version(self, body: bytes) -> str:
        """Read the build string of `/props` (`b1-0c1e570`). Raises `ValueError`."""
        return answers.version(answers.decode(body, _Properties).build_info)
