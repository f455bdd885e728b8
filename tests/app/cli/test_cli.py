"""The commands as the operator types them: what they print, where, and with which exit code."""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.tools import REPOSITORY

from jouled import __version__
from jouled.app.cli import main
from jouled.app.cli.console import seconds
from jouled.app.config import Config, RunOptions, load
from jouled.app.config.reference import example, render
from jouled.app.config.toml import as_toml
from jouled.app.runtime import probe
from jouled.app.runtime.plugins import load_plugins

T0 = 1_700_000_000_000_000_000
LINES = [
    {"type": "header", "version": 1, "node": "n"},
    {"type": "device", "device": "gpu0", "kind": "gpu", "idle_watts": 100, "uplift_watts": 20, "max_watts": 700},
    {"type": "engine", "engine": "e", "model": "m", "devices": ["gpu0"]},
    *({"type": "energy", "device": "gpu0", "t_ns": T0 + t * 10**8, "joules": t * 30} for t in range(300)),
    {
        "type": "request", "engine": "e", "id": "r", "arrival_ns": T0 + 10**9, "first_token_ns": T0 + 2 * 10**9,
        "last_token_ns": T0 + 4 * 10**9, "prompt_tokens": 9, "generation_tokens": 9,
    },
]  # fmt: skip


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("JOULED_") or name in {"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_STATE_HOME"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def recording(tmp_path) -> Path:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def only_sentence(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jouled: ")
    assert err.count("\n") == 1
    return err


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"jouled {__version__} (Python 3.")


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["run", "--nonsense"], ["replay"], ["run", "--listen", "here"]])
def test_wrong_usage_is_code_2_and_no_traceback(argv, capsys):
    assert main(argv) == 2
    assert "usage: jouled" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "check", "demo", "record", "replay", "release", "config", "metrics"))


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("0.5", 0.5)]
)
def test_durations(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "m", "nan", "inf", "10d", "1e999"])
def test_what_is_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no duration"):
        seconds(text)


def test_replay_writes_receipts_metrics_and_the_summary(recording, tmp_path, capsys):
    receipts, metrics = tmp_path / "o.jsonl", tmp_path / "o.prom"
    argv = ["replay", str(recording), "--receipts", str(receipts), "--metrics", str(metrics), "--summary"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["requests"], summary["broken_lines"], summary["total"]["open_uj"]) == (1, 0, 0)
    assert summary["total"]["measured_uj"] == 299 * 30 * 1_000_000
    [group] = summary["groups"]
    assert (group["devices"], group["engines"]) == (["gpu0"], ["e"])
    assert "1 requests, 8970.000 J measured" in err
    [receipt] = [json.loads(line) for line in receipts.read_text().splitlines()]
    assert (receipt["id"], receipt["provisional"], receipt["joules_host"]) == ("r", False, None)
    parts = receipt["joules_prefill"] + receipt["joules_decode"] + receipt["joules_resident"]
    assert receipt["joules"] == pytest.approx(parts, abs=1e-9)
    assert 'jouled_requests_total{engine="e",model_name="m",outcome="completed"} 1.0' in metrics.read_text()


