# SPDX-License-Identifier: Apache-2.0
"""attentile.jax against the definition in float64, and against JAX's own function."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import inspect
import math

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from attentile import _core  # noqa: E402

if not hasattr(_core, "jax_handlers"):
    pytest.skip("this build has no handlers for XLA", allow_module_level=True)

from attentile import jax as attentile_jax  # noqa: E402
from attentile.jax import attention  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time here

BATCH, ROWS, KEYS, HEADS, HEADS_KV, DIM = 3, 21, 17, 4, 2, 16


def arrays(seed=0, *, rows=ROWS, keys=KEYS, heads=HEADS, heads_kv=HEADS_KV, dim=DIM, batch=BATCH):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in (
        (batch, rows, heads, dim), (batch, keys, heads_kv, dim), (batch, keys, heads_kv, dim)))


def visible(shape, mask=None, *, is_causal=False, query_seq_lengths=None,
            key_value_seq_lengths=None, local_window_size=None):
    """[batch, heads, rows, keys] bool: the pairs that take part."""
    i, j = np.arange(shape[2])[:, None], np.arange(shape[3])[None]
    seen = np.ones(shape, bool)
    if mask is not None:
        seen &= np.asarray(mask)
    if is_causal:
        seen &= j <= i
    if local_window_size is not None:
        left, right = np.broadcast_to(local_window_size, (2,))
        seen &= (j >= i - left) & (j <= i + right)
    if query_seq_lengths is not None:
        seen &= i < np.asarray(query_seq_lengths)[:, None, None, None]
    if key_value_seq_lengths is not None:
        seen &= j < np.asarray(key_value_seq_lengths)[:, None, None, None]
    return seen


def definition(q, k, v, bias=None, mask=None, *, scale=None, xp=np, **hiding):
    """(out, lse) by the formula: float64, all scores at once."""
    group = q.shape[2] // k.shape[2]
    k, v = xp.repeat(k, group, axis=2), xp.repeat(v, group, axis=2)
    s = xp.einsum("btnh,bsnh->bnts", q, k) * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    if bias is not None:
        s = s + bias
    seen = visible(s.shape, mask, **hiding)
    some = seen.any(-1, keepdims=True)
    s = xp.where(seen, s, xp.where(some, -np.inf, 0.0))
    top = s.max(-1, keepdims=True)
    weights = xp.where(seen, xp.exp(s - top), 0.0)
    total = xp.where(some, weights.sum(-1, keepdims=True), 1.0)
    out = xp.einsum("bnts,bsnh->btnh", weights / total, v)
    lse = xp.where(some, top + xp.log(total), -np.inf)[..., 0]
    return out, xp.moveaxis(lse, 1, 2)


def lengths(*values):
    return np.array(values, np.int32)


rng = np.random.default_rng(7)
BIAS = rng.standard_normal((BATCH, HEADS, ROWS, KEYS)).astype(np.float32)
MASK = rng.random((BATCH, HEADS, ROWS, KEYS)) < 0.6
CASES = {
    "plain": {},
    "scale": {"scale": -0.3},
    "causal": {"is_causal": True},
    "window": {"local_window_size": 4},
    "window_pair": {"local_window_size": (0, 6)},
    "window_causal": {"local_window_size": (5, 2), "is_causal": True},
    "bias": {"bias": BIAS},
    "bias_rows": {"bias": BIAS[:1, :1, :, :1]},
    "bias_head": {"bias": BIAS[0, :, :1, :]},
    "mask": {"mask": MASK},
    "mask_keys": {"mask": MASK[:, :1, :1, :]},
    "bias_mask_causal": {"bias": BIAS[:1], "mask": MASK[:, :1], "is_causal": True},
    "key_lengths": {"key_value_seq_lengths": lengths(KEYS, 5, 0)},
    "query_lengths": {"query_seq_lengths": lengths(0, ROWS, 8)},
    "both_lengths": {"query_seq_lengths": lengths(9, 1, ROWS), "is_causal": True,
                     "key_value_seq_lengths": lengths(3, KEYS, 11)},
    "lengths_bias": {"query_seq_lengths": lengths(9, 0, ROWS), "bias": BIAS,
                     "key_value_seq_lengths": lengths(3, KEYS, 11)},
    "lengths_mask": {"query_seq_lengths": lengths(9, 0, ROWS), "mask": MASK[:1],
                     "local_window_size": (3, 3)},
}


def close(got, want, tolerance):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=0,
                               atol=tolerance * max(1.0, np.abs(want[finite]).max(initial=0)))


@pytest.mark.parametrize("case", CASES)
def test_forward_and_residual(case):
    q, k, v = arrays()
    out, lse = attention(q, k, v, return_residual=True, **CASES[case])
    want = definition(*(x.astype(np.float64) for x in (q, k, v)), **CASES[case])
    assert out.dtype == jnp.float32 and lse.dtype == jnp.float32
    close(out, want[0], 1e-6)
    close(lse, want[1], 1e-6)


def loss(function, weights, **keywords):
    def of(q, k, v, bias=None):
        out, lse = function(q, k, v, bias, **keywords)
        w_out, w_lse = weights
        return (out * w_out).sum() + jnp.where(jnp.isfinite(lse), lse * w_lse, 0).sum()
    return of


def gradients(function, inputs, weights, **keywords):
    argnums = tuple(range(len(inputs)))
    return jax.jit(jax.grad(loss(function, weights, **keywords), argnums))(*inputs)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    keywords = dict(CASES[case])
    inputs = arrays(1)
    if "bias" in keywords:
        inputs = (*inputs, keywords.pop("bias"))
    r = np.random.default_rng(3)
    shape = (BATCH, ROWS, HEADS, DIM)
    weights = (r.standard_normal(shape), r.standard_normal(shape[:3]))
    got = gradients(attention, inputs, tuple(w.astype(np.float32) for w in weights),
                    return_residual=True, **keywords)
    with jax.enable_x64(True):
        want = gradients(lambda *x, **kw: definition(*x, xp=jnp, **kw),
                         tuple(x.astype(np.float64) for x in inputs), weights, **keywords)
        want = [np.asarray(x) for x in want]
    assert len(got) == len(inputs)
    for g, w in zip(got, want, strict=True):
        close(g, w, 3e-6)


@pytest.mark.parametrize("case", ["scale", "window_pair", "window_causal", "bias_head",
                                  "bias_mask_causal", "both_lengths", "lengths_bias"])
def test_equals_jax(case):
    """Same keywords, same numbers, wherever JAX has no rows without a key."""
    q, k, v = arrays(2, keys=ROWS)
    keywords = dict(CASES[case])
    for name in ("bias", "mask"):
        if name in keywords and keywords[name].shape[-1] == KEYS:
            pad = [(0, 0)] * (keywords[name].ndim - 1) + [(0, ROWS - KEYS)]
            keywords[name] = np.pad(keywords[name], pad, constant_values=1)
    got, want = (jax.jit(functools.partial(f, return_residual=True, **keywords))(q, k, v)
                 for f in (attention, jax.nn.dot_product_attention))
    keywords.pop("bias", None)
    keywords.pop("scale", None)
    seen = visible((BATCH, HEADS, ROWS, ROWS), **keywords).any(-1).transpose(0, 2, 1)
    assert seen.any()
    close(np.asarray(got[0])[seen], np.asarray(want[0])[seen], 2e-6)
    close(np.asarray(got[1])[seen], np.asarray(want[1])[seen], 2e-6)


def test_signature_is_jax_s():
    ours = inspect.signature(attention).parameters
    theirs = inspect.signature(jax.nn.dot_product_attention).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] \
        == [(p.name, p.kind, p.default) for p in theirs.values()]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 1.6e-2)])
@pytest.mark.parametrize("bias_dtype", [None, "same", "float32"])
def test_half_precision(dtype, tolerance, bias_dtype):
    inputs = tuple(jnp.asarray(x, dtype) for x in arrays(4))
    if bias_dtype:
        inputs = (*inputs, jnp.asarray(BIAS, dtype if bias_dtype == "same" else bias_dtype))
    out, lse = attention(*inputs, is_causal=True, return_residual=True)
    assert out.dtype == dtype and lse.dtype == jnp.float32
    want = definition(*(np.asarray(x, np.float64) for x in inputs), is_causal=True)
    close(out, want[0], tolerance)
    close(lse, want[1], 1e-5)

    def f(*x):
        return (attention(*x, is_causal=True).astype(jnp.float32) ** 2).sum()

    gradient = jax.jit(jax.grad(f, tuple(range(len(inputs)))))
    got = gradient(*inputs)
    assert [g.dtype for g in got] == [x.dtype for x in inputs]
    wide = tuple(jnp.asarray(x, jnp.float32) for x in inputs)
    for g, w in zip(got, gradient(*wide), strict=True):
        close(g, w, 4 * tolerance)


def test_float64():
    with jax.enable_x64(True):
        q, k, v = (x.astype(np.float64) for x in arrays(5))
        for bias in (BIAS, BIAS.astype(np.float64)):
            got = attention(q, k, v, bias, return_residual=True)
            for g, w in zip(got, definition(q, k, v, bias.astype(np.float64)), strict=True):
                assert g.dtype == jnp.float64
                close(g, w, 1e-13)
        wide = BIAS.astype(np.float64)
        grad = jax.jit(jax.grad(lambda b: (attention(q, k, v, b) ** 2).sum()))(wide)
        want = jax.jit(jax.grad(lambda b: (definition(q, k, v, b, xp=jnp)[0] ** 2).sum()))(wide)
        close(grad, want, 1e-12)


def test_bias_of_another_dtype_is_taken_in_float32():
    q, k, v = arrays(5)
    bias = jnp.asarray(BIAS, jnp.bfloat16)
    got, gradient = jax.value_and_grad(lambda b: attention(q, k, v, b).sum())(bias)
    assert gradient.dtype == jnp.bfloat16
    assert got == attention(q, k, v, bias.astype(jnp.float32)).sum()


def test_without_batch():
    q, k, v = arrays(6)
    out, lse = attention(q[0], k[0], v[0], BIAS[0], MASK[0], return_residual=True)
    want = attention(q[:1], k[:1], v[:1], BIAS[:1], MASK[:1], return_residual=True)
    np.testing.assert_array_equal(out, want[0][0])
    np.testing.assert_array_equal(lse, want[1][0])


def test_head_dim_v_and_one_key_head():
    q, k, v = arrays(7, heads_kv=1)
    v = v[..., :5]
    close(attention(q, k, v), definition(*(x.astype(np.float64) for x in (q, k, v)))[0], 1e-6)
    assert jax.grad(lambda v: attention(q, k, v).sum())(v).shape == v.shape


# What vmap maps over, of (query, key, value, bias, mask, query lengths, key lengths).
AXES = {
    "all": (0, 0, 0, 0, 0, 0, 0),
    "query": (0, None, None, None, None, None, None),
    "key": (None, 0, 0, None, None, None, None),
    "value": (None, None, 0, None, None, None, None),
    "bias": (None, None, None, 0, None, None, None),
    "mask": (0, None, None, None, 0, None, None),
    "lengths": (None, None, None, None, None, 0, None),
    "key_lengths": (0, 0, None, None, None, None, 0),
    "second_axis": (1, 2, 0, None, None, None, None),
}


@pytest.mark.parametrize(("axes", "batch", "optional"), [
    ("all", 2, "none"), ("all", 1, "everything"), ("all", 2, "everything"), ("query", 1, "none"),
    ("query", 2, "bias"), ("query", 1, "lengths"), ("key", 1, "mask"), ("key", 2, "everything"),
    ("value", 1, "none"), ("value", 2, "lengths"), ("bias", 1, "bias"), ("bias", 2, "everything"),
    ("mask", 1, "mask"), ("mask", 2, "everything"), ("lengths", 2, "lengths"),
    ("key_lengths", 1, "lengths"), ("second_axis", 2, "bias")])
def test_vmap(axes, batch, optional):
    size, rows, keys = 3, 7, 6
    r = np.random.default_rng(8)
    shapes = [(batch, rows, 4, 8), (batch, keys, 2, 8), (batch, keys, 2, 8), (1, 4, rows, keys),
              (batch, 1, 1, keys), (batch,), (batch,)]
    inputs = []
    for shape, axis in zip(shapes, AXES[axes], strict=True):
        full = list(shape)
        if axis is not None:
            full.insert(axis, size)
        inputs.append(r.standard_normal(full).astype(np.float32))
    inputs[4] = inputs[4] < 0.5
    for index, most in ((5, rows), (6, keys)):
        inputs[index] = r.integers(2, most + 1, inputs[index].shape, dtype=np.int32)
    used = {"none": (), "bias": (3,), "mask": (4,), "lengths": (5, 6),
            "everything": (3, 4, 5, 6)}[optional]
    chosen = [x if i < 3 or i in used else None for i, x in enumerate(inputs)]
    in_axes = [a if x is not None else None for a, x in zip(AXES[axes], chosen, strict=True)]
    wanted = tuple(i for i in range(4) if chosen[i] is not None)

    def one(q, k, v, bias, mask, *used):
        out, lse = attention(q, k, v, bias, mask, query_seq_lengths=used[0],
                             key_value_seq_lengths=used[1], return_residual=True)
        return (out ** 2).sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum(), (out, lse)

    def pick(index):
        return [x if a is None else np.take(x, index, a)
                for x, a in zip(chosen, in_axes, strict=True)]

    differentiated = jax.value_and_grad(one, wanted, has_aux=True)
    got = jax.jit(jax.vmap(differentiated, in_axes))(*chosen)
    alone = jax.jit(differentiated)
    each = [alone(*pick(i)) for i in range(size)]
    want = jax.tree.map(lambda *x: np.stack(x), *each)
    jax.tree.map(lambda g, w: close(g, w, 2e-6), got, want)

    total = jax.grad(lambda *x: jax.vmap(lambda *y: one(*y)[0], in_axes)(*x).sum(), wanted)
    for g, single, index in zip(jax.jit(total)(*chosen), want[1], wanted, strict=True):
        axis = in_axes[index]
        close(g, single.sum(0) if axis is None else np.moveaxis(single, 0, axis), 4e-6)


def test_vmap_twice_inside_jit():
    q, k, v = arrays(9)
    many = [np.stack([x, 2 * x, x + 1, x])[:, None] * np.ones((1, 2, 1, 1, 1, 1), np.float32)
            for x in (q, k, v)]
    got = jax.jit(jax.vmap(jax.vmap(attention)))(*many)
    for a in range(4):
        for b in range(2):
            np.testing.assert_array_equal(got[a, b], attention(*(x[a, b] for x in many)))


def test_scan_checkpoint_and_jit_agree():
    q, k, v = arrays(10)

    def f(q):
        return (attention(q, k, v, is_causal=True) ** 2).sum()

    plain = jax.grad(f)(q)
    np.testing.assert_array_equal(plain, jax.jit(jax.grad(jax.checkpoint(f)))(q))
    stacked = jax.grad(lambda q: jax.lax.scan(lambda c, _: (c + f(q), None), 0.0, length=3)[0])(q)
    close(stacked, 3 * np.asarray(plain, np.float64), 1e-6)


def test_calls_from_many_threads():
    q, k, v = arrays(17, rows=130, keys=130)
    run = jax.jit(lambda q: attention(q, k, v, is_causal=True))
    inputs = [jnp.asarray(q * n) for n in range(1, 9)]
    want = [np.asarray(run(x)) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(run, inputs), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_jit_traces_once():
    traced = []

    @jax.jit
    def f(q, k, v):
        traced.append(1)
        return attention(q, k, v)

    q, k, v = arrays(11)
    for _ in range(3):
        f(q, k, v)
    assert len(traced) == 1


def calls_of(jaxpr, name):
    """Equations of the custom call `name`, wherever they stand in a jaxpr."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.params.get("target_name") == name:
            found.append(eqn)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += calls_of(inner, name)
    return found


