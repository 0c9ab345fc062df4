"""The BERT encoder of all-MiniLM-L6-v2 in plain torch, with mean pooling and unit length at its end.

Modules carry the names that the published weights use. What the model does is described in
https://arxiv.org/abs/1810.04805 (the encoder) and https://arxiv.org/abs/1908.10084 (pooling).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN = 384
HEADS = 12
LAYERS = 6
INNER = 1536
VOCABULARY = 30522
POSITIONS = 512
EPSILON = 1e-12


class Embeddings(nn.Module):
    """Words, positions and the only segment there is, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.position_embeddings = nn.Embedding(POSITIONS, HIDDEN)
        self.token_type_embeddings = nn.Embedding(2, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=EPSILON)
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give float32 of batch x length x HIDDEN."""
        places = self.position_embeddings.weight[: input_ids.shape[1]]
        segment = self.token_type_embeddings.weight[0]
        total: Tensor = self.LayerNorm(self.word_embeddings(input_ids) + places + segment)
        return total


class SelfAttention(nn.Module):
    """Every token looks at every token that the mask admits."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """*allowed* is bool of batch x 1 x 1 x length."""
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return mixed.transpose(1, 2).reshape(batch, length, HIDDEN)


class Residual(nn.Module):
    """A linear layer whose result is added to what went in before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=EPSILON)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Give a tensor of the shape of *before*."""
        total: Tensor = self.LayerNorm(self.dense(x) + before)
        return total


class Layer(nn.Module):
    """Attention, then two linear layers, each with its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Residual(HIDDEN)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(HIDDEN, INNER)})
        self.output = Residual(INNER)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Give a tensor of the shape of *x*."""
        x = self.attention["output"](self.attention["self"](x, allowed), x)
        result: Tensor = self.output(functional.gelu(self.intermediate["dense"](x)), x)
        return result


class Encoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Give a tensor of the shape of *x*."""
        for layer in self.layer:
            x = layer(x, allowed)
        return x


class SentenceEncoder(nn.Module):
    """Token numbers in, one vector of unit length per sentence out."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder()
        self.pooler = nn.ModuleDict({"dense": nn.Linear(HIDDEN, HIDDEN)})  # has weights, is not used

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both int64 of batch x length (at most 512), mask 1 where there is a token; gives float32 of batch x 384."""
        x = self.encoder(self.embeddings(input_ids), attention_mask[:, None, None, :].bool())
        mask = attention_mask[..., None].to(x.dtype)
        mean = (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def build(_bundle: Any = None) -> nn.Module:
    """The encoder; whoever loads the bundle puts the published weights in the place of the random ones.

    Not built on torch's meta device: its first use imports for two seconds, drawing the random weights takes 0.2 s.
    """
    return SentenceEncoder()
