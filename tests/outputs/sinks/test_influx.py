"""InfluxDB's line protocol, over its three APIs."""

import asyncio
import json
import logging
import re

import pytest
from msgspec.structs import fields
from tests.support.snapshots import receipt

from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import Family, NumberedReceipt, Points
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Histogram
from jouled.outputs.sinks import line_protocol
from jouled.outputs.sinks.culprits import MOST_REQUESTS
from jouled.outputs.sinks.influx import InfluxSettings, InfluxSink
from jouled.outputs.sinks.line_protocol import moment_lines, receipt_line

V1 = {"api": "v1", "database": "power"}
V2 = {"api": "v2", "org": "lab", "bucket": "power"}
V3 = {"api": "v3", "database": "power"}
APIS = pytest.mark.parametrize("api", [V1, V2, V3], ids=["v1", "v2", "v3"])


def influx(url: str, api=V2, **changes) -> InfluxSettings:
    return InfluxSettings(url=url, **api, **changes)


def numbered(count: int, last_token_ns: int = 1_795_000_000_123_456_789) -> list[NumberedReceipt]:
    return [
        NumberedReceipt(number, receipt(number, last_token_ns=last_token_ns + number * 1_000_000_000))
        for number in range(1, count + 1)
    ]


def moment(*families: Family, node: str = "n") -> Points:
    return Points(number=1, t_ns=1_795_000_000_123_456_789, since_ns=0, node=node, families=families)


def gauge(labels: tuple[str, ...], values: dict) -> Family:
    return Family(name="jouled_x", type="gauge", labels=labels, values=values)


# The lines themselves


def test_a_series_is_a_line_with_its_labels_as_tags():
    lines = moment_lines(moment(gauge(("engine", "model"), {("e1", "a, b=c"): 3, ("e2", ""): 0.5})))
    assert list(lines) == [
        "jouled_x,engine=e1,model=a\\,\\ b\\=c,node=n value=3.0 1795000000123456789",
        "jouled_x,engine=e2,node=n value=0.5 1795000000123456789",
    ]


@pytest.mark.parametrize(("value", "written"), [("a\nb", "a\\ b"), ("a\\", "a/"), ("a\\,b", "a/\\,b"), ('"é"', '"é"')])
def test_no_label_value_breaks_out_of_its_tag(value, written):
    assert list(moment_lines(moment(gauge(("model",), {(value,): 1.0}), node=""))) == [
        f"jouled_x,model={written} value=1.0 1795000000123456789"
    ]


def test_values_that_the_protocol_does_not_have_are_left_out():
    values = {("a",): float("nan"), ("b",): float("inf"), ("c",): 1e300}
    assert list(moment_lines(moment(gauge(("model",), values)))) == [
        "jouled_x,model=c,node=n value=1e+300 1795000000123456789"
    ]


def test_a_histogram_has_count_and_sum_and_a_series_for_each_bucket():
    histogram = Histogram(bounds=(1.0, 2.5), counts=(3, 4, 7), sum=11.5)
    family = Family(name="jouled_h", type="histogram", labels=("model",), histograms={("m",): histogram})
    assert [line.removesuffix(" 1795000000123456789") for line in moment_lines(moment(family))] == [
        "jouled_h,model=m,node=n count=7.0,sum=11.5",
        "jouled_h,model=m,node=n,le=1.0 bucket=3.0",
        "jouled_h,model=m,node=n,le=2.5 bucket=4.0",
        "jouled_h,model=m,node=n,le=+Inf bucket=7.0",
    ]


def test_a_receipt_is_a_line_with_bounded_tags_and_typed_fields():
    made = receipt(3, id='a "b" \\ c\nd', tenant="t,1", cached_prompt_tokens=None, tpot_seconds=float("nan"), joules=2)
    line = receipt_line(NumberedReceipt(3, made), "node 17")
    tags, rest = re.split(r"(?<!\\) ", line, maxsplit=1)
    assert tags == (
        "jouled_request,engine=vllm-8003,model=gemma-3-27b,outcome=completed,tier=goldilocks,quality=measured,"
        "node=node\\ 17"
    )
    written, _, _ = rest.rpartition(" ")
    for field in (
        f"arrival_ns={made.arrival_ns}i", "prompt_tokens=903i", "joules=2.0", "joules_prefill=80.25", "good_chat=t",
        "good_agent=f", 'id="a \\"b\\" \\\\ c d"', 'tenant="t,1"', f'trace_id="{3:032x}"', 'currency="EUR"',
    ):  # fmt: skip
        assert field in written
    for absent in ("cached_prompt_tokens", "joules_residual", "tpot_seconds", "span_id", "method"):
        assert absent not in written


