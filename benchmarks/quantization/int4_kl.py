"""KL to bf16 of the two int4 forms on `demo`: integer multipliers a group against float16 scales a group.

    python benchmarks/quantization/int4_kl.py [--model demo] [--tokens 40960] [--json]

Weights only: the linear layers' weights are replaced by what each form stores, activations, embedding and head stay
exact (float32), so nothing but the form differs. Both round to nearest with a search for the best clipping of each
group. The text is held-out standard-library source (modules that `demo` never saw). Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trivet.config import ModelConfig
from trivet.formats.unpack import dequantize
from trivet.models.load import load_model
from trivet.models.packing import pack_checkpoint

HELD_OUT = (
    "configparser.py",
    "csv.py",
    "fractions.py",
    "heapq.py",
    "json/decoder.py",
    "json/encoder.py",
    "pprint.py",
    "shelve.py",
    "statistics.py",
    "textwrap.py",
)
CLIPS = np.arange(6.0, 12.01, 0.125)  # step = absmax / d: from hard clipping to unused codes
WINDOW = 1024  # tokens seen at once


def float_scales(w: NDArray[np.float32], group: int) -> NDArray[np.float32]:
    """w with q in -8..7 and one float16 scale a group, each the best of the clips and both signs by squared error."""
    groups = w.reshape(w.shape[0], -1, group)
    top = np.abs(groups).max(-1, keepdims=True)
    best, best_error = np.zeros_like(groups), np.full(top.shape, np.inf, np.float32)
    for d in (*CLIPS, *-CLIPS):
        step = (top / d).astype(np.float16).astype(np.float32)
        q = np.clip(np.rint(np.divide(groups, step, out=np.zeros_like(groups), where=step != 0)), -8, 7) * step
        error = ((groups - q) ** 2).sum(-1, keepdims=True)
        best = np.where(error < best_error, q, best)
        best_error = np.minimum(error, best_error)
    return np.asarray(best.reshape(w.shape), np.float32)


def with_float_scales(model: Any, group: int) -> dict[str, torch.Tensor]:
    """The linear weights of every layer in the float form."""
    return {
        name: torch.from_numpy(float_scales(p.detach().numpy(), group))
        for name, p in model.named_parameters()
        if ".layers." in name and p.dim() == 2
    }


def with_multipliers(model: Any, folder: Path, group: int) -> dict[str, torch.Tensor]:
    """The linear weights of every layer as the packed int4 form stores them."""
    spec = load_model(ModelConfig(path=str(folder), precision="bf16")).spec
    with tempfile.TemporaryDirectory() as scratch:
        packed = pack_checkpoint(folder, spec, Path(scratch) / "packed", precision="int4", group_size=group)
        out: dict[str, torch.Tensor] = {}
        for i, layer in enumerate(spec.layers):
            at, to = f"layers.{i}.", f"model.layers.{i}."
            tensors = {n: dequantize(packed.buffer, packed.tensors[at + n]) for n in ("qkv", "o", "gate_up", "down")}
            assert all(packed.tensors[at + n].kind == "i4" for n in tensors), packed.notes
            q, kv = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
            panels = tensors["gate_up"].reshape(-1, 2, 16, spec.dim)
            parts = {
                "self_attn.q_proj": tensors["qkv"][:q],
                "self_attn.k_proj": tensors["qkv"][q : q + kv],
                "self_attn.v_proj": tensors["qkv"][q + kv :],
                "self_attn.o_proj": tensors["o"],
                "mlp.gate_proj": panels[:, 0].reshape(-1, spec.dim)[: layer.ffn_dim],
                "mlp.up_proj": panels[:, 1].reshape(-1, spec.dim)[: layer.ffn_dim],
                "mlp.down_proj": tensors["down"],
            }
            out |= {f"{to}{n}.weight": torch.from_numpy(np.array(v)) for n, v in parts.items()}
    names = {name for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2}
    assert out.keys() == names
    return out


def held_out_ids(tokenizer: Any, count: int) -> torch.Tensor:
    """int64 [windows, WINDOW] of held-out text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    ids = tokenizer.encode("\n".join((root / name).read_text() for name in HELD_OUT), add_special_tokens=False)
    windows = min(count, len(ids)) // WINDOW
    return torch.tensor(ids[: windows * WINDOW]).reshape(windows, WINDOW)


@torch.no_grad()
def log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.log_softmax(model(row[None]).logits[0].float(), -1) for row in ids])


def measure(folder: Path, num_tokens: int) -> list[dict[str, Any]]:
    """One record a form and group size."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    tokenizer = load_model(ModelConfig(path=str(folder), precision="bf16")).tokenizer
    ids = held_out_ids(tokenizer, num_tokens)
    exact_weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    exact = log_probs(model, ids)
    records = []
    for group in (32, 64, 128):
        forms = {
            "float16 scales": (with_float_scales(model, group), 4 + 16 / group),
            "integer multipliers": (with_multipliers(model, folder, group), 4.25),
        }
        for form, (weights, bits) in forms.items():
            model.load_state_dict(weights, strict=False)
            got = log_probs(model, ids)
            kl = (exact.exp() * (exact - got)).sum(-1)
            error = sum(float(((weights[n] - exact_weights[n]) ** 2).sum()) for n in weights)
            records.append({
                "bench": "quantization.int4_kl", "model": folder.name, "form": form, "group": group, "bits": bits,
                "value": float(kl.mean()), "unit": "nats", "spread": float(kl.std() / len(kl) ** 0.5),
                "top1": float((exact.argmax(-1) == got.argmax(-1)).float().mean()), "weight_error": error,
                "tokens": ids.numel(),
            })  # fmt: skip
            model.load_state_dict({n: exact_weights[n] for n in weights}, strict=False)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="`demo`, `demo-small` or a folder")
    parser.add_argument("--tokens", type=int, default=40960, help="at most this many held-out tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = load_model(ModelConfig(path=args.model, precision="bf16")).folder
    records = measure(folder, args.tokens)
    if args.json:
        print("\n".join(json.dumps(r) for r in records))
        return
    print(f"{'group':>5} {'form':<20} {'KL, nats':>10} {'+-':>8} {'top-1':>7} {'ratio':>6}")
    for pair in zip(records[::2], records[1::2], strict=True):
        for r in pair:
            ratio = r["value"] / pair[0]["value"]
            kl = f"{r['value']:>10.5f} {r['spread']:>8.5f}"
            print(f"{r['group']:>5} {r['form']:<20} {kl} {r['top1']:>7.2%} {ratio:>6.3f}")


if __name__ == "__main__":
    main()
