# SPDX-License-Identifier: Apache-2.0
"""The functions where flash_attn.flash_attn_interface has them.

The four that begin with an underscore are those that ring attention and other distributed forms
call to take a pass apart.
"""

from __future__ import annotations

from typing import Any

from attentile.compat.flash_attn._dense import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from attentile.compat.flash_attn._kvcache import flash_attn_with_kvcache
from attentile.compat.flash_attn._steps import (
    _flash_attn_backward,
    _flash_attn_forward,
    _flash_attn_varlen_backward,
    _flash_attn_varlen_forward,
)
from attentile.compat.flash_attn._varlen import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

__all__ = ["_flash_attn_backward", "_flash_attn_forward", "_flash_attn_varlen_backward",
           "_flash_attn_varlen_forward", "flash_attn_func", "flash_attn_kvpacked_func",
           "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
           "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func",
           "flash_attn_with_kvcache"]

USE_TRITON_ROCM = False


def _get_block_size_n(device: Any, head_dim: int, is_dropout: bool, is_causal: bool) -> int:
    """Keys that share one maximum in S_dmask: all of them. Tests normalise S_dmask by it."""
    return 2**31 - 1
