# SPDX-License-Identifier: Apache-2.0
"""One training step of GPT-2 small and BERT-base, random weights: loss, seconds, peak memory.

    python examples/python/train_step.py --seqlen 512 1024
"""

import argparse
import json
from itertools import product

import torch
from _measure import Meter, in_own_process


def build(name, attention, seqlen, layers):
    """The model without dropout, so that all three attentions have the same loss."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, GPT2Config

    import attentile.hf
    attentile.hf.register()
    if name == "gpt2":
        config = GPT2Config(n_positions=seqlen, n_layer=layers, resid_pdrop=0.0, embd_pdrop=0.0,
                            attn_pdrop=0.0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    config = BertConfig(max_position_embeddings=seqlen, num_hidden_layers=layers,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return AutoModelForMaskedLM.from_config(config, attn_implementation=attention)


def measure(model, attention, seqlen, layers, steps):
    torch.manual_seed(0)
    network = build(model, attention, seqlen, layers).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    tokens = torch.randint(network.config.vocab_size, (1, seqlen))
    with Meter() as meter:
        for _ in range(steps):
            loss = network(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            meter.lap()
    return {"loss": loss.item(), **meter.result()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["gpt2", "bert"])
    parser.add_argument("--seqlen", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--attention", nargs="+", default=["eager", "sdpa", "attentile"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="measure the first of each only")
    given = parser.parse_args()
    for model, seqlen, attention in product(given.model, given.seqlen, given.attention):
        flags = {**vars(given), "model": model, "seqlen": seqlen, "attention": attention}
        if flags.pop("json"):
            print(json.dumps(measure(**flags)))
            break
        r = in_own_process(__file__, **flags)
        print(f"{model} {seqlen:5} {attention:9} loss {r['loss']:.6f}; {r['cost']}", flush=True)
