"""The metrics page: vLLM's names, and what happened."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from live_server import Server
from prometheus_client.parser import text_string_to_metric_families

from trivet.engine.messages import EngineStats
from trivet.server.metrics import COUNTERS, GAUGES, HISTOGRAMS

# The names that stock dashboards, autoscalers and endpoint pickers ask for.
RELIED_ON = [
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens",
    "vllm:generation_tokens", "vllm:prefix_cache_queries", "vllm:prefix_cache_hits", "vllm:num_preemptions",
    "vllm:request_success", "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds", "vllm:request_prompt_tokens", "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens", "vllm:request_params_n", "vllm:request_params_max_tokens",
    "vllm:cache_config_info", "http_requests", "http_request_duration_seconds",
]  # fmt: skip


def samples(http: httpx.Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    page = http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page.text):
        found.setdefault(family.name, {})
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            found.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return found


def test_names_and_labels(http: httpx.Client) -> None:
    found = samples(http)
    assert [name for name in RELIED_ON if name not in found] == []
    assert 'vllm:num_requests_running{engine="0",model_name="scripted"} 0.0' in http.get("/metrics").text
    assert "_created" not in http.get("/metrics").text


def test_what_requests_leave(start: Callable[..., Server]) -> None:
    server = start()
    with server.http() as http:
        body = {"prompt": ["ab", "cde"], "max_tokens": 5, "n": 2}
        http.post("/v1/completions", json=body)
        http.post("/v1/completions", json={"prompt": "hello", "stop": "l", "stream": True})
        http.post("/v1/completions", json={"prompt": "!busy"})
        http.post("/v1/completions", json={"prompt": "!die"})
        http.post("/v1/completions", json={"prompt": "!die", "stream": True})
        http.post("/v1/completions", content=b"{")
        found = samples(http)
    count = {name: found[f"vllm:{name}_count"][()] for name in HISTOGRAMS}
    total = {name: found[f"vllm:{name}_sum"][()] for name in HISTOGRAMS}
    assert found["vllm:request_success_total"] == {
        (("finished_reason", "length"),): 4.0, (("finished_reason", "stop"),): 1.0
    }  # fmt: skip
    assert found["vllm:admission_rejections_total"] == {(("reason", "capacity"),): 1.0}
    assert found["trivet:request_failures_total"] == {
        (("error", "EngineDied"),): 2.0, (("error", "InvalidRequest"),): 1.0, (("error", "Overloaded"),): 1.0
    }  # fmt: skip
    assert count["time_to_first_token_seconds"] == 4
    assert (count["request_generation_tokens"], total["request_generation_tokens"]) == (5, 23)
    assert (count["request_prompt_tokens"], total["request_prompt_tokens"]) == (3, 3 + 4 + 6)
    assert total["request_prefill_kv_computed_tokens"] == 0 + 1 + 3
    assert (count["request_params_n"], total["request_params_n"]) == (5, 7)
    assert count["inter_token_latency_seconds"] == 4 * 4 + 2 + 2 + 2
    assert count["request_queue_time_seconds"] == 5
    assert found["trivet:requests_cancelled_total"] == {(): 0.0}, "no client left"
    statuses = {labels: value for labels, value in found["http_requests_total"].items() if "completions" in str(labels)}
    assert sorted(dict(labels)["status"] for labels in statuses) == ["200", "400", "429", "503"]


def test_a_client_that_leaves_is_counted(start: Callable[..., Server]) -> None:
    server = start()
    with server.http() as http:
        with server.openai() as client:
            stream = client.completions.create(model="scripted", prompt="!slow", max_tokens=4000, stream=True)
            next(iter(stream))
            stream.close()
        for _ in range(1000):
            if (found := samples(http))["trivet:requests_cancelled_total"] == {(): 1.0}:
                break
        assert found["trivet:requests_cancelled_total"] == {(): 1.0}
        assert "trivet:request_failures_total" not in found


def test_unknown_paths_make_no_new_series(http: httpx.Client) -> None:
    for number in range(3):
        http.get(f"/nothing/{number}")
    handlers = {dict(labels)["handler"] for labels in samples(http)["http_requests_total"]}
    assert "other" in handlers and not [handler for handler in handlers if "nothing" in handler]


def test_the_engine_is_read_when_asked(http: httpx.Client) -> None:
    found = samples(http)
    assert found["vllm:prompt_tokens_total"] == {(): 11.0}
    assert found["trivet:engine_restarts_total"] == {(): 0.0}
    assert (found["trivet:engine_notes"], found["trivet:engine_fallbacks"]) == ({(): 2.0}, {(): 1.0})
    assert [name for name in GAUGES if name not in found] == []
    assert [name for name in COUNTERS if name not in found] == []


def test_a_share_of_no_blocks_is_none() -> None:
    zeros = dict.fromkeys(EngineStats.__struct_fields__, 0)
    share = GAUGES["vllm:kv_cache_usage_perc"][1]
    assert share(EngineStats(**zeros)) == 0.0
    assert share(EngineStats(**{**zeros, "kv_blocks_total": 8, "kv_blocks_used": 2})) == 0.25
