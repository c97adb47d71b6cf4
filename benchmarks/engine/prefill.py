"""Prefill: prompt tokens a second, as a share of the arithmetic peak.

    python -m benchmarks.engine.prefill MODEL_FOLDER --tokens 512 --json

The work counted is 2 operations for each weight of the body and token; attention, embedding and head are not counted.
`share` is of the tier's innermost loop fed from L1, int8 for int8 and int4, measured before and after. `value` counts
from the begin of the first native call to the end of the last; `ttft_s` from the request to its end after one token.
"""

from __future__ import annotations

import argparse

from benchmarks.engine.decode import logits_crc32, prompts_of
from benchmarks.record import Record, best_limit, environment, limits, median_and_spread, show
from benchmarks.step_log import step_log
from trivet import LLM, SamplingParams
from trivet.models.spec import ModelSpec


def body_weights(spec: ModelSpec) -> int:
    """Weights of all linear layers but embedding and head."""
    total = 0
    for layer in spec.layers:
        heads = layer.num_heads * layer.head_dim
        total += spec.dim * (2 * heads + 2 * layer.num_kv_heads * layer.head_dim + 3 * layer.ffn_dim)
    return total


def prefill(llm: LLM, num_tokens: int, seed: int) -> tuple[float, float]:
    """(tokens a second of the prompt's native steps, seconds from request to first token) of one prompt."""
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    with step_log(llm._assembled.runner) as steps:
        [output] = llm.generate(prompts_of(llm, 1, num_tokens, seed), params)
    assert sum(step.num_tokens for step in steps) == num_tokens, "the prompt was not computed once"
    return num_tokens / (steps[-1].end_s - steps[0].begin_s), output.e2e_s


def measure(llm: LLM, args: argparse.Namespace) -> list[Record]:
    """One record for each prompt length."""
    checksum, before = logits_crc32(llm), limits(llm.info.num_threads)
    measured = {n: [prefill(llm, n, seed) for seed in range(args.runs + 1)][1:] for n in args.tokens}
    after = limits(llm.info.num_threads)
    kind = "bf16_tops" if llm.info.precision == "bf16" else "int8_tops"
    peak = best_limit(before, after, kind)
    operations = 2 * body_weights(llm._assembled.loaded.spec)
    records = []
    for num_tokens, runs in measured.items():
        value, spread = median_and_spread([rate for rate, _ in runs])
        ttft, _ = median_and_spread([seconds for _, seconds in runs])
        tops = value * operations * 1e-12
        records.append({
            "bench": "engine.prefill", "model": args.model, "precision": llm.info.precision,
            "kv_precision": llm.info.kv_dtype, "batch": 1, "prompt": num_tokens, "value": round(value, 1),
            "spread": round(spread, 1), "unit": "tok/s", "ttft_s": round(ttft, 4), "tops": round(tops, 4),
            "peak_tops": peak, "share": round(tops / peak, 4), "runs": [round(rate, 1) for rate, _ in runs],
            "limits_before": before, "limits_after": after, "logits_crc32": checksum, "isa": llm.info.isa,
            "threads": llm.info.num_threads, **environment(),
        })  # fmt: skip
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder, such as benchmarks/make_checkpoint.py writes")
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[512])
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--kv-precision", default="bf16")
    parser.add_argument("--chunk", type=int, default=512, help="most tokens in one step")
    parser.add_argument("--runs", type=int, default=5, help="after one that warms up")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with LLM(args.model, args.precision, args.threads, kv_precision=args.kv_precision, max_num_seqs=1,
             max_tokens_per_step=args.chunk, max_context=max(args.tokens) + 1, prefix_caching=False,
             generation_config="none") as llm:  # fmt: skip
        records = measure(llm, args)
    columns = ("prompt", "value", "spread", "unit", "ttft_s", "tops", "peak_tops", "share", "isa", "threads")
    show(records, columns, as_json=args.json)


if __name__ == "__main__":
    main()
