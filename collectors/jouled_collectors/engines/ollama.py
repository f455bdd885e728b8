"""Ollama: `/api/ps` and `/api/version`, as it has no metrics page."""

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

from jouled.api import EngineFacts, EnginePage
from jouled.model.engine import CounterSemantics
from jouled_collectors.engines import answers, command_line, facts

_LONGEST_NAME = 256


class _Details(Struct, frozen=True):
    quantization_level: str = ""


class _Model(Struct):
    name: str
    details: _Details = _Details()


class _Loaded(Struct):
    models: list[_Model]


class _Version(Struct):
    version: str


class OllamaCollector:
    """Reads which models are loaded. Tokens are told by answers to requests alone: see the receiver `ollama`.

    As read in `server/routes.go` and `api/types.go` (issue 3144 asks for metrics, no release has them): `/api/ps` lists
    the loaded models, those that stay longest first, which is the one used last where none is kept for longer than
    others. It tells nothing of requests. Models run in children of `ollama serve`.
    """

    name: ClassVar[str] = "ollama"
    page_path: ClassVar[str] = "/api/ps"
    version_path: ClassVar[str] = "/api/version"
    default_port: ClassVar[int] = 11_434
    port_variables: ClassVar[Sequence[str]] = ("OLLAMA_HOST",)
    semantics: ClassVar[CounterSemantics] = CounterSemantics(
        prompt="total", prompt_at="finish", generation="all", generation_at="finish"
    )

    def recognises(self, argv: Sequence[str], title: str) -> bool:  # noqa: ARG002  # the title says nothing more
        """Whether this is the server: `ollama serve`, or `ollama start`, which is the same."""
        program, arguments = command_line.program(argv)
        return command_line.file_name(program) == "ollama" and list(arguments[:1]) in (["serve"], ["start"])

    def port(self, argv: Sequence[str]) -> int:  # noqa: ARG002  # the server takes no option for it
        """11434; another one stands in the environment alone."""
        return self.default_port

    def page(self, body: bytes) -> EnginePage:
        """Read `/api/ps`: the model used last and its quantisation. Raises `ValueError` with the reason."""
        loaded = answers.decode(body, _Loaded).models
        if not loaded:
            return EnginePage()
        name, level = loaded[0].name.strip(), loaded[0].details.quantization_level
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"the model's name is empty, unprintable or longer than {_LONGEST_NAME} characters")
        return EnginePage(model=name, facts=EngineFacts(model=name, precision=facts.precision("", level)))

    def version(self, body: bytes) -> str:
        """Read `{"version": "0.13.5"}`. Raises `ValueError`."""
        return answers.version(answers.decode(body, _Version).version)
