"""Which tensors of a Hugging Face checkpoint make which packed tensor (docs/design/packed-layout.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trivet import _core
from trivet.errors import ModelFormatError
from trivet.formats.layout import PANEL, Kind, choose_group, round_up
from trivet.formats.packed import Rows, TensorPlan
from trivet.formats.safetensors import TensorView
from trivet.models.spec import LayerSpec, ModelSpec, RopeSpec

KINDS: dict[str, Kind] = {"bf16": "bf16", "int8": "i8", "int4": "i4"}
MAX_INTEGER_K = 133_144  # values of at most 127 times 127 that always add up to less than 2^31
IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attn.bias_mask")


class _Planner:
    """Collects plans, takes each source tensor once, and remembers what was taken and what had to be given up."""

    def __init__(self, tensors: Mapping[str, TensorView], precision: str, group_size: int) -> None:
        self.tensors = tensors
        self.kind = KINDS[precision]
        self.group_size = group_size
        self.taken: set[str] = set()
        self.plans: list[TensorPlan] = []
        self.as_int8: dict[int, list[str]] = {}  # K -> packed tensors that no group size divides
        self.regrouped: dict[tuple[int, int], list[str]] = {}  # (K, group used) -> packed tensors

    def take(self, name: str, shape: tuple[int, ...]) -> TensorView:
        if name not in self.tensors:
            raise ModelFormatError(f"tensor `{name}` {list(shape)} is missing from the checkpoint")
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise ModelFormatError(
                f"tensor `{name}` in {tensor.file} is {list(tensor.shape)}, but config.json makes it {list(shape)}"
            )
        tensor.float_dtype()
        self.taken.add(name)
        return tensor

    def linear(self, name: str, k: int, rows: Sequence[Rows], kind: Kind | None = None) -> None:
        group = 0
        kind = kind or self.kind
        if kind == "i4":
            group = choose_group(k, self.group_size)
            if group == 0:
                kind = "i8"
                self.as_int8.setdefault(k, []).append(name)
            elif group != self.group_size:
                self.regrouped.setdefault((k, group), []).append(name)
        if kind != "bf16" and k > MAX_INTEGER_K:
            source = next(r.tensor.name for r in rows if r.tensor is not None)
            raise ModelFormatError(
                f"tensor `{source}` has K = {k:,} columns, but a sum of int8 products is certain to fit int32 only up "
                f"to {MAX_INTEGER_K:,}: it cannot be {'int8' if kind == 'i8' else 'int4'}",
                hint="load the model with precision bf16",
            )
        n = sum(r.num_rows for r in rows)
        self.plans.append(TensorPlan(name=name, kind=kind, n=n, k=k, group=group, rows=tuple(rows)))

    def vector(self, name: str, *sources: tuple[str, int]) -> None:
        """A vector made of checkpoint vectors, one after another: (name, length) each."""
        views = [self.take(source, (length,)) for source, length in sources]

        def values() -> NDArray[np.float32]:
            return np.concatenate([view.to_float32() for view in views])

        self.plans.append(TensorPlan(name=name, kind="f32", n=sum(s[1] for s in sources), k=1, values=values))

    def unused(self) -> list[str]:
        """Names of tensors that were not taken and are no known buffers, in order."""
        return sorted(n for n in self.tensors if n not in self.taken and not n.endswith(IGNORED_ENDINGS))

    def refuse_unused_parts(self, num_layers: int) -> None:
        """ModelFormatError for a tensor inside a part that runs: leaving it out would make another model."""
        for name in self.unused():
            part = re.match(r"model\.layers\.(\d+)\.|(lm_head|model\.norm|model\.embed_tokens)\.", name)
            if part and (part[2] or int(part[1]) < num_layers):
                where = part[2] or f"layer {part[1]}"
                raise ModelFormatError(
                    f"tensor `{name}` in {self.tensors[name].file} is a part of {where} that config.json does "
                    "not describe, or that Trivet cannot compute yet",
                    hint="without it the answers would be those of another model",
                )

    def notes(self) -> list[str]:
        """What was given up or left over, one sentence each."""
        notes = []
        for k, names in self.as_int8.items():
            notes.append(f"int8 instead of int4 for {_abbreviated(names)}: no group size divides K = {k}")
        for (k, group), names in self.regrouped.items():
            notes.append(f"group size {group} instead of {self.group_size} for {_abbreviated(names)}: K = {k}")
        extra = self.unused()
        if extra:
            notes.append(f"tensors of the checkpoint that this model does not use: {_abbreviated(extra)}")
        return notes


def _abbreviated(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _whole(tensor: TensorView) -> Rows:
    return Rows(tensor=tensor, first_row=0, num_rows=tensor.shape[0])


def plan_weights(
    spec: ModelSpec, tensors: Mapping[str, TensorView], *, precision: str, group_size: int = 32
) -> tuple[list[TensorPlan], list[str]]:
    """The plans of all packed tensors, and notes on fall-backs and unused tensors.

    ModelFormatError names a tensor that is missing, has a dtype or shape that config.json does not describe, belongs to
    a layer that has no use for it, or is too wide for integer sums.
    """
    planner = _Planner(tensors, precision, group_size)
    embedding_kind: Kind = "bf16" if precision == "bf16" else "i8"
    embed = planner.take("model.embed_tokens.weight", (spec.vocab_size, spec.dim))
    planner.linear("embed", spec.dim, [_whole(embed)], embedding_kind)
    if spec.tied_head:
        planner.taken.add("lm_head.weight")  # a copy of the embedding, if it is there
    else:
        head = planner.take("lm_head.weight", (spec.vocab_size, spec.dim))
        planner.linear("head", spec.dim, [_whole(head)], embedding_kind)
    planner.vector("final_norm", ("model.norm.weight", spec.dim))
    for i, layer in enumerate(spec.layers):
        _plan_attention(planner, spec, layer, f"layers.{i}.", f"model.layers.{i}.self_attn.")
        _plan_mlp(planner, spec, layer, f"layers.{i}.", f"model.layers.{i}.mlp.")
        planner.vector(f"layers.{i}.attn_norm", (f"model.layers.{i}.input_layernorm.weight", spec.dim))
        planner.vector(f"layers.{i}.mlp_norm", (f"model.layers.{i}.post_attention_layernorm.weight", spec.dim))
    for head_dim in sorted({layer.head_dim for layer in spec.layers}):
        cos, sin = (_rope_plan(spec, head_dim, part) for part in ("cos", "sin"))
        planner.plans += [cos, sin]
    planner.refuse_unused_parts(spec.num_layers)
    return planner.plans, planner.notes()


def packed_shapes(spec: ModelSpec) -> dict[str, tuple[str, int, int]]:
    """What a packed model of this spec holds: name -> ("linear" or "f32", n, k)."""
    shapes = {"embed": ("linear", spec.vocab_size, spec.dim), "final_norm": ("f32", spec.dim, 1)}
    if not spec.tied_head:
        shapes["head"] = ("linear", spec.vocab_size, spec.dim)
    for i, layer in enumerate(spec.layers):
        q_dim, qkv_dim = layer.num_heads * layer.head_dim, (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim
        gate_up = 2 * round_up(layer.ffn_dim, PANEL)
        for name, shape, present in (
            ("attn_norm", ("f32", spec.dim, 1), True),
            ("mlp_norm", ("f32", spec.dim, 1), True),
            ("qkv", ("linear", qkv_dim, spec.dim), True),
            ("qkv_bias", ("f32", qkv_dim, 1), layer.qkv_bias),
            ("q_norm", ("f32", layer.head_dim, 1), layer.qk_norm),
            ("k_norm", ("f32", layer.head_dim, 1), layer.qk_norm),
            ("o", ("linear", spec.dim, q_dim), True),
            ("o_bias", ("f32", spec.dim, 1), layer.out_bias),
            ("gate_up", ("linear", gate_up, spec.dim), True),
            ("gate_up_bias", ("f32", gate_up, 1), layer.mlp_bias),
            ("down", ("linear", spec.dim, layer.ffn_dim), True),
            ("down_bias", ("f32", spec.dim, 1), layer.mlp_bias),
        ):
            if present:
                shapes[f"layers.{i}.{name}"] = shape
        for part in ("cos", "sin"):
            shapes[f"rope_{part}.{layer.head_dim}"] = ("f32", spec.max_context, layer.head_dim // 2)
    return shapes


def _plan_attention(planner: _Planner, spec: ModelSpec, layer: LayerSpec, out: str, src: str) -> None:
    q_dim, kv_dim = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
    parts = (("q", q_dim), ("k", kv_dim), ("v", kv_dim))
    qkv = [_whole(planner.take(f"{src}{part}_proj.weight", (n, spec.dim))) for part, n in parts]
    planner.linear(f"{out}qkv", spec.dim, qkv)
    if layer.qkv_bias:
        planner.vector(f"{out}qkv_bias", *((f"{src}{part}_proj.bias", n) for part, n in parts))
    if layer.qk_norm:
        planner.vector(f"{out}q_norm", (f"{src}q_norm.weight", layer.head_dim))
        planner.vector(f"{out}k_norm", (f"{src}k_norm.weight", layer.head_dim))
    planner.linear(f"{out}o", q_dim, [_whole(planner.take(f"{src}o_proj.weight", (spec.dim, q_dim)))])
    if layer.out_bias:
        planner.vector(f"{out}o_bias", (f"{src}o_proj.bias", spec.dim))


def _plan_mlp(planner: _Planner, spec: ModelSpec, layer: LayerSpec, out: str, src: str) -> None:
    ffn = layer.ffn_dim
    gate = planner.take(f"{src}gate_proj.weight", (ffn, spec.dim))
    up = planner.take(f"{src}up_proj.weight", (ffn, spec.dim))
    rows = []
    for first in range(0, ffn, PANEL):
        count = min(PANEL, ffn - first)
        for tensor in (gate, up):
            rows.append(Rows(tensor=tensor, first_row=first, num_rows=count))
            if count < PANEL:
                rows.append(Rows(tensor=None, first_row=0, num_rows=PANEL - count))
    planner.linear(f"{out}gate_up", spec.dim, rows)
    planner.linear(f"{out}down", ffn, [_whole(planner.take(f"{src}down_proj.weight", (spec.dim, ffn)))])
    if layer.mlp_bias:
        biases = [planner.take(f"{src}{part}_proj.bias", (ffn,)) for part in ("gate", "up")]
        padded = round_up(ffn, PANEL)

        def values() -> NDArray[np.float32]:
            return interleave_panels(*(bias.to_float32() for bias in biases))

        planner.plans.append(TensorPlan(name=f"{out}gate_up_bias", kind="f32", n=2 * padded, k=1, values=values))
        planner.vector(f"{out}down_bias", (f"{src}down_proj.bias", spec.dim))


def interleave_panels(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """[2 * Fp]: gate and up in alternating panels of 16, zeros in the pads."""
    padded = round_up(len(gate), PANEL)
    both = np.zeros((2, padded), np.float32)
    both[0, : len(gate)], both[1, : len(up)] = gate, up
    return both.reshape(2, -1, PANEL).transpose(1, 0, 2).reshape(-1)


def _rope_plan(spec: ModelSpec, head_dim: int, part: str) -> TensorPlan:
    def values() -> NDArray[np.float32]:
        table = np.empty((spec.max_context, head_dim // 2), np.float32)
        _core.rope_table(rope_frequencies(spec.rope, head_dim), part, table)
        return table

    return TensorPlan(name=f"rope_{part}.{head_dim}", kind="f32", n=spec.max_context, k=head_dim // 2, values=values)


def rope_frequencies(rope: RopeSpec, head_dim: int) -> NDArray[np.float64]:
    """Radians a position for each pair of a head, [P/2], of the core's own arithmetic: NumPy's depends on the CPU."""
    frequencies = np.empty(head_dim // 2, np.float64)
    _core.rope_frequencies(
        head_dim,
        rope.theta,
        rope.scaling,
        rope.factor,
        rope.low_freq_factor,
        rope.high_freq_factor,
        float(rope.original_max_position),
        frequencies,
    )
    return frequencies
