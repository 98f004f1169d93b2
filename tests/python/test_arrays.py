# SPDX-License-Identifier: Apache-2.0
"""attentile.attention and its kin on NumPy, JAX and DLPack: forms, dtypes, edges, dropout."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
from generated import DTYPES, arranged
from oracle import CEILING, assert_close, float64, keep_decisions, same_bits

import attentile

Array = Any
DTYPE_NAMES = list(DTYPES)


def tokens(*, rows: int = 7, keys: int = 9, heads: int = 4, heads_kv: int = 2, dim: int = 16,
           dim_v: int = 16, batch: int = 2, dtype: str = "float32") -> tuple[Array, ...]:
    rng = np.random.default_rng(1)
    kind = DTYPES[dtype]
    return tuple(rng.standard_normal(shape).astype(kind) for shape in (
        (batch, rows, heads, dim), (batch, keys, heads_kv, dim), (batch, keys, heads_kv, dim_v)))


def reference(q: Array, k: Array, v: Array, **keywords: Any) -> oracle.Result:
    for name in ("bias", "sink", "alibi_slopes"):
        if name in keywords:
            keywords[name] = float64(keywords[name])
    return oracle.attention(float64(q), float64(k), float64(v), **keywords)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_dtypes_of_results(dtype: str) -> None:
    q, k, v = tokens(dtype=dtype, dim_v=24)
    out, lse = attentile.attention(q, k, v, return_lse=True, causal=True)
    assert type(out) is np.ndarray and out.dtype == q.dtype and out.shape == (2, 7, 4, 24)
    assert lse.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert lse.shape == (2, 4, 7)
    want = reference(q, k, v, causal=True)
    assert_close("out", out, want.out, CEILING[dtype])
    gradients = attentile.attention_backward(out, q, k, v, out, lse, causal=True)
    for x, like in zip(gradients, (q, k, v), strict=False):
        assert x.dtype == like.dtype and x.shape == like.shape
    assert gradients.dbias is None and gradients.dsink is None


def test_results_asked_for() -> None:
    q, k, v = tokens()
    out = attentile.attention(q, k, v)
    pair = attentile.attention(q, k, v, return_lse=True)
    kept = attentile.attention(q, k, v, return_keep=True, dropout_p=0.5)
    three = attentile.attention(q, k, v, return_lse=True, return_keep=True, dropout_p=0.5)
    assert out.shape == (2, 7, 4, 16) and len(pair) == 2 and len(kept) == 2 and len(three) == 3
    same_bits("out", out, pair[0])
    np.testing.assert_allclose(three[1], pair[1], rtol=1e-6)  # taken before dropout
    assert three[2].dtype == np.uint8 and three[2].shape == (2, 4, 7, 9)
    same_bits("keep", kept[1], three[2])


@pytest.mark.parametrize("form", ["sliced", "flipped", "other layout"])
@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_strides_change_no_bit(dtype: str, form: str) -> None:
    q, k, v = tokens(dtype=dtype, rows=33, keys=70)
    want = attentile.attention(q, k, v, return_lse=True, causal=True)
    got = attentile.attention(*(arranged(x, form) for x in (q, k, v)), return_lse=True,
                              causal=True)
    for x, y in zip(got, want, strict=True):
        same_bits(form, x, y)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_layouts_are_the_same_call(dtype: str) -> None:
    q, k, v = tokens(dtype=dtype)
    want, want_lse = attentile.attention(q, k, v, return_lse=True, window_left=3)
    swapped = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v)]
    out, lse = attentile.attention(*swapped, return_lse=True, window_left=3, layout="bhsd")
    assert out.shape == (2, 4, 7, 16)
    same_bits("out", out.swapaxes(1, 2), want)
    same_bits("lse", lse, want_lse)


@pytest.mark.parametrize("term", ["k", "v", "bias", "mask"])
def test_expanded_inputs(term: str) -> None:
    given = dict(zip("qkv", tokens(), strict=True))
    rng = np.random.default_rng(2)
    given["bias"] = rng.standard_normal((2, 4, 7, 9), np.float32)
    given["mask"] = rng.random((2, 4, 7, 9)) < 0.7
    given[term] = np.broadcast_to(given[term][:1], given[term].shape)
    copied = {name: x.copy() for name, x in given.items()}
    same_bits(term, attentile.attention(**given), attentile.attention(**copied))


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_inputs_are_read_only(dtype: str) -> None:
    """Frozen arrays are taken, and no input is written."""
    q, k, v = tokens(dtype=dtype)
    bias = np.zeros((1, 4, 7, 9), DTYPES[dtype])
    before = [x.copy() for x in (q, k, v, bias)]
    for x in (q, k, v, bias):
        x.flags.writeable = False
    out, lse = attentile.attention(q, k, v, bias=bias, return_lse=True)
    out.flags.writeable = lse.flags.writeable = False
    attentile.attention_backward(out, q, k, v, out, lse, bias=bias)
    for x, y in zip((q, k, v, bias), before, strict=True):
        same_bits("input", x, y)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("algorithm", ["flash2", "flash1", "standard", "reference"])
def test_threads_change_no_bit(algorithm: Any, threads: int) -> None:
    q, k, v = tokens(rows=90, keys=130)
    settings: dict[str, Any] = {"causal": True, "algorithm": algorithm}
    out, lse = attentile.attention(q, k, v, return_lse=True, num_threads=1, **settings)
    again = attentile.attention(q, k, v, num_threads=threads, **settings)
    same_bits("out", again, out)
    one = attentile.attention_backward(out, q, k, v, out, lse, num_threads=1, **settings)
    many = attentile.attention_backward(out, q, k, v, out, lse, num_threads=threads, **settings)
    for x, y in zip(one[:3], many[:3], strict=True):
        same_bits("gradient", x, y)


class OnlyDLPack:
    """An array that offers nothing but DLPack and a shape."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack__(self, **keywords: Any) -> Any:
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_dlpack() -> None:
    q, k, v = tokens()
    out = attentile.attention(*(OnlyDLPack(x) for x in (q, k, v)))
    assert type(out) is np.ndarray
    same_bits("out", out, attentile.attention(q, k, v))


