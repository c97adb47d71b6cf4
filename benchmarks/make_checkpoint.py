"""A random-weight checkpoint of a public model's exact shape, in Hugging Face layout, in seconds and without torch.

    python benchmarks/make_checkpoint.py --shape qwen3-0.6b /tmp/qwen3-0.6b
    python benchmarks/make_checkpoint.py --shape qwen3-0.6b --vocab QWEN2_FOLDER /tmp/qwen3-0.6b   # its real tokenizer

Weights are normal with deviation 1 / sqrt(K), the outputs of attention and MLP a further 1 / sqrt(2 L) lower, so that
activations keep their size through the layers; embeddings have 0.02, norms are ones. The tokenizer has exactly the
vocabulary of the embedding: real merges with --vocab (a folder with vocab.json and merges.txt), else made-up ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_ADDED = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>", *(f"<|extra_{i}|>" for i in range(267)),
]  # fmt: skip
_LLAMA_ADDED = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
_SMOL_ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(14))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A public model: its config.json, and what its tokenizer is like."""

    config: dict[str, Any]
    generation: dict[str, Any]
    added: list[str]  # special tokens, with consecutive ids
    added_first: bool = False  # their ids start at 0, else after the merges
    bos: str | None = None  # put before every text
    eos: str
    chat_template: str | None = None


