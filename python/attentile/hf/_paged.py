# SPDX-License-Identifier: Apache-2.0
"""Continuous batching of Transformers: requests of any length packed into one forward."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface

from attentile.hf._attention import _count, attention_forward
from attentile.torch import attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def paged_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attention_forward`, also for layers of a packed batch, whose keys lie in pages.

    Args as there; with `cache` among kwargs query, key, value are [1, heads, tokens, head_dim] of
    all requests, the cache gives the keys of all, and cu_seq_lens_q and cu_seq_lens_k tell whose
    they are. The block-diagonal mask of tokens x keys is not read.
    """
    cache = kwargs.pop("cache", None)
    if cache is None:
        return attention_forward(module, query, key, value, attention_mask, **kwargs)
    _count()
    # The cache also puts this layer's lengths into kwargs.
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx,
                              kwargs=kwargs)
    total_q, total_k = query.shape[2], key.shape[2]
    lengths_q, lengths_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    used_q, used_k = int(lengths_q[-1]), int(lengths_k[-1])
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    window = kwargs.get("sliding_window")
    options: dict[str, Any] = {"causal": True, "softmax_scale": kwargs.get("scaling"),
                               "cu_seqlens_q": lengths_q, "cu_seqlens_k": lengths_k}
    if window is not None and window > 0:
        options["window_left"] = window - 1
    if kwargs.get("softcap"):
        options["softcap"] = float(kwargs["softcap"])
    if kwargs.get("s_aux") is not None:
        options["sink"] = kwargs["s_aux"].float()
    out = query.new_zeros((1, total_q, q.shape[1], v.shape[2]))
    if used_q and total_k:
        out[0, :used_q] = attention(q[:used_q], k[:used_k], v[:used_k], **options)
    return out, None


@contextlib.contextmanager
def continuous_batching() -> Iterator[None]:
    """While this is entered, attn_implementation="sdpa" runs here, so that generate_batch() does.

        model.set_attn_implementation("sdpa")
        with attentile.hf.continuous_batching():
            model.generate_batch(...)

    Transformers 5.23 lets generate_batch() run with a few names only, and no other can be
    registered. This changes the function behind "sdpa" for the whole process, and puts it back when
    the last that entered leaves. The masks are those of "sdpa": built, and not read for packed
    batches.
    """
    global _entered, _replaced
    with _lock:
        if _entered == 0:
            _replaced = AttentionInterface._global_mapping["sdpa"]
            AttentionInterface.register("sdpa", paged_forward)
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if _entered == 0:
                AttentionInterface.register("sdpa", _replaced)
                _replaced = None


_lock = threading.Lock()
_entered = 0
_replaced: Any = None  # the function behind "sdpa" while any are entered