@pytest.mark.parametrize(("argnums", "results"), [(0, 3), ((0, 1, 2), 3), (3, 4), ((0, 3), 4)])
def test_dbias_is_computed_only_where_wanted(argnums, results):
    gradient = jax.grad(lambda *x: attention(*x).sum(), argnums)
    jaxpr = jax.make_jaxpr(gradient)(*arrays(12), BIAS)
    (call,) = calls_of(jaxpr.jaxpr, "attentile_backward")
    assert len(call.outvars) == results


def test_rows_without_a_key():
    q, k, v = arrays(13)
    mask = np.ones((1, 1, ROWS, 1), bool)
    mask[..., 3, :] = False
    bias = np.zeros((1, 1, ROWS, KEYS), np.float32)
    bias[..., 5, :] = -np.inf

    def f(q, k, v):
        return attention(q, k, v, bias, mask, return_residual=True)

    out, lse = map(np.asarray, f(q, k, v))
    assert not out[:, [3, 5]].any() and np.isneginf(lse[:, [3, 5]]).all()
    dq, dk, dv = jax.grad(lambda *x: f(*x)[0].sum(), (0, 1, 2))(q, k, v)
    assert not np.asarray(dq)[:, [3, 5]].any()
    assert np.isfinite(dk).all() and np.isfinite(dv).all()


