# SPDX-License-Identifier: Apache-2.0
"""Are two far pixels of one colour? Images read pixel by pixel, in the manner of Path-X.

    python examples/python/long_context.py --positions 65536  # standard attention: over 32 GiB
"""

import argparse
import math

import torch
from _measure import Meter
from efficient_transformer_layer import EfficientTransformerLayer
from torch import nn

GREYS, COLOURS, SYMBOLS, WIDTH, HEADS = 8, 4, 13, 32, 2


class Reader(nn.Module):
    """images [batch, positions] of small integers -> logits [batch, 2]."""
    def __init__(self):
        super().__init__()
        self.pixel, self.qkv = nn.Embedding(SYMBOLS, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.layer = EfficientTransformerLayer(WIDTH, HEADS)
        self.answer = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, 2))

    def forward(self, images):
        qkv = self.qkv(self.pixel(images))
        qkv[..., :WIDTH] *= math.log(images.shape[1], 64)  # two pixels outweigh ever more noise
        return self.answer(self.layer(qkv)[:, 0])


def draw(batch, positions):
    """Grey noise, two coloured pixels anywhere, a place for the answer in front; the answers."""
    images, same = torch.randint(GREYS, (batch, positions)), torch.randint(2, (batch,))
    first, other = torch.randint(COLOURS, (batch,)), torch.randint(1, COLOURS, (batch,))
    colours = torch.stack((first, (first + other * (1 - same)) % COLOURS), 1)
    places = torch.stack([torch.randperm(positions - 1)[:2] + 1 for _ in range(batch)])
    images[:, 0] = SYMBOLS - 1
    return images.scatter(1, places, GREYS + colours), same


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=65536)
    longest = parser.parse_args().positions
    torch.manual_seed(0)
    model, positions = Reader(), 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    while (positions := positions * 4) <= longest:  # images grow as the model learns
        with Meter() as meter:
            for _ in range(max(2, 32768 // positions)):
                images, same = draw(max(1, 2048 // positions), positions)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), same).backward()
                optimizer.step()
                meter.lap()
        with torch.no_grad():
            tests = [draw(1, positions) for _ in range(8)]
            right = sum(int(model(image).argmax() == answer) for image, answer in tests)
        print(f"{positions:6} positions: {right} of 8 right; {meter}", flush=True)