def test_tensors_of_torch_keep_their_graph() -> None:
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in tokens())
    out, lse = attentile.attention(q, k, v, return_lse=True)
    assert isinstance(out, torch.Tensor) and out.requires_grad and lse.requires_grad
    gradients = attentile.attention_backward(out.detach(), q, k, v, out, lse)
    for got, want in zip(gradients, torch.autograd.grad(out, (q, k, v), out), strict=False):
        same_bits("gradient", got, want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax(dtype: str) -> None:
    jax = pytest.importorskip("jax")
    arrays = tokens(dtype=dtype)
    given = [jax.numpy.asarray(x) for x in arrays]
    out, lse = attentile.attention(*given, return_lse=True, causal=True)
    assert isinstance(out, jax.Array) and out.dtype == given[0].dtype
    assert isinstance(lse, jax.Array) and lse.dtype == np.float32
    want = attentile.attention(*arrays, return_lse=True, causal=True)
    same_bits("out", out, want[0])
    same_bits("lse", lse, want[1])
    gradients = attentile.attention_backward(out, *given, out, lse, causal=True)
    assert all(isinstance(x, jax.Array) for x in gradients[:3])
    expected = attentile.attention_backward(want[0], *arrays, *want, causal=True)
    for x, y in zip(gradients[:3], expected[:3], strict=True):
        same_bits("gradient", x, y)
    for x, y in zip(given, arrays, strict=True):
        same_bits("an immutable input", x, y)


# --- edge values, contract section 3 -------------------------------------------------------------

def results_and_gradients(q: Array, k: Array, v: Array, dlse: Array = None,
                          **keywords: Any) -> tuple[Array, Array, attentile.Gradients]:
    out, lse = attentile.attention(q, k, v, return_lse=True, **keywords)
    gradients = attentile.attention_backward(np.ones_like(out), q, k, v, out, lse, dlse=dlse,
                                             **keywords)
    return out, lse, gradients


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("algorithm", ["flash2", "flash1", "standard", "reference"])
def test_rows_without_keys(algorithm: Any, dtype: str) -> None:
    q, k, v = tokens(dtype=dtype)
    mask = np.ones((2, 1, 7, 9), bool)
    mask[0, 0, 2:4] = False
    ones = np.ones((2, 4, 7), np.float64 if dtype == "float64" else np.float32)
    out, lse, gradients = results_and_gradients(q, k, v, ones, mask=mask, algorithm=algorithm)
    assert (out[0, 2:4] == 0).all() and (lse[0, :, 2:4] == -np.inf).all()
    assert (gradients.dq[0, 2:4] == 0).all()
    assert all(np.isfinite(x.astype(np.float32)).all() for x in gradients[:3])
    assert np.isfinite(lse[1]).all() and (out[1] != 0).any()


def test_rows_without_keys_and_a_sink() -> None:
    q, k, v = tokens()
    sink = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
    hidden = np.zeros((7, 9), bool)
    dlse = np.random.default_rng(0).standard_normal((2, 4, 7)).astype(np.float32)
    out, lse, gradients = results_and_gradients(q, k, v, dlse, mask=hidden, sink=sink)
    assert (out == 0).all() and (lse == sink[None, :, None]).all()
    np.testing.assert_allclose(gradients.dsink, dlse.sum((0, 2)), rtol=1e-5)


def test_bias_of_minus_infinity_hides() -> None:
    q, k, v = tokens()
    bias = np.zeros((7, 9), np.float32)
    bias[3] = -np.inf
    bias[5, 2:] = -np.inf
    mask = np.ones((7, 9), bool)
    mask[3], mask[5, 2:] = False, False
    by_bias, by_mask = results_and_gradients(q, k, v, bias=bias), results_and_gradients(
        q, k, v, mask=mask)
    assert (by_bias[0][:, 3] == 0).all() and (by_bias[1][:, :, 3] == -np.inf).all()
    for x, y in zip((*by_bias[:2], *by_bias[2][:3]), (*by_mask[:2], *by_mask[2][:3]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert (by_bias[2].dbias[3] == 0).all()


@pytest.mark.parametrize(("batch", "rows", "keys", "heads"), [
    (0, 7, 9, 4), (2, 0, 9, 4), (2, 7, 0, 4), (2, 7, 9, 0), (2, 0, 0, 4), (0, 0, 0, 0)])
def test_nothing_to_do(batch: int, rows: int, keys: int, heads: int) -> None:
    q, k, v = tokens(rows=rows, keys=keys, heads=heads, heads_kv=heads and 2, batch=batch)
    out, lse, gradients = results_and_gradients(q, k, v)
    assert out.shape == q.shape and (out == 0).all() and (lse == -np.inf).all()
    for x, like in zip(gradients[:3], (q, k, v), strict=True):
        assert x.shape == like.shape and (x == 0).all()


def test_infinite_logit_is_nan() -> None:
    q, k, v = tokens()
    bias = np.zeros((7, 9), np.float32)
    bias[4, 1] = np.inf
    out, lse = attentile.attention(q, k, v, bias=bias, return_lse=True)
    clean, clean_lse = attentile.attention(q, k, v, bias=np.zeros_like(bias), return_lse=True)
    others = np.arange(7) != 4
    assert np.isnan(out[:, 4]).all() and np.isnan(lse[:, :, 4]).all()
    same_bits("other rows", out[:, others], clean[:, others])
    same_bits("other lse", lse[:, :, others], clean_lse[:, :, others])


def test_nan_in_a_value_stays_in_its_column() -> None:
    q, k, v = tokens()
    clean, clean_lse = attentile.attention(q, k, v, causal=True, return_lse=True)
    v[1, 6, 0, 5] = np.nan
    out, lse = attentile.attention(q, k, v, causal=True, return_lse=True)
    seen = np.zeros(out.shape, bool)
    seen[1, 4:, :2, 5] = True  # row i sees keys to i + 2; heads 0 and 1 share head 0 of v
    assert np.isnan(out[seen]).all()
    same_bits("everything else", out[~seen], clean[~seen])
    same_bits("lse", lse, clean_lse)


@pytest.mark.parametrize("size", [1e5, 1e20, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits(sign: int, size: float) -> None:
    q, k, v = tokens(heads=1, heads_kv=1, dim=1)
    q[:], k[:] = 1.0, sign * size
    k[:, 3] = sign * size * (1 if sign < 0 else 2)
    k[:, 5] = sign * size * (0.5 if sign < 0 else 1)
    out, lse = attentile.attention(q, k, v, softmax_scale=1.0, return_lse=True)
    winner = 5 if sign < 0 else 3
    np.testing.assert_allclose(out, np.broadcast_to(v[:, winner:winner + 1], out.shape))
    np.testing.assert_allclose(lse, k[0, winner, 0, 0], rtol=1e-6)


# --- dropout -------------------------------------------------------------------------------------

def test_philox_gives_the_published_answers() -> None:
    """Random123's known answers of philox4x32 10: the oracle of all dropout here."""
    ones, pi = [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, answer in (
            ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
            (ones, (ones[0], ones[0]), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
            (pi, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])):
        words = oracle.philox([np.array([c], np.uint64) for c in counter], key)
        assert [int(w[0]) for w in words] == answer


@pytest.mark.parametrize("p", [0.0, 2**-17, 0.1, 0.5, 0.9, 1.0])
def test_keep_decisions(p: float) -> None:
    q, k, v = tokens(rows=37, keys=75)
    at: dict[str, Any] = {"dropout_seed": 2**63 + 5, "dropout_offset": 2**40 + 3}
    keep = attentile.attention(q, k, v, dropout_p=p, return_keep=True, **at)[1]
    for b in range(2):
        want = keep_decisions(p, b, (4, 37, 75), **at)
        same_bits("keep", keep[b], want.to(torch.uint8))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_keep_decisions_of_pages(kind: Any) -> None:
    """As many columns as the longest sequence has keys."""
    q, k, v = tokens(rows=5, keys=4, batch=3)
    table, used = np.array([[0, 1], [2, 0], [1, 2]], np.int32), np.array([7, 5, 3], np.int32)
    keep = attentile.attention(kind(q), kind(k), kind(v), block_table=kind(table), dropout_p=0.5,
                               seqused_k=kind(used), dropout_seed=4, return_keep=True)[1]
    assert keep.shape == (3, 4, 5, 7)
    for b in range(3):
        want = keep_decisions(0.5, b, (4, 5, 7), dropout_seed=4)
        same_bits("keep", keep[b], want.to(torch.uint8))


def test_a_piece_of_a_larger_problem_drops_the_same() -> None:
    q, k, v = tokens(rows=40, keys=64, heads=4, heads_kv=4, batch=3)
    at: dict[str, Any] = {"dropout_p": 0.3, "dropout_seed": 9, "return_keep": True}
    whole = attentile.attention(q, k, v, **at)[1]
    piece = attentile.attention(
        q[1:, 8:, 2:], k[1:, 32:, 2:], v[1:, 32:, 2:], query_base=8, key_base=32, head_base=2,
        batch_base=1, dropout_num_heads_q=4, **at)[1]
    same_bits("keep", piece, whole[1:, 2:, 8:, 32:])


@pytest.mark.parametrize("p", [0.05, 0.3, 0.75])
def test_dropout_statistics(p: float) -> None:
    """The rate and the absence of correlation, within five standard deviations."""
    q, k, v = tokens(rows=256, keys=256, dim=4, dim_v=4)
    plain = attentile.attention(q, k, v)
    total, runs = np.zeros(plain.shape), 40
    rates, rows, keys, seeds = [], [], [], []
    last = None
    for seed in range(runs):
        out, keep = attentile.attention(q, k, v, dropout_p=p, dropout_seed=seed, return_keep=True)
        total += out
        z = (keep - (1 - p)) / np.sqrt(p * (1 - p))
        rates.append(z.mean())
        rows.append((z[:, :, 1:] * z[:, :, :-1]).mean())
        keys.append((z[..., 1:] * z[..., :-1]).mean())
        if last is not None:
            seeds.append((z * last).mean())
        last = z
    for values in (rates, rows, keys, seeds):
        assert abs(np.mean(values)) < 5 / np.sqrt(keep.size * len(values))
    # the mean of many runs comes near the output without dropout
    assert np.abs(total / runs - plain).mean() < 0.05 + np.sqrt(p / (1 - p) / runs / 100)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("algorithm", ["flash2", "flash1", "standard"])
def test_forward_and_backward_drop_alike(algorithm: Any, dtype: str) -> None:
    """With v = identity, out shows the weights; with dout = identity, dv shows them again."""
    n = 48
    q, k, _ = tokens(rows=n, keys=n, heads=1, heads_kv=1, batch=1, dtype=dtype)
    eye = np.eye(n, dtype=DTYPES[dtype])[None, :, None, :]
    settings: dict[str, Any] = {"dropout_p": 0.4, "dropout_seed": 77, "algorithm": algorithm}
    out, lse, keep = attentile.attention(q, k, eye, return_lse=True, return_keep=True, **settings)
    gradients = attentile.attention_backward(eye, q, k, eye, out, lse, **settings)
    assert 0.5 < keep.mean() < 0.7
    np.testing.assert_array_equal(out[0, :, 0] != 0, keep[0, 0] != 0)
    np.testing.assert_array_equal(gradients.dv[0, :, 0].T != 0, keep[0, 0] != 0)


# --- merge, plan, info, progress -----------------------------------------------------------------

@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_merge(dtype: str, layout: Any) -> None:
    q, k, v = tokens(dtype=dtype, keys=64)
    whole = attentile.attention(q, k, v, return_lse=True)
    empty = np.zeros_like(whole[0]), np.full_like(whole[1], -np.inf)
    parts = [attentile.attention(q, k[:, s], v[:, s], return_lse=True)
             for s in (slice(0, 5), slice(5, 40), slice(40, 64))]
    parts.insert(1, empty)
    if layout == "bhsd":
        parts = [(out.swapaxes(1, 2), lse) for out, lse in parts]
    out, lse = attentile.merge(parts, layout=layout)
    out = out.swapaxes(1, 2) if layout == "bhsd" else out
    assert out.dtype == whole[0].dtype and lse.dtype == whole[1].dtype
    assert_close("out", out, float64(whole[0]), 2 * CEILING[dtype])
    assert_close("lse", lse, float64(whole[1]), 1e-5)
    nothing = attentile.merge([empty, empty])
    same_bits("out of nothing", nothing[0], empty[0])
    same_bits("lse of nothing", nothing[1], empty[1])


def test_merge_in_the_framework_given() -> None:
    jax = pytest.importorskip("jax")
    parts = [attentile.attention(*tokens(keys=n), return_lse=True) for n in (3, 9)]
    want = attentile.merge(parts)
    for kind, make in ((torch.Tensor, torch.from_numpy), (jax.Array, jax.numpy.asarray)):
        got = attentile.merge([(make(out), make(lse)) for out, lse in parts])
        assert all(isinstance(x, kind) for x in got)
        same_bits("out", got[0], want[0])
        same_bits("lse", got[1], want[1])


@pytest.mark.parametrize("backward", [False, True])
def test_plan(backward: bool) -> None:
    arrays = tokens(rows=300, keys=500)
    plan = attentile.plan(*arrays, backward=backward, causal=True, num_threads=2)
    assert json.loads(json.dumps(plan)) == plan
    assert plan["algorithm"] == "flash2" and plan["threads"] <= 2 and plan["notes"]
    assert (plan["device"], plan["kernel"]) == ("cpu", "")
    assert plan["visible_pairs"] == 2 * 4 * sum(i + 201 for i in range(300))
    shapes = [x.shape for x in arrays]
    assert attentile.plan(*shapes, backward=backward, causal=True, num_threads=2) == plan
    assert plan["flops"] == plan["visible_pairs"] * 2 * (5 * 16 if backward else 2 * 16)
    bias = np.zeros((4, 300, 500), np.float32)
    assert (attentile.plan(*shapes, backward=backward, bias=("float32", bias.shape))
            == attentile.plan(*arrays, backward=backward, bias=bias))


def test_plan_follows_the_terms() -> None:
    shape = (1, 64, 2, 32)
    plain = attentile.plan(shape, shape, dtype="bfloat16")
    banded = attentile.plan(shape, shape, dtype="bfloat16", causal=True, window_left=3)
    assert banded["visible_pairs"] == 2 * (1 + 2 + 3 + 4 * 61) < plain["visible_pairs"]
    standard = attentile.plan(shape, shape, algorithm="standard")
    assert standard["algorithm"] == "standard"
    assert standard["workspace_bytes"] > 0


def test_info() -> None:
    facts = attentile.info()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == attentile.__version__ and "scalar" in facts["isas"]
    assert facts["devices"] == ["cpu"] and facts["usable_cores"] >= 1


LONG = {"rows": 3000, "keys": 3000, "heads": 4, "heads_kv": 4, "dim": 64, "dim_v": 64, "batch": 1}


def test_progress() -> None:
    q, k, v = tokens(**LONG)
    seen: list[float] = []
    out = attentile.attention(q, k, v, progress=seen.append, num_threads=1)
    same_bits("out", out, attentile.attention(q, k, v))
    assert seen and seen == sorted(seen) and 0 <= seen[0] and seen[-1] <= 1


def test_progress_can_end_the_call() -> None:
    q, k, v = tokens(**LONG)

    class Enough(Exception):
        pass

    def stop(fraction: float) -> None:
        raise Enough(fraction)

    with pytest.raises(Enough):
        attentile.attention(q, k, v, progress=stop, num_threads=1)
    out, lse = attentile.attention(q, k, v, return_lse=True)
    with pytest.raises(Enough):
        attentile.attention_backward(out, q, k, v, out, lse, progress=stop, num_threads=1)


def test_bfloat16_of_ml_dtypes() -> None:
    q, k, v = tokens(dtype="bfloat16")
    bias = np.zeros((7, 9), ml_dtypes.bfloat16)
    out, lse, gradients = results_and_gradients(q, k, v, bias=bias)
    assert out.dtype == gradients.dbias.dtype == ml_dtypes.bfloat16
    assert lse.dtype == np.float32
