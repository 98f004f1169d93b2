# SPDX-License-Identifier: Apache-2.0
"""The interface of FlashAttention-2 (package flash_attn 2.8) on CPU tensors of torch.

Every public function of `flash_attn.flash_attn_interface`, `flash_attn.bert_padding` and
`flash_attn.layers.rotary.apply_rotary_emb`, with their signatures, defaults and results. Put in the
place of flash_attn by `attentile.compat.install()`.

What differs, on purpose:
    lse of a row that sees no key is -inf (flash_attn: +inf). Its output is 0 in both.
    float32 and float64 work beside float16 and bfloat16; any head_dim, any page size.
    lse carries a gradient. Results are deterministic with and without deterministic=True.
    Misuse raises ValueError or TypeError; the sentence names the argument.
"""

from __future__ import annotations

from attentile.compat.flash_attn.flash_attn_interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__version__ = "2.8.3"

__all__ = ["flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func",
           "flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func",
           "flash_attn_varlen_qkvpacked_func", "flash_attn_with_kvcache"]