@pytest.mark.parametrize("hiding", [
    {"mask": np.arange(KEYS) < 9}, {"key_value_seq_lengths": lengths(9, 9, 9)},
    {"query_seq_lengths": lengths(ROWS, 2, 0), "key_value_seq_lengths": lengths(9, 9, 9)}])
def test_hidden_nan_has_no_effect(hiding):
    q, k, v = arrays(14)
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, 9:], bad_v[:, 9:] = np.nan, np.inf

    def run(k, v):
        out = jax.value_and_grad(lambda q, k, v: attention(q, k, v, **hiding).sum(), (0, 1, 2))
        return jax.tree.leaves(out(q, k, v))

    for clean, dirty in zip(run(k, v), run(bad_k, bad_v), strict=True):
        np.testing.assert_array_equal(clean, dirty)
        assert np.isfinite(dirty).all()


@pytest.mark.parametrize("empty", ["batch", "rows", "keys"])
def test_empty(empty):
    q, k, v = arrays(15, **{empty: 0})
    out, lse = attention(q, k, v, return_residual=True)
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    assert not np.asarray(out).any() and np.isneginf(np.asarray(lse)).all()
    got = jax.grad(lambda *a: attention(*a).sum(), (0, 1, 2))(q, k, v)
    for g, x in zip(got, (q, k, v), strict=True):
        assert g.shape == x.shape and not np.asarray(g).any()


