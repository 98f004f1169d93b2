# SPDX-License-Identifier: Apache-2.0
"""A small GPT over characters, and its text: Genesis in the King James version."""

from pathlib import Path

import torch
import torch.nn.functional as F
from efficient_transformer_layer import EfficientTransformerLayer
from torch import nn

TEXT = Path(__file__).resolve().parents[2] / "data/genesis.txt"


class Block(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added to what it read."""

    def __init__(self, width, heads, attend):
        super().__init__()
        self.qkv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width))
        self.layer = EfficientTransformerLayer(width, heads, causal=True, attend=attend)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(),
                                  nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.layer(self.qkv(x))
        return x + self.feed(x)


class GPT(nn.Module):
    """tokens [batch, context] -> logits [batch, context, symbols]."""

    def __init__(self, symbols, context, attend, width=128, heads=4, depth=4):
        super().__init__()
        self.token, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, attend) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])
        return self.head(self.blocks(self.token(tokens) + self.place(places)))


def read_text():
    """(training part, last tenth, number of symbols), the characters as numbers."""
    text = TEXT.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    numbers = torch.tensor([alphabet.index(character) for character in text])
    split = len(numbers) * 9 // 10
    return numbers[:split], numbers[split:], len(alphabet)


def next_character(model, text, starts, context):
    """(mean cross-entropy, share guessed right) over the windows of text at starts."""
    windows = torch.stack([text[start:start + context + 1] for start in starts])
    logits, wanted = model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
    return F.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()
