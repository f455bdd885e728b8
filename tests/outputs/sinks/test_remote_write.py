"""Prometheus remote write 1.0, to a real Prometheus and a real VictoriaMetrics."""

import asyncio
import builtins
import json
import math

import pytest
from cramjam import snappy
from msgspec.structs import replace

from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import Family, Points
from jouled.model.snapshot import Histogram
from jouled.outputs.sinks.remote_write import RemoteWriteSettings, RemoteWriteSink

OUT_OF_ORDER = "storage: {tsdb: {out_of_order_time_window: 30s}}"


def remote(url: str, **changes) -> RemoteWriteSettings:
    return RemoteWriteSettings(url=f"{url}/api/v1/write", **changes)


def labelled(series, **more: str):
    """The same series as remote write names them."""
    common = {("job", "jouled"), ("instance", "node17"), *more.items()}
    return {(name, labels | common): samples for (name, labels), samples in series.items()}


def histogram_series(moments):
    """The series of all histograms, in the names of Prometheus."""
    found: dict = {}
    for moment in moments:
        for family in moment.families:
            for labels, histogram in family.histograms.items():
                named = frozenset((n, v) for n, v in zip(family.labels, labels, strict=True) if v)
                of_bounds = zip([*map(repr, histogram.bounds), "+Inf"], histogram.counts, strict=True)
                rows = [(f"{family.name}_bucket", named | {("le", bound)}, count) for bound, count in of_bounds]
                rows += [(f"{family.name}_sum", named, histogram.sum)]
                rows += [(f"{family.name}_count", named, histogram.counts[-1])]
                for name, of_series, value in rows:
                    found.setdefault((name, of_series), []).append((moment.t_ns // 1_000_000, float(value)))
    return found


# Real receivers


async def test_prometheus_holds_every_value_of_every_moment(start_prometheus, opened, moments, plain_series):
    prometheus = await start_prometheus()
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        for part in (moments[:1], moments[1:]):
            delivery = await sink.points(part)
            assert (delivery.taken, delivery.rejected) == (len(part), ())
    expected = labelled({**plain_series(moments), **histogram_series(moments)})
    assert len(expected) > 500
    found = await prometheus.series()
    prometheus.check(found, expected)
    assert set(found) == set(expected)


async def test_prometheus_holds_the_exemplars_once(start_prometheus, opened, moments):
    prometheus = await start_prometheus()
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        await sink.points(moments[:3])
        await sink.points(moments[3:])
    window = {"query": 'jouled_request_energy_joules_bucket{model_name="qwen3-32b"}', "start": "0", "end": "4000000000"}
    rows = json.loads(await prometheus.get("/api/v1/query_exemplars", **window))["data"]
    [histogram] = [
        histogram
        for family in moments[0].families
        for labels, histogram in family.histograms.items()
        if labels == ("qwen3-32b",)
    ]
    expected = {
        repr(bound): [{"labels": {"trace_id": trace}, "value": f"{value:g}", "timestamp": seconds}]
        for bound, (value, trace, seconds) in zip(histogram.bounds, histogram.exemplars[:-1], strict=True)
    }
    assert {row["seriesLabels"]["le"]: row["exemplars"] for row in rows} == expected


async def test_prometheus_gets_no_exemplars_where_none_are_wanted(start_prometheus, opened, moments):
    prometheus = await start_prometheus()
    async with opened(RemoteWriteSink(), remote(prometheus.url, exemplars=False)) as sink:
        await sink.points(moments)
    window = {"query": "jouled_request_energy_joules_bucket", "start": "0", "end": "4000000000"}
    assert json.loads(await prometheus.get("/api/v1/query_exemplars", **window))["data"] == []


async def test_prometheus_takes_the_newest_moment_again_as_if_nothing_had_been(start_prometheus, opened, moments):
    prometheus = await start_prometheus()
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        await sink.points(moments)
        delivery = await sink.points(moments[-1:])
    assert (delivery.taken, delivery.rejected) == (1, ())


async def test_prometheus_has_each_sample_once_after_a_crash_and_what_is_new_goes_on(
    start_prometheus, opened, moments, plain_series
):
    prometheus = await start_prometheus()
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        await sink.points(moments[:3])
        delivery = await sink.points(moments)  # as after a crash: 0 and 1 are older than the newest, 2 is the newest
    assert delivery.taken == 5
    assert [one.index for one in delivery.rejected] == [0, 1]
    assert {one.message for one in delivery.rejected} == {"400: out of order sample"}
    prometheus.check(await prometheus.series(), labelled({**plain_series(moments), **histogram_series(moments)}))


async def test_prometheus_that_allows_disorder_takes_all_again(start_prometheus, opened, moments, plain_series):
    prometheus = await start_prometheus(OUT_OF_ORDER)
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        await sink.points(moments[:3])
        delivery = await sink.points(moments)
    assert (delivery.taken, delivery.rejected) == (5, ())
    prometheus.check(await prometheus.series(), labelled(plain_series(moments)))


async def test_prometheus_that_calls_a_too_old_moment_its_own_failure_does_not_hold_up_the_stream(
    start_prometheus, opened, moments
):
    prometheus = await start_prometheus(OUT_OF_ORDER)
    old = replace(moments[0], t_ns=moments[0].t_ns - 3_600_000_000_000)
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        await sink.points(moments[:3])
        delivery = await sink.points([old, *moments[3:]])
    assert delivery.taken == 3
    [rejected] = delivery.rejected
    assert rejected.index == 0
    assert "too old sample" in rejected.message


async def test_victoria_holds_every_value_once_though_it_is_sent_twice(victoria, opened, moments, plain_series):
    async with opened(RemoteWriteSink(), remote(victoria.url)) as sink:
        for _ in range(2):
            delivery = await sink.points(moments)
            assert (delivery.taken, delivery.rejected) == (len(moments), ())
    found = await victoria.series(job="jouled")
    expected = labelled({**plain_series(moments), **histogram_series(moments)})
    victoria.check(found, expected)
    assert set(found) == set(expected)


async def test_values_that_are_not_finite_arrive_as_they_are(start_prometheus, opened, now_ns):
    prometheus = await start_prometheus()
    family = Family(name="x", type="gauge", labels=("is",), values={("nan",): math.nan, ("inf",): math.inf})
    histogram = Histogram(bounds=(1.0,), counts=(0, 0), sum=0.0)
    empty = Family(name="h", type="histogram", labels=(), histograms={(): histogram})
    moment = Points(number=1, t_ns=now_ns, since_ns=0, node="n", families=(family, empty))
    async with opened(RemoteWriteSink(), remote(prometheus.url)) as sink:
        assert (await sink.points([moment])).rejected == ()
    found = {
        (name, dict(labels).get("is")): samples[0][1] for (name, labels), samples in (await prometheus.series()).items()
    }
    assert math.isnan(found["x", "nan"])
    assert found["x", "inf"] == math.inf
    assert found["h_sum", None] == 0.0


# What goes over the wire


async def test_a_request_has_the_headers_of_the_specification_and_its_own(stub, opened, moments, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    settings = remote(stub.url, token_file=str(tmp_path / "token"), headers={"X-Scope-OrgID": "power"})
    async with opened(RemoteWriteSink(), settings) as sink:
        await sink.points(moments)
    [request] = stub.requests
    assert request.path == "/api/v1/write"
    expected = {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
        "User-Agent": "jouled",
        "X-Scope-OrgID": "power",
        "Authorization": "Bearer s3cret",
    }
    assert expected.items() <= request.headers.items()
    assert b"jouled_energy_joules_total" in bytes(snappy.decompress_raw(stub.bodies[0]))


async def test_labels_are_sorted_and_none_is_empty(stub, opened, moments):
    async with opened(RemoteWriteSink(), remote(stub.url)) as sink:
        await sink.points(moments[:1])
    series = parts(1, bytes(snappy.decompress_raw(stub.bodies[0])))
    assert len(series) > 500
    for one in series:
        labels = [(parts(1, label)[0].decode(), parts(2, label)[0].decode()) for label in parts(1, one)]
        assert [name for name, _ in labels] == sorted({name for name, _ in labels})
        assert labels[0][0] == "__name__"
        assert all(value for _, value in labels)


def parts(number: int, message: bytes) -> list[bytes]:
    """The contents of a protobuf field of variable length, read by the encoding's own rules."""
    found, rest = [], memoryview(message)

    def varint() -> int:
        nonlocal rest
        value = shift = 0
        while True:
            byte, rest = rest[0], rest[1:]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while rest:
        tag = varint()
        if tag & 7 == 0:
            varint()
            continue
        length = 8 if tag & 7 == 1 else varint()
        if tag == number << 3 | 2:
            found.append(bytes(rest[:length]))
        rest = rest[length:]
    return found


async def test_it_logs_in_by_user_and_password(stub, opened, moments, tmp_path):
    (tmp_path / "password").write_text("pw")
    settings = remote(stub.url, user="joe", password_file=str(tmp_path / "password"))
    async with opened(RemoteWriteSink(), settings) as sink:
        await sink.points(moments)
    assert stub.requests[0].headers["Authorization"] == "Basic am9lOnB3"


# What the other side says


@pytest.mark.parametrize(
    ("status", "headers", "reason", "retry_after"),
    [
        (401, {}, "unauthorized", None),
        (404, {}, "not_found", None),
        (415, {}, "refused", None),
        (429, {"Retry-After": "17"}, "throttled", 17.0),
        (500, {}, "server_error", None),
        (503, {"Retry-After": "5"}, "server_error", 5.0),
    ],
)
async def test_what_says_nothing_of_the_moments_keeps_them(
    status, headers, reason, retry_after, stub, opened, moments, tmp_path
):
    (tmp_path / "token").write_text("s3cret")
    stub.judge = lambda _: (status, "no, because", headers)
    async with opened(RemoteWriteSink(), remote(stub.url, token_file=str(tmp_path / "token"))) as sink:
        with pytest.raises(SinkError) as raised:
            await sink.points(moments)
    assert (raised.value.reason, raised.value.retry_after_seconds) == (reason, retry_after)
    assert "s3cret" not in str(raised.value)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_of_a_refused_delivery_only_the_culprit_is_rejected(status, stub, opened, moments):
    poison = Family(name="jouled_poison", type="gauge", values={(): 1.0})
    moments[2] = replace(moments[2], families=(*moments[2].families, poison))

    def judge(body: bytes):
        return (status, "poison") if b"jouled_poison" in bytes(snappy.decompress_raw(body)) else (204, "")

    stub.judge = judge
    async with opened(RemoteWriteSink(), remote(stub.url)) as sink:
        delivery = await sink.points(moments)
    assert delivery.taken == 5
    [rejected] = delivery.rejected
    assert (rejected.index, rejected.message) == (2, f"{status}: poison")


async def test_one_that_does_not_answer_is_left_after_the_time_limit(stub, opened, moments, run_once):
    stub.hold = asyncio.Event()
    async with opened(RemoteWriteSink(), remote(stub.url)) as sink:
        runner, counts = await run_once("points", moments, sink.points, timeout_seconds=0.3)
    assert (runner.place.taken, counts.failures, len(stub.requests)) == (0, {"timeout": 1}, 1)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (remote("prometheus:9090"), "not an address"),
        (remote("http://p", user="u"), "go together"),
        (remote("http://p", user="u", password_file="/p", token_file="/t"), "exclude"),
        (remote("http://p", token_file="/nonexistent/token"), "token_file"),
        (remote("http://p", headers={"authorization": "Bearer x"}), "token_file"),
        (remote("http://p", ca_file="/nonexistent/ca.pem"), "/nonexistent/ca.pem"),
        (remote("http://p", key_file="/k"), "cert_file"),
    ],
)
async def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        RemoteWriteSink().open(settings, "n")
    assert "Bearer" not in str(raised.value)


async def test_without_snappy_it_says_what_to_install(monkeypatch):
    there = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("cramjam"):
            raise ImportError(name)
        return there(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install 'jouled\[remote-write\]'"):
        RemoteWriteSink().open(remote("http://p"), "n")