Q, K, V = arrays(16)
REFUSED = {
    "implementation": ({"implementation": "cudnn"}, ValueError, "'cudnn', expected None"),
    "is_causal": ({"is_causal": 1}, TypeError, "is_causal: was 1"),
    "return_residual": ({"return_residual": "yes"}, TypeError, "return_residual: was 'yes'"),
    "query_rank": ({"query": Q[0, 0]}, ValueError, "query: was of shape"),
    "key_dtype": ({"key": K.astype(np.float16)}, TypeError, "key: was of dtype float16"),
    "query_dtype": ({"query": Q.astype(np.int32)}, TypeError, "query: was of dtype int32"),
    "float8": ({"query": jnp.asarray(Q, jnp.float8_e4m3fn)}, TypeError, "float8_e4m3fn, expected"),
    "key_batch": ({"key": K[:1]}, ValueError, "key: was of shape (1, "),
    "key_dim": ({"key": K[..., :3]}, ValueError, "key: was of shape"),
    "value_rows": ({"value": V[:, :4]}, ValueError, "value: was of shape"),
    "heads": ({"query": Q[:, :, :3]}, ValueError, "key: had 2 heads"),
    "bias_shape": ({"bias": BIAS[..., :3]}, ValueError, "bias: was of shape"),
    "bias_dtype": ({"bias": BIAS.astype(np.int32)}, TypeError, "bias: was of dtype int32"),
    "mask_dtype": ({"mask": BIAS}, TypeError, "mask: was of dtype float32, expected bool"),
    "mask_shape": ({"mask": MASK[:2]}, ValueError, "mask: was of shape"),
    "scale": ({"scale": "big"}, TypeError, "scale: was 'big'"),
    "scale_nan": ({"scale": math.nan}, ValueError, "scale: was nan"),
    "window": ({"local_window_size": -1}, ValueError, "local_window_size: was -1"),
    "lengths_dtype": ({"query_seq_lengths": np.zeros(BATCH, np.float32)}, TypeError,
                      "query_seq_lengths: was of dtype float32"),
    "lengths_shape": ({"key_value_seq_lengths": lengths(1, 2)}, ValueError,
                      "key_value_seq_lengths: was of shape (2,), expected (3,)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_traced(name):
    changed, error, sentence = REFUSED[name]
    arguments = {"query": Q, "key": K, "value": V, **changed}
    with pytest.raises(error) as caught:
        attention(**arguments)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("name", "values", "most"), [
    ("query_seq_lengths", (1, ROWS + 1, 0), ROWS), ("key_value_seq_lengths", (0, 1, -1), KEYS)])
@pytest.mark.parametrize("mask", [None, MASK])
def test_lengths_out_of_range_fail_when_run(name, values, most, mask):
    run = jax.jit(lambda n: attention(Q, K, V, mask=mask, **{name: n}))
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"{name}: entry . was .*0 to {most}"):
        run(lengths(*values)).block_until_ready()
    assert np.isfinite(run(lengths(1, 2, 3))).all()


