"""An engine's `/metrics` as vLLM serves it: families, labels, help texts and bounds seen on a running 0.32.0.

The simulation keeps the figures; this lays them out in a registry of its own and lets prometheus-client write them.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from jouled_collectors.twin.scheduler import EngineSimulation
from jouled_collectors.twin.tallies import Tally

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
VLLM_VERSION = "0.32.0"

_NAMES = ("engine", "model_name")
_CHAT = "/v1/chat/completions"
_BY_REASON = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
    "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
    "vllm:num_requests_waiting."
)
_SLEEP = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 "
    "means sleep level 1; discard_all = 1 means sleep level 2."
)
_CACHED_BY_SOURCE = (
    "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), "
    "disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to "
    "vllm:prefix_cache_hits + vllm:external_prefix_cache_hits."
)
_EXTERNAL = "External prefix cache {} from KV connector cross-instance cache sharing, in terms of number of {} tokens."
_NEVER_MOVING = (
    (
        "estimated_flops_per_gpu",
        "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
    ),
    (
        "estimated_read_bytes_per_gpu",
        "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
    ),
    (
        "estimated_write_bytes_per_gpu",
        "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
    ),
    ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens."),
    ("external_prefix_cache_queries", _EXTERNAL.format("queries", "queried")),
    ("external_prefix_cache_hits", _EXTERNAL.format("hits", "cached")),
    ("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
    ("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
    ("num_preemptions", "Cumulative number of preemption from the engine."),
    ("prompt_tokens_cached", "Number of cached prompt tokens (local + external)."),
)
"""Counters that stand at zero here: no prefix is shared, nobody is preempted, MFU metrics are off as by default."""
_HISTOGRAMS = (
    ("request_prompt_tokens", "request_prompt_tokens", "Number of prefill tokens processed."),
    ("request_generation_tokens", "request_generation_tokens", "Number of generation tokens processed."),
    ("iteration_tokens_total", "iteration_tokens", "Histogram of number of tokens per engine_step."),
    (
        "request_max_num_generation_tokens",
        "max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
    ),
    ("request_params_n", "params_n", "Histogram of the n request parameter."),
    ("request_params_max_tokens", "params_max_tokens", "Histogram of the max_tokens request parameter."),
    ("time_to_first_token_seconds", "time_to_first_token", "Histogram of time to first token in seconds."),
    ("inter_token_latency_seconds", "inter_token_latency", "Histogram of inter-token latency in seconds."),
    (
        "request_time_per_output_token_seconds",
        "time_per_output_token",
        "Histogram of time_per_output_token_seconds per request.",
    ),
    ("e2e_request_latency_seconds", "e2e", "Histogram of e2e request latency in seconds."),
    ("request_queue_time_seconds", "queue_time", "Histogram of time spent in WAITING phase for request."),
    ("request_inference_time_seconds", "inference_time", "Histogram of time spent in RUNNING phase for request."),
    ("request_prefill_time_seconds", "prefill_time", "Histogram of time spent in PREFILL phase for request."),
    ("request_decode_time_seconds", "decode_time", "Histogram of time spent in DECODE phase for request."),
    ("request_num_preemptions", "num_preemptions", "Histogram of the number of times a request was preempted."),
    (
        "request_prefill_kv_computed_tokens",
        "prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
    ),
)
"""Family without prefix, name of the tally, help."""


class EnginePage(Collector):
    """Writes one engine's page. `created_seconds`: Unix time at which the counters were zero."""

    def __init__(self, engine: EngineSimulation, created_seconds: float) -> None:
        self._engine = engine
        self._created = created_seconds
        self._labels = ("0", engine.spec.architecture.model)
        self._registry = CollectorRegistry(auto_describe=False)
        GCCollector(self._registry)
        PlatformCollector(self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def render(self) -> bytes:
        """The page as it stands now."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing to compare: the registry has one engine only."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families in about the order of the real page."""
        tallies = self._engine.tallies
        for name, documentation in _NEVER_MOVING:
            yield self._counter(name, documentation, 0)
        yield from self._gauges()
        yield self._counter(
            "prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            tallies.prefix_queries,
        )
        yield self._counter("prompt_tokens", "Number of prefill tokens processed.", tallies.prompt_tokens)
        yield self._counter("generation_tokens", "Number of generation tokens processed.", tallies.generation_tokens)
        yield from self._labelled_counters()
        for name, tally, documentation in _HISTOGRAMS:
            yield self._histogram(name, documentation, getattr(tallies, tally))
        yield self._cache_config()
        yield from self._http()

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", documentation, labels=_NAMES)
        family.add_metric(self._labels, value, created=self._created)
        return family

    def _labelled(self, name: str, documentation: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", documentation, labels=(*_NAMES, label))
        for value, count in values.items():
            family.add_metric((*self._labels, value), count, created=self._created)
        return family

    def _labelled_counters(self) -> Iterator[Metric]:
        tallies = self._engine.tallies
        sources = {"local_compute": tallies.prompt_tokens, "local_cache_hit": 0, "external_kv_transfer": 0}
        yield self._labelled("prompt_tokens_by_source", "Number of prompt tokens by source.", "source", sources)
        tiers = dict.fromkeys(("device", "host", "p2p", "disk", "external_unspecified"), 0)
        yield self._labelled("prompt_tokens_cached_by_source", _CACHED_BY_SOURCE, "source", tiers)
        yield self._labelled(
            "request_success", "Count of successfully processed requests.", "finished_reason", tallies.finished
        )
        rejections = CounterMetricFamily(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            labels=("model_name", "reason"),
        )
        for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
            rejections.add_metric((self._labels[1], reason), 0, created=self._created)
        yield rejections

    def _gauges(self) -> Iterator[Metric]:
        engine = self._engine
        plain = (
            ("num_requests_running", "Number of requests in model execution batches.", engine.running),
            ("num_requests_waiting", "Number of requests waiting to be processed.", engine.waiting),
            (
                "kv_cache_usage_perc",
                "KV-cache usage. 1 means 100 percent usage.",
                engine.kv_tokens / engine.spec.machine.kv_capacity_tokens,
            ),
        )
        for name, documentation, value in plain:
            gauge = GaugeMetricFamily(f"vllm:{name}", documentation, labels=_NAMES)
            gauge.add_metric(self._labels, value)
            yield gauge
        reasons = GaugeMetricFamily("vllm:num_requests_waiting_by_reason", _BY_REASON, labels=(*_NAMES, "reason"))
        reasons.add_metric((*self._labels, "capacity"), engine.waiting)
        reasons.add_metric((*self._labels, "deferred"), 0)
        yield reasons
        sleep = GaugeMetricFamily("vllm:engine_sleep_state", _SLEEP, labels=(*_NAMES, "sleep_state"))
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.add_metric((*self._labels, state), float(state == "awake"))
        yield sleep

    def _histogram(self, name: str, documentation: str, tally: Tally) -> Metric:
        family = HistogramMetricFamily(f"vllm:{name}", documentation, labels=_NAMES)
        family.add_metric(self._labels, tally.cumulative(), tally.sum)
        family.add_sample(f"vllm:{name}_created", dict(zip(_NAMES, self._labels, strict=True)), self._created)
        return family

    def _cache_config(self) -> Metric:
        tokens = self._engine.spec.machine.kv_capacity_tokens
        settings = {
            "block_size": "16",
            "cache_dtype": "auto",
            "enable_prefix_caching": "False",
            "engine": "0",
            "gpu_memory_utilization": "0.92",
            "kv_cache_size_tokens": str(tokens),
            "num_gpu_blocks": str(tokens // 16),
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=tuple(settings)
        )
        family.add_metric(tuple(settings.values()), 1.0)
        return family

    def _http(self) -> Iterator[Metric]:
        tallies = self._engine.tallies
        requests = CounterMetricFamily(
            "http_requests",
            "Total number of requests by method, status and handler.",
            labels=("handler", "method", "status"),
        )
        requests.add_metric((_CHAT, "POST", "2xx"), tallies.http.count, created=self._created)
        yield requests
        fine = HistogramMetricFamily(
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
        )
        fine.add_metric((), tallies.http_fine.cumulative(), tallies.http_fine.sum)
        yield fine
        coarse = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
            labels=("handler", "method"),
        )
        coarse.add_metric((_CHAT, "POST"), tallies.http.cumulative(), tallies.http.sum)
        yield coarse
