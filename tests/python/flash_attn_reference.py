# SPDX-License-Identifier: Apache-2.0
"""Attention as flash_attn documents it, by torch's float64 operators, sequence by sequence.

Shares no code with attentile. Differentiable.
"""

from __future__ import annotations

import pytest
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "float64": torch.float64}
# Largest error, relative to the largest reference value; gradients may have four times it.
CEILING = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float64: 1e-13}


@pytest.fixture
def one_thread():
    """Problems as small as these are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def one_sequence(q, k, v, *, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                 slopes=None, keep=None, dropout_p=0.0):
    """(out, lse, probabilities) of q [seqlen_q, heads, d], k and v [seqlen_k, heads_kv, d].

    slopes [heads]; keep [heads, seqlen_q, seqlen_k] bool.
    """
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    key = torch.arange(k.shape[0])[None]
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * (position - key).abs()
    left, right = window_size
    seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool)
    if causal:
        seen &= key <= position
    if left >= 0:
        seen &= key >= position - left
    if right >= 0:
        seen &= key <= position + right
    empty = ~seen.any(-1)
    lse = torch.logsumexp(scores.masked_fill(~(seen | empty[:, None]), -torch.inf), -1)
    if k.shape[0] == 0:
        return v.new_zeros(q.shape[0], q.shape[1], v.shape[-1]), lse, scores
    lse = lse.masked_fill(empty, -torch.inf)
    shown = torch.where(seen, scores, -torch.inf)
    weights = torch.where(seen, torch.exp(shown - lse.masked_fill(empty, 0.0)[..., None]), 0.0)
    dropped = weights if keep is None else weights * keep / (1.0 - dropout_p)
    return torch.einsum("hij,jhd->ihd", dropped, v), lse, weights


def batched(q, k, v, *, slopes=None, keep=None, **options):
    """`one_sequence` over lists or batches of q, k, v: lists of out, lse, probabilities."""
    rows = []
    for b in range(len(q)):
        own = slopes[b] if slopes is not None and slopes.ndim == 2 else slopes
        rows.append(one_sequence(q[b], k[b], v[b], slopes=own,
                                 keep=None if keep is None else keep[b], **options))
    return tuple(list(part) for part in zip(*rows, strict=True))


def rotate(x, cos, sin, positions, interleaved):
    """x [..., heads, d] at positions [...], element by element as the formula has it."""
    out = x.double().clone()
    half = cos.shape[1]
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        c, s = (t.double()[positions, i][..., None] for t in (cos, sin))
        out[..., a] = x[..., a].double() * c - x[..., b].double() * s
        out[..., b] = x[..., a].double() * s + x[..., b].double() * c
    return out


def assert_close(got, want, *, times=1.0, name="out"):
    """got equals want to its dtype's ceiling; infinities in the same places; no NaN."""
    assert tuple(got.shape) == tuple(want.shape), (name, got.shape, want.shape)
    given, want = got.detach().double(), want.detach().double()
    assert torch.equal(given.isinf(), want.isinf()), f"{name}: infinities differ"
    given, want = given[given.isfinite() | given.isnan()], want[want.isfinite()]
    assert given.shape == want.shape, f"{name}: NaN"
    if want.numel():
        error = (given - want).abs().max().item()
        bound = times * CEILING[got.dtype] * max(1e-3, want.abs().max().item())
        assert error <= bound, f"{name}: error {error}, bound {bound}"
