# SPDX-License-Identifier: Apache-2.0
"""attentile.onnx: the 93 node tests of onnx, generated cases, refusals."""

from __future__ import annotations

import itertools
import math
import re
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.backend.test import BackendTest  # noqa: E402

import attentile  # noqa: E402
import attentile.onnx as attentile_onnx  # noqa: E402
from attentile import _core  # noqa: E402
from attentile.onnx import Backend, attention  # noqa: E402


# --- the node tests of onnx -----------------------------------------------------------------------

class _Calls:
    """The library's forward, and what it wrote."""

    def __init__(self, monkeypatch):
        self.outs = []
        forward = _core.forward

        def counted(tensors, *rest):
            forward(tensors, *rest)
            self.outs.append(tensors[3].copy())

        monkeypatch.setattr(_core, "forward", counted)


@pytest.fixture
def calls(monkeypatch):
    return _Calls(monkeypatch)


class _Watched(Backend):
    """The backend; each Y is kept beside what the library wrote."""

    ys: list = []

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        rep = super().prepare(model, device, **kwargs)
        run = rep.run

        def watched(inputs, **words):
            outputs = run(inputs, **words)
            cls.ys.append(outputs[0])
            return outputs

        rep.run = watched
        return rep


def _node_tests():
    """The methods of onnx's own runner, by name."""
    runner = BackendTest(_Watched, __name__)
    runner.include(r"^test_attention_.*_cpu$")
    runner.exclude("_expanded")
    case = runner.test_cases["OnnxBackendNodeModelTest"]
    return {name: getattr(case(name), name) for name in sorted(dir(case))
            if re.match(r"test_attention_.*_cpu$", name) and "_expanded" not in name}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the data that onnx makes for other operators
    _NODE_TESTS = _node_tests()


def test_every_node_test_is_here():
    assert len(_NODE_TESTS) == 93


@pytest.mark.parametrize("name", _NODE_TESTS)
def test_node(name, calls):
    method = _NODE_TESTS[name]
    assert not getattr(method, "__unittest_skip__", False)
    _Watched.ys.clear()
    method()
    assert len(calls.outs) == len(_Watched.ys) >= 1
    for out, y in zip(calls.outs, _Watched.ys, strict=True):
        assert np.array_equal(out.astype(y.dtype).ravel(), y.ravel())


# --- a reference in float64, from the specification -----------------------------------------------

