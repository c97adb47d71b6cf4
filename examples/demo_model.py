"""The model that `train_demo.py` trains, a plain Llama in torch, and the optimizer of its matrices."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of one model."""

    vocab_size: int
    num_layers: int
    width: int
    ffn_width: int
    num_heads: int
    num_kv_heads: int
    head_width: int = 64
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rope_tables(length: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions 0..length-1, each (length, head_width), halves repeated."""
    inverse = shape.rope_theta ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
    angle = torch.outer(torch.arange(length), inverse).repeat(1, 2)
    return angle.cos().bfloat16(), angle.sin().bfloat16()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (..., T, head_width) turned by its position."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.num_heads * shape.head_width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.num_kv_heads * shape.head_width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.num_kv_heads * shape.head_width, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The mixed values of (B, T, D)."""
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.shape.head_width)
        q, k, v = (p(x).view(heads).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.shape.num_heads // self.shape.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return result


class Mlp(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.down_proj = nn.Linear(shape.ffn_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """SwiGLU of (B, T, D)."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Norm(nn.Module):
    """RMS norm, reduced in float32."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.weight = nn.Parameter(torch.ones(shape.width))

    def forward(self, x: Tensor) -> Tensor:
        """`x` at unit mean square, times the weight, in the type of `x`."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The residual stream after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Llama(nn.Module):
    """A Llama with tied embeddings; `"model." + name` of each parameter is its Hugging Face name."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = Norm(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.num_layers) if is_output else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """The mean negative log-likelihood (nats) of ids[:, 1:] given what stands before each."""
        x = self.embed_tokens(ids[:, :-1]).bfloat16()
        cos, sin = rope_tables(x.shape[1], self.shape)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, rows, cols) with every singular value brought near 1, by five Newton-Schulz iterations in bf16."""
    x = matrices.bfloat16()
    x = x.mT if x.size(-2) > x.size(-1) else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.mT if matrices.size(-2) > matrices.size(-1) else x


class Muon(torch.optim.Optimizer):
    """Muon with updates of Adam's size (RMS 0.2 x the rate); all matrices of one shape are worked on as one stack."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        shapes = sorted({tuple(p.shape) for p in matrices})
        groups = [{"params": [p for p in matrices if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves the weights."""
        for group in self.param_groups:
            grads = torch.stack([p.grad for p in group["params"]])
            state = self.state[group["params"][0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            average = state["momentum"].lerp_(grads, 1 - group["momentum"])
            updates = orthogonal(grads.lerp_(average, group["momentum"]))
            scale = group["lr"] * 0.2 * math.sqrt(max(grads.shape[1:]))
            for parameter, update in zip(group["params"], updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)
