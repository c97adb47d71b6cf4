"""`trivet inspect MODEL`: what a checkpoint is, what of it loads and what not, and its size in each precision."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivet.cli.usage import flags_checked
from trivet.config import ModelConfig, setting_help

if TYPE_CHECKING:
    from trivet.models.spec import ModelSpec

PRECISIONS = ("bf16", "int8", "int4")


def command(
    model: Annotated[str, typer.Argument(help=setting_help(ModelConfig, "path"))],
    *,
    group_size: Annotated[int, typer.Option(help=setting_help(ModelConfig, "group_size"))] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a checkpoint is and how it would load. Reads headers only, and packs nothing.

    Try:  trivet inspect demo
    """
    with flags_checked():
        config = ModelConfig(path=model, group_size=group_size)
    facts = examine(config)
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines_of(facts)))


def examine(config: ModelConfig) -> dict[str, Any]:
    """Everything found. Raises ConfigError or ModelFormatError for what could not be loaded either."""
    import msgspec

    from trivet.formats.checkpoint import open_weights, read_json
    from trivet.models.hf_config import model_spec
    from trivet.models.source import find_model

    folder, name = find_model(config.path)
    path = folder / "config.json"
    spec = model_spec(read_json(path), path)
    tensors = open_weights(folder)
    return {
        "name": name,
        "folder": str(folder.resolve()),
        "family": spec.family,
        "parameters": count_parameters(spec),
        "max_context": spec.max_context,
        "spec": msgspec.to_builtins(spec),
        "checkpoint": {
            "tensors": len(tensors),
            "bytes": sum(tensor.data.nbytes for tensor in tensors.values()),
            "dtypes": dict(Counter(tensor.dtype for tensor in tensors.values())),
        },
        "precisions": {p: _packed_as(folder, spec, tensors, p, config.group_size) for p in PRECISIONS},
        "kv_bytes_per_token": {dtype: spec.kv_bytes_per_token(dtype) for dtype in ("bf16", "int8")},
        "text": _text(folder),
    }


def count_parameters(spec: ModelSpec) -> int:
    """Weights of the model, an embedding that is also the head counted once."""
    total = spec.vocab_size * spec.dim * (1 if spec.tied_head else 2) + spec.dim
    for layer in spec.layers:
        heads, kv_heads, width, ffn = layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.ffn_dim
        total += spec.dim * (2 * heads + 2 * kv_heads) * width + 3 * spec.dim * ffn + 2 * spec.dim
        total += layer.qkv_bias * (heads + 2 * kv_heads) * width + layer.out_bias * spec.dim
        total += layer.mlp_bias * (2 * ffn + spec.dim) + layer.qk_norm * 2 * width
    return total


def _packed_as(folder: Path, spec: ModelSpec, tensors: Any, precision: str, group_size: int) -> dict[str, Any]:
    """Bytes of the packed form, what would be given up for it, and whether it is in the cache already."""
    from trivet.errors import CacheError
    from trivet.formats import cache
    from trivet.formats.layout import part_sizes
    from trivet.models.weights import plan_weights

    plans, notes = plan_weights(spec, tensors, precision=precision, group_size=group_size)
    nbytes = sum(sum(part_sizes(plan.kind, plan.n, plan.k).values()) for plan in plans)
    try:
        target = cache.cache_folder().path / cache.file_name(folder, precision, group_size)
        packed = str(target) if target.exists() else None
    except CacheError:
        packed = None
    return {"bytes": nbytes, "notes": notes, "packed": packed}


def _text(folder: Path) -> dict[str, Any]:
    """What the tokenizer is, and whether the model can chat; `problem` if there is no tokenizer to read."""
    from trivet.errors import ModelFormatError
    from trivet.models.chat import ChatTemplate
    from trivet.models.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_folder(folder)
        chat = ChatTemplate.from_folder(folder) is not None
    except ModelFormatError as error:
        return {"problem": error.message}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "chat_template": chat,
    }


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The facts for people."""
    from trivet.server.sizes import show_size

    spec, checkpoint, text = facts["spec"], facts["checkpoint"], facts["text"]
    shapes = Counter(json.dumps(layer, sort_keys=True) for layer in spec["layers"])
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in checkpoint["dtypes"].items())
    rows = [
        ("model", f"{facts['name']} ({facts['family']}) in {facts['folder']}"),
        ("size", f"{facts['parameters'] / 1e6:,.1f} M parameters, {facts['max_context']:,} tokens of context"),
        (
            "shape",
            f"{len(spec['layers'])} layers of width {spec['dim']:,}, vocabulary {spec['vocab_size']:,}, head "
            f"{'tied to the embedding' if spec['tied_head'] else 'of its own'}",
        ),
        *(("layers", _layer(json.loads(shape), count)) for shape, count in shapes.items()),
        ("files", f"{checkpoint['tensors']} tensors ({dtypes}), {show_size(checkpoint['bytes'])}"),
    ]
    for precision, form in facts["precisions"].items():
        packed = "packed" if form["packed"] else "not packed yet"
        rows.append((precision, f"{show_size(form['bytes'])}, {packed}"))
        rows += [("", note) for note in form["notes"]]
    kv = ", ".join(f"{dtype} {show_size(size)}" for dtype, size in facts["kv_bytes_per_token"].items())
    rows.append(("kv", f"{kv} a token"))
    rows.append(("text", text["problem"] if "problem" in text else _text_line(text)))
    return [f"{name:<7} {line}" for name, line in rows]


def _layer(layer: dict[str, Any], count: int) -> str:
    extras = [name for name in ("qkv_bias", "out_bias", "mlp_bias", "qk_norm") if layer[name]]
    return (
        f"{count} x {layer['num_heads']} heads, {layer['num_kv_heads']} of keys and values, {layer['head_dim']} wide; "
        f"feed-forward {layer['ffn_dim']:,}" + (f"; with {', '.join(extras)}" if extras else "")
    )


def _text_line(text: dict[str, Any]) -> str:
    chat = "a chat template" if text["chat_template"] else "no chat template: completions only"
    return f"{text['vocab_size']:,} tokens, BOS {text['bos_id']}, EOS {text['eos_id']}, {chat}"