# signature of the operator: its inputs
def reference(q, k, v, mask=None, past_key=None, past_value=None, nonpad=None, *, is_causal=0,
              scale=None, softcap=0.0, left=-1, right=-1, mode=0):
    """(Y, qk) one query at a time; all inputs of rank 4."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        k = np.concatenate((past_key.astype(np.float64), k), 2)
        v = np.concatenate((past_value.astype(np.float64), v), 2)
    batch, heads, length, size = q.shape
    keys = k.shape[2]
    full = np.zeros((batch, heads, length, keys))
    if mask is not None:
        short = mask.shape[-1]
        additive = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask.astype(np.float64)
        full[..., short:] = -np.inf
        full[..., :short] += additive
    y = np.zeros((*q.shape[:3], v.shape[3]))
    qk = np.zeros((batch, heads, length, keys))
    for b, h, i in itertools.product(range(batch), range(heads), range(length)):
        g = h // (heads // k.shape[1])
        raw = k[b, g] @ q[b, h, i] * (1 / math.sqrt(size) if scale is None else scale)
        capped = softcap * np.tanh(raw / softcap) if softcap else raw
        used = keys if nonpad is None else int(nonpad[b])
        p = i + (past if nonpad is None else used - length)
        biased = capped + full[b, h, i]
        for j in range(keys):
            hidden = (j >= used or is_causal and j > p or left >= 0 and j < p - left
                      or right >= 0 and j > p + right)
            if hidden:
                biased[j] = -np.inf
        weights = np.zeros(keys)
        if keys and biased.max() > -np.inf:
            weights = np.exp(biased - biased.max())
            weights /= weights.sum()
        y[b, h, i] = np.where(weights[:, None] > 0, v[b, g] * weights[:, None], 0).sum(0)
        qk[b, h, i] = (raw, capped, biased, weights)[mode]
    return y, qk


TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}


def close(actual, wanted, scale=1.0):
    bound = TOLERANCES[actual.dtype.name] * scale
    np.testing.assert_allclose(actual.astype(np.float64), wanted, rtol=bound, atol=bound)


def make(rng, shape, dtype="float32"):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return rng.standard_normal(shape).astype(kind)


def problem(seed=0, batch=2, heads=(4, 2), length=5, keys=7, sizes=(8, 6), *,
            dtype="float32"):
    rng = np.random.default_rng(seed)
    return (make(rng, (batch, heads[0], length, sizes[0]), dtype),
            make(rng, (batch, heads[1], keys, sizes[0]), dtype),
            make(rng, (batch, heads[1], keys, sizes[1]), dtype))


def flat(x):
    """(batch, heads, seqlen, size) as (batch, seqlen, heads * size)."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_modes_and_types(mode, dtype, calls):
    q, k, v = problem(1, dtype=dtype)
    mask = make(np.random.default_rng(2), (2, 1, 5, 7), dtype)
    mask[1, 0, 3] = -np.inf
    got = attention(q, k, v, mask, is_causal=1, softcap=1.5, qk_matmul_output_mode=mode,
                    want_qk_matmul_output=True)
    y, qk = reference(q, k, v, mask, is_causal=1, softcap=1.5, mode=mode)
    assert got.Y.dtype == got.qk_matmul_output.dtype == q.dtype and len(calls.outs) == 1
    close(got.Y, y)
    close(got.qk_matmul_output, qk, 2)
    assert not got.Y[1, :, 3].any()
    assert got.present_key is k and got.present_value is v


def test_three_dimensions_with_past():
    q, k, v = problem(3)
    rng = np.random.default_rng(4)
    past = make(rng, (2, 2, 3, 8)), make(rng, (2, 2, 3, 6))
    got = attention(flat(q), flat(k), flat(v), None, *past, is_causal=1, q_num_heads=4,
                    kv_num_heads=2)
    close(got.Y, flat(reference(q, k, v, None, *past, is_causal=1)[0]))
    assert np.array_equal(got.present_key, np.concatenate((past[0], k), 2))
    assert np.array_equal(got.present_value, np.concatenate((past[1], v), 2))


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("window", [(-1, -1), (2, 0), (0, 1), (-1, 1), (3, -1)])
def test_nonpad_with_windows(causal, window):
    """Offsets differ by entry; two of them are negative, one entry is empty."""
    q, k, v = problem(5, batch=5)
    nonpad = np.array([7, 5, 3, 0, 1], np.int64)
    words = {"is_causal": causal}
    for mode in (2, 3):
        got = attention(q, k, v, None, None, None, nonpad, left_window_size=window[0],
                        right_window_size=window[1], qk_matmul_output_mode=mode,
                        want_qk_matmul_output=True, **words)
        y, qk = reference(q, k, v, nonpad=nonpad, left=window[0], right=window[1], mode=mode,
                          **words)
        close(got.Y, y)
        close(got.qk_matmul_output, qk)
    assert got.present_key is None and got.present_value is None