def test_every_part_of_a_receipt_is_written_or_left_out_on_purpose():
    written = {
        *line_protocol.RECEIPT_TAGS,
        *line_protocol.RECEIPT_INTEGERS,
        *line_protocol.RECEIPT_FLOATS,
        *line_protocol.RECEIPT_STRINGS,
    }
    assert {field.name for field in fields(Receipt)} - written == {"good", "provisional", "method"}


def test_a_receipt_has_the_same_time_again_and_another_than_its_neighbours():
    def time_of(number: int, last_token_ns: int) -> int:
        made = NumberedReceipt(number, receipt(0, last_token_ns=last_token_ns))
        return int(receipt_line(made, "n").rpartition(" ")[2])

    assert time_of(1007, 5_000_000_999) == 5_000_000_007 == time_of(1007, 5_000_000_999)
    assert len({time_of(number, 5_000_000_500 + number) for number in range(400)}) == 400


# Real VictoriaMetrics


@pytest.mark.parametrize("api", [V1, V2], ids=["v1", "v2"])
async def test_victoria_holds_every_value_once_though_it_is_sent_twice(
    api, victoria, opened, moments, plain_series, now_ns
):
    receipts = numbered(8, now_ns - 60_000_000_000)
    async with opened(InfluxSink(), influx(victoria.url, api)) as sink:
        for _ in range(2):
            assert (await sink.points(moments)).taken == len(moments)
            assert (await sink.receipts(receipts)).taken == len(receipts)
    found = await victoria.series(node="node17")
    database = {("db", "power")} if api is V1 else set()
    expected = {
        (f"{name}_value", labels | {("node", "node17")} | database): samples
        for (name, labels), samples in plain_series(moments).items()
    }
    assert len(expected) > 400
    victoria.check(found, expected)
    _check_receipts(found, receipts, database)


