"""Checkpoint tensors -> packed tensors: order of rows, shapes, what is missing and what is left over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import edit_json, make_checkpoint
from trivet.errors import ModelFormatError
from trivet.formats.safetensors import TensorView
from trivet.formats.unpack import dequantize
from trivet.models.packing import load_packed
from trivet.models.spec import LayerSpec, ModelSpec, RopeSpec
from trivet.models.weights import MAX_INTEGER_K, interleave_panels, plan_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path / "cache"))


def change(folder: Path, edit: Any) -> None:
    """Rewrites model.safetensors after `edit(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_gate_and_up_alternate_in_panels_of_16() -> None:
    gate, up = np.arange(1, 21, dtype=np.float32), np.arange(101, 121, dtype=np.float32)
    both = interleave_panels(gate, up)
    assert both.tolist() == [*range(1, 17), *range(101, 117), *range(17, 21), *[0] * 12, *range(117, 121), *[0] * 12]


def test_rows_of_gate_up_stand_where_the_layout_says(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", intermediate_size=40, num_hidden_layers=1)
    packed, _ = load_packed(folder, precision="bf16")
    rows = dequantize(packed.buffer, packed.tensors["layers.0.gate_up"])
    tensors = load_file(folder / "model.safetensors")
    gate = tensors["model.layers.0.mlp.gate_proj.weight"].float().numpy()
    up = tensors["model.layers.0.mlp.up_proj.weight"].float().numpy()
    assert rows.shape == (96, 64)
    for j in range(40):
        at = 32 * (j // 16) + j % 16
        np.testing.assert_array_equal(rows[at], gate[j])
        np.testing.assert_array_equal(rows[at + 16], up[j])
    assert not rows[72:80].any() and not rows[88:].any()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
                                  "model.layers.1.self_attn.v_proj.weight", "model.layers.0.mlp.down_proj.weight",
                                  "model.layers.0.self_attn.q_proj.bias"])  # fmt: skip
def test_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", attention_bias=True)
    change(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelFormatError, match=f"tensor `{name}` .* is missing"):
        load_packed(folder, precision="int8")


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama")
    change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(ModelFormatError, match=r"`model.norm.weight` in .* is \[63\], but config.json makes it \[64\]"):
        load_packed(folder, precision="int8")


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_wrong_dtype_is_named(tmp_path: Path, dtype: torch.dtype, precision: str) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama")
    name = "model.layers.0.self_attn.o_proj.weight"
    change(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(ModelFormatError, match=rf"tensor `{name}` in .*model\.safetensors is .*, but weights must be"):
        load_packed(folder, precision=precision)


def test_tied_head_with_and_without_a_copy(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "qwen3", tie_word_embeddings=True)
    without, _ = load_packed(folder, precision="int8")
    change(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    with_copy, packed_now = load_packed(folder, precision="int8")
    assert packed_now and with_copy.digest == without.digest and "head" not in with_copy.tensors
    assert with_copy.notes == ("packed again: the checkpoint has changed",)


def test_untied_head_must_be_there(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "qwen3", tie_word_embeddings=True)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelFormatError, match=r"tensor `lm_head\.weight` \[320, 64\] is missing"):
        load_packed(folder, precision="int8")


def test_left_over_tensors_are_noted_but_not_rotary_buffers(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    change(folder, lambda tensors: tensors.update(extra))
    assert load_packed(folder, precision="bf16")[0].notes == ()
    extra = {f"vision.{i}.weight": torch.ones(2) for i in range(5)}
    change(folder, lambda tensors: tensors.update(extra))
    assert load_packed(folder, precision="int8")[0].notes == (
        "tensors of the checkpoint that this model does not use: "
        "vision.0.weight, vision.1.weight, vision.2.weight and 2 more",
    )


@pytest.mark.parametrize(("family", "name"), [
    ("llama", "model.layers.0.self_attn.q_proj.bias"), ("llama", "model.layers.1.self_attn.q_norm.weight"),
    ("llama", "model.layers.1.mlp.down_proj.bias"), ("qwen3", "model.layers.0.pre_feedforward_layernorm.weight"),
    ("llama", "lm_head.bias"), ("qwen3", "model.norm.bias"),
])  # fmt: skip
def test_a_part_that_config_does_not_describe_is_refused(tmp_path: Path, family: Any, name: str) -> None:
    folder = make_checkpoint(tmp_path / "m", family)
    change(folder, lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(
        ModelFormatError,
        match=rf"tensor `{name}` in .*\.safetensors is a part of (layer \d|lm_head|model\.norm) .*does not",
    ):
        load_packed(folder, precision="int8")


def test_layers_behind_the_last_are_noted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", num_hidden_layers=2)
    names = ["model.layers.2.mlp.up_proj.weight", "model.layers.10.eh_proj.weight"]
    change(folder, lambda tensors: tensors.update({name: torch.ones(4) for name in names}))
    notes = load_packed(folder, precision="bf16")[0].notes
    assert notes == (f"tensors of the checkpoint that this model does not use: {names[1]}, {names[0]}",)


def wide_model(dim: int, ffn_dim: int, vocab_size: int = 16) -> tuple[ModelSpec, dict[str, TensorView]]:
    """The spec of a model of one layer, and its tensors without their values."""
    layer = LayerSpec(num_heads=1, num_kv_heads=1, head_dim=2, ffn_dim=ffn_dim, softmax_scale=1.0)
    spec = ModelSpec(family="llama", dim=dim, vocab_size=vocab_size, max_context=16, norm_eps=1e-6, tied_head=True,
                     rope=RopeSpec(), layers=(layer,))  # fmt: skip
    mlp, attention = "model.layers.0.mlp.", "model.layers.0.self_attn."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, dim), "model.norm.weight": (dim,),
        "model.layers.0.input_layernorm.weight": (dim,), "model.layers.0.post_attention_layernorm.weight": (dim,),
        **{f"{attention}{part}_proj.weight": (2, dim) for part in "qkv"}, f"{attention}o_proj.weight": (dim, 2),
        f"{mlp}gate_proj.weight": (ffn_dim, dim), f"{mlp}up_proj.weight": (ffn_dim, dim),
        f"{mlp}down_proj.weight": (dim, ffn_dim),
    }  # fmt: skip
    nothing = np.zeros(0, np.uint8)
    return spec, {
        name: TensorView(name=name, dtype="BF16", shape=shape, data=nothing, file=Path("m.safetensors"))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("dim", "ffn_dim", "name"), [
    (64, MAX_INTEGER_K + 8, "model.layers.0.mlp.down_proj.weight"),
    (MAX_INTEGER_K + 8, 64, "model.embed_tokens.weight"),
])  # fmt: skip
def test_sums_that_int32_cannot_hold_are_refused(dim: int, ffn_dim: int, name: str, precision: str) -> None:
    assert MAX_INTEGER_K * 127 * 127 < 2**31 <= (MAX_INTEGER_K + 1) * 127 * 127
    spec, tensors = wide_model(dim, ffn_dim)
    with pytest.raises(ModelFormatError, match=f"tensor `{name}` .*K = 133,152 .*133,144: it cannot be int") as error:
        plan_weights(spec, tensors, precision=precision)
    assert error.value.hint and "bf16" in error.value.hint
    assert plan_weights(spec, tensors, precision="bf16")[1] == []
    plan_weights(*wide_model(64, MAX_INTEGER_K), precision=precision)


PACK = """
import sys
from pathlib import Path
from trivet.models.packing import load_packed
print(load_packed(Path(sys.argv[1]), precision="bf16")[0].digest)
"""


def test_the_digest_does_not_depend_on_numpys_choice_of_kernels(tmp_path: Path) -> None:
    """NumPy's cos, sin and pow differ in the last place between CPUs; here it is told to use those of the oldest."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    folder = make_checkpoint(tmp_path / "m", "llama", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                             head_dim=128, max_position_embeddings=40960, rope_parameters=rope)  # fmt: skip
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    digests: list[str] = []
    for without in ("", " ".join(found)):
        cache = str(tmp_path / f"cache{len(digests)}")
        environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": without, "TRIVET_CACHE_DIR": cache}
        command = [sys.executable, "-c", PACK, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.strip())
    assert len(digests[0]) == 64 and digests[0] == digests[1]
