# SPDX-License-Identifier: Apache-2.0
"""Train a character GPT on Genesis with one attention or with each; compare loss, time, memory.

    python examples/python/train_gpt.py --steps 200 --context 512 --attention all --out loss.svg
"""

import argparse
import json

import torch
from _attend import ATTEND
from _chart import write_lines
from _gpt import GPT, next_character, read_text
from _measure import Meter, in_own_process


def train(attention, steps, context, seed):
    """Loss of each step and on unseen text; seconds of a step, peak memory in MiB."""
    text, unseen, symbols = read_text()
    torch.manual_seed(seed)
    model = GPT(symbols, context, ATTEND[attention])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch, losses = max(1, 2048 // context), []
    with Meter() as meter:
        for _ in range(steps):
            starts = torch.randint(len(text) - context, (batch,))
            loss, _ = next_character(model, text, starts, context)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            meter.lap()
    with torch.no_grad():
        unseen_loss, _ = next_character(model, unseen, [0], context)
    return {"losses": losses, "unseen": unseen_loss.item(), **meter.result()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("steps", 200), ("context", 512), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--attention", choices=(*ATTEND, "all"), default="all")
    parser.add_argument("--out", help="write the loss curves to this SVG")
    parser.add_argument("--json", action="store_true", help="print one attention's results only")
    given = vars(parser.parse_args())
    attention, out, as_json = (given.pop(name) for name in ("attention", "out", "json"))
    if as_json:
        return print(json.dumps(train(attention, **given)))
    names = ("eager", "sdpa", "attentile") if attention == "all" else (attention,)
    results = {name: in_own_process(__file__, attention=name, **given) for name in names}
    for name, r in results.items():
        print(f"{name:9} loss {r['losses'][-1]:.6f}, unseen {r['unseen']:.6f}; {r['cost']}")
    if out:
        kind = f"context {given['context']}, 4 layers, 4 heads of 32, float32, CPU"
        write_lines(out, "Character GPT on Genesis: loss of each step", kind, "step",
                    {name: r["losses"] for name, r in results.items()})


if __name__ == "__main__":
    main()
