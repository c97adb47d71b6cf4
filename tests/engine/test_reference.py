"""The core against transformers, and against a float64 twin of its own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import LLAMA3_ROPE, make_checkpoint, reference_model
from reference import Exact, Twin
from steps import logits_of, make_runner
from trivet import _core
from trivet.config import ModelConfig
from trivet.models.load import load_model

PROMPT, STEPS = 70, 64  # over two blocks of 32 before and after

# Awkward on purpose: odd D and F, one kv head, every head its own, wide and narrow heads, biases, tied and not.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-plain": ("llama", {}),
    "llama3-rope-tied": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-odd-biased": (
        "llama",
        {
            "hidden_size": 75,
            "intermediate_size": 101,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "attention_bias": True,
            "mlp_bias": True,
            "vocab_size": 301,
        },
    ),
    "llama-wide-heads": (
        "llama",
        {"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 256},
    ),
    "llama-many-groups": (
        "llama",
        {"hidden_size": 80, "num_attention_heads": 20, "num_key_value_heads": 1, "head_dim": 6},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-deep": (
        "qwen3",
        {"num_hidden_layers": 5, "tie_word_embeddings": True, "head_dim": 34, "vocab_size": 333},
    ),
}


def relative(x: Any, want: Any) -> float:
    return float(np.linalg.norm(x - want) / np.linalg.norm(want))


@pytest.fixture(scope="module", params=[(s, d) for s in SHAPES for d in ("v4", "v5")], ids="-".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape, dialect = request.param
    family, overrides = SHAPES[shape]
    return make_checkpoint(tmp_path_factory.mktemp("m") / shape, family, dialect=dialect, **overrides)  # type: ignore[arg-type]


@torch.no_grad()
def reference_run(folder: Path) -> tuple[list[int], Any, Any]:
    """A random prompt continued greedily by float32 transformers, and the logits of float32 and bf16 transformers."""
    exact, half = reference_model(folder), reference_model(folder, torch.bfloat16)
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, exact.config.vocab_size, (1, PROMPT)))
    for _ in range(STEPS):
        ids = torch.cat([ids, exact(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0].tolist(), exact(ids).logits[0].numpy(), half(ids).logits[0].float().numpy()


def test_bf16_is_closer_to_float32_than_transformers_in_bf16(checkpoint: Path) -> None:
    ids, exact, half = reference_run(checkpoint)
    got = logits_of(make_runner(checkpoint), ids, [PROMPT, 1])
    assert relative(got, exact) <= 1.5 * relative(half, exact)
    top2 = np.sort(exact, 1)[:, -2:]
    decided = top2[:, 1] - top2[:, 0] > 3 * np.abs(half - exact).max(1)
    assert decided.mean() >= 0.5, f"only {decided.mean():.0%} of the positions have a margin that decides"
    assert np.array_equal(got.argmax(1)[decided], exact.argmax(1)[decided])


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", ["llama-odd-biased", "qwen3"])
def test_equals_the_float64_twin_of_the_same_arithmetic(shape: str, precision: Any, kv: str, tmp_path: Path) -> None:
    """Float32 rounding (relative 1e-7 or so) is all that differs, until it carries a value over a rounding boundary.

    A float32 error of e, relative to the largest of K activations, flips an int8 code with probability 127 e each, one
    in a thousand rows or so. From there the two runs differ by whole quantization steps, later codes flip in turn, and
    both are equally right. So: prompts of three tokens agree to 2e-6 in the median (most have no flip), and at every
    position of a long prompt core and twin are closer to each other than twice what quantization itself changes.
    """
    family, overrides = SHAPES[shape]
    folder = make_checkpoint(tmp_path / "m", family, **overrides)  # type: ignore[arg-type]
    loaded = load_model(ModelConfig(path=str(folder), precision=precision))
    twin, runner = Twin(loaded.packed, kv), make_runner(folder, precision=precision, kv=kv)
    rng = np.random.default_rng(2)

    short = [rng.integers(0, loaded.spec.vocab_size, 3).tolist() for _ in range(24)]
    errors = [relative(logits_of(runner, ids, [3]), twin.logits(ids)) for ids in short]
    assert np.median(errors) <= 2e-6, errors

    ids = rng.integers(0, loaded.spec.vocab_size, 200).tolist()
    got, want, exact = logits_of(runner, ids, [200]), twin.logits(ids), Exact(loaded.packed, kv).logits(ids)
    apart = np.linalg.norm(got - want, axis=1)
    assert np.all(apart <= 2 * np.median(np.linalg.norm(want - exact, axis=1)))


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", ["llama-odd-biased", "llama-wide-heads", "llama-many-groups", "qwen3"])
def test_chunks_threads_blocks_and_tiers_give_the_same_bits(
    shape: str, precision: Any, kv: str, tmp_path: Path
) -> None:
    family, overrides = SHAPES[shape]
    folder = make_checkpoint(tmp_path / "m", family, **overrides)  # type: ignore[arg-type]
    ids = np.random.default_rng(3).integers(0, 300, 150).tolist()
    before = _core.isa()
    try:
        for tier in _core.available_isas():
            _core.set_isa(_core.twin_of(tier))
            want = logits_of(make_runner(folder, precision=precision, kv=kv, threads=1), ids, [150]).tobytes()
            _core.set_isa(tier)
            for chunks, threads, block_size in [([1], 1, 32), ([33, 1, 64, 2], 2, 64), ([150], 2, 128)]:
                runner = make_runner(folder, precision=precision, kv=kv, threads=threads, block_size=block_size)
                table = np.random.default_rng(4).permutation(runner.capabilities.num_blocks)[:8].tolist()
                assert logits_of(runner, ids, chunks, table).tobytes() == want, (tier, chunks, threads, block_size)
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_a_context_over_the_segments_of_attention(kv: str, tmp_path: Path) -> None:
    """2,200 tokens: partial results of 1,024 keys are merged. One layer and bf16 weights keep flips of int8 codes out,
    so the float64 twin can be followed closely; and the bits are those of any chunking, thread count and tier."""
    folder = make_checkpoint(tmp_path / "m", num_hidden_layers=1, max_position_embeddings=2304)
    loaded = load_model(ModelConfig(path=str(folder), precision="bf16"))
    ids = np.random.default_rng(5).integers(0, loaded.spec.vocab_size, 2200).tolist()
    want = Twin(loaded.packed, kv).logits(ids)
    # A float32 sum of K = 64 terms is off by about 4e-6, and bf16 steps are 2^-8 apart, so one value in a thousand
    # that is kept between products is rounded the other way; a row has some hundreds of them. One such value of 128
    # moves its vector by 2^-8 / sqrt(128) = 3.5e-4. Codes of int8 keys flip as often. Twice what both make together:
    limit = 1e-3 if kv == "int8" else 5e-4
    before = _core.isa()
    got: dict[str, bytes] = {}  # by twin
    try:
        for tier in _core.available_isas():
            twin = _core.twin_of(tier)
            if twin not in got:
                _core.set_isa(twin)
                logits = logits_of(make_runner(folder, kv=kv, num_blocks=72, threads=1), ids, [512])
                errors = np.linalg.norm(logits - want, axis=1) / np.linalg.norm(want, axis=1)
                assert np.median(errors[:1024]) <= limit and np.median(errors[1024:]) <= limit, errors
                assert errors.max() <= 1e-2
                got[twin] = logits.tobytes()
            _core.set_isa(tier)
            other = logits_of(make_runner(folder, kv=kv, num_blocks=72, block_size=64), ids, [500, 1, 300, 1, 512])
            assert other.tobytes() == got[twin], tier
    finally:
        _core.set_isa(before)
