"""llama.cpp's `llama-server`: `/metrics` (with `--metrics`) and `/props`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import ClassVar

from msgspec import Struct

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines import answers, command_line, facts
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


_FORMATS = {"f16": "float16", "f32": "float32"}
# The encoding in a model file's name, as ggml's naming convention has it (ggml/docs/gguf.md): `Llama-3-8B-Q4_K_M.gguf`.
_ENCODING = re.compile(
    r"(?:^|[-._:])((?:I?Q\d|TQ\d|MXFP\d|NVFP\d|BF16|F16|F32)(?:_[A-Z0-9]+)*)(?:\.gguf|-\d+-of-\d+\.gguf)?$",
    re.IGNORECASE,
)


class _Properties(Struct):
    build_info: str


class LlamaCppCollector:
    """Reads llama-server's page, which has no labels: the model's name comes from the command line.

    As measured on commit 0c1e570 and build b11434: `prompt_tokens_total` has the computed tokens alone and moves with
    every batch; tokens from the cache are counted apart. `tokens_predicted_total` has all generated tokens, aborted
    requests' included, but moves only when a request ends. Values have six digits: above a million they move in steps
    of ten.

    `/slots` tells what running requests have generated so far, and is not added: counter and slots are read at two
    moments, and a request that ends between them is missed or counted twice (8 of 561 sums under load went back). A
    second look at the slots finds those out, but the rounding above a million makes such a sum go back all the same,
    and a counter that goes back is taken for a restart.
    """

    name: ClassVar[str] = "llama_cpp"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = "/props"
    default_port: ClassVar[int] = 8080
    port_variables: ClassVar[Sequence[str]] = ("LLAMA_ARG_PORT",)
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="computed", prompt_at="step", generation="all", generation_at="finish"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is a `llama-server`, or `llama serve` (also called `llama server`), which is the same."""
        program, arguments = command_line.program(argv)
        name = command_line.file_name(program)
        return name == "llama-server" or (name == "llama" and list(arguments[:1]) in (["serve"], ["server"]))

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

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        """What options and their variables say, as in `common/arg.cpp` of b11434; a number format by the file's name.

        The model is its alias (of several the first by the alphabet), else the repository, else the file.
        Without `--spec-type` a draft model's own kind of speculation is taken, which only its file tells.
        """
        alias = min(_told(argv, environ, "LLAMA_ARG_ALIAS", "-a", "--alias").split(","))
        repository = _told(argv, environ, "LLAMA_ARG_HF_REPO", "-hf", "-hfr", "--hf-repo")
        file = PurePath(_told(argv, environ, "LLAMA_ARG_MODEL", "-m", "--model")).name
        draft = _told(argv, environ, "LLAMA_ARG_SPEC_DRAFT_MODEL", "-md", "--model-draft", "--spec-draft-model")
        method = _told(argv, environ, "LLAMA_ARG_SPEC_TYPE", "--spec-type").lower()
        method = method.replace("draft-simple", "draft_model").replace("draft-", "") or ("draft_model" if draft else "")
        found = _ENCODING.search(file or repository)
        encoding = found[1].lower() if found else ""
        return EngineFacts(
            model=alias or repository or file,
            precision=facts.precision("", _FORMATS.get(encoding, encoding)),
            speculation="" if method == "none" else method,
        )


def _told(argv: Sequence[str], environ: Mapping[str, str], variable: str, *names: str) -> str:
    """The value of an option, or of the variable that stands for it."""
    return command_line.option(argv, *names) or environ.get(variable, "")
