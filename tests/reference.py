"""The model in NumPy float64, with the roundings of the packed arithmetic and no other: the slow twin of a whole step.

It follows the equations at the top of native/core/step.cc: weights as unpacked, activations rounded to bf16 or
quantized to int8 a token, what is kept between products and queries in bf16, keys and values as stored, attention
weights in bf16 against a reference that follows the maximum of 128-key steps, powers of 2 by attention's polynomial;
beside int8 keys and values, queries in int8 and weights in 16 bits. Everything between is exact to float64, so what
differs from the core is float32 rounding, and a rare value that such an error carries over a rounding boundary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.formats.unpack import dequantize
from trivet.models.packing import PackedModel

F64 = NDArray[np.float64]
KEY_STEP, KEY_SEGMENT = 128, 1024


def bf16(x: F64) -> F64:
    """x rounded to bf16, half to even (through float32, as the core does)."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    u = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16) << 16
    return u.astype(np.uint32).view(np.float32).astype(np.float64)


def codes(x: F64, most: float) -> tuple[F64, F64]:
    """(codes from -most to most, scale) of the last axis."""
    absmax = np.abs(x).max(-1, keepdims=True)
    return np.rint(x * np.divide(most, absmax, out=np.zeros_like(absmax), where=absmax > 0)), absmax / most


def int8(x: F64) -> tuple[F64, F64]:
    return codes(x, 127.0)


def sixteen_bits(x: F64) -> F64:
    """Rounded to what two int8 halves of 256 to 1 hold."""
    rounded, scale = codes(x, 32639.0)
    return rounded * scale


def power_of_2(x: F64) -> F64:
    """2^x as near as attention makes it, to 1.1e-4: with the polynomial of native/kernels/common/vec.h."""
    whole = np.rint(np.maximum(x, -1000.0))
    r = np.maximum(x, -1000.0) - whole
    return np.ldexp(1 + r * (0.693282902 + r * (0.242211014 + r * 0.0550089516)), whole.astype(np.int64))


