"""A model that exports the families of metrics that a language model's backend does, and moves them as that does.

Names, labels and kinds are those of the vLLM backend's `src/utils/metrics.py` (`vllm` at 1e66a22, with gauges;
`vllm_v1` at 2b3cb93, without) and of the TensorRT-LLM backend's Python model at 89fd9b7 (`tensorrt_llm`). There is no
engine behind it: a request takes a place for as long as it asks, and is counted when it has finished.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils

TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
SECONDS = [0.01, 0.1, 0.3, 1.0, 2.5, 5.0, 10.0]


class Metrics:
    """Families and their series by name; all series of a family have the labels of the model."""

    def __init__(self, labels):
        self._labels = labels
        self._families = {}
        self._series = {}

    def add(self, kind, name, buckets=None, **labels):
        if name not in self._families:
            kinds = pb_utils.MetricFamily
            self._families[name] = kinds(name=name, description=f"As told by {name}.", kind=getattr(kinds, kind))
        more = {} if buckets is None else {"buckets": buckets}
        self._series[(name, *labels.values())] = self._families[name].Metric(labels=self._labels | labels, **more)

    def __getitem__(self, name):
        return self._series[name if isinstance(name, tuple) else (name,)]

    def drop(self):
        """Take all series from the page, as a backend does whose metrics end with it."""
        self._series.clear()
        self._families.clear()


class Vllm:
    """The vLLM backend of 2025: what its engine told after each step, with gauges."""

    def __init__(self, metrics):
        self._metrics = metrics
        for name in ("prompt_tokens_total", "generation_tokens_total", "num_preemptions_total"):
            metrics.add("COUNTER", f"vllm:{name}")
        for name in ("iteration_tokens_total", "request_prompt_tokens", "request_generation_tokens"):
            metrics.add("HISTOGRAM", f"vllm:{name}", TOKENS)
        for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency", "request_queue_time"):
            metrics.add("HISTOGRAM", f"vllm:{name}_seconds", SECONDS)
        for name in ("num_requests_running", "num_requests_waiting", "gpu_cache_usage_perc"):
            metrics.add("GAUGE", f"vllm:{name}")

    def present(self, running, waiting):
        self._metrics["vllm:num_requests_running"].set(running)
        self._metrics["vllm:num_requests_waiting"].set(waiting)

    def prefilled(self, prompt):
        """The counters of the engine's steps are ahead of those of finished requests."""
        self._metrics["vllm:prompt_tokens_total"].increment(prompt)
        self._metrics["vllm:generation_tokens_total"].increment(1)

    def finished(self, prompt, generated, seconds):
        self._metrics["vllm:generation_tokens_total"].increment(generated - 1)
        self._metrics["vllm:request_prompt_tokens"].observe(prompt)
        self._metrics["vllm:request_generation_tokens"].observe(generated)
        self._metrics["vllm:e2e_request_latency_seconds"].observe(seconds)


class VllmV1(Vllm):
    """The vLLM backend since vLLM's V1: no gauges."""

    def __init__(self, metrics):
        self._metrics = metrics
        for name in ("prompt_tokens_total", "generation_tokens_total"):
            metrics.add("COUNTER", f"vllm:{name}")
        for name in ("request_prompt_tokens", "request_generation_tokens"):
            metrics.add("HISTOGRAM", f"vllm:{name}", TOKENS)
        for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
            metrics.add("HISTOGRAM", f"vllm:{name}_seconds", SECONDS)

    def present(self, running, waiting):
        pass


class TensorRtLlm:
    """The TensorRT-LLM backend: gauges of its last iteration, and two histograms of finished requests."""

    def __init__(self, metrics):
        self._metrics = metrics
        self._iterations = 0
        for kind in ("active", "max", "scheduled", "context", "waiting"):
            metrics.add("GAUGE", "nv_trt_llm_request_metrics", request_type=kind)
        for kind in ("cpu", "gpu", "pinned"):
            metrics.add("GAUGE", "nv_trt_llm_runtime_memory_metrics", memory_type=kind)
        for kind in ("max", "free", "used", "tokens_per", "fraction"):
            metrics.add("GAUGE", "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type=kind)
        for kind in ("total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"):
            metrics.add("GAUGE", "nv_trt_llm_inflight_batcher_metrics", inflight_batcher_specific_metric=kind)
        for kind in ("timestamp", "iteration_counter"):
            metrics.add("GAUGE", "nv_trt_llm_general_metrics", general_type=kind)
        for way in ("input", "output"):
            metrics.add("HISTOGRAM", f"nv_llm_{way}_token_len", TOKENS, response_metric_type=f"total_{way}_tokens")
        metrics["nv_trt_llm_request_metrics", "max"].set(64)

    def present(self, running, waiting):
        self._metrics["nv_trt_llm_request_metrics", "active"].set(running + waiting)
        self._metrics["nv_trt_llm_request_metrics", "scheduled"].set(running)
        self._metrics["nv_trt_llm_request_metrics", "waiting"].set(waiting)

    def prefilled(self, prompt):
        self._step(1)

    def finished(self, prompt, generated, seconds):
        self._step(generated - 1)
        self._metrics["nv_llm_input_token_len", "total_input_tokens"].observe(prompt)
        self._metrics["nv_llm_output_token_len", "total_output_tokens"].observe(generated)

    def _step(self, count):
        self._iterations += count
        self._metrics["nv_trt_llm_general_metrics", "iteration_counter"].set(self._iterations)


BACKENDS = {"vllm": Vllm, "vllm_v1": VllmV1, "tensorrt_llm": TensorRtLlm}


class TritonPythonModel:
    """Input and output as of `plain.py`. Parameters: `backend`; `places` at one time; `drops`: its metrics end with it.

    Takes every request at once and queues those that find no place itself, as engines do.
    """

    def initialize(self, args):
        told = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in told.items()}
        self._drops = parameters["drops"] == "yes"
        self._metrics = Metrics({"model": args["model_name"], "version": args["model_version"]})
        self._backend = BACKENDS[parameters["backend"]](self._metrics)
        self._places = ThreadPoolExecutor(int(parameters["places"]))
        self._lock = threading.Lock()
        self._running = self._waiting = 0

    def execute(self, requests):
        for request in requests:
            asked = pb_utils.get_input_tensor_by_name(request, "ASK").as_numpy().tolist()
            with self._lock:
                self._move(waiting=1)
            self._places.submit(self._serve, asked, time.monotonic(), request.get_response_sender())

    def _serve(self, asked, arrived, sender):
        prompt, generated, milliseconds = asked
        with self._lock:
            self._move(waiting=-1, running=1)
            self._backend.prefilled(prompt)
        time.sleep(milliseconds / 1000)
        with self._lock:
            self._backend.finished(prompt, generated, time.monotonic() - arrived)
            self._move(running=-1)
        output = pb_utils.Tensor("TOKENS", np.array([generated], np.int32))
        sender.send(pb_utils.InferenceResponse([output]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _move(self, *, waiting=0, running=0):
        self._waiting += waiting
        self._running += running
        self._backend.present(self._running, self._waiting)

    def finalize(self):
        self._places.shutdown()
        if self._drops:
            self._metrics.drop()
