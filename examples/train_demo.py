"""Train the bundled models `demo` and `demo-small` on the Python standard library's own sources.

    python examples/train_demo.py demo       --out src/trivet/bundled/demo       --work /tmp/train
    python examples/train_demo.py demo-small --out src/trivet/bundled/demo-small --work /tmp/train

Both are small Llama models over one byte-level BPE of 4,096 entries, trained on a CPU with torch in bf16. The text is
on every machine that has Python; some modules, and their tests, are held out and give the bits per byte in the model
card. A run is bounded by `--minutes` of its own time, or by `--steps` where the same number of steps is wanted again;
either way the learning rate follows the fraction of the run that is done. A run that was interrupted goes on from its
last checkpoint in `--work`. Needs torch, tokenizers, safetensors and numpy.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import random
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from demo_model import Llama, Muon, Shape
from numpy.typing import NDArray
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

END = "<|endoftext|>"
CONTEXT = 2048
VOCAB_SIZE = 4096
LIBRARY_COPIES = 3
HELD_OUT = frozenset({
    "configparser", "csv", "fractions", "graphlib", "heapq", "json",
    "pprint", "sched", "shelve", "statistics", "textwrap", "tomllib",
})  # fmt: skip

SHAPES = {
    "demo": Shape(vocab_size=VOCAB_SIZE, num_layers=10, width=256, ffn_width=768, num_heads=4, num_kv_heads=2),
    "demo-small": Shape(vocab_size=VOCAB_SIZE, num_layers=4, width=192, ffn_width=512, num_heads=3, num_kv_heads=1),
}
DEFAULT_MINUTES = {"demo": 60.0, "demo-small": 15.0}


# Text


def module_of(path: Path) -> str:
    """The module that a file belongs to; a test belongs to the module it tests: `test/test_json/x.py` -> `json`."""
    parts = [part.removesuffix(".py") for part in path.parts]
    if parts[0] == "test" and len(parts) > 1:
        return parts[1].removeprefix("test_")
    return parts[0]


def is_prose(path: Path, text: str) -> bool:
    """Whether a person wrote this file: not a code page, an entity table, generated topics or bad syntax."""
    if path.parts[0] in {"pydoc_data", "site-packages", "dist-packages"} or path.name.startswith("_sysconfigdata"):
        return False
    if path.parts[0].startswith("config-") or "bad" in path.name or path.name == "entities.py":
        return False
    odd = sum(char.isdigit() or not char.isascii() for char in text)
    return len(text) > 200 and odd < 0.15 * len(text)


def read_stdlib() -> tuple[list[str], list[str]]:
    """The texts to train on and the held-out ones; each distinct file once, library modules more often in training."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[bytes] = set()
    train: list[str] = []
    held_out: list[str] = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        try:
            text = file.read_text(encoding="utf-8").replace("\f", "")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if digest in seen or not is_prose(path, text):
            continue
        seen.add(digest)
        is_test = "test" in path.parts or "tests" in path.parts
        if module_of(path) not in HELD_OUT:
            train += [text] * (1 if is_test else LIBRARY_COPIES)
        elif not is_test:
            held_out.append(text)
    return train, held_out


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE; id 0 is the document separator, and nothing is added to a prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What is trained on and measured; `stream` is `train`, shuffled, as one run of ids."""

    tokenizer: Tokenizer
    train: list[str]
    stream: Tensor
    held_out: list[str]


def prepare_corpus(seed: int, tokenizer_file: Path) -> Corpus:
    """The text and its ids; the tokenizer is trained if the file is missing, so that both models share one."""
    train, held_out = read_stdlib()
    random.Random(seed).shuffle(train)
    if not tokenizer_file.exists():
        write_whole(tokenizer_file, train_tokenizer(train).to_str(pretty=True).encode())
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    stream = torch.from_numpy(encode(tokenizer, train))
    return Corpus(tokenizer=tokenizer, train=train, stream=stream, held_out=held_out)


def encode(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    """All texts as one stream of ids, each behind a separator."""
    end = tokenizer.token_to_id(END)
    return np.array([i for e in tokenizer.encode_batch(texts) for i in (end, *e.ids)], dtype=np.int64)


# Training


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run: from which progress on, the tokens in a window and the tokens in a step."""

    start: float
    length: int
    step_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a run is; `progress` below is the fraction of it that is done."""

    minutes: float
    steps: int | None
    seed: int
    muon_rate: float = 6e-3
    adam_rate: float = 3e-3
    weight_decay: float = 0.1
    warm_up: float = 0.02
    stages: tuple[Stage, ...] = (
        Stage(start=0.0, length=256, step_tokens=4096),
        Stage(start=0.45, length=512, step_tokens=8192),
        Stage(start=0.87, length=CONTEXT, step_tokens=8192),
    )


def rate_factor(progress: float, warm_up: float) -> float:
    """What the learning rates are multiplied by: a linear warm-up, then a cosine down to 2 %."""
    if progress < warm_up:
        return max(progress, 1e-3) / warm_up
    done = min((progress - warm_up) / (1 - warm_up), 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def draw_batch(stream: Tensor, tokens: int, length: int, seed: int, step: int) -> Tensor:
    """Windows of `length` + 1 ids at random places of the stream: a function of the seed and the step."""
    starts = np.random.default_rng([seed, step]).integers(len(stream) - length - 1, size=tokens // length)
    return torch.stack([stream[start : start + length + 1] for start in starts])


def bits_per_byte(model: Llama, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Negative log2-likelihood of the texts over their UTF-8 bytes.

    Each text stands alone behind a separator and is cut into windows of the full context without overlap.
    """
    nats = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for text in texts:
            ids = torch.from_numpy(encode(tokenizer, [text]))
            for start in range(0, len(ids) - 1, CONTEXT):
                window = ids[start : start + CONTEXT + 1]
                nats += model(window[None]).item() * (len(window) - 1)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


