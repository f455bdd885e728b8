"""The model's `config.json` on this host: found where the engine's user has it, and never an error."""

import json
import logging
import os
import subprocess
import sys

import pytest

from jouled.app.runtime.engines import model_files
from jouled.app.runtime.engines.model_files import (
    EngineProcess,
    config_files,
    engine_process,
    find_file_sizes,
    models_of,
    read_sizes,
    with_file_sizes,
)
from jouled.core.attribution.priors import betas
from jouled.model.engine import Engine

CONFIG = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}
PARAMETERS = 10 * (2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 4096) + 2 * 1000 * 1024


def written(folder, content=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content or CONFIG).encode())
    return path


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No cache of the machine the tests run on."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(model_files, "_told", set())


def test_a_model_given_as_a_folder(tmp_path):
    written(tmp_path / "my model")
    engine = with_file_sizes(Engine(name="e", model=str(tmp_path / "my model")))
    assert (engine.parameters, engine.layers, engine.sizes_from) == (PARAMETERS, 10, "config_file")
    assert engine.kv_bytes_per_token == 10 * 2 * 256 * 2
    assert betas(engine).source == "config_file"


@pytest.mark.parametrize(
    ("variable", "hub"),
    [
        ("HF_HOME", "hub"),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ],
)
def test_a_model_in_the_hugging_face_cache(tmp_path, monkeypatch, variable, hub):
    monkeypatch.setenv(variable, str(tmp_path / "c"))
    written(tmp_path / "c" / hub / "models--org--Name" / "snapshots" / "abc")
    assert with_file_sizes(Engine(name="e", model="org/Name")).parameters == PARAMETERS
    assert with_file_sizes(Engine(name="e", model="org/Other")).parameters is None


def test_the_newest_snapshot_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    old = written(tmp_path / "models--m" / "snapshots" / "z", {**CONFIG, "num_hidden_layers": 2})
    new = written(tmp_path / "models--m" / "snapshots" / "a")
    os.utime(old, (1, 1))
    assert list(config_files("m", EngineProcess(environ=os.environ))) == [new, old]
    assert with_file_sizes(Engine(name="e", model="m")).layers == 10


def test_a_snapshot_is_a_link_as_the_cache_has_it(tmp_path):
    blob = written(tmp_path / "blobs")
    snapshot = tmp_path / "m"
    snapshot.mkdir()
    (snapshot / "config.json").symlink_to(blob)
    assert read_sizes(snapshot / "config.json").parameters == PARAMETERS


def test_names_stay_inside_the_cache(tmp_path):
    process = EngineProcess(environ={"HF_HUB_CACHE": str(tmp_path)})
    written(tmp_path.parent / f"{tmp_path.name}-out" / "snapshots" / "s")
    for name in ("../x", f"../{tmp_path.name}-out", "a/b/c", "", "\0", "x" * 5000, "\ud800", "*", "[a"):
        assert [path for path in config_files(name, process) if read_sizes(path)] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"hidden_size": "x"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 1e999}',
        b" " * 5_000_000,
    ],
)
def test_a_bad_file_is_as_none(tmp_path, content):
    written(tmp_path / "m", content)
    engine = Engine(name="e", model=str(tmp_path / "m"))
    assert with_file_sizes(engine) == engine


def test_what_cannot_be_read_is_told_once_at_debug_level(tmp_path, caplog):
    path = written(tmp_path / "m", b"{")
    with caplog.at_level(logging.DEBUG, model_files.__name__):
        assert read_sizes(path) is None
        assert read_sizes(path) is None
    assert [(record.levelname, str(path) in record.message) for record in caplog.records] == [("DEBUG", True)]


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "config.json")
    assert read_sizes(tmp_path / "m" / "config.json") is None


@pytest.mark.parametrize(
    ("argv", "models"),
    [
        (("vllm", "serve", "org/m", "--served-model-name", "chat"), ["org/m", "chat"]),
        (("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/m"), ["/models/m", "chat"]),
        (("python", "-m", "x", "--model=/models/m"), ["/models/m", "chat"]),
        (("sglang", "--model-path", "m"), ["m", "chat"]),
        (("vllm", "serve", "--port", "1"), ["chat"]),
        (("vllm", "serve"), ["chat"]),
        ((), ["chat"]),
    ],
)
def test_the_arguments_say_what_was_loaded(argv, models):
    assert list(models_of("chat", argv)) == models


def test_the_process_of_the_engine_says_where_its_cache_is(tmp_path):
    written(tmp_path / "hub" / "models--org--m" / "snapshots" / "s")
    command = [sys.executable, "-c", "print(flush=True); input()", "serve", "org/m"]
    environ = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()  # before its program runs a child still shows its parent's environment
            process = engine_process(child.pid)
            assert process.environ["HF_HUB_CACHE"] == str(tmp_path / "hub")
            assert process.home
            engine = with_file_sizes(Engine(name="e", model="an-alias", pid=child.pid))
        finally:
            child.communicate(b"\n", timeout=20)
    assert engine.parameters == PARAMETERS
    assert engine_process(child.pid) == EngineProcess()  # it has gone, and that is no error
    assert with_file_sizes(Engine(name="e", model="an-alias", pid=child.pid)).parameters is None


async def test_a_disk_that_hangs_is_given_up(monkeypatch):
    import threading

    release = threading.Event()
    monkeypatch.setattr(model_files, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(model_files, "with_file_sizes", lambda _: release.wait(20))
    engine = Engine(name="e", model="m")
    try:
        assert await find_file_sizes(engine) is engine
    finally:
        release.set()