def test_refused_transformations():
    with pytest.raises(TypeError, match="scale: was traced"):
        jax.jit(lambda s: attention(Q, K, V, scale=s))(0.5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: attention(q, K, V), (Q,), (Q,))
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda q: jax.grad(lambda q: attention(q, K, V).sum())(q).sum())(Q)


def test_a_build_without_handlers_says_what_to_do(monkeypatch):
    monkeypatch.delattr(_core, "jax_handlers")
    spec = importlib.util.spec_from_file_location("without_handlers", attentile_jax.__file__)
    with pytest.raises(ImportError, match="has no handlers for XLA.*pip install"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@settings(derandomize=True, deadline=None, max_examples=12)
@given(st.data())
def test_any_shape(data):
    group, heads_kv = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    rows, keys = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    q, k, v = arrays(data.draw(st.integers(0, 99)), rows=rows, keys=keys,
                     heads=heads_kv * group, heads_kv=heads_kv,
                     dim=data.draw(st.sampled_from((1, 7, 32))), batch=2)
    keywords = {"is_causal": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        keywords["local_window_size"] = (data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)))
    for name, most in (("query_seq_lengths", rows), ("key_value_seq_lengths", keys)):
        if data.draw(st.booleans()):
            keywords[name] = lengths(*(data.draw(st.integers(0, most)) for _ in range(2)))
    got = attention(q, k, v, return_residual=True, **keywords)
    want = definition(*(x.astype(np.float64) for x in (q, k, v)), **keywords)
    close(got[0], want[0], 2e-6)
    close(got[1], want[1], 2e-6)