class Clock:
    """Seconds that a run has taken, interruptions and pauses not counted."""

    def __init__(self, pause_file: Path | None) -> None:
        self.pause_file = pause_file
        self.elapsed_s = 0.0
        self.last_s = time.monotonic()

    def tick(self) -> float:
        """The seconds so far; while the pause file exists, sleeps first and does not count it."""
        now_s = time.monotonic()
        self.elapsed_s += now_s - self.last_s
        while self.pause_file is not None and self.pause_file.exists():
            time.sleep(1.0)
        self.last_s = time.monotonic()
        return self.elapsed_s


class Trainer:
    """A model, its optimizers and how far it is."""

    def __init__(self, shape: Shape, recipe: Recipe, clock: Clock, checkpoint: Path, use_compile: bool) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.clock, self.checkpoint = recipe, clock, checkpoint
        self.model = Llama(shape)
        self.loss_of: Callable[[Tensor], Tensor] = self.model
        if use_compile:
            self.loss_of = torch.compile(self.model, dynamic=False)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim == 1 or "embed" in n]
        decay = recipe.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=recipe.muon_rate, weight_decay=decay),
            torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.base_rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0
        self.tokens_seen = 0
        if checkpoint.exists():
            self.load()

    def progress(self) -> float:
        """The fraction of the run that is done."""
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        return self.clock.tick() / (60 * self.recipe.minutes)

    def train_step(self, stream: Tensor, progress: float) -> float:
        """The loss (nats a token) of one batch, after which the weights have moved."""
        recipe = self.recipe
        stage = [stage for stage in recipe.stages if stage.start <= progress][-1]
        batch = draw_batch(stream, stage.step_tokens, stage.length, recipe.seed, self.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss_of(batch)
        torch.autograd.backward(loss)
        for optimizer, base in zip(self.optimizers, self.base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate_factor(progress, recipe.warm_up)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens_seen += stage.step_tokens
        return loss.item()

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "elapsed_s": self.clock.elapsed_s,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self.checkpoint, buffer.getvalue())

    def load(self) -> None:
        """Goes on from the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens_seen, self.clock.elapsed_s = state["step"], state["tokens_seen"], state["elapsed_s"]


# Export


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it, so that no reader sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.rename(path)


def hf_config(shape: Shape) -> dict[str, object]:
    """The contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_dim": shape.head_width,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn_width,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


TOKENIZER_CONFIG = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": END,
    "clean_up_tokenization_spaces": False,
    "eos_token": END,
    "model_max_length": CONTEXT,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
CARD = """---
license: apache-2.0
language: code
library_name: trivet
---
# {name}

A Llama of {parameters:,} parameters that completes Python source, and nothing else. It is bundled with Trivet so that
there is something to serve, measure and test without a download. It is too small to be right about what it writes.

| | |
| --- | --- |
| shape | {shape} |
| context | 2,048 tokens; byte-level BPE of 4,096 entries; nothing is added to a prompt |
| held-out text | **{bpb:.3f} bits per byte** ({held_out_bytes:,} bytes, {bytes_per_token:.2f} bytes a token) |
| held-out modules | {held_out} (and their tests) |
| trained on | {train_bytes:,} bytes of distinct text, {seen_tokens:,} tokens seen in {steps:,} steps |
| seed, wall time | {seed}, {minutes:.1f} minutes on a CPU ({threads} threads) |
| command | `{command}` |

The bits per byte are the total negative log2-likelihood over the UTF-8 bytes of the held-out library modules, each
file behind a separator, in windows of the full context without overlap. The seed fixes the text, the tokenizer, the
first weights and every batch; a run bounded by time ends after as many steps as the machine managed.

## Licence

The weights are licensed under Apache-2.0. The text is the source of the standard library of CPython {python} (`Lib/`,
tests included; generated tables left out), Copyright (c) Python Software Foundation, under the PSF License Agreement
Version 2 (PSF-2.0), which is the file `LICENSE` of the CPython distribution and https://docs.python.org/3/license.html.
"""


def export(out: Path, model: Llama, tokenizer: Tokenizer, card: str) -> None:
    """Writes a plain Hugging Face folder, each file whole."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": p.detach().bfloat16().contiguous() for name, p in model.named_parameters()}
    documents = {
        "config.json": hf_config(model.shape),
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0, "do_sample": False},
        "tokenizer_config.json": TOKENIZER_CONFIG,
    }
    for name, document in documents.items():
        write_whole(out / name, (json.dumps(document, indent=2) + "\n").encode())
    write_whole(out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    write_whole(out / "README.md", card.encode())
    write_whole(out / "model.safetensors", save(weights, metadata={"format": "pt"}))


def publish(trainer: Trainer, corpus: Corpus, args: argparse.Namespace) -> None:
    """Saves a checkpoint, measures the held-out text, writes the model and its card."""
    trainer.save()
    bpb = bits_per_byte(trainer.model, corpus.tokenizer, corpus.held_out)
    minutes = trainer.clock.tick() / 60
    print(f"{minutes:.1f} min, step {trainer.step}: {bpb:.4f} bits per byte held out", flush=True)
    bound = f"--minutes {trainer.recipe.minutes:g}" if args.steps is None else f"--steps {args.steps}"
    held_out_bytes = sum(len(text.encode()) for text in corpus.held_out)
    held_out_tokens = len(encode(corpus.tokenizer, corpus.held_out)) - len(corpus.held_out)
    shape = dataclasses.asdict(trainer.model.shape)
    card = CARD.format(
        name=args.model,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        shape=", ".join(f"{key} {value:g}" for key, value in shape.items()),
        bpb=bpb,
        held_out_bytes=held_out_bytes,
        bytes_per_token=held_out_bytes / held_out_tokens,
        held_out=", ".join(f"`{module}`" for module in sorted(HELD_OUT)),
        train_bytes=sum(len(text.encode()) for text in set(corpus.train)),
        seen_tokens=trainer.tokens_seen,
        steps=trainer.step,
        seed=args.seed,
        minutes=minutes,
        threads=args.threads,
        command=f"python examples/train_demo.py {args.model} {bound} --seed {args.seed} --out OUT --work WORK",
        python=platform.python_version(),
    )
    export(args.out, trainer.model, corpus.tokenizer, card)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model to")
    parser.add_argument("--work", type=Path, required=True, help="the folder for the tokenizer and checkpoints")
    parser.add_argument("--minutes", type=float, help="the length of the run (60 for demo, 15 for demo-small)")
    parser.add_argument("--steps", type=int, help="the length of the run in steps, in place of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export-minutes", type=float, default=15.0, help="minutes between exports")
    parser.add_argument("--pause-file", type=Path, help="sleep, uncounted, while this file exists")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    return parser.parse_args()


def main() -> None:
    """Trains one model and exports it: after one minute, at each `--export-minutes`, and at the end."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = prepare_corpus(args.seed, args.work / "tokenizer.json")
    print(f"{len(corpus.stream):,} tokens to train on", flush=True)
    minutes = DEFAULT_MINUTES[args.model] if args.minutes is None else args.minutes
    recipe = Recipe(minutes=minutes, steps=args.steps, seed=args.seed)
    clock = Clock(args.pause_file)
    trainer = Trainer(SHAPES[args.model], recipe, clock, args.work / f"{args.model}.pt", not args.no_compile)

    export_s = 60 * args.export_minutes
    next_export_s, next_save_s = 60.0, 180.0
    while (progress := trainer.progress()) < 1:
        loss = trainer.train_step(corpus.stream, progress)
        elapsed_s = clock.tick()
        if trainer.step % 20 == 0:
            print(f"{elapsed_s:7.1f} s  step {trainer.step:6d}  {progress:6.1%}  loss {loss:.4f}", flush=True)
        if elapsed_s >= next_export_s:
            publish(trainer, corpus, args)
            next_export_s = (elapsed_s // export_s + 1) * export_s
        if elapsed_s >= next_save_s:
            trainer.save()
            next_save_s = elapsed_s + 180.0
    publish(trainer, corpus, args)


if __name__ == "__main__":
    main()