def test_padding_is_never_read():
    q, k, v = problem(6)
    nonpad = np.array([4, 6], np.int64)
    wanted = attention(q, k, v, None, None, None, nonpad, is_causal=1).Y
    for b, used in enumerate(nonpad):
        k[b, :, used:], v[b, :, used:] = np.nan, np.inf
    got = attention(q, k, v, None, None, None, nonpad, is_causal=1, qk_matmul_output_mode=3,
                    want_qk_matmul_output=True)
    assert np.array_equal(got.Y, wanted)
    assert np.isfinite(got.qk_matmul_output).all()


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_short_masks_hide_the_rest(kind, length):
    """A last dimension of 1 is short too: keys from 1 on are hidden."""
    q, k, v = problem(7)
    rng = np.random.default_rng(8)
    mask = rng.random((4, 5, length)) > 0.3 if kind == "bool" else make(rng, (4, 5, length))
    for mode in (2, 3):
        got = attention(q, k, v, mask, is_causal=1, left_window_size=2,
                        qk_matmul_output_mode=mode, want_qk_matmul_output=True)
        y, qk = reference(q, k, v, mask, is_causal=1, left=2, mode=mode)
        close(got.Y, y)
        close(got.qk_matmul_output, qk)


def test_precision_of_the_softmax(calls):
    q, k, v = problem(9)
    mask = make(np.random.default_rng(1), (5, 7))
    y, _ = reference(q, k, v, mask)
    got = attention(q, k, v, mask, softmax_precision=11).Y
    assert calls.outs[-1].dtype == np.float64 and got.dtype == np.float32
    np.testing.assert_allclose(got, y, rtol=1.2e-7, atol=1e-9)
    for precision in (1, 10, 16):
        close(attention(q, k, v, mask, softmax_precision=precision).Y, y)
        assert calls.outs[-1].dtype == np.float32


def test_v_of_another_type(calls):
    q, k, v = problem(10, dtype="float16")
    wide = v.astype(np.float32) / 3
    got = attention(q, k, wide).Y
    assert got.dtype == np.float16 and calls.outs[-1].dtype == np.float32
    close(got, reference(q, k, wide)[0])


