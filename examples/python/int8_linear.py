# SPDX-License-Identifier: Apache-2.0
"""A trained character GPT with its linear layers in int8 (torch.ao) around float attention.

    python examples/python/int8_linear.py --steps 300
"""

import argparse
import io
import warnings

import torch
from _attend import ATTEND
from _gpt import GPT, next_character, read_text
from torch import nn


def train(model, text, steps, context):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        starts = torch.randint(len(text) - context, (16,))
        loss, _ = next_character(model, text, starts, context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def to_int8(model):
    """A copy whose nn.Linear hold int8 weights and quantise what they read as they run."""
    with warnings.catch_warnings():
        # torch.ao.quantization is announced to move to the package torchao.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def kibibytes(model):
    held = io.BytesIO()
    torch.save(model.state_dict(), held)
    return held.tell() / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--context", type=int, default=128)
    given = parser.parse_args()
    text, unseen, symbols = read_text()
    torch.manual_seed(0)
    model = GPT(symbols, given.context, ATTEND["attentile"])
    train(model, text, given.steps, given.context)
    starts = range(0, len(unseen) - given.context, given.context)
    for name, candidate in (("float32", model.eval()), ("int8", to_int8(model))):
        with torch.no_grad():
            loss, right = next_character(candidate, unseen, starts, given.context)
        print(f"{name:8} {right:.4f} of {len(starts) * given.context} unseen characters right, "
              f"loss {loss:.4f}, {kibibytes(candidate):.0f} KiB")


if __name__ == "__main__":
    main()
