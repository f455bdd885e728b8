import asyncio
import gzip
import io
import tracemalloc
import zlib
from http import HTTPStatus

import pytest
from tests.outputs.serve.conftest import LineIngest

from jouled.api import Received, TooManyRecordsError
from jouled.outputs.serve import bodies, ingest
from jouled.outputs.serve.answers import Refusal
from jouled.outputs.serve.bodies import RAW_BYTES, inflate

PATH = "/api/v1/requests"


async def test_what_was_taken_is_answered_by_the_receiver(serve):
    served = await serve()
    assert await served.post(PATH, b"a\nb\nbad\nskip") == {"accepted": 2, "rejected": 1}
    assert served.taken == ["a", "b"]


async def test_a_body_that_breaks_is_refused_with_the_position(serve):
    served = await serve()
    answer = await served.post(PATH, b"a\n{", status=400)
    assert answer["position"] == "line 2"
    assert "unexpected end of data" in answer["error"]
    assert served.taken == []


async def test_a_body_of_which_nothing_is_taken_is_refused_with_every_fault(serve):
    served = await serve()
    answer = await served.post(PATH, b"bad\ncore", status=400)
    assert answer["position"] == "line 1"
    assert "prompt_tokens is -1" in answer["error"]
    assert [r["reason"] for r in answer["rejected"]] == ["absurd_tokens", "unknown_engine"]
    assert (answer["accepted"], answer["rejected_count"]) == (0, 2)


async def test_bodies_with_nothing_for_us_are_fine(serve):
    served = await serve()
    assert (await served.post(PATH, b"skip\nbad"))["accepted"] == 0
    assert (await served.post(PATH, b""))["accepted"] == 0


async def test_the_raw_body_is_passed_on_unchanged_and_before_it_is_judged(serve):
    served = await serve()
    zipped = gzip.compress(b"a", mtime=0)
    await served.post(PATH, zipped, Content_Encoding="gzip")
    await served.post(PATH, b"{", status=400)
    assert served.forwarded == [("lines", zipped, "gzip"), ("lines", b"{", "")]
    assert served.taken == ["a"]


async def test_large_bodies_are_taken_whole(serve):
    served = await serve()
    lines = "\n".join(f"request-{n}" for n in range(50_000)).encode()
    assert (await served.post(PATH, lines))["accepted"] == 50_000
    assert (await served.post(PATH, gzip.compress(lines, 1), Content_Encoding="gzip"))["accepted"] == 50_000


async def test_content_type_and_encoding_are_checked(serve):
    served = await serve()
    wrong = await served.post(PATH, b"a", status=415, Content_Type="application/x-www-form-urlencoded")
    assert "send application/json or text/x-lines" in wrong["error"]
    assert (await served.post(PATH, b"a", Content_Type="Application/JSON; charset=utf-8"))["accepted"] == 1
    encoding = await served.post(PATH, b"a", status=415, Content_Encoding="br")
    assert "Content-Encoding br" in encoding["error"]
    assert (await served.post(PATH, b"a", Content_Encoding="identity"))["accepted"] == 1


async def test_too_large_bodies_are_refused_announced_or_not(serve):
    served = await serve()

    async def endless():
        for _ in range(RAW_BYTES // 65536 + 1):
            yield b"x" * 65536

    assert "larger than 16 MiB" in (await served.post(PATH, io.BytesIO(b"x" * (RAW_BYTES + 1)), status=413))["error"]
    assert "larger than 16 MiB" in (await served.post(PATH, endless(), status=413))["error"]
    assert served.taken == []


async def test_a_gzip_bomb_goes_off_outside(serve):
    served = await serve()
    bomb = gzip.compress(b"\n" * (bodies.INFLATED_BYTES + 1), 9)
    assert len(bomb) < 100_000
    answer = await served.post(PATH, bomb, status=413, Content_Encoding="gzip")
    assert "larger than 64 MiB when inflated" in answer["error"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"plain text", "is not gzip"),
        (b"", "ends early"),
        (gzip.compress(b"abc", mtime=0)[:-5], "ends early"),
        (gzip.compress(b"abc", mtime=0) + b"more", "goes on after its end"),
        (zlib.compress(b"abc"), "is not gzip"),
        (gzip.compress(b"abc", mtime=0)[:-8] + b"12345678", "is not gzip"),
    ],
)
def test_broken_gzip_is_refused(body, sentence):
    with pytest.raises(Refusal, match=sentence) as refused:
        inflate(body)
    assert refused.value.status == HTTPStatus.BAD_REQUEST


def test_the_limit_of_inflation_is_exact():
    assert len(inflate(gzip.compress(b"x" * 1000), limit=1000)) == 1000
    with pytest.raises(Refusal):
        inflate(gzip.compress(b"x" * 1001), limit=1000)


def test_inflating_holds_no_more_than_the_limit():
    bomb = gzip.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(Refusal):
            inflate(bomb, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


async def test_a_body_that_drips_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(bodies, "_SECONDS", 0.2)
    served = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.running.port)
    writer.write(b"POST /api/v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: 100\r\n\r\nhalf")  # fmt: skip
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 408 " in head.splitlines()[0]
        assert b"did not come within" in await reader.readuntil(b"}")
    writer.close()


async def test_endless_headers_are_refused(serve):
    served = await serve()
    async with served.session.get(served.url("/metrics"), headers={"X-Long": "x" * 20_000}) as answer:
        assert answer.status == 400


class Crowded(LineIngest):
    def decode(self, body, content_type):
        raise TooManyRecordsError


async def test_too_many_records_are_refused_as_too_large(serve):
    served = await serve(ingests=[Crowded()])
    answer = await served.post(PATH, b"a", status=413)
    assert "too many records" in answer["error"]
    assert answer["accepted"] == 0


async def test_large_bodies_wait_to_be_read_and_small_ones_do_not(serve, monkeypatch):
    monkeypatch.setattr(ingest, "_LARGE_HELD", 1)
    reading = asyncio.Event()
    release = asyncio.Event()
    read = 0
    read_body = ingest.read_body

    async def slow(request):
        nonlocal read
        read += 1
        if request.content_length > 100_000:
            reading.set()
            await release.wait()
        return await read_body(request)

    monkeypatch.setattr(ingest, "read_body", slow)
    served = await serve()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(served.post(PATH, b"a\n" * 60_000))
        await reading.wait()
        group.create_task(served.post(PATH, b"b\n" * 60_000))
        await served.post(PATH, b"c")
        assert (read, served.taken) == (2, ["c"])
        release.set()
    assert read == 3


def test_a_receiver_with_a_fault_is_a_counted_refusal_that_repeats_nothing() -> None:
    def fail() -> Received:
        raise KeyError("a prompt")

    with pytest.raises(Refusal) as caught:
        ingest.decoded(fail)
    assert (caught.value.status, caught.value.reason) == (HTTPStatus.INTERNAL_SERVER_ERROR, "receiver_failed")
    assert "prompt" not in caught.value.message
