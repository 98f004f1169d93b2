# SPDX-License-Identifier: Apache-2.0
"""A transformer layer over a packed qkv, trained to reverse a sequence; eager beside it.

    python examples/python/efficient_transformer_layer.py --steps 150
"""

import argparse

import torch
import torch.nn.functional as F
from _attend import ATTEND
from torch import nn

from attentile.nn import FlashAttention


class EfficientTransformerLayer(nn.Module):
    """[batch, seqlen, 3 * embed_dim] -> [batch, seqlen, embed_dim], in O(seqlen) memory."""

    def __init__(self, embed_dim, num_heads, causal=False, attend=None):
        super().__init__()
        self.heads, self.dim, self.causal = num_heads, embed_dim // num_heads, causal
        self.attend = attend or FlashAttention()
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, qkv):
        batch, seqlen, _ = qkv.shape
        # Not view(batch, seqlen, 3, -1).transpose(1, 2): that loses the heads and swaps axes.
        qkv = qkv.view(batch, seqlen, 3, self.heads, self.dim)
        out, _ = self.attend(qkv, causal=self.causal)
        return self.out(out.reshape(batch, seqlen, -1))


def train(attend, steps, seqlen=32, width=64, heads=4, symbols=16):
    """Mean loss of the last ten steps; before training it is about ln(symbols) = 2.77."""
    torch.manual_seed(0)
    place = nn.Parameter(torch.randn(seqlen, width))
    token, qkv = nn.Embedding(symbols, width), nn.Linear(width, 3 * width)
    layer, head = EfficientTransformerLayer(width, heads, attend=attend), nn.Linear(width, symbols)
    parameters = [place, *nn.ModuleList([token, qkv, layer, head]).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(steps):
        x = torch.randint(symbols, (16, seqlen))
        loss = F.cross_entropy(head(layer(qkv(token(x) + place))).mT, x.flip(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    for name in ("attentile", "eager"):
        print(f"{name}: loss {train(ATTEND[name], arguments.steps):.6f}")