def _check_receipts(found, receipts, database) -> None:
    for one in receipts:
        made = one.receipt
        tags = {"engine": made.engine, "model": made.model, "outcome": made.outcome.value, "tier": made.tier}
        labels = frozenset({**tags, "quality": "measured", "node": "node17"}.items()) | database
        for name in ("joules", "prompt_tokens", "cost", "ttft_seconds", "first_token_ns"):
            samples = dict(found[f"jouled_request_{name}", labels])
            assert samples[made.last_token_ns // 1_000_000] == pytest.approx(getattr(made, name), rel=1e-12)
    joules = [samples for (name, _), samples in found.items() if name == "jouled_request_joules"]
    assert sum(map(len, joules)) == len(receipts)


async def test_a_real_parser_reads_label_values_of_all_kinds_back(victoria, opened, now_ns):
    values = {("a b", "1,2"): 1.0, ("k=v", '"quoted"'): 2.0, ("é/π", "{}"): 3.0, ("back\\", "x"): 4.0, ("", "y"): 5.0}
    family = gauge(("model", "kind"), values)
    sent = Points(number=1, t_ns=now_ns, since_ns=0, node="n", families=(family,))
    async with opened(InfluxSink(), influx(victoria.url)) as sink:
        assert (await sink.points([sent])).taken == 1
    found = {frozenset(labels - {("node", "n")}): samples for (_, labels), samples in (await victoria.series()).items()}
    values["back/", "x"] = values.pop(("back\\", "x"))
    assert found == {
        frozenset((n, v) for n, v in (("model", model), ("kind", kind)) if v): [(now_ns // 1_000_000, value)]
        for (model, kind), value in values.items()
    }


async def test_promql_finds_the_quantile_of_a_histogram(victoria, opened, moments):
    async with opened(InfluxSink(), influx(victoria.url)) as sink:
        await sink.points(moments)
    await victoria.get("/internal/force_flush")
    query = 'histogram_quantile(0.5, jouled_request_energy_joules_bucket{model_name="qwen3-32b"})'
    time = str(moments[-1].t_ns // 1_000_000_000)
    answer = json.loads(await victoria.get("/api/v1/query", query=query, time=time))
    [row] = answer["data"]["result"]
    assert float(row["value"][1]) == pytest.approx(87.5)  # the 62.5th of 125: 55 are at most 50, 65 at most 100


# What goes over the wire


@APIS
async def test_each_api_is_asked_at_its_own_address(api, stub, opened, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    async with opened(InfluxSink(), influx(stub.url + "/", api, token_file=str(tmp_path / "token"))) as sink:
        assert (await sink.receipts(numbered(3))).taken == 3
    [request] = stub.requests
    path, parameters, scheme = {
        "v1": ("/write", {"db": "power", "precision": "ns"}, "Token"),
        "v2": ("/api/v2/write", {"org": "lab", "bucket": "power", "precision": "ns"}, "Token"),
        "v3": ("/api/v3/write_lp", {"db": "power", "precision": "nanosecond", "accept_partial": "true"}, "Bearer"),
    }[api["api"]]
    assert (request.path, dict(request.query)) == (path, parameters)
    assert request.headers["Authorization"] == f"{scheme} s3cret"
    assert request.headers["Content-Encoding"] == "gzip"
    assert stub.bodies[0].decode().splitlines() == [receipt_line(one, "node17") for one in numbered(3)]


async def test_v1_knows_user_and_password(stub, opened, tmp_path):
    (tmp_path / "password").write_text("pä:ss")
    settings = influx(stub.url, V1, user="joe", password_file=str(tmp_path / "password"))
    async with opened(InfluxSink(), settings) as sink:
        await sink.receipts(numbered(1))
    assert stub.requests[0].headers["Authorization"] == "Basic am9lOnDDpDpzcw=="


async def test_receipts_are_sent_only_where_they_are_wanted(stub, opened):
    async with opened(InfluxSink(), influx(stub.url, receipts=False)) as sink:
        assert list(sink.most) == ["points"]
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        assert list(sink.most) == ["points", "receipts"]


# What the other side says


@APIS
@pytest.mark.parametrize(
    ("status", "headers", "reason", "retry_after"),
    [
        (401, {}, "unauthorized", None),
        (404, {}, "not_found", None),
        (302, {"Location": "/elsewhere"}, "not_found", None),
        (405, {}, "refused", None),
        (429, {"Retry-After": "17"}, "throttled", 17.0),
        (500, {}, "server_error", None),
        (503, {"Retry-After": "5"}, "server_error", 5.0),
    ],
)
async def test_what_says_nothing_of_the_records_keeps_them(
    api, status, headers, reason, retry_after, stub, opened, tmp_path, caplog
):
    (tmp_path / "token").write_text("s3cret")
    stub.judge = lambda _: (status, "no, because", headers)
    caplog.set_level(logging.DEBUG)
    async with opened(InfluxSink(), influx(stub.url, api, token_file=str(tmp_path / "token"))) as sink:
        with pytest.raises(SinkError) as raised:
            await sink.receipts(numbered(5))
    assert (raised.value.reason, raised.value.retry_after_seconds) == (reason, retry_after)
    assert str(status) in raised.value.message
    assert "no, because" in raised.value.message
    assert "s3cret" not in str(raised.value) + caplog.text
    assert len(stub.requests) == 1


@APIS
async def test_nobody_there_keeps_the_records(api, opened, unused_tcp_port):
    async with opened(InfluxSink(), influx(f"http://127.0.0.1:{unused_tcp_port}", api)) as sink:
        with pytest.raises(SinkError) as raised:
            await sink.receipts(numbered(1))
    assert raised.value.reason == "unreachable"


@APIS
async def test_one_that_does_not_answer_is_left_after_the_time_limit(api, stub, opened, run_once):
    stub.hold = asyncio.Event()
    async with opened(InfluxSink(), influx(stub.url, api)) as sink:
        runner, counts = await run_once("receipts", numbered(2), sink.receipts, timeout_seconds=0.3)
    assert (runner.place.taken, counts.failures, len(stub.requests)) == (0, {"timeout": 1}, 1)


def refuses(*culprits: str, status: int, text: str):
    """Refuses every body that has one of these words in it."""
    return lambda body: (status, text) if any(word.encode() in body for word in culprits) else (204, "")


PARTIAL = 'partial write: field type conflict: input field "cost" is type float, already exists as integer dropped=1'


@pytest.mark.parametrize(
    ("api", "status", "text"),
    [
        (V1, 400, json.dumps({"error": PARTIAL})),
        (V2, 400, json.dumps({"code": "invalid", "message": PARTIAL})),
        (V2, 422, json.dumps({"code": "unprocessable entity", "message": f"failure writing points: {PARTIAL}"})),
        (V3, 400, json.dumps({"error": "partial write of line protocol occurred", "data": [{"line_number": 2}]})),
    ],
)
async def test_of_a_refused_delivery_only_the_culprits_are_rejected(api, status, text, stub, opened):
    receipts = numbered(100)
    culprits = [receipts[index].receipt.id for index in (0, 62, 99)]
    stub.judge = refuses(*culprits, status=status, text=text)
    async with opened(InfluxSink(), influx(stub.url, api)) as sink:
        delivery = await sink.receipts(receipts)
    assert delivery.taken == 100
    assert [one.index for one in delivery.rejected] == [0, 62, 99]
    assert {one.reason for one in delivery.rejected} == {"refused"}
    assert text in delivery.rejected[1].message
    assert len(stub.requests) <= MOST_REQUESTS


async def test_the_database_says_how_much_of_a_moment_it_dropped(stub, opened, moments):
    stub.judge = refuses(str(moments[2].t_ns), status=422, text=PARTIAL)
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        delivery = await sink.points(moments)
    assert delivery.taken == 5
    [rejected] = delivery.rejected
    assert rejected.index == 2
    assert "dropped=1" in rejected.message


async def test_a_body_that_is_too_large_is_sent_in_halves(stub, opened):
    receipts = numbered(64)
    stub.judge = lambda body: (413, "too large") if body.count(b"\n") >= 20 else (204, "")
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        delivery = await sink.receipts(receipts)
    assert (delivery.taken, delivery.rejected) == (64, ())
    taken = [body for body in stub.bodies if body.count(b"\n") < 20]
    assert b"\n".join(taken).decode().splitlines() == [receipt_line(one, "node17") for one in receipts]


async def test_one_record_that_is_too_large_is_rejected(stub, opened):
    stub.judge = lambda _: (413, "too large")
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        [rejected] = (await sink.receipts(numbered(1))).rejected
    assert rejected.reason == "too_large"


async def test_where_all_is_refused_each_delivery_is_bounded_and_goes_on(stub, opened):
    receipts = numbered(300)
    stub.judge = lambda _: (400, "partial write: field type conflict")
    rejected = 0
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        while receipts:
            before = len(stub.requests)
            delivery = await sink.receipts(receipts)
            assert len(stub.requests) - before <= MOST_REQUESTS
            assert len(delivery.rejected) == delivery.taken > 0
            rejected += len(delivery.rejected)
            receipts = receipts[delivery.taken :]
    assert rejected == 300


async def test_where_all_is_refused_alike_for_another_reason_all_is_kept(stub, opened):
    """As a server of TLS does when it is asked without: its 400 is no word on the records."""
    stub.judge = lambda _: (400, "Client sent an HTTP request to an HTTPS server.")
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        with pytest.raises(SinkError, match="HTTPS server") as caught:
            await sink.receipts(numbered(300))
    assert caught.value.reason == "refused"
    assert len(stub.requests) <= MOST_REQUESTS


async def test_what_was_decided_counts_when_the_server_breaks_down_in_between(stub, opened):
    receipts = numbered(4)
    answers = iter([(400, "no"), (204, ""), (503, "")])
    stub.judge = lambda _: next(answers)
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        delivery = await sink.receipts(receipts)
    assert (delivery.taken, delivery.rejected) == (2, ())


async def test_a_search_for_culprits_ends_before_the_time_limit(stub, opened):
    stub.judge = lambda _: (400, "no")
    async with opened(InfluxSink(), influx(stub.url, timeout_seconds=0.0)) as sink:
        delivery = await sink.receipts(numbered(8))
    assert delivery.taken == 1


async def test_an_answer_that_no_influxdb_gives_is_no_success(stub, opened):
    stub.judge = lambda _: (200, "<html>log in first</html>")
    async with opened(InfluxSink(), influx(stub.url)) as sink:
        with pytest.raises(SinkError, match="does not answer like an InfluxDB"):
            await sink.receipts(numbered(1))


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (influx("influx:8086"), "not an address"),
        (influx("http://joe:pw@influx"), "user or password"),
        (influx("http://i", {"api": "v2", "org": "lab"}), "needs bucket"),
        (influx("http://i", {"api": "v2", "bucket": "b"}), "needs org"),
        (influx("http://i", {"api": "v1"}), "needs database"),
        (influx("http://i", {**V3, "bucket": "b"}), "has no bucket"),
        (influx("http://i", V2, user="u", password_file="/p"), "no user"),
        (influx("http://i", V1, user="u"), "go together"),
        (influx("http://i", V1, user="u", password_file="/p", token_file="/t"), "exclude"),
        (influx("http://i", V2, token_file="/nonexistent/token"), "token_file"),
        (influx("http://i", V3, token_file="/nonexistent/token"), "token_file"),
    ],
)
async def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        InfluxSink().open(settings, "n")
