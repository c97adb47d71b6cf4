"""Prometheus metrics: vLLM's names, so that boards, autoscalers and endpoint pickers work unmodified, and our own.

Requests are observed here as they pass; what the engine knows is read from its latest `EngineStats` when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trivet.engine.messages import EngineInfo, EngineStats, FinishReason, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("model_name", "engine")
ENGINE = "0"  # one engine a server

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_GAP = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_COUNT = (1, 2, 5, 10, 20)

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("from the request's arrival to its first token", _FIRST),
    "inter_token_latency_seconds": ("each gap between two deliveries of tokens of a sequence", _GAP),
    "time_per_output_token_seconds": ("older name of inter_token_latency_seconds", _GAP),
    "request_time_per_output_token_seconds": ("(last token - first token) / (tokens - 1), one a sequence", _GAP),
    "e2e_request_latency_seconds": ("from the request's arrival to its last token", _WHOLE),
    "request_queue_time_seconds": ("waiting before the first step", _WHOLE),
    "request_prefill_time_seconds": ("from first scheduled to first token", _WHOLE),
    "request_decode_time_seconds": ("from first token to last", _WHOLE),
    "request_inference_time_seconds": ("from first scheduled to last token", _WHOLE),
    "request_prompt_tokens": ("prompt tokens of a request", _TOKENS),
    "request_generation_tokens": ("output tokens of a sequence", _TOKENS),
    "request_max_num_generation_tokens": ("the longest of a request's sequences, in tokens", _TOKENS),
    "request_params_n": ("`n` of a request", _COUNT),
    "request_params_max_tokens": ("`max_tokens` of a request", _TOKENS),
    "request_num_preemptions": ("times a sequence lost its blocks", (0, *_COUNT)),
    "request_prefill_kv_computed_tokens": ("prompt tokens computed, not found in the prefix tree", _TOKENS),
}


def _kv_usage(stats: EngineStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0


# name -> (help, value of a snapshot)
GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "vllm:num_requests_running": ("sequences in the batch", lambda s: s.num_running),
    "vllm:num_requests_waiting": ("requests that wait", lambda s: s.num_waiting),
    "vllm:kv_cache_usage_perc": ("share of KV blocks held by sequences, 0 to 1", _kv_usage),
    "vllm:gpu_cache_usage_perc": ("older name of kv_cache_usage_perc", _kv_usage),
    "trivet:kv_blocks_cached": ("KV blocks held by the prefix tree only", lambda s: s.kv_blocks_cached),
    "trivet:step_host_seconds_p99": ("time between native calls, p99 of the last 1000", lambda s: s.host_s_p99),
    "trivet:prefill_tokens_per_second": ("measured prefill rate", lambda s: s.prefill_tokens_per_s),
    "trivet:decode_tokens_per_second": ("measured decode rate", lambda s: s.decode_tokens_per_s),
}
COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "vllm:prompt_tokens": ("prompt tokens of admitted requests", lambda s: s.prompt_tokens),
    "vllm:prompt_tokens_cached": ("prompt tokens found in the prefix tree", lambda s: s.prefix_hits_tokens),
    "vllm:generation_tokens": ("output tokens", lambda s: s.generation_tokens),
    "vllm:prefix_cache_queries": ("tokens looked up in the prefix tree", lambda s: s.prefix_queries_tokens),
    "vllm:prefix_cache_hits": ("tokens found in the prefix tree", lambda s: s.prefix_hits_tokens),
    "vllm:num_preemptions": ("sequences that lost their blocks and are recomputed", lambda s: s.num_preemptions),
    "trivet:pauses": ("pauses of running streams for a long prompt", lambda s: s.num_pauses),
    "trivet:steps": ("transformer steps", lambda s: s.num_steps),
    "trivet:step_native_seconds": ("time inside native steps", lambda s: s.step_native_s),
    "trivet:step_host_seconds": ("time between native steps while there was work", lambda s: s.step_host_s),
    "trivet:engine_rejections": ("requests the engine refused", lambda s: s.requests_rejected),
}


class EngineCollector(Collector):
    """Turns the engine's latest snapshot into metrics at scrape time. Counters restart from 0 with the engine."""

    def __init__(self, model_name: str) -> None:
        self._labels = (model_name, ENGINE)
        self._stats: Callable[[], EngineStats | None] = lambda: None
        self._num_restarts: Callable[[], int] = lambda: 0

    def watch(self, stats: Callable[[], EngineStats | None], num_restarts: Callable[[], int]) -> None:
        """The engine is there: ask it from now on."""
        self._stats, self._num_restarts = stats, num_restarts

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        restarts = CounterMetricFamily(
            "trivet:engine_restarts", "times the engine died and was started again", labels=LABELS
        )
        restarts.add_metric(self._labels, self._num_restarts())
        yield restarts
        stats = self._stats()
        if stats is None:
            return
        for name, (text, value) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            gauge.add_metric(self._labels, value(stats))
            yield gauge
        for name, (text, value) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(self._labels, value(stats))
            yield counter


