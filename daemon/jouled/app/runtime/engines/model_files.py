"""The model's own `config.json` on this host: in its folder, or in the Hugging Face cache. Never over the network.

The cache is that of the engine's user, as far as this user may read it; what cannot be read counts as absent.
"""

import asyncio
import logging
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from jouled.core.attribution.model_config import ModelSizes, sizes_of
from jouled.core.attribution.priors import with_sizes
from jouled.model.engine import Engine

LARGEST_FILE_BYTES = 4_000_000
"""The largest `config.json` seen have some hundred kilobytes (lists of unquantised modules)."""

PATIENCE_SECONDS = 5.0
"""A model can lie on a network file system that hangs; then it is as if there were no file."""

_log = logging.getLogger(__name__)
_told: set[str] = set()


class EngineProcess(NamedTuple):
    """What decides which files an engine loaded: its arguments, and the environment and home of its user."""

    argv: Sequence[str] = ()
    environ: Mapping[str, str] = {}
    home: str = ""
    folder: str = ""


async def find_file_sizes(engine: Engine) -> Engine:
    """`with_file_sizes` beside the event loop, for as long as patience lasts."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.to_thread(with_file_sizes, engine)
    except TimeoutError:
        _tell_once(f"the files of engine {engine.name}", f"the disk did not answer within {PATIENCE_SECONDS:g} s")
        return engine


def with_file_sizes(engine: Engine) -> Engine:
    """The engine with what it does not tell filled in from its model's file, if there is one. Blocks on the disk."""
    process = engine_process(engine.pid)
    for model in models_of(engine.model, process.argv):
        for path in config_files(model, process):
            sizes = read_sizes(path)
            if sizes is not None:
                return with_sizes(engine, sizes, "config_file")
    return engine


def engine_process(pid: int | None) -> EngineProcess:
    """The process of an engine, as far as it may be looked at; without one this process stands in."""
    if pid is None:
        return EngineProcess(environ=os.environ, home=os.environ.get("HOME", ""))
    try:
        process = psutil.Process(pid)
        argv, home = process.cmdline(), pwd.getpwuid(process.uids().effective).pw_dir
    except (psutil.Error, OSError, KeyError) as error:
        _tell_once(f"process {pid}", error)
        return EngineProcess()
    try:
        return EngineProcess(argv, process.environ(), home, process.cwd())
    except (psutil.Error, OSError) as error:
        _tell_once(f"the environment of process {pid}", error)
        return EngineProcess(argv, {}, home)


def models_of(model: str, argv: Sequence[str]) -> Iterator[str]:
    """What an engine may have loaded: what its arguments say, then the name that it serves.

    The name can be any alias (`--served-model-name`), so the arguments come first.
    """
    for position, argument in enumerate(argv):
        following = argv[position + 1] if position + 1 < len(argv) else ""
        if argument in {"--model", "--model-path", "serve"} and following and not following.startswith("-"):
            yield following
        elif argument.startswith(("--model=", "--model-path=")):
            yield argument.partition("=")[2]
    if model:
        yield model


def config_files(model: str, process: EngineProcess) -> Iterator[Path]:
    """Where the `config.json` of a model can be: its folder, then every snapshot in the cache, the newest first."""
    if "\0" in model:
        return
    folder = Path(process.folder, model) if process.folder else Path(model)
    if folder.is_absolute():
        yield folder / "config.json"
    if model.count("/") <= 1 and not model.startswith(("/", ".")):
        for hub in _hubs(process):
            yield from _snapshots(hub / f"models--{model.replace('/', '--')}")


def read_sizes(path: Path) -> ModelSizes | None:
    """Sizes by a `config.json`; `None` if it is absent, cannot be read, or says too little."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE_BYTES:
            return None
        sizes = sizes_of(msgspec.json.decode(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        _tell_once(str(path), error)
        return None
    if sizes is None:
        _tell_once(str(path), "it does not say the sizes of a language model")
    return sizes


def _hubs(process: EngineProcess) -> Iterator[Path]:
    """Folders that `huggingface_hub` looks in, the one that counts first."""
    environ = process.environ
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            yield Path(environ[name])
    if environ.get("HF_HOME"):
        yield Path(environ["HF_HOME"], "hub")
    cache = environ.get("XDG_CACHE_HOME") or (f"{process.home}/.cache" if process.home else "")
    if cache:
        yield Path(cache, "huggingface", "hub")


def _snapshots(folder: Path) -> list[Path]:
    try:
        found = [(path.stat().st_mtime_ns, path) for path in folder.glob("snapshots/*/config.json")]
    except (OSError, ValueError) as error:
        _tell_once(str(folder), error)
        return []
    return [path for _, path in sorted(found, reverse=True)]


def _tell_once(what: str, why: object) -> None:
    if what not in _told:
        _told.add(what)
        _log.debug("no model sizes from %s: %s", what, why)