def _config(architecture: str, model_type: str, **fields: Any) -> dict[str, Any]:
    common = {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "rope_scaling": None,
              "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True}  # fmt: skip
    return {"architectures": [architecture], "model_type": model_type, **common, **fields}


SHAPES = {
    "tiny": Shape(
        config=_config("LlamaForCausalLM", "llama", bos_token_id=0, eos_token_id=0, hidden_size=64,
                       initializer_range=0.02, intermediate_size=176, max_position_embeddings=2048, mlp_bias=False,
                       num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=1e-5,
                       rope_theta=10000.0, vocab_size=512),
        generation={"bos_token_id": 0, "eos_token_id": 0},
        added=_SMOL_ADDED, added_first=True, eos="<|endoftext|>", chat_template=_CHATML,
    ),
    "smollm2-135m": Shape(
        config=_config("LlamaForCausalLM", "llama", bos_token_id=0, eos_token_id=0, hidden_size=576,
                       initializer_range=0.041666666666666664, intermediate_size=1536, is_llama_config=True,
                       max_position_embeddings=8192, num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3,
                       pretraining_tp=1, rms_norm_eps=1e-5, rope_interleaved=False, rope_theta=100000,
                       transformers_version="4.40.1", vocab_size=49152),
        generation={"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0,
                    "transformers_version": "4.40.1"},
        added=_SMOL_ADDED, added_first=True, eos="<|endoftext|>",
    ),
    "qwen3-0.6b": Shape(
        config=_config("Qwen3ForCausalLM", "qwen3", bos_token_id=151643, eos_token_id=151645, head_dim=128,
                       hidden_size=1024, initializer_range=0.02, intermediate_size=3072, max_position_embeddings=40960,
                       max_window_layers=28, num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8,
                       rms_norm_eps=1e-6, rope_theta=1000000, sliding_window=None, transformers_version="4.51.0",
                       use_sliding_window=False, vocab_size=151936),
        generation={"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
                    "pad_token_id": 151643, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
                    "transformers_version": "4.51.0"},
        added=_QWEN_ADDED, eos="<|im_end|>", chat_template=_CHATML,
    ),
    "llama-3.2-1b": Shape(
        config=_config("LlamaForCausalLM", "llama", bos_token_id=128000, eos_token_id=128001, head_dim=64,
                       hidden_size=2048, initializer_range=0.02, intermediate_size=8192, max_position_embeddings=131072,
                       mlp_bias=False, num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8,
                       pretraining_tp=1, rms_norm_eps=1e-5,
                       rope_scaling={"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                       rope_theta=500000.0, transformers_version="4.45.0.dev0", vocab_size=128256),
        generation={"_from_model_config": True, "bos_token_id": 128000, "do_sample": True, "eos_token_id": 128001,
                    "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.45.0.dev0"},
        added=_LLAMA_ADDED, bos="<|begin_of_text|>", eos="<|end_of_text|>",
    ),
}  # fmt: skip


# --- weights ------------------------------------------------------------------------------------------------------


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """(name, shape, standard deviation) of every tensor, in file order; deviation 0 means ones."""
    dim, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads, num_layers = config["num_key_value_heads"], config["num_hidden_layers"]
    width = config.get("head_dim", dim // heads)
    calm = 1 / math.sqrt(2 * num_layers)
    yield "model.embed_tokens.weight", (config["vocab_size"], dim), 0.02
    for i in range(num_layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (dim,), 0.0
        for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{layer}self_attn.{name}_proj.weight", (rows * width, dim), dim**-0.5
        yield layer + "self_attn.o_proj.weight", (dim, heads * width), (heads * width) ** -0.5 * calm
        if config["model_type"] == "qwen3":
            yield layer + "self_attn.q_norm.weight", (width,), 0.0
            yield layer + "self_attn.k_norm.weight", (width,), 0.0
        yield layer + "post_attention_layernorm.weight", (dim,), 0.0
        yield layer + "mlp.gate_proj.weight", (ffn, dim), dim**-0.5
        yield layer + "mlp.up_proj.weight", (ffn, dim), dim**-0.5
        yield layer + "mlp.down_proj.weight", (dim, ffn), ffn**-0.5 * calm
    yield "model.norm.weight", (dim,), 0.0
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], dim), 0.02


class Pools:
    """Pools of random bf16 values, one a deviation; a tensor is a run through one from a random place, around its end.

    A pool's length is prime, so no two rows of a tensor are equal.
    """

    LENGTH = 4_194_301

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[float, NDArray[np.uint16]] = {}

    def _pool(self, deviation: float) -> NDArray[np.uint16]:
        if deviation not in self._pools:
            values = self._rng.standard_normal(self.LENGTH, np.float32) * np.float32(deviation)
            bits = values.view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # half to even
            self._pools[deviation] = rounded.astype(np.uint16)
        return self._pools[deviation]

    def write(self, file: BinaryIO, count: int, deviation: float) -> None:
        """Writes `count` bf16 values."""
        if deviation == 0:
            file.write(np.full(count, 0x3F80, np.uint16).data)
            return
        pool = self._pool(deviation)
        start = int(self._rng.integers(self.LENGTH))
        while count:
            run = pool[start : start + count]
            file.write(run.data)
            count, start = count - run.size, 0


def write_shard(path: Path, parts: list[tuple[str, tuple[int, ...], float]], pools: Pools) -> int:
    """Writes one safetensors file; returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, _ in parts:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, deviation in parts:
            pools.write(file, math.prod(shape), deviation)
    return end


def write_weights(folder: Path, config: dict[str, Any], seed: int, shard_bytes: int) -> int:
    """Writes model.safetensors, or shards of at most shard_bytes (of one tensor at least) with their index."""
    shards: list[list[tuple[str, tuple[int, ...], float]]] = [[]]
    room = shard_bytes
    for tensor in tensors(config):
        size = 2 * math.prod(tensor[1])
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    pools = Pools(seed)
    total = sum(write_shard(folder / name, parts, pools) for name, parts in zip(names, shards, strict=True))
    if len(shards) > 1:
        where = {tensor[0]: name for name, parts in zip(names, shards, strict=True) for tensor in parts}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


# --- tokenizer ----------------------------------------------------------------------------------------------------


def made_up_bpe(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """`size` byte-level tokens and their merges: the 256 bytes, then words, each a letter longer than one before."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    stems = ["Ġ", *letters]  # Ġ is the byte-level name of the blank
    while len(tokens) < size:
        longer = itertools.islice(itertools.product(stems, letters), size - len(tokens))
        new = list(longer)
        merges += new
        stems = [left + right for left, right in new]
        tokens += stems
    return tokens, merges


def read_bpe(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in id order and merges from vocab.json and merges.txt."""
    ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(ids, key=ids.__getitem__)
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return tokens, merges  # type: ignore[return-value]


def make_tokenizer(shape: Shape, vocab: Path | None) -> Tokenizer:
    """A byte-level BPE tokenizer with exactly `vocab_size` tokens. SystemExit if `vocab` has another size."""
    size = shape.config["vocab_size"] - len(shape.added)
    tokens, merges = read_bpe(vocab) if vocab else made_up_bpe(size)
    if len(tokens) != size:
        expected = f"this shape has {size:,} beside its {len(shape.added)} special ones"
        raise SystemExit(f"error: {vocab}/vocab.json has {len(tokens):,} tokens, but {expected}")
    in_order = [*shape.added, *tokens] if shape.added_first else [*tokens, *shape.added]
    ids = {token: i for i, token in enumerate(in_order)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    if shape.config["model_type"] == "qwen3":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    if shape.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{shape.bos} $A",
            pair=f"{shape.bos} $A {shape.bos} $B",
            special_tokens=[(shape.bos, ids[shape.bos])],
        )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in shape.added])
    return tokenizer


# --- the whole ----------------------------------------------------------------------------------------------------


def make_checkpoint(
    name: str, folder: Path, *, seed: int = 0, vocab: Path | None = None, shard_bytes: int = 2 * 10**9
) -> dict[str, Any]:
    """Writes the checkpoint; returns what it is. SystemExit if the folder is not empty."""
    begin = time.perf_counter()
    shape = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"error: {folder} is not empty\nhint: name a new folder, or remove that one")
    tokenizer = make_tokenizer(shape, vocab)
    tokenizer_config = {
        "add_bos_token": shape.bos is not None, "bos_token": shape.bos, "chat_template": shape.chat_template,
        "eos_token": shape.eos, "model_max_length": shape.config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    described = {k: v for k, v in tokenizer_config.items() if v is not None}
    for file, content in (("config.json", shape.config), ("generation_config.json", shape.generation),
                          ("tokenizer_config.json", described)):  # fmt: skip
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    weight_bytes = write_weights(folder, shape.config, seed, shard_bytes)
    return {
        "shape": name, "path": str(folder), "parameters": weight_bytes // 2, "weight_bytes": weight_bytes,
        "vocab_size": tokenizer.get_vocab_size(), "seed": seed, "seconds": round(time.perf_counter() - begin, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT", help="where it is written; must be new or empty")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=Path, help="a folder with the real vocab.json and merges.txt")
    parser.add_argument("--shard-bytes", type=int, default=2 * 10**9, help="a weight file larger than this is split")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    made = make_checkpoint(args.shape, args.folder, seed=args.seed, vocab=args.vocab, shard_bytes=args.shard_bytes)
    if args.json:
        print(json.dumps(made))
    else:
        print(f"{made['path']}: {made['parameters']:,} parameters, {made['vocab_size']:,} tokens, {made['seconds']} s")


if __name__ == "__main__":
    main()
