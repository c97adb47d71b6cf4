"""Single products of packed weights, every tier of them, beside oneDNN's through torch.

    python -m benchmarks.kernels.products --shapes qwen3-0.6b --rows 1,16,128,512 --json

One core for each side. Weights come from memory, as in a step: each call takes the next of --mb megabytes of matrices.
Both give bf16; int8 has int8 activations with a scale (a row here, the tensor in torch), int4 has groups of 32 here and
bf16 activations in torch. `error` is the relative distance of our output to the float64 product of the unquantized
operands, which bounds what a fast wrong kernel could hide. Rounds alternate all sides; `value` is torch's time over
ours, `tiers` the ladder: microseconds of every tier on the same work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import Record, bandwidth_gb_per_s, environment, median_and_spread, peak_tops, show
from trivet import _core

Array = NDArray[Any]
Call = Callable[[int], None]  # with the number of the matrix

# (outputs, inputs) of the products of a layer
SHAPES = {
    "qwen3-0.6b": {"qkv": (4096, 1024), "o": (1024, 2048), "gate_up": (6144, 1024), "down": (1024, 3072)},
    "llama-3.2-1b": {"qkv": (3072, 2048), "o": (2048, 2048), "gate_up": (16384, 2048), "down": (2048, 8192)},
}
BITS = {"bf16": 16, "i8": 8, "i4": 4.25}
GROUP = 32


def to_bf16(x: Array) -> Array:
    """Bits of float32 numbers rounded to bf16, as uint16."""
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()


def aligned(count: int, dtype: Any) -> Array:
    """Zeros that begin at a cache line."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count * size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * size].view(dtype)