def test_memory_stays_below_queries_by_keys():
    """Causal, windows and padding of 20,000 tokens: an array of them all would take 400 MB."""
    rng = np.random.default_rng(0)
    q, k, v = (make(rng, (1, 1, 20000, 8)) for _ in range(3))
    tracemalloc.start()
    try:
        attention(q, k, v, None, None, None, np.array([19000], np.int64), is_causal=1,
                  left_window_size=64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_generated(data):
    draw = data.draw
    groups, heads_kv = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    batch, length, keys = (draw(st.integers(1, n)) for n in (3, 6, 9))
    sizes = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    q, k, v = problem(seed, batch, (groups * heads_kv, heads_kv), length, keys, sizes,
                      dtype="float64")
    cache = draw(st.sampled_from(["none", "past", "nonpad"]))
    words = {"is_causal": draw(st.integers(0, 1)), "softcap": draw(st.sampled_from([0.0, 0.7])),
             "scale": draw(st.sampled_from([None, 0.3, -0.2, 0.0])),
             "left_window_size": draw(st.integers(-1, 3)),
             "right_window_size": draw(st.integers(-1, 3))}
    past, nonpad = (None, None), None
    if cache == "past":
        p = draw(st.integers(0, 4))
        past = (make(rng, (batch, heads_kv, p, sizes[0]), "float64"),
                make(rng, (batch, heads_kv, p, sizes[1]), "float64"))
    elif cache == "nonpad":
        nonpad = rng.integers(0, keys + 1, batch)
    total = keys + (past[0].shape[2] if past[0] is not None else 0)
    mask = None
    if draw(st.booleans()):
        least = 1 if nonpad is None else max(1, int(nonpad.max()))
        full = (batch, groups * heads_kv, length, draw(st.integers(least, total)))
        shape = tuple(n if draw(st.booleans()) else 1 for n in full[:3]) + full[3:]
        shape = shape[draw(st.integers(0, 3)):]
        mask = rng.random(shape) > 0.3 if draw(st.booleans()) else make(rng, shape, "float64")
    mode = draw(st.integers(0, 3))
    given_rank3 = draw(st.booleans())
    tensors, shaped = (q, k, v), {}
    if given_rank3:
        tensors = flat(q), flat(k), flat(v)
        shaped = {"q_num_heads": groups * heads_kv, "kv_num_heads": heads_kv}
    got = attention(*tensors, mask, *past, nonpad, qk_matmul_output_mode=mode,
                    want_qk_matmul_output=True, **words, **shaped)
    y, qk = reference(q, k, v, mask, *past, nonpad, is_causal=words["is_causal"],
                      scale=words["scale"], softcap=words["softcap"],
                      left=words["left_window_size"], right=words["right_window_size"], mode=mode)
    close(got.Y, flat(y) if given_rank3 else y, 10)
    close(got.qk_matmul_output, qk, 10)


# --- models ---------------------------------------------------------------------------------------

_TYPE = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def model_of(nodes, inputs, outputs, opset=24, initializers=()):
    """A model; inputs: name -> array or shape (float32)."""
    def info(name, x):
        kind, shape = (_TYPE[x.dtype.name], x.shape) if hasattr(x, "dtype") else (1, x)
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes, "g", [info(n, x) for n, x in inputs.items()],
        [helper.make_tensor_value_info(n, 1, list("abcd")) for n in outputs], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def node_of(inputs, outputs=("Y",), **attributes):
    return helper.make_node("Attention", list(inputs), list(outputs), **attributes)


def test_a_graph_of_two_nodes_with_an_initializer(calls):
    q, k, v = problem(20, heads=(2, 2), sizes=(6, 6))
    mask = np.arange(7) < 5
    nodes = [node_of(["Q", "K", "V", "mask"], ["A"]), node_of(["A", "K", "V"], ["B"], is_causal=1)]
    model = model_of(nodes, {"Q": q, "K": k, "V": ["n", 2, "s", 6]}, ["B", "A"],
                     initializers=[numpy_helper.from_array(mask, "mask")])
    assert Backend.is_compatible(model)
    rep = Backend.prepare(model)
    b, a = rep.run([q, k, v])
    first = reference(q, k, v, mask)[0]
    close(a, first)
    close(b, reference(first, k, v, is_causal=1)[0])
    assert len(calls.outs) == 2
    assert np.array_equal(rep.run({"Q": q, "V": v, "K": k})[0], b)
    assert np.array_equal(attentile_onnx.run_model(model, [q, k, v])[0], b)


@pytest.mark.parametrize("opset", [23, 24, 25, 26])
def test_opsets(opset):
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip("this onnx does not know the opset")
    q, k, v = problem(21)
    model = model_of([node_of("QKV", is_causal=1)], {"Q": q, "K": k, "V": v}, ["Y"], opset)
    close(attentile_onnx.prepare(model).run([q, k, v])[0], reference(q, k, v, is_causal=1)[0])


def test_run_node_with_left_out_inputs():
    q, k, v = problem(22)
    nonpad = np.array([3, 6], np.int64)
    node = node_of(["Q", "K", "V", "", "", "", "N"], ["Y", "", "", "QK"], qk_matmul_output_mode=3)
    y, qk = reference(q, k, v, nonpad=nonpad, mode=3)
    for inputs in ([q, k, v, nonpad], [q, k, v, None, None, None, nonpad]):
        got = Backend.run_node(node, inputs, opset_version=24)
        close(got.Y, y)
        close(got.QK, qk)
    assert Backend.supports_device("CPU") and Backend.supports_device("CPU:0")
    assert not Backend.supports_device("CUDA")


def refused(model, match, error=attentile.UnsupportedError):
    with pytest.raises(error, match=match):
        Backend.prepare(model)
    assert not Backend.is_compatible(model)


def test_refused_models():
    shapes = {"Q": (1, 2, 3, 4), "K": (1, 2, 3, 4), "V": (1, 2, 3, 4)}
    node = node_of("QKV")
    refused(model_of([node, helper.make_node("Relu", ["Y"], ["Z"])], shapes, ["Z"]), "Relu")
    refused(model_of([helper.make_node("MatMul", ["Q", "K"], ["Y"])], shapes, ["Y"], 22), "opset")
    refused(model_of([helper.make_node("Relu", ["Q"], ["Y"])], shapes, ["Y"], 24), "Relu")
    refused(model_of([], shapes, ["Q"]), "no node")
    refused(model_of([node_of("QKV", left_window_size=1)], shapes, ["Y"], 24), "left_window_size",
            onnx.checker.ValidationError)
    both = node_of(["Q", "K", "V", "", "", "", "N"], ["Y", "PK", "PV"])
    refused(model_of([both], {**shapes, "N": np.zeros(1, np.int64)}, ["Y"]), "present_key",
            ValueError)
    model = model_of([node], shapes, ["Y"])
    with pytest.raises(attentile.UnsupportedError, match="device: was 'CUDA'"):
        Backend.prepare(model, "CUDA")
    with pytest.raises(TypeError, match="model: was a str"):
        Backend.prepare("model.onnx")


def test_refused_inputs_of_a_model():
    q, k, v = problem(23, batch=1)
    rep = Backend.prepare(model_of([node_of("QKV")], {"Q": q, "K": k, "V": v}, ["Y"]))
    for inputs, match in [([q, k], "inputs: was 2 arrays, expected 3"),
                          ({"Q": q, "K": k}, r"missing \['V'\]"),
                          ({"Q": q, "K": k, "V": v, "W": v}, r"unknown \['W'\]"),
                          ([q, k, v[..., :3]], r"V: was of shape .* expected \(1, 2, 7, 6\)")]:
        with pytest.raises(ValueError, match=match):
            rep.run(inputs)
    for inputs, match in [([q, k, v.astype(np.float64)], "V: was of float64, expected float32"),
                          ([q, k, v.tolist()], "V: was a list"), (7, "inputs: was a int")]:
        with pytest.raises(TypeError, match=match):
            rep.run(inputs)
    with pytest.raises(ValueError, match="inputs: was 2 arrays"):
        Backend.run_node(node_of("QKV"), [q, k])


# --- refused calls --------------------------------------------------------------------------------

_Q, _K, _V = problem(30)
_NONPAD = np.array([3, 6], np.int64)
_PAST = (np.zeros((2, 2, 3, 8), np.float32), np.zeros((2, 2, 3, 6), np.float32))
BAD_VALUES = [
    ((_Q[0, 0], _K, _V), {}, "Q: was of shape"),
    ((_Q, flat(_K), _V), {}, "K: was of shape .* expected 4 dimensions"),
    ((_Q, _K[:1], _V), {}, "K: was of batch 1"),
    ((_Q, _K[..., :5], _V), {}, "head size 5"),
    ((_Q, _K, _V[:, :, :4]), {}, "V: was of"),
    ((_Q[:, :3], _K, _V), {}, "K: was of 2 heads, expected a divisor of Q's 3"),
    ((_Q, _K[:, :0], _V[:, :0]), {}, "K: was of 0 heads"),
    ((_Q, _K, _V, np.zeros((5, 8), np.float32)), {}, r"attn_mask: was of shape \(5, 8\)"),
    ((_Q, _K, _V, np.zeros((3, 7), np.float32)), {}, r"attn_mask: was of shape \(3, 7\)"),
    ((_Q, _K, _V, np.zeros((1, 2, 4, 5, 7), np.float32)), {}, "attn_mask"),
    ((_Q, _K, _V, np.zeros((), bool)), {}, "attn_mask"),
    ((_Q, _K, _V, np.ones((5, 4), bool), None, None, _NONPAD), {}, "attn_mask: was 4 long"),
    ((_Q, _K, _V, None, _PAST[0]), {}, "past_key, past_value"),
    ((_Q, _K, _V, None, *_PAST, _NONPAD), {}, "nonpad_kv_seqlen: was given together"),
    ((_Q, _K, _V, None, _PAST[0][:, :1], _PAST[1]), {}, "past_key: was of shape"),
    ((_Q, _K, _V, None, _PAST[0], _PAST[1][:, :, :2]), {}, "past_value: was 2 long"),
    ((_Q, _K, _V, None, None, None, np.array([3, 8])), {}, "nonpad_kv_seqlen: was .* to 7"),
    ((_Q, _K, _V, None, None, None, np.array([-1, 2])), {}, "nonpad_kv_seqlen"),
    ((_Q, _K, _V, None, None, None, np.array([1])), {}, r"nonpad_kv_seqlen: was of shape \(1,\)"),
    ((_Q, _K, _V), {"q_num_heads": 3}, "q_num_heads: was 3, expected 4"),
    ((flat(_Q), flat(_K), flat(_V)), {}, "q_num_heads: was not given"),
    ((flat(_Q), flat(_K), flat(_V)), {"q_num_heads": 4}, "kv_num_heads: was not given"),
    ((flat(_Q), flat(_K), flat(_V)), {"q_num_heads": 5, "kv_num_heads": 2}, "a divisor of"),
    ((flat(_Q), flat(_K), flat(_V)), {"q_num_heads": 0, "kv_num_heads": 2}, "q_num_heads: was 0"),
    ((_Q, _K, _V), {"is_causal": 2}, "is_causal: was 2"),
    ((_Q, _K, _V), {"scale": math.nan}, "scale: was nan"),
    ((_Q, _K, _V), {"softcap": -1.0}, "softcap: was -1.0"),
    ((_Q, _K, _V), {"softcap": math.inf}, "softcap: was inf"),
    ((_Q, _K, _V), {"qk_matmul_output_mode": 4}, "qk_matmul_output_mode: was 4"),
    ((_Q, _K, _V), {"softmax_precision": 7}, "softmax_precision: was 7"),
    ((_Q, _K, _V), {"left_window_size": -2}, "left_window_size: was -2"),
    ((_Q, _K, _V), {"right_window_size": 1 << 63}, "right_window_size"),
]
BAD_TYPES = [
    ((_Q.tolist(), _K, _V), {}, "Q: was a list"),
    ((_Q.astype(np.int32), _K, _V), {}, "Q: was of int32"),
    ((_Q, _K.astype(np.float16), _V), {}, "K: was of float16, expected float32"),
    ((_Q, _K, None), {}, "V: was a NoneType"),
    ((_Q, _K, _V, np.zeros((5, 7), np.uint8)), {}, "attn_mask: was of uint8"),
    ((_Q, _K, _V, np.zeros((5, 7), np.float64)), {}, "attn_mask: was of float64"),
    ((_Q, _K, _V, None, _PAST[0].astype(np.float16), _PAST[1]), {}, "past_key: was of float16"),
    ((_Q, _K, _V, None, None, None, _NONPAD.astype(float)), {}, "nonpad_kv_seqlen: was of float64"),
    ((_Q, _K, _V), {"left_window_size": 1.5}, "left_window_size: was 1.5"),
    ((_Q, _K, _V), {"scale": "half"}, "scale: was 'half'"),
    ((_Q, _K, _V), {"windows": 3}, "windows"),
]


@pytest.mark.parametrize("arrays, words, match", BAD_VALUES)
def test_bad_values(arrays, words, match):
    with pytest.raises(ValueError, match=match):
        attention(*arrays, **words)


@pytest.mark.parametrize("arrays, words, match", BAD_TYPES)
def test_bad_types(arrays, words, match):
    with pytest.raises(TypeError, match=match):
        attention(*arrays, **words)


def test_empty():
    q, k, v = problem(31)
    assert not attention(q, k[:, :, :0], v[:, :, :0]).Y.any()
    assert attention(q[:0], k[:0], v[:0]).Y.shape == (0, 4, 5, 6)
    assert attention(q[:, :, :0], k, v).Y.shape == (2, 4, 0, 6)
