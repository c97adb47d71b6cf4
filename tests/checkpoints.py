"""Makers of tiny checkpoints in Hugging Face layout, for the tests of every room.

    folder = make_checkpoint(tmp_path / "m", "qwen3", dialect="v4", hidden_size=48, head_dim=10)
    model = reference_model(folder)                      # the float32 transformers model of what was saved

Weights are drawn so that logits have a spread of about one and greedy tokens are well apart; norms and biases are
random too, so that a forgotten one shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

Family = Literal["llama", "qwen3"]
Dialect = Literal["v4", "v5"]
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

BOS, EOS, IM_START, IM_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [EOS, BOS, IM_START, IM_END]  # ids 0, 1, 2, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALLEST_TOKENIZER = 256 + len(SPECIALS)


def make_checkpoint(
    folder: Path | str,
    family: Family = "llama",
    *,
    dialect: Dialect = "v5",
    seed: int = 0,
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16",
    shards: int = 1,
    tokenizer: bool | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    template_file: bool = False,
    add_bos: bool = False,
    generation_config: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """The folder of a tiny random checkpoint, made now; `overrides` are transformers 5 config names.

    `tokenizer` None: a byte-level BPE of as many entries as the model has, if that is at least SMALLEST_TOKENIZER.
    `chat_template` goes into tokenizer_config.json, or into chat_template.jinja with `template_file`; None: none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    config_class, model_class = FAMILIES[family]
    config = config_class(**(settings | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        randomize(model)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation_config is not None:
        write_json(folder / "generation_config.json", generation_config)
    if shards > 1:
        shard(folder, shards)
    if dialect == "v4":
        to_v4(folder)
    if tokenizer if tokenizer is not None else config.vocab_size >= SMALLEST_TOKENIZER:
        make_tokenizer(
            folder, config.vocab_size, add_bos=add_bos, chat_template=chat_template, template_file=template_file
        )
    return folder


def reference_model(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model of the folder, in eval mode."""
    config = json.loads((Path(folder) / "config.json").read_text())
    _, model_class = FAMILIES[config["model_type"]]
    return model_class.from_pretrained(str(folder), dtype=dtype, attn_implementation="eager").eval()


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Draws every weight: matrices with unit gain, norms around 1, biases around 0."""
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.normal_(0.0, 1.0)
        elif parameter.dim() == 2:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.2)
        else:
            parameter.normal_(1.0, 0.2)


def to_v4(folder: Path) -> None:
    """Rewrites config.json as transformers 4 would have saved it."""
    config = read_json(folder / "config.json")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    write_json(folder / "config.json", config)


def shard(folder: Path, count: int) -> None:
    """Splits model.safetensors into `count` files and an index, tensors dealt out in turn."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    (folder / "model.safetensors").unlink()


def make_tokenizer(
    folder: Path,
    vocab_size: int = 320,
    *,
    add_bos: bool = False,
    chat_template: str | None = CHAT_TEMPLATE,
    template_file: bool = False,
) -> Tokenizer:
    """A byte-level BPE in the folder: tokenizer.json with a BOS post-processor if asked for, tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(
        [" ".join(str(i * i) for i in range(400)), "the model reads and the model writes"], trainer
    )
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": BOS, "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template is not None and template_file:
        (folder / "chat_template.jinja").write_text(chat_template)
    elif chat_template is not None:
        config["chat_template"] = chat_template
    write_json(folder / "tokenizer_config.json", config)
    return tokenizer


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON object file; a value of `...` removes the key."""
    content = {key: value for key, value in (read_json(path) | changes).items() if value is not ...}
    write_json(path, content)
