"""The KV budget: never past the memory, and said in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trivet.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from trivet.engine.memory import BLOCK_PAD_BYTES, RESERVE_BYTES, memory_limit_bytes, plan_kv
from trivet.errors import ConfigError
from trivet.models.spec import LayerSpec, ModelSpec, RopeSpec

GIB = 2**30
LAYER = LayerSpec(num_heads=16, num_kv_heads=8, head_dim=128, ffn_dim=3072, softmax_scale=128**-0.5)
SPEC = ModelSpec(
    family="qwen3",
    dim=1024,
    vocab_size=151936,
    max_context=4096,
    norm_eps=1e-6,
    tied_head=True,
    rope=RopeSpec(),
    layers=(LAYER,) * 28,
)  # 112 KiB a token, 448 MiB a full context


def plan(
    limit_gib: float = 24, *, seqs: int = 64, weight_bytes: int = 0, context: int | None = None, **cache: Any
) -> Any:
    config = EngineConfig(
        model=ModelConfig(max_context=context), cache=CacheConfig(**cache), scheduler=SchedulerConfig(max_num_seqs=seqs)
    )
    return plan_kv(SPEC, config, weight_bytes=weight_bytes, limit_bytes=int(limit_gib * GIB))


def test_takes_what_full_contexts_need_when_that_is_little() -> None:
    budget = plan(seqs=4)
    assert budget.num_blocks == 4 * 128
    assert budget.block_bytes == 32 * 28 * 8 * 2 * 128 * 2 + BLOCK_PAD_BYTES


def test_takes_at_most_a_quarter_of_the_memory() -> None:
    budget = plan()
    assert budget.num_blocks == 6 * GIB // budget.block_bytes
    assert "6.00 GiB" in budget.notes[0] and "24.00 GiB" in budget.notes[0]


def test_leaves_room_for_weights_and_the_reserve() -> None:
    budget = plan(limit_gib=2, weight_bytes=int(1.2 * GIB))
    assert budget.num_blocks * budget.block_bytes <= 0.8 * GIB - RESERVE_BYTES


def test_a_setting_beyond_the_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"`cache.memory_bytes` is 4.00 GiB, but only 1.50 GiB are left") as caught:
        plan(limit_gib=2, memory_bytes=4 * GIB)
    assert caught.value.hint == "use --memory 1536MiB or less"


def test_a_budget_below_one_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one block of 32 tokens takes 0.00 GiB"):
        plan(memory_bytes=1000)
    with pytest.raises(ConfigError, match=r"may take 0.00 GiB"):
        plan(limit_gib=0.25)


def test_a_budget_below_one_context_shortens_it_and_says_so() -> None:
    budget = plan(memory_bytes=SPEC.kv_bytes_per_token("bf16") * 1000)
    assert budget.max_context == 31 * 32
    assert "992 tokens" in budget.notes[1] and "4,096" in budget.notes[1]


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`model\.max_context` is 8,192, but the model was made for 4,096"):
        plan(context=8192)


def test_int8_blocks_hold_a_scale_a_token_and_head() -> None:
    assert plan(dtype="int8").block_bytes == 32 * 28 * 8 * 2 * (128 + 4) + BLOCK_PAD_BYTES


def test_block_bytes_are_what_the_core_takes() -> None:
    from trivet import _core

    for dtype in ("bf16", "int8"):
        assert SPEC.kv_bytes_per_token(dtype) * 32 + BLOCK_PAD_BYTES == _core.kv_block_bytes(
            [(8, 128)] * 28, 32, dtype == "int8"
        )


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"`model\.max_context` is 1,000, but .* holds 992 tokens") as caught:
        plan(memory_bytes=SPEC.kv_bytes_per_token("bf16") * 1000, context=1000)
    assert "--max-context 992" in str(caught.value.hint) and "0.11 GiB" in caught.value.message
    assert plan(memory_bytes=SPEC.kv_bytes_per_token("bf16") * 1000, context=992).max_context == 992
    with pytest.raises(ConfigError, match=r"`model\.max_context` is 4,096"):
        plan(limit_gib=1, context=4096)


# --- what the cgroup allows: a fake root -------------------------------------------------------------------------

MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1024 kB\n"


def root_of(folder: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 16 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{32 * GIB}\n"}, 16 * GIB),
        ({"proc/self/cgroup": "0::/user.slice/app\n", "sys/fs/cgroup/user.slice/app/memory.max": f"{3 * GIB}\n",
          "sys/fs/cgroup/user.slice/memory.max": "max\n"}, 3 * GIB),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": f"{3 * GIB}\n",
          "sys/fs/cgroup/a/memory.max": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/b/memory.max": f"{GIB}\n"}, 16 * GIB),  # of another
        ({"proc/self/cgroup": "0::/../../elsewhere\n", "sys/elsewhere/memory.max": f"{GIB}\n",
          "sys/fs/cgroup/memory.max": f"{5 * GIB}\n"}, 5 * GIB),  # outside of our namespace
        ({"proc/self/cgroup": "4:memory:/job/7\n0::/\n",
          "sys/fs/cgroup/memory/job/7/memory.limit_in_bytes": f"{2 * GIB}\n",
          "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n"}, 2 * GIB),
        ({"proc/self/cgroup": "9:cpu:/x\n4:cpu,memory:/x:y\n",
          "sys/fs/cgroup/memory/x:y/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "4:memory:/docker/abc\n",  # the container's own folder is mounted at the top
          "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n"}, 4 * GIB),
        ({"proc/self/cgroup": "nonsense\n"}, 16 * GIB),
    ],
)  # fmt: skip
def test_the_limit_is_the_least_of_the_machine_and_of_the_processs_cgroups(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert memory_limit_bytes(root_of(tmp_path, files)) == expected


def test_this_machine_has_a_limit() -> None:
    assert 2**28 < memory_limit_bytes() <= memory_limit_bytes(Path("/"))


def test_without_a_total_the_budget_cannot_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no MemTotal line"):
        memory_limit_bytes(root_of(tmp_path, {"proc/meminfo": "MemFree: 1 kB\n"}))
