# SPDX-License-Identifier: Apache-2.0
"""Between padded batches and packed tokens; names and results of flash_attn.bert_padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["index_first_axis", "index_first_axis_residual", "index_put_first_axis", "pad_input",
           "unpad_input", "unpad_input_for_concatenated_sequences"]


# signature of flash_attn.bert_padding.index_first_axis
def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """input[indices] along the first of at least two dimensions, differentiable."""
    if input.ndim < 2:
        raise ValueError(f"input: had {input.ndim} dimensions, expected at least 2")
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """Zeros [first_axis_dim, ...] with values at indices [len(values)], differentiable."""
    if values.ndim < 2:
        raise ValueError(f"values: had {values.ndim} dimensions, expected at least 2")
    if tuple(indices.shape) != (values.shape[0],):
        raise ValueError(f"indices: shape was {tuple(indices.shape)}, expected "
                         f"({values.shape[0]},) as values has rows")
    zeros = values.new_zeros((first_axis_dim, *values.shape[1:]))
    return zeros.index_copy(0, indices.long(), values)


# signature of flash_attn.bert_padding.index_first_axis_residual
def index_first_axis_residual(input: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """(input[indices], input); gradients of both reach input."""
    return index_first_axis(input, indices), input.view_as(input)


def _checked(hidden_states: Tensor, mask: Tensor, name: str) -> None:
    if mask.ndim != 2 or hidden_states.shape[:2] != mask.shape:
        raise ValueError(f"{name}: shape was {tuple(mask.shape)}, expected (batch, seqlen) as "
                         f"hidden_states of shape {tuple(hidden_states.shape)} has")


def _bounds(lengths: Tensor) -> tuple[Tensor, int]:
    """(cu_seqlens, the longest) of lengths [batch]."""
    cu_seqlens = pad(torch.cumsum(lengths, 0, dtype=torch.int32), (1, 0))
    return cu_seqlens, int(lengths.max()) if lengths.numel() else 0


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Drops padding: (hidden_states, indices, cu_seqlens, max_seqlen_in_batch, seqused).

    Args:
        hidden_states: [batch, seqlen, ...].
        attention_mask: [batch, seqlen] bool or int, non-zero where a token is.
        unused_mask: likewise, tokens that get room in the result but are not counted as used.

    Returns: tokens [total, ...], differentiable; their indices [total] int64 in the flattened
    batch; cu_seqlens int32 [batch + 1]; the most tokens of a sequence; seqused int32 [batch],
    without those of unused_mask. Raises ValueError. Source: flash_attn 2.8.
    """
    _checked(hidden_states, attention_mask, "attention_mask")
    used = attention_mask != 0
    taken = used
    if unused_mask is not None:
        _checked(hidden_states, unused_mask, "unused_mask")
        taken = used | (unused_mask != 0)
    indices = taken.flatten().nonzero().flatten()
    cu_seqlens, longest = _bounds(taken.sum(-1, dtype=torch.int32))
    return (index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest,
            used.sum(-1, dtype=torch.int32))


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """`unpad_input` for rows that hold several sequences each, one behind the other.

    attention_mask_in_length: int [batch, seqlen]; the non-zero numbers of a row are the lengths of
    its sequences, in order: [2, 3, 0, 0, 0, 0] is a sequence of 2 tokens, one of 3 and a padding.

    Returns: (hidden_states [total, ...], indices [total], cu_seqlens int32, max_seqlen_in_batch).
    Raises ValueError. Source: flash_attn 2.8.
    """
    _checked(hidden_states, attention_mask_in_length, "attention_mask_in_length")
    seqlen = attention_mask_in_length.shape[1]
    filled = attention_mask_in_length.sum(-1)
    if bool((attention_mask_in_length < 0).any()) or bool((filled > seqlen).any()):
        raise ValueError("attention_mask_in_length: had lengths that are negative or sum to more "
                         f"than {seqlen} in a row, expected at most seqlen")
    indices = (torch.arange(seqlen) < filled[:, None]).flatten().nonzero().flatten()
    lengths = attention_mask_in_length.flatten()
    cu_seqlens, longest = _bounds(lengths[lengths != 0])
    return (index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Back from tokens [total, ...] to [batch, seqlen, ...], 0 where no index points."""
    padded = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return padded.view(batch, seqlen, *padded.shape[1:])
