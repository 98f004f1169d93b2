# SPDX-License-Identifier: Apache-2.0
"""Attentile as an attention implementation of Hugging Face Transformers 5, on the CPU.

    import attentile.hf
    attentile.hf.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="attentile")
    model.set_attn_implementation("attentile")     # a model that is there already
    attentile.hf.verify(model)                     # one batch: it ran here, and equals eager

Forward, generate() and training, for decoders, encoders and both: grouped heads, sliding window,
softcap, sinks, position bias, dropout, padding on either side, dynamic and static caches, packed
sequences, gradient checkpointing, torch.compile. Causal, window, padding and packing never build a
mask of seqlen_q x seqlen_k; other patterns are built once per forward, as for "sdpa". Only in a
compiled graph are windows and causal padding built too.

Rows that are all padding are 0 here, and a mean of values with "eager": compare tokens, not them.

A mask here is never None outside compiled graphs, since not every model tells by is_causal what
None would mean. Adding it to scores, as layers that compute attention by themselves do, raises.

Articles tell to write `config.use_flash_attention = True`. That is no switch of Transformers: the
configuration keeps the attribute and no code reads it. Likewise `use_flash_attention_2=True` is of
the past. Write `attn_implementation="attentile"` as above. Names with "flash" in them stand for
packages that need a GPU.

Models whose code computes attention by itself (94 files of Transformers 5.23, among them BLOOM,
CodeGen, GPT-J, Falcon, DeBERTa), or does in some layers (BigBirdPegasus, PP-DocLayoutV2, Informer
with "prob"), are refused with UnsupportedError when they are built; so are classes made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface, AttentionMaskInterface

from attentile.hf import _guard
from attentile.hf._attention import attention_forward, calls
from attentile.hf._guard import NAME
from attentile.hf._mask import CompactMask, compact_mask
from attentile.hf._paged import continuous_batching
from attentile.hf._report import IMPLEMENTATIONS, Row, eager_bytes, measure, side_by_side, table
from attentile.hf._verify import Report, verify

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IMPLEMENTATIONS", "NAME", "CompactMask", "Report", "Row", "attention_forward", "calls",
           "compact_mask", "continuous_batching", "eager_bytes", "measure", "register",
           "side_by_side", "table", "unregister", "verify"]


def _guarded_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """`compact_mask`, for models that use what comes out."""
    import torch

    if not torch.compiler.is_compiling():
        _guard.refuse_config(config)
    return compact_mask(*args, config=config, **kwargs)


def register() -> None:
    """Make "attentile" a name for attn_implementation; again is harmless.

    Registers the attention function and the mask function (without which models lose their masks),
    and has models that ignore both refused, with UnsupportedError, when they are built. Source:
    transformers.AttentionInterface, AttentionMaskInterface.
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, _guarded_mask)
    _guard.install()


def unregister() -> None:
    """Take the name away again; models that are set to it no longer run."""
    AttentionInterface._global_mapping.pop(NAME, None)
    AttentionMaskInterface._global_mapping.pop(NAME, None)
    _guard.remove()
