"""`python -m jouled_collectors.twin`: run the twin, find or start it, stop it, or write a recording of it."""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from jouled_collectors.twin.launcher import TwinError, ensure_running, stop
from jouled_collectors.twin.load import SHAPES, Load
from jouled_collectors.twin.recording import RecordingOptions, write_recording
from jouled_collectors.twin.server import TwinOptions, serve

_COMMANDS = ("run", "ensure", "stop", "recording")


def main(arguments: list[str] | None = None) -> int:
    """Run one command, `run` if none is named; the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or (given[0] not in _COMMANDS and given[0] not in {"-h", "--help"}):
        given = ["run", *given]
    parsed = _parser().parse_args(given)
    try:
        outcome: int = parsed.command(parsed)
    except (TwinError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return outcome


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jouled_collectors.twin", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the twin (the default)")
    run.set_defaults(command=_run)
    run.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: any free one)")
    run.add_argument("--state", type=Path, help="directory in which to say where it listens")
    ensure = commands.add_parser("ensure", help="start it or find it running; prints where and what as JSON")
    ensure.set_defaults(command=_ensure)
    ensure.add_argument("--state", type=Path, required=True, help="directory that knows the twin")
    for parser_of_live in (run, ensure):
        _add_load(parser_of_live)
        parser_of_live.add_argument("--spans", default="", metavar="URL", help="where to send spans (…/v1/traces)")
        parser_of_live.add_argument(
            "--linger-seconds", type=float, default=1800.0, help="end when unasked for so long (default %(default)s)"
        )
    ending = commands.add_parser("stop", help="stop it")
    ending.set_defaults(command=_stop)
    ending.add_argument("--state", type=Path, required=True, help="directory that knows the twin")
    _add_recording(commands.add_parser("recording", help="write a recording and its truth, in virtual time"))
    return parser


def _add_recording(recording: argparse.ArgumentParser) -> None:
    recording.set_defaults(command=_recording)
    recording.add_argument("--seconds", type=float, default=600.0, help="of arrivals (default %(default)s)")
    recording.add_argument("--poll-ms", type=float, default=20.0, help="between reads of GPUs (default %(default)s)")
    recording.add_argument("--page-seconds", type=float, default=5.0, help="between pages (default %(default)s)")
    recording.add_argument("--shape", choices=sorted(SHAPES), default="chat", help="lengths (default %(default)s)")
    recording.add_argument("--burst-seconds", type=float, default=0.0, help="arrivals only in every other such stretch")
    recording.add_argument("--aborted", type=float, default=0.02, help="fraction of clients that leave")
    recording.add_argument("--no-idle", action="store_true", help="do not tell idle and uplift watts")
    recording.add_argument("--request-starts", action="store_true", help="tell of requests at their arrival, too")
    recording.add_argument("--out", type=Path, required=True, help="recording to write (JSON lines)")
    recording.add_argument("--truth", type=Path, required=True, help="truth to write (JSON)")
    _add_load(recording)


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, help="same seed, same node and load (default %(default)s)")
    parser.add_argument("--load", type=float, default=0.6, help="share of the maximum rate (default %(default)s)")


def _run(parsed: argparse.Namespace) -> int:
    options = TwinOptions(
        port=parsed.port,
        spans_url=parsed.spans,
        seed=parsed.seed,
        load=Load(share=parsed.load),
        linger_seconds=parsed.linger_seconds,
        state_directory=parsed.state,
    )
    asyncio.run(serve(options, _say_where))
    return 0


def _say_where(url: str) -> None:
    sys.stdout.write(f"the twin listens at {url}\n")
    sys.stdout.flush()


def _ensure(parsed: argparse.Namespace) -> int:
    info = ensure_running(parsed.state, parsed.spans, seed=parsed.seed, load=parsed.load, linger=parsed.linger_seconds)
    sys.stdout.write(msgspec.json.encode(info).decode() + "\n")
    return 0


def _stop(parsed: argparse.Namespace) -> int:
    sys.stdout.write("stopped\n" if stop(parsed.state) else "no twin runs\n")
    return 0


def _recording(parsed: argparse.Namespace) -> int:
    options = RecordingOptions(
        seconds=parsed.seconds,
        seed=parsed.seed,
        load=Load(
            share=parsed.load,
            aborted=parsed.aborted,
            lengths=SHAPES[parsed.shape],
            burst_seconds=parsed.burst_seconds,
        ),
        poll_seconds=parsed.poll_ms / 1e3,
        page_seconds=parsed.page_seconds,
        tell_idle=not parsed.no_idle,
        tell_starts=parsed.request_starts,
    )
    requests = write_recording(options, parsed.out, parsed.truth)
    sys.stdout.write(f"{parsed.out}: {requests} requests, truth in {parsed.truth}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