class Ours:
    """One weight matrix many times in memory, and activations of `rows` rows."""

    def __init__(self, kind: str, w: Array, x: Array, copies: int) -> None:
        n, k = w.shape
        self.kind, self.n, self.k = kind, n, k
        self.rows = len(x)
        rows = -(-self.rows // 32) * 32
        source = [(to_bf16(w).view(np.uint8).reshape(-1), "bf16", n)]
        self.multipliers, self.scales = aligned(0, np.int8), aligned(n, np.float32)
        self.colsum = aligned(n, np.int32)
        if kind == "bf16":
            codes = aligned(2 * n * k, np.uint8)
            _core.pack_bf16(source, k, codes, 1)
        elif kind == "i8":
            codes = aligned(n * k, np.uint8)
            _core.pack_i8(source, k, codes, self.scales, self.colsum, 1)
        else:
            codes, self.multipliers = aligned(n * k // 2, np.uint8), aligned(n * k // GROUP, np.int8)
            _core.pack_i4(source, k, GROUP, codes, self.multipliers, self.scales, self.colsum, 1)
        self.codes = [codes]
        for _ in range(copies - 1):
            self.codes.append(aligned(len(codes), np.uint8))
            self.codes[-1][:] = codes
        self.x_scales = aligned(rows, np.float32)
        if kind == "bf16":
            self.x = aligned(rows * k, np.uint16).reshape(rows, k)
            self.x[: self.rows] = to_bf16(x)
        else:
            self.x = aligned(rows * k, np.int8).reshape(rows, k)
            for row in range(self.rows):
                self.x_scales[row] = _core.kernels.quantize(x[row], self.x[row])
        self.bytes_of_x = self.x.view(np.uint8)
        self.out = np.zeros((self.rows, n + 32), np.uint16)  # rows apart by an odd number of lines, as in a step

    def __call__(self, copy: int) -> None:
        _core.kernels.linear(
            self.kind, self.codes[copy % len(self.codes)], self.multipliers, self.scales, self.colsum, None, self.n,
            self.k, self.bytes_of_x, self.x_scales, self.rows, "store_bf16", self.out,
        )  # fmt: skip

    def error(self, exact: Array) -> float:
        """Relative distance of the output to `exact`."""
        y = (self.out[:, : self.n].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def torch_call(kind: str, w: Array, x: Array, copies: int) -> Call:
    """The same product by oneDNN; where torch has none of the kind, the nearest it has."""
    n, k = w.shape
    half = torch.from_numpy(x).to(torch.bfloat16)
    if kind == "bf16":
        weights = [torch.from_numpy(w).to(torch.bfloat16) for _ in range(copies)]

        def bf16(i: int) -> None:
            torch.nn.functional.linear(half, weights[i % copies])

        return bf16
    if kind == "i8":
        scale = np.abs(w).max(1) / 127
        codes = torch.from_numpy(np.round(w / scale[:, None]).astype(np.int8))
        packed = [torch.ops.onednn.qlinear_prepack(codes.clone(), list(x.shape)) for _ in range(copies)]
        x_scale = float(np.abs(x).max() / 127)
        x8 = torch.from_numpy((np.round(x / x_scale) + 128).clip(0, 255).astype(np.uint8))
        scales, zeros = torch.from_numpy(scale.astype(np.float32)), torch.zeros(n, dtype=torch.int32)

        def int8(i: int) -> None:
            torch.ops.onednn.qlinear_pointwise(
                x8, x_scale, 128, packed[i % copies], scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
            )

        return int8
    codes4 = torch.from_numpy(np.random.default_rng(1).integers(0, 16, (n, k), dtype=np.int32))
    packed4 = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes4, 2) for _ in range(copies)]
    scales4 = torch.full((k // GROUP, n, 2), 0.01, dtype=torch.bfloat16)

    def int4(i: int) -> None:
        torch.ops.aten._weight_int4pack_mm_for_cpu(half, packed4[i % copies], GROUP, scales4)

    return int4


def microseconds(call: Call, calls: int) -> float:
    """Mean time of a call, over consecutive ones."""
    begin = time.perf_counter()
    for i in range(calls):
        call(i)
    return 1e6 * (time.perf_counter() - begin) / calls


def in_tier(isa: str, call: Call) -> Call:
    """The call, with kernels of that tier."""

    def run(i: int) -> None:
        _core.set_isa(isa)
        call(i)

    return run


def measure(name: str, shape: tuple[int, int], kind: str, rows: int, args: argparse.Namespace) -> Record:
    """One product at one number of rows."""
    n, k = shape
    rng = np.random.default_rng([n, k, rows])
    w = (rng.standard_normal((n, k)) / k**0.5).astype(np.float32)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    num_bytes = n * k * BITS[kind] / 8
    copies = max(2, round(args.mb * 1e6 / num_bytes))
    ours, best = Ours(kind, w, x, copies), _core.isa()
    tiers = [isa for isa in _core.available_isas() if args.baseline or isa != "baseline"]
    calls = {isa: in_tier(isa, ours) for isa in tiers} | {"torch": torch_call(kind, w, x, copies)}
    counts = {}
    for side, call in calls.items():
        microseconds(call, 2)
        counts[side] = max(2, min(copies * 4, round(args.ms * 1e3 / microseconds(call, 2))))
    times: dict[str, list[float]] = {side: [] for side in calls}
    for number in range(args.rounds):
        sides = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for side in sides:
            times[side].append(microseconds(calls[side], counts[side]))
    in_tier(best, ours)(0)
    us = median(times[best])
    value, spread = median_and_spread([b / a for a, b in zip(times[best], times["torch"], strict=True)])
    return {
        "bench": f"kernels.{name}", "kind": kind, "n": n, "k": k, "rows": rows, "value": round(value, 3),
        "spread": round(spread, 3), "unit": "torch/ours", "us": round(us, 1),
        "torch_us": round(median(times["torch"]), 1),
        "gb_per_s": round(num_bytes / us / 1e3, 2), "tops": round(2e-6 * n * k * rows / us, 3),
        "error": round(ours.error(x.astype(np.float64) @ w.astype(np.float64).T), 5),
        "tiers": {isa: round(median(times[isa]), 1) for isa in tiers}, "isa": best, "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--products", type=lambda text: text.split(","), help="of the shapes; all by default")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(BITS))
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=float, default=200.0, help="of matrices that take turns")
    parser.add_argument("--ms", type=float, default=30.0, help="of each side in each round")
    parser.add_argument("--baseline", action="store_true", help="the baseline tier too: it takes minutes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = {"gb_per_s": bandwidth_gb_per_s(1), "int8_tops": peak_tops("int8", 1), "bf16_tops": peak_tops("bf16", 1)}
    records = [
        measure(name, shape, kind, rows, args) | {"limits": limits} | environment()
        for name, shape in SHAPES[args.shapes].items() if not args.products or name in args.products
        for kind in args.kinds for rows in args.rows
    ]  # fmt: skip
    columns = ("bench", "kind", "rows", "us", "torch_us", "value", "spread", "gb_per_s", "tops", "error", "tiers")
    show(records, columns, as_json=args.json)


if __name__ == "__main__":
    main()
