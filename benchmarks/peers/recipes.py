"""What each peer's recipe makes of a weight matrix: coded and decoded again, in NumPy, as plain as it can be said.

All take and give float32 [N, K], N outputs of K inputs. They follow the published descriptions of the formats and the
default, data-free settings of the tools that write them; none of the tools is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]
TINY = np.float32(1e-30)


def rounded(values: Weights) -> Weights:
    """Half away from zero, as C's roundf."""
    return np.asarray(np.copysign(np.floor(np.abs(values) + np.float32(0.5)), values), np.float32)


def fp16(values: Weights) -> Weights:
    return values.astype(np.float16).astype(np.float32)


def blocks(weights: Weights, size: int) -> Weights:
    """[N, K / size, size]."""
    return weights.reshape(len(weights), -1, size)


def signed_top(groups: Weights) -> Weights:
    """Of each block the value that is largest without its sign, with its sign: [..., 1]."""
    at = np.abs(groups).argmax(-1, keepdims=True)
    return np.take_along_axis(groups, at, -1)


def safe_inverse(values: Weights) -> Weights:
    """1 / x, and 0 where x is 0."""
    return np.asarray(np.where(values == 0, 0, 1 / np.where(values == 0, 1, values)), np.float32)


def exact(weights: Weights) -> Weights:
    return weights


def q8_0(weights: Weights) -> Weights:
    """llama.cpp Q8_0: blocks of 32, step = absmax / 127 kept as fp16, coded with the step before that rounding."""
    groups = blocks(weights, 32)
    step = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    return (rounded(groups * safe_inverse(step)) * fp16(step)).reshape(weights.shape)


def q4_0(weights: Weights) -> Weights:
    """llama.cpp Q4_0: blocks of 32, step = (the largest value, signed) / -8 kept as fp16, codes -8..7."""
    groups = blocks(weights, 32)
    step = signed_top(groups) / np.float32(-8)
    codes = np.minimum(np.floor(groups * safe_inverse(step) + np.float32(8.5)), 15) - 8
    return np.asarray(codes * fp16(step), np.float32).reshape(weights.shape)


def q6_k(weights: Weights) -> Weights:
    """llama.cpp Q6_K: 16 blocks of 16 share an fp16; each has an int8 multiple of it as step, codes -32..31.

    The step of a block is the best of 19 near (the largest value, signed) / -32, by squared error weighted with w^2.
    Rows that are no multiple of 256 long get Q8_0, as llama-quantize does.
    """
    if weights.shape[1] % 256:
        return q8_0(weights)
    groups = blocks(weights, 16)
    top = signed_top(groups)
    best, best_score = np.zeros_like(top), np.full_like(top, -1)
    for nudge in range(-9, 10):
        inverse = -(32 + np.float32(0.1) * nudge) * safe_inverse(top)
        codes = np.clip(np.rint(groups * inverse), -32, 31)
        weighted = groups * groups
        product = (weighted * groups * codes).sum(-1, keepdims=True)
        square = (weighted * codes * codes).sum(-1, keepdims=True)
        score = np.where(square > 0, product * product / np.maximum(square, TINY), 0)
        step = np.where(square > 0, product / np.maximum(square, TINY), 0)
        best = np.where(score > best_score, step, best).astype(np.float32)
        best_score = np.maximum(score, best_score)
    steps = best.reshape(len(weights), -1, 16)  # 16 blocks of a super-block
    unit = fp16(signed_top(steps) / np.float32(-128))
    multiples = np.clip(np.rint(steps * safe_inverse(signed_top(steps) / np.float32(-128))), -128, 127)
    final = (multiples * unit).reshape(best.shape)
    return np.asarray(np.clip(np.rint(groups * safe_inverse(final)), -32, 31) * final, np.float32).reshape(
        weights.shape
    )


def int4_signed(weights: Weights, group: int) -> Weights:
    """OpenVINO int4 sym: groups, step = -(the larger side) / 8 with its sign, kept as fp16, codes -8..7."""
    groups = blocks(weights, group)
    low, high = -groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    step = fp16(np.asarray(np.where(low >= high, low, -high) / np.float32(8), np.float32))
    return np.asarray(np.clip(np.rint(groups * safe_inverse(step)), -8, 7) * step, np.float32).reshape(weights.shape)


def int4_sym_g128(weights: Weights) -> Weights:
    return int4_signed(weights, 128)


def int4_sym_b32(weights: Weights) -> Weights:
    """onnxruntime-genai int4: the same with blocks of 32."""
    return int4_signed(weights, 32)


def int8_asymmetric(weights: Weights) -> Weights:
    """OpenVINO int8: a step and a zero point an output channel, 256 codes from the least to the largest value."""
    low = np.minimum(weights.min(-1, keepdims=True), 0)
    step = fp16(np.asarray((np.maximum(weights.max(-1, keepdims=True), 0) - low) / np.float32(255), np.float32))
    zero = np.clip(np.rint(-low * safe_inverse(step)), 0, 255)
    codes = np.clip(np.rint(weights * safe_inverse(step)) + zero, 0, 255)
    return np.asarray((codes - zero) * step, np.float32)


def int8_by_channel(weights: Weights) -> Weights:
    """W8A8's weights: step = absmax / 127 of an output channel, kept as bf16 by compressed-tensors."""
    step = bf16(np.abs(weights).max(-1, keepdims=True) / np.float32(127))
    return np.asarray(np.clip(np.rint(weights * safe_inverse(step)), -127, 127) * step, np.float32)


def bf16_bits(values: Weights) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16(values: Weights) -> Weights:
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)