class Twin:
    """One packed model; `logits(ids)` is float64 [T, V] of a whole prompt."""

    def __init__(self, packed: PackedModel, kv_dtype: str) -> None:
        self.packed, self.spec, self.kv_dtype = packed, packed.spec, kv_dtype
        self._cache: dict[str, F64] = {}

    def tensor(self, name: str) -> F64 | None:
        if name not in self.packed.tensors:
            return None
        if name not in self._cache:
            self._cache[name] = dequantize(self.packed.buffer, self.packed.tensors[name]).astype(np.float64)
        return self._cache[name]

    def vector(self, name: str) -> F64 | None:
        value = self.tensor(name)
        return None if value is None else value.reshape(-1)

    def linear(self, name: str, x: F64, bias: str = "") -> F64:
        if self.packed.tensors[name].kind == "bf16":
            x = bf16(x)
        else:
            rounded, scale = int8(x)
            x = rounded * scale
        weight = self.tensor(name)
        assert weight is not None
        y = x @ weight.T
        b = self.vector(bias) if bias else None
        return y if b is None else y + b

    def norm(self, x: F64, weight: F64 | None) -> F64:
        assert weight is not None
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.spec.norm_eps)) * weight

    def rope(self, x: F64, positions: NDArray[np.int64]) -> F64:
        p = x.shape[-1]
        tables = [self.tensor(f"rope_{f}.{p}") for f in ("cos", "sin")]
        cos, sin = (t.reshape(-1, p // 2)[positions][:, None, :] for t in tables if t is not None)
        a, b = x[..., : p // 2], x[..., p // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def between(self, x: F64) -> F64:
        """What is kept between two products, outside the residual stream."""
        return bf16(x)

    def attend(self, q: F64, k: F64, v: F64, scale: float) -> F64:
        """q [T, P], k and v [T, P] of one head, causal."""
        t, k_scale, v_scale = len(q), np.ones(len(k)), np.ones(len(v))
        if self.kv_dtype == "int8":
            (k, ks), (v, vs) = int8(k), int8(v)
            (q, qs), k_scale, v_scale = int8(bf16(q)), ks[:, 0], vs[:, 0]
            q = q * qs
        else:
            q, k, v = bf16(q), bf16(k), bf16(v)
        s = q @ k.T * scale * k_scale
        s[np.triu(np.ones((t, t), bool), 1)] = -np.inf
        total, out, most = np.zeros(t), np.zeros_like(v), np.full(t, -np.inf)
        for begin in range(0, t, KEY_SEGMENT):  # each segment with a running maximum of its own, then merged
            rows = np.arange(t) >= begin
            part = self.segment(s[rows], v, v_scale, begin)
            new = np.maximum(most[rows], part[2])
            a, b = np.exp(most[rows] - new), np.exp(part[2] - new)
            total[rows] = total[rows] * a + part[0] * b
            out[rows] = out[rows] * a[:, None] + part[1] * b[:, None]
            most[rows] = new
        return out / total[:, None]

    def segment(self, s: F64, v: F64, v_scale: F64, first: int) -> tuple[F64, F64, F64]:
        """(sum, weighted values, maximum) of the keys first.. of one segment; every row sees at least key `first`."""
        total, out, most = np.zeros(len(s)), np.zeros((len(s), v.shape[1])), np.full(len(s), -np.inf)
        for begin in range(first, min(first + KEY_SEGMENT, len(v)), KEY_STEP):
            part = s[:, begin : begin + KEY_STEP]
            top = part.max(1)
            new = np.where((top - most) * np.log2(np.e) <= 8, most, top)  # the reference moves by 2^8 at least
            a, e = np.exp(most - new), power_of_2((part - new[:, None]) * np.log2(np.e))
            rounded = sixteen_bits if self.kv_dtype == "int8" else bf16
            w = rounded(e * v_scale[begin : begin + KEY_STEP])
            total, out, most = total * a + e.sum(1), out * a[:, None] + w @ v[begin : begin + KEY_STEP], new
        return total, out, most

    def logits(self, ids: list[int]) -> F64:
        spec, positions = self.spec, np.arange(len(ids))
        embed = self.tensor("embed")
        assert embed is not None
        x = embed[ids]
        for i, layer in enumerate(spec.layers):
            at, h, kv, p = f"layers.{i}.", layer.num_heads, layer.num_kv_heads, layer.head_dim
            y = self.linear(at + "qkv", self.norm(x, self.vector(at + "attn_norm")), at + "qkv_bias")
            y = self.between(y).reshape(len(ids), h + 2 * kv, p)
            q, k, v = y[:, :h], y[:, h : h + kv], y[:, h + kv :]
            if layer.qk_norm:
                q, k = self.norm(q, self.vector(at + "q_norm")), self.norm(k, self.vector(at + "k_norm"))
            q, k = self.rope(q, positions), self.rope(k, positions)
            heads: list[Any] = [
                self.attend(q[:, j], k[:, j * kv // h], v[:, j * kv // h], layer.softmax_scale) for j in range(h)
            ]
            x = x + self.linear(at + "o", self.between(np.concatenate(heads, -1)), at + "o_bias")
            y = self.linear(at + "gate_up", self.norm(x, self.vector(at + "mlp_norm")), at + "gate_up_bias")
            panels = y.reshape(len(ids), -1, 2, 16)
            gate, up = panels[:, :, 0].reshape(len(ids), -1), panels[:, :, 1].reshape(len(ids), -1)
            act = (gate / (1 + np.exp(-gate)) * up)[:, : layer.ffn_dim]
            x = x + self.linear(at + "down", self.between(act), at + "down_bias")
        return self.linear("embed" if spec.tied_head else "head", self.norm(x, self.vector("final_norm")))


class Exact(Twin):
    """The same unpacked weights without any rounding of activations, keys or values."""

    def linear(self, name: str, x: F64, bias: str = "") -> F64:
        weight, b = self.tensor(name), self.vector(bias) if bias else None
        assert weight is not None
        return x @ weight.T if b is None else x @ weight.T + b

    def between(self, x: F64) -> F64:
        return x

    def attend(self, q: F64, k: F64, v: F64, scale: float) -> F64:
        s = q @ k.T * scale
        s[np.triu(np.ones(s.shape, bool), 1)] = -np.inf
        e = np.exp(s - s.max(1, keepdims=True))
        return np.asarray(e @ v / e.sum(1, keepdims=True))