def test_replay_tells_broken_lines_with_number_and_reason(recording, capsys):
    with recording.open("a") as file:
        file.write('{"type":"energy","device":"gpu0","t_ns":-1,"joules":1}\nrubbish\n')
    assert main(["replay", str(recording), "--summary"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["broken_lines"] == 2
    assert f"{recording}:305: invalid: Expected `int` >= 0 - at `$.t_ns`" in err
    assert f"{recording}:306: malformed: no JSON object" in err


def test_replay_takes_slos_and_engines_from_the_configuration(recording, tmp_path, capsys):
    config, receipts = tmp_path / "c.toml", tmp_path / "o.jsonl"
    config.write_text('[[slo]]\nname = "quick"\nttft = 1\n[[engines]]\nname = "e"\ndevices = ["gpu0"]\nmodel = "no"\n')
    assert main(["replay", str(recording), "--config", str(config), "--receipts", str(receipts)]) == 0
    receipt = json.loads(receipts.read_text())
    assert (receipt["good"], receipt["model"]) == ({"quick": False}, "m")


@pytest.mark.parametrize("content", [None, b"", b"\x1f\x8bnot really gzip", bytes(range(256)) * 40])
def test_an_unreadable_recording_is_one_sentence_and_not_code_0(tmp_path, capsys, content):
    path = tmp_path / "r.bin"
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"jouled: {path}")
    assert "Traceback" not in err


def test_replay_into_a_place_that_is_not_there(recording, tmp_path, capsys):
    assert main(["replay", str(recording), "--receipts", str(tmp_path / "no" / "o")]) == 1
    assert "cannot be written: No such file" in only_sentence(capsys)


def test_a_wrong_configuration_is_code_2_for_every_command(tmp_path, capsys, recording):
    config = tmp_path / "c.toml"
    config.write_text('[serve]\nlisen = "x"\n')
    for argv in (["config"], ["check"], ["replay", str(recording)]):
        assert main([*argv, "--config", str(config)]) == 2
        assert "$.serve.lisen: unknown key `lisen`. Did you mean `listen`?" in only_sentence(capsys)
    assert main(["config", "--check", str(config)]) == 2
    assert main(["config", "--config", str(tmp_path / "none")]) == 2


def test_config_check_knows_the_collectors(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text("[power.nvml]\ninterval_seconds = 0.1\n")
    assert main(["config", "--check", str(config)]) == 0
    assert capsys.readouterr().out == f"{config} is good\n"
    config.write_text("[power.nvlm]\n")
    assert main(["config", "--check", str(config)]) == 2
    assert "Did you mean `nvml`?" in only_sentence(capsys)
    config.write_text("[power.nvml]\nintervall_seconds = 1\n")
    assert main(["config", "--check", str(config)]) == 2
    assert "$.power.nvml.intervall_seconds" in only_sentence(capsys)


def test_the_configuration_in_effect_can_be_read_again_and_shows_no_secret(tmp_path, capsys, monkeypatch):
    config, again = tmp_path / "c.toml", tmp_path / "again.toml"
    config.write_text(
        '[serve]\ntoken_file = "/run/t"\n[[slo]]\nname = "a \\"b\\"\\n"\ntpot = 1\n[[engines]]\nname = "e"\n'
        'devices = ["gpu0"]\n[power.twin]\nurl = "http://x"\nlabels = {"a b" = 1}\n'
    )
    monkeypatch.setenv("JOULED_COST__PUE", "1.5")
    assert main(["config", "--config", str(config)]) == 0
    again.write_text(capsys.readouterr().out)
    monkeypatch.delenv("JOULED_COST__PUE")
    loaded = load(again, {})
    assert loaded == load(config, {"JOULED_COST__PUE": "1.5"})
    assert loaded.serve.token_file == "/run/t"
    shown = as_toml(Config(power={"redfish": {"password": "hush", "password_file": "/p"}}))
    assert "hush" not in shown
    assert 'password_file = "/p"' in shown


def test_the_example_is_good(tmp_path, capsys):
    assert main(["config", "--example"]) == 0
    path = tmp_path / "example.toml"
    path.write_text(capsys.readouterr().out)
    assert main(["config", "--check", str(path)]) == 0
    assert tomllib.loads(example())["cost"]["currency"] == "EUR"


def test_the_reference_in_docs_is_current(capsys):
    assert main(["config", "--reference"]) == 0
    printed = capsys.readouterr().out
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == printed


def test_the_reference_names_every_key():
    plugins = load_plugins()
    text = render(
        {name: collector.settings_type for name, collector in plugins.power.items()},
        {name: sink.settings_type for name, sink in plugins.sinks.items()},
    )
    for title in (
        "[sinks.influx]",
        "[spool]",
        "[serve]",
        "[[engines]]",
        "[[slo]]",
        "[requests.otlp]",
        "[cost]",
        "[power.nvml]",
    ):
        assert f"## `{title}`" in text
    for key in ("listen", "token_file", "kv_bytes_per_token", "min_tokens_per_second_per_user", "pue", "tenants"):
        assert f"| `{key}` |" in text


def test_the_reference_of_metrics(capsys):
    assert main(["metrics"]) == 0
    assert "`jouled_energy_joules_total`" in capsys.readouterr().out


class Calls(ModuleType):
    """Stands in for a module of the running daemon and remembers its calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **named: self.calls.append((name, *arguments, *named.items())) or 7


@pytest.fixture
def runtime(monkeypatch):
    def replaced(name: str) -> Calls:
        module = Calls(f"jouled.app.runtime.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return replaced


def test_run_hands_over_what_was_typed(runtime, tmp_path):
    daemon = runtime("process")
    argv = ["run", "--listen", "[::1]:8", "--state", "/s", "--record", "/r", "--no-discovery"]
    assert main(argv) == 7
    options = RunOptions(listen="[::1]:8", state=Path("/s"), record=Path("/r"), discover=False)
    [(name, config, given, (key, reread), ends)] = daemon.calls
    assert (name, config, given, key, ends) == ("run", Config(), options, "reread", ("ends_process", True))
    assert reread() == Config(), "SIGHUP reads the same file again"


def test_demo_and_record_and_release(runtime):
    demo, daemon, release = runtime("demo"), runtime("process"), runtime("release")
    assert main(["demo", "--listen", "127.0.0.1:0"]) == 7
    assert demo.calls == [("run", RunOptions(listen="127.0.0.1:0", demo=True))]
    assert main(["record", "/o.gz", "--seconds", "2m"]) == 7
    assert daemon.calls == [("record", Config(), RunOptions(), Path("/o.gz"), 120.0)]
    assert main(["release", "--for", "5m", "--state", "/s"]) == 7
    assert main(["release", "--state", "/s"]) == 7
    assert release.calls == [
        ("release", Path("/s/api.sock"), 300.0),
        ("release", Path("/s/api.sock"), 600.0),
    ]


def test_an_interrupt_is_no_traceback(runtime, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime("process"), "run", interrupted)
    assert main(["run"]) == 130


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys, jouled.app.cli; heavy = {'aiohttp', 'pynvml', 'prometheus_client', 'opentelemetry', 'sqlite3'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{sys.executable} -c 'import sys; from jouled.app.cli import main; sys.exit(main([\"metrics\"]))'"
    done = subprocess.run(
        f"({command}; echo code $? >&2) | true", shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr
    assert done.stderr in {"code 0\n", "code 1\n"}


@pytest.fixture
def page_server():
    """A port that answers every request with one body."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    body = b'vllm:num_requests_running{model_name="tiny"} 2.0\n' + b"".join(
                        b'vllm:time_to_first_token_seconds_bucket{le="%s"} 0\n' % bound
                        for bound in (b"0.25", b"0.5", b"+Inf")
                    )
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_check_shows_what_works_and_what_mends_the_rest(tmp_path, capsys, page_server):
    (tmp_path / "empty").mkdir()
    config = tmp_path / "c.toml"
    config.write_text(
        f'[power.estimate]\n[power.rapl]\nsysfs_root = "{tmp_path}/empty"\n'
        f'[[engines]]\ntype = "vllm"\nurl = "http://127.0.0.1:{page_server}"\n[[engines]]\nname = "gateway"\n'
        '[[engines]]\ntype = "vlm"\nurl = "http://127.0.0.1:1"\n'
        '[[slo]]\nname = "chat"\nttft = 300\n[[slo]]\nname = "batch"\nttft = 500\n'
    )
    assert main(["check", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "estimate     ok" in out
    assert "estimated" in out
    assert "rapl         absent" in out
    assert "mend" in out
    assert f"vllm-{page_server}" in out
    assert "its page does not tell:" in out
    assert "request events only" in out
    assert "SLO chat: ttft = 300 ms is none of the engine's bucket bounds (nearest: 250 and 500)" in out
    assert "SLO batch" not in out
    assert "no engine collector is called `vlm`. Did you mean `vllm`?" in out


def test_check_knows_of_an_engine_what_its_process_was_started_with(tmp_path, capsys, monkeypatch):
    async def page(_session, _url, _token_file):
        return b"llamacpp:prompt_tokens_total 5\n"

    monkeypatch.setattr("jouled.app.runtime.engines.pages.fetch", page)
    config = tmp_path / "c.toml"
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, "--alias", "a-70B"], stdin=subprocess.PIPE) as process:
        engine = f'type = "llama_cpp"\nurl = "http://127.0.0.1:1"\npid = {process.pid}'
        config.write_text(f"[power.estimate]\n[[engines]]\n{engine}\n")
        assert main(["check", "--config", str(config)]) == 0
        process.communicate()
    out = " ".join(capsys.readouterr().out.split())
    assert "http://127.0.0.1:1 a-70B its page does not tell: cached_prompt_tokens, generation_tokens," in out
    assert "7e10 parameters" in out


def test_check_outlives_a_collector_that_fails(tmp_path, capsys, monkeypatch, page_server):
    def fails(_self, _body):
        raise KeyError("le")

    monkeypatch.setattr("jouled_collectors.engines.vllm.VllmCollector.page", fails)
    config = tmp_path / "c.toml"
    url = f"http://127.0.0.1:{page_server}"
    config.write_text(f'[power.estimate]\n[[engines]]\ntype = "vllm"\nurl = "{url}"\n[[engines]]\nname = "gateway"\n')
    assert main(["check", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "its collector vllm failed unexpectedly: KeyError: 'le'" in out
    assert "request events only" in out


def test_check_of_a_good_node_is_code_0(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text('[power.estimate]\n[[engines]]\nname = "gateway"\n')
    assert main(["check", "--config", str(config)]) == 0
    assert "1 device" in capsys.readouterr().out


def test_check_says_which_sinks_can_be_used_and_no_secret(tmp_path, capsys):
    (tmp_path / "token").write_text("s3cr3t")
    (tmp_path / "web.yml").write_text("basic_auth_users:\n  alice: no-hash-at-all\n")
    config = tmp_path / "c.toml"
    config.write_text(
        '[power.estimate]\n[[engines]]\nname = "gateway"\n'
        f'[serve]\nweb_config_file = "{tmp_path}/web.yml"\ntoken_file = "{tmp_path}/nowhere"\n'
        f'[sinks.influx]\nurl = "http://127.0.0.1:1"\norg = "o"\nbucket = "b"\ntoken_file = "{tmp_path}/token"\n'
        f'[sinks.second]\ntype = "influx"\nurl = "http://127.0.0.1:1"\norg = "o"\nbucket = "b"\n'
        f'token_file = "{tmp_path}/missing"\n'
    )
    assert main(["check", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "influx               ok        takes points and receipts; nothing was sent" in out
    assert "second               unusable" in out
    assert f"{tmp_path}/missing cannot be read" in out
    assert f"token_file           unusable  serve.token_file {tmp_path}/nowhere cannot be read" in out
    assert "web_config_file      unusable" in out
    assert "s3cr3t" not in out
    assert "no-hash-at-all" not in out


def test_check_says_whether_traces_can_come_by_grpc(tmp_path, capsys, monkeypatch):
    config = tmp_path / "c.toml"
    config.write_text(
        '[power.estimate]\n[[engines]]\nname = "gateway"\n[requests.otlp]\ngrpc_listen = "127.0.0.1:4317"\n'
    )
    assert main(["check", "--config", str(config)]) == 0
    assert "grpc_listen          ok        traces can come by gRPC on 127.0.0.1:4317" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "grpc.aio", None)
    assert main(["check", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "grpc_listen          unusable  [requests.otlp] grpc_listen needs grpcio" in out
    assert "mend      pip install 'jouled[grpc]'" in out


def test_check_never_hangs_on_a_source_or_an_engine(tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        from jouled.app.runtime.engines import pages

        monkeypatch.setattr(pages, "TIMEOUT_SECONDS", 0.2)
        monkeypatch.setattr(probe.sys, "executable", "/bin/cat")
        config = tmp_path / "c.toml"
        config.write_text(
            f'[power.estimate]\n[[engines]]\ntype = "vllm"\nurl = "http://127.0.0.1:{silent.getsockname()[1]}"\n'
        )
        assert main(["check", "--config", str(config), "--timeout", "5"]) == 1
    out = capsys.readouterr().out
    assert "estimate     down" in out
    assert "did not answer within" in out
