# SPDX-License-Identifier: Apache-2.0
"""attentile.nn against attention written out in float64."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attentile
from attentile.nn import FlashAttention, FlashMHA

BATCH, SEQLEN, HEADS, DIM = 2, 37, 3, 16


def packed(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def expected(qkv, keep=None, causal=False, scale=None):
    """softmax(scale q k^T) v of [batch, seqlen, 3, heads, dim], a padded row 0, in float64."""
    q, k, v = (t.transpose(1, 2) for t in qkv.double().unbind(2))
    seqlen = qkv.shape[1]
    scores = q @ k.mT * (qkv.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(seqlen, seqlen, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    if keep is not None:
        visible = visible & keep[:, None, None, :] & keep[:, None, :, None]
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights.nan_to_num(0.0) @ v.nan_to_num(0.0)).transpose(1, 2)


def gradient(function, qkv, dout):
    qkv = qkv.detach().clone().requires_grad_()
    out = function(qkv)
    out.backward(dout.to(out.dtype))
    return out.detach(), qkv.grad


def check(function, reference, qkv, tolerance):
    dout = packed(qkv.shape[0], *qkv.shape[1:2], *qkv.shape[-2:], seed=1)
    out, dqkv = gradient(function, qkv, dout)
    wanted_out, wanted_dqkv = gradient(reference, qkv.double(), dout)
    assert out.dtype == qkv.dtype and out.shape == wanted_out.shape
    torch.testing.assert_close(out.double(), wanted_out, rtol=0, atol=tolerance)
    torch.testing.assert_close(dqkv.double(), wanted_dqkv, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float64, 1e-12), (torch.float32, 5e-6), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_forward_and_backward(dtype, tolerance, causal):
    module = FlashAttention()
    qkv = packed(BATCH, SEQLEN, 3, HEADS, DIM, dtype=dtype)
    check(lambda x: module(x, causal=causal)[0], lambda x: expected(x, causal=causal), qkv,
          tolerance)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.7])
def test_softmax_scale(scale):
    module = FlashAttention(softmax_scale=scale)
    qkv = packed(BATCH, SEQLEN, 3, HEADS, DIM)
    check(lambda x: module(x)[0], lambda x: expected(x, scale=scale), qkv, 1e-5)


def test_returns_none_for_the_weights():
    out, weights = FlashAttention()(packed(1, 4, 3, 1, 8))
    assert out.shape == (1, 4, 1, 8) and weights is None


def keep_masks():
    right, left, holes = (torch.ones(BATCH, SEQLEN, dtype=torch.bool) for _ in range(3))
    right[0, 20:] = left[1, :9] = False
    holes[:, ::3] = False
    nothing = right.clone()
    nothing[1] = False
    return {"right": right, "left": left, "holes": holes, "nothing kept": nothing,
            "all": torch.ones_like(right)}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", keep_masks())
def test_key_padding_mask(name, causal):
    keep, module = keep_masks()[name], FlashAttention()
    qkv = packed(BATCH, SEQLEN, 3, HEADS, DIM)
    check(lambda x: module(x, keep, causal)[0], lambda x: expected(x, keep, causal), qkv, 5e-6)
    out, dqkv = gradient(lambda x: module(x, keep, causal)[0], qkv, torch.ones(qkv[:, :, 0].shape))
    assert (out[~keep] == 0).all() and (dqkv[~keep] == 0).all()


def test_padding_equals_the_sequences_alone():
    """What unpadding and padding again gives, causal and with NaN where nothing is kept."""
    module, lengths = FlashAttention(), (37, 11)
    qkv = packed(BATCH, SEQLEN, 3, HEADS, DIM)
    keep = torch.arange(SEQLEN) < torch.tensor(lengths)[:, None]
    qkv[~keep] = torch.nan
    dout = packed(BATCH, SEQLEN, HEADS, DIM, seed=1)
    out, dqkv = gradient(lambda x: module(x, keep, causal=True)[0], qkv, dout)
    for b, length in enumerate(lengths):
        alone, dalone = gradient(lambda x: module(x, causal=True)[0], qkv[b:b + 1, :length],
                                 dout[b:b + 1, :length])
        torch.testing.assert_close(out[b:b + 1, :length], alone, rtol=0, atol=2e-6)
        torch.testing.assert_close(dqkv[b:b + 1, :length], dalone, rtol=0, atol=2e-5)
    assert (out[~keep] == 0).all() and (dqkv[~keep] == 0).all()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.booleans(), st.integers(1, 3))
def test_packed_sequences(lengths, causal, heads):
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    qkv = packed(int(starts[-1]), 3, heads, 8)
    out, _ = FlashAttention()(qkv, causal=causal, cu_seqlens=starts, max_s=max(lengths))
    assert out.shape == (len(qkv), heads, 8)
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        alone = expected(qkv[None, first:last], causal=causal)[0]
        torch.testing.assert_close(out[first:last].double(), alone, rtol=0, atol=5e-6)


def test_packed_gradient():
    starts, module = torch.tensor([0, 20, 20, 37], dtype=torch.int32), FlashAttention()
    qkv, dout = packed(37, 3, HEADS, DIM), packed(37, HEADS, DIM, seed=1)
    _, dqkv = gradient(lambda x: module(x, cu_seqlens=starts, max_s=20)[0], qkv, dout)
    for piece in (slice(0, 20), slice(20, 37)):
        _, alone = gradient(expected, qkv[None, piece].double(), dout[None, piece])
        torch.testing.assert_close(dqkv[piece].double(), alone[0], rtol=0, atol=2e-5)


def test_any_strides():
    apart = packed(3, HEADS, BATCH, SEQLEN, DIM).permute(2, 3, 0, 1, 4)
    module = FlashAttention()
    torch.testing.assert_close(module(apart)[0], module(apart.contiguous())[0], rtol=0, atol=0)


def test_qkv_is_not_written():
    qkv, keep = packed(BATCH, SEQLEN, 3, HEADS, DIM), keep_masks()["holes"]
    before = qkv.clone()
    FlashAttention()(qkv, keep)
    assert torch.equal(qkv, before)


def test_dropout_only_in_training():
    qkv = packed(BATCH, SEQLEN, 3, HEADS, DIM)
    module = FlashAttention(attention_dropout=0.5)
    assert not torch.equal(module(qkv)[0], FlashAttention()(qkv)[0])
    assert torch.equal(module.eval()(qkv)[0], FlashAttention()(qkv)[0])


def test_dropout_follows_torchs_generator():
    qkv, module = packed(BATCH, SEQLEN, 3, HEADS, DIM), FlashAttention(attention_dropout=0.3)
    first, second = (torch.manual_seed(7), module(qkv)[0])[1], module(qkv)[0]
    torch.manual_seed(7)
    assert torch.equal(module(qkv)[0], first) and not torch.equal(first, second)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_statistics(dropout):
    """With equal weights and v = 1, out is the share kept over 1 - dropout."""
    torch.manual_seed(0)
    rows, keys = 128, 128
    qkv = torch.zeros(1, keys, 3, 4, 8)
    qkv[:, :, 2] = 1
    out = FlashAttention(attention_dropout=dropout)(qkv)[0][..., 0]
    kept = out.double() * keys * (1 - dropout)
    deviation = (dropout * (1 - dropout)) ** 0.5
    assert abs(kept.mean() / keys - (1 - dropout)) < 5 * deviation / (4 * rows * keys) ** 0.5
    assert abs(kept.var() / (keys * deviation**2) - 1) < 0.4
    assert (kept - kept.round()).abs().max() < 1e-3


def test_dropout_gradient_uses_the_same_bits():
    """out is linear in v, so <dout, out> = <dv, v>."""
    torch.manual_seed(0)
    qkv = packed(1, SEQLEN, 3, HEADS, DIM, dtype=torch.float64)
    dout = packed(1, SEQLEN, HEADS, DIM, dtype=torch.float64, seed=1)
    out, dqkv = gradient(lambda x: FlashAttention(attention_dropout=0.4)(x)[0], qkv, dout)
    torch.testing.assert_close((dout * out).sum(), (dqkv[:, :, 2] * qkv[:, :, 2]).sum())


def test_dropout_of_everything():
    out = FlashAttention(attention_dropout=1.0)(packed(1, 8, 3, 2, 8))[0]
    assert (out == 0).all()


QKV = torch.zeros(2, 8, 3, 2, 4)
STARTS = torch.tensor([0, 3, 8], dtype=torch.int32)
BAD = {
    "not a tensor": ((None,), {}, TypeError, "qkv"),
    "embed_dim not split": ((torch.zeros(2, 8, 24),), {}, ValueError, "view"),
    "the wrong view": ((torch.zeros(2, 8, 24).view(2, 8, 3, -1).transpose(1, 2),), {}, ValueError,
                       r"\[2, 3, 8, 8\].*not transposed"),
    "axes swapped": ((QKV.transpose(1, 2),), {}, ValueError, "qkv"),
    "four of q, k, v": ((torch.zeros(2, 8, 4, 2, 4),), {}, ValueError, "qkv"),
    "padded with cu_seqlens": ((QKV,), {"cu_seqlens": STARTS}, ValueError, "total"),
    "packed without": ((QKV[0],), {}, ValueError, "batch"),
    "weights wanted": ((QKV,), {"need_weights": True}, attentile.UnsupportedError, "need_weights"),
    "mask of numbers": ((QKV, torch.ones(2, 8, dtype=torch.long)), {}, TypeError, "int64"),
    "mask of floats": ((QKV, torch.ones(2, 8)), {}, TypeError, "key_padding_mask"),
    "mask a list": ((QKV, [[True] * 8] * 2), {}, TypeError, "list"),
    "mask too short": ((QKV, torch.ones(2, 7, dtype=torch.bool)), {}, ValueError, "key_padding"),
    "mask of four dimensions": ((QKV, torch.ones(2, 1, 1, 8, dtype=torch.bool)), {}, ValueError,
                                "key_padding_mask"),
    "mask and cu_seqlens": ((QKV[0], torch.ones(1, 8, dtype=torch.bool)), {"cu_seqlens": STARTS},
                            ValueError, "beside"),
    "starts of int64": ((QKV[0],), {"cu_seqlens": STARTS.long()}, (TypeError, ValueError),
                        "cu_seqlens"),
    "starts that end early": ((QKV[0],), {"cu_seqlens": STARTS[:2]}, ValueError, "cu_seqlens"),
    "starts that fall": ((QKV[0],), {"cu_seqlens": torch.tensor([0, 5, 3, 8], dtype=torch.int32)},
                         ValueError, "cu_seqlens"),
    "integers": ((QKV.long(),), {}, (TypeError, ValueError), "q"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, keywords, error, words = BAD[name]
    with pytest.raises(error, match=words):
        FlashAttention()(*arguments, **keywords)


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_bad_dropout(dropout):
    with pytest.raises(ValueError, match="attention_dropout"):
        FlashAttention(attention_dropout=dropout)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "big"])
def test_bad_scale(scale):
    with pytest.raises((ValueError, TypeError), match="softmax_scale"):
        FlashAttention(softmax_scale=scale)(QKV)


@pytest.mark.parametrize("shape", [(0, 8, 3, 2, 4), (2, 0, 3, 2, 4), (2, 8, 3, 0, 4)])
def test_empty(shape):
    out, dqkv = gradient(lambda x: FlashAttention()(x)[0], torch.zeros(shape),
                         torch.zeros(*shape[:2], *shape[3:]))
    assert out.shape == (*shape[:2], *shape[3:]) and dqkv.shape == shape


def mha(**keywords):
    torch.manual_seed(0)
    return FlashMHA(HEADS * DIM, HEADS, **keywords)


@pytest.mark.parametrize("causal", [False, True])
def test_mha_is_projection_attention_projection(causal):
    module, x = mha(causal=causal).double(), packed(BATCH, SEQLEN, HEADS * DIM, dtype=torch.float64)
    keep = keep_masks()["left"]
    qkv = module.Wqkv(x).view(BATCH, SEQLEN, 3, HEADS, DIM)
    wanted = module.out_proj(expected(qkv, keep, causal).reshape(x.shape))
    torch.testing.assert_close(module(x, keep)[0], wanted)


def test_mha_agrees_with_torchs():
    ours, x = mha(), packed(BATCH, SEQLEN, HEADS * DIM)
    theirs = torch.nn.MultiheadAttention(HEADS * DIM, HEADS, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.Wqkv.weight)
        theirs.in_proj_bias.copy_(ours.Wqkv.bias)
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    torch.testing.assert_close(ours(x)[0], theirs(x, x, x, need_weights=False)[0], rtol=0,
                               atol=1e-5)


def test_mha_state_dict():
    assert list(mha().state_dict()) == ["Wqkv.weight", "Wqkv.bias", "out_proj.weight",
                                        "out_proj.bias"]
    assert list(mha(bias=False).state_dict()) == ["Wqkv.weight", "out_proj.weight"]
    assert list(FlashAttention().state_dict()) == []
    other, x = FlashMHA(HEADS * DIM, HEADS), packed(1, 5, HEADS * DIM)
    assert not torch.equal(other(x)[0], mha()(x)[0])
    other.load_state_dict(mha().state_dict())
    assert torch.equal(other(x)[0], mha()(x)[0])


def saved_and_loaded(module):
    held = io.BytesIO()
    torch.save(module, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)),
                                       saved_and_loaded])
def test_copies(duplicate):
    module, x = mha(causal=True, attention_dropout=0.25), packed(1, 5, HEADS * DIM)
    again = duplicate(module.eval())
    assert again.inner_attn.dropout_p == 0.25 and not again.training and again.causal
    assert torch.equal(module(x)[0], again(x)[0])


@pytest.mark.parametrize(("arguments", "keywords", "error", "words"), [
    ((10, 3), {}, ValueError, "multiple"), ((8, 0), {}, ValueError, "num_heads"),
    ((8, 2), {"batch_first": False}, attentile.UnsupportedError, "batch_first"),
    ((8, 2), {"attention_dropout": 2.0}, ValueError, "attention_dropout")])
def test_mha_bad_construction(arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        FlashMHA(*arguments, **keywords)


@pytest.mark.parametrize("shape", [(5, 48), (1, 5, 47), (1, 2, 5, 48)])
def test_mha_bad_shape(shape):
    with pytest.raises(ValueError, match="^x: was"):
        mha()(torch.zeros(shape))


def test_mha_needs_no_weights():
    with pytest.raises(attentile.UnsupportedError, match="need_weights"):
        mha()(torch.zeros(1, 5, 48), need_weights=True)


def test_mha_dtype_and_repr():
    module = mha(dtype=torch.bfloat16, causal=True)
    assert module(packed(1, 5, HEADS * DIM, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
    assert "num_heads=3, causal=True" in repr(module) and "attention_dropout=0.0" in repr(module)


def test_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mha()(packed(1, 5, HEADS * DIM))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_whole(masked):
    module, x = mha(causal=True), packed(BATCH, SEQLEN, HEADS * DIM)
    keep = keep_masks()["right"] if masked else None
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

    def run(function):
        module.zero_grad()
        out = function(x, keep)[0]
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in module.parameters())]

    for ours, wanted in zip(run(compiled), run(module), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