class Metrics:
    """The registry of one server; one verb for each thing that can happen."""

    def __init__(self, model_name: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.model_name = model_name
        label = {"model_name": model_name, "engine": ENGINE}
        self._hist = {
            name: Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets).labels(**label)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        counter = self._counter
        self._success = counter("vllm:request_success", "finished sequences by reason", "finished_reason")
        self._rejected = counter("vllm:admission_rejections", "requests refused at once, by reason", "reason")
        self._failed = counter("trivet:request_failures", "requests that ended in an error, by error class", "error")
        self._cancelled = counter("trivet:requests_cancelled", "requests whose client left").labels(**label)
        self._http = Counter("http_requests", "HTTP requests", ("handler", "method", "status"), registry=self.registry)
        self._http_s = Histogram(
            "http_request_duration_seconds", "HTTP requests, until the last byte", ("handler", "method"),
            registry=self.registry, buckets=_WHOLE,
        )  # fmt: skip
        self._cache_config = self._gauge(
            "vllm:cache_config_info", "how the KV cache is cut", "block_size", "num_gpu_blocks", "cache_dtype"
        )
        self._facts = self._gauge(
            "trivet:engine_info", "what computes", "precision", "kv_dtype", "isa", "threads", "fingerprint"
        )
        self._notes = self._gauge("trivet:engine_notes", "things chosen or given up at load")
        self._fallbacks = self._gauge(
            "trivet:engine_fallbacks", "precisions and group sizes of tensors taken instead of those asked for"
        )
        self._engine = EngineCollector(model_name)
        self.registry.register(self._engine)
        for reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._success.labels(**label, finished_reason=reason.value)
        self._label = label

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(name, text, (*LABELS, *more), registry=self.registry)

    def _gauge(self, name: str, text: str, *more: str) -> Gauge:
        return Gauge(name, text, (*LABELS, *more), registry=self.registry)

    def engine_ready(
        self, info: EngineInfo, stats: Callable[[], EngineStats | None], num_restarts: Callable[[], int]
    ) -> None:
        """The engine answered: its facts become info metrics, its snapshots are read from now on."""
        self._cache_config.labels(
            **self._label, block_size=info.block_size, num_gpu_blocks=info.num_blocks, cache_dtype=info.kv_dtype
        ).set(1)
        self._facts.labels(
            **self._label,
            precision=info.precision,
            kv_dtype=info.kv_dtype,
            isa=info.isa,
            threads=info.num_threads,
            fingerprint=info.fingerprint,
        ).set(1)
        self._notes.labels(**self._label).set(len(info.notes))
        self._fallbacks.labels(**self._label).set(sum(" instead of " in note for note in info.notes))
        self._engine.watch(stats, num_restarts)

    def request_started(self, *, n: int, max_tokens: int | None) -> None:
        self._hist["request_params_n"].observe(n)
        if max_tokens is not None:
            self._hist["request_params_max_tokens"].observe(max_tokens)

    def first_token(self, seconds: float) -> None:
        self._hist["time_to_first_token_seconds"].observe(seconds)

    def token_gap(self, seconds: float) -> None:
        self._hist["inter_token_latency_seconds"].observe(seconds)
        self._hist["time_per_output_token_seconds"].observe(seconds)

    def sequence_finished(
        self, reason: FinishReason, *, num_tokens: int, first_to_last_s: float, timings: Timings | None
    ) -> None:
        self._success.labels(**self._label, finished_reason=reason.value).inc()
        self._hist["request_generation_tokens"].observe(num_tokens)
        if num_tokens > 1:
            self._hist["request_time_per_output_token_seconds"].observe(first_to_last_s / (num_tokens - 1))
        if timings is not None:
            self._hist["request_queue_time_seconds"].observe(timings.queued_s)
            self._hist["request_prefill_time_seconds"].observe(timings.prefill_s)
            self._hist["request_decode_time_seconds"].observe(timings.decode_s)
            self._hist["request_inference_time_seconds"].observe(timings.prefill_s + timings.decode_s)
            self._hist["request_num_preemptions"].observe(timings.num_preemptions)

    def request_finished(self, *, seconds: float, prompt_tokens: int, cached_tokens: int, longest: int) -> None:
        self._hist["e2e_request_latency_seconds"].observe(seconds)
        self._hist["request_prompt_tokens"].observe(prompt_tokens)
        self._hist["request_prefill_kv_computed_tokens"].observe(prompt_tokens - cached_tokens)
        self._hist["request_max_num_generation_tokens"].observe(longest)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(**self._label, reason=reason).inc()

    def failed(self, error: BaseException) -> None:
        self._failed.labels(**self._label, error=type(error).__name__).inc()

    def cancelled(self) -> None:
        self._cancelled.inc()

    def http(self, handler: str, method: str, status: int, seconds: float) -> None:
        self._http.labels(handler=handler, method=method, status=str(status)).inc()
        self._http_s.labels(handler=handler, method=method).observe(seconds)

    def page(self) -> bytes:
        """The metrics page in Prometheus' text format."""
        return generate_latest(self.registry)
