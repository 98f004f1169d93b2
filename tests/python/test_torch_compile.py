# SPDX-License-Identifier: Apache-2.0
"""torch.compile(fullgraph=True), torch.export, fake tensors and opcheck; compiled equals eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from features import FEATURES, normal, tokens, with_leaves
from oracle import same_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import attentile
from attentile.nn import FlashAttention
from attentile.torch import attention

Tensor = torch.Tensor
OPERATOR = torch.ops.attentile.forward.default


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both(feature: str, backend: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Results and gradients, eager and compiled."""
    def run(call: Callable[..., Any]) -> list[Tensor]:
        keywords, leaves = with_leaves(feature, dtype)
        given = tokens(dtype=dtype)
        out, lse = call(*given, return_lse=True, **keywords)
        dlse = torch.ones_like(lse).masked_fill(torch.isinf(lse.detach()), 0)
        gradients = torch.autograd.grad((out, lse), [*given, *leaves], (normal(*out.shape).to(
            out.dtype), dlse))
        return [out, lse, *gradients]

    return run(attention), run(torch.compile(attention, fullgraph=True, backend=backend))


@pytest.mark.parametrize("feature", FEATURES)
def test_compiled_equals_eager(feature: str) -> None:
    """Bit for bit, forward and backward, through AOTAutograd."""
    for x, y in zip(*both(feature, "aot_eager", torch.float32), strict=True):
        same_bits(feature, x, y)


@pytest.mark.parametrize("feature", ["plain", "all"])
def test_inductor_equals_eager(feature: str) -> None:
    for x, y in zip(*both(feature, "inductor", torch.bfloat16), strict=True):
        same_bits(feature, x, y)


def test_one_graph_for_all_lengths() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    call = torch.compile(lambda q, k, v: attention(q, k, v, causal=True), fullgraph=True,
                         dynamic=True, backend=backend)
    for rows in (3, 7, 12):
        given = tokens(rows=rows, keys=rows + 2, grad=False)
        same_bits("out", call(*given), attention(*given, causal=True))
    assert len(graphs) == 1


def test_dynamic_shapes_with_gradients() -> None:
    call = torch.compile(lambda q, k, v: attention(q, k, v, window_left=2).square().sum(),
                         fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        given = tokens(rows=rows)
        want = torch.autograd.grad(attention(*given, window_left=2).square().sum(), given)
        for x, y in zip(torch.autograd.grad(call(*given), given), want, strict=True):
            same_bits("gradient", x, y)


def test_packed() -> None:
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    q, k, v = (normal(5, 4, 8, seed=i).requires_grad_() for i in range(3))

    def call(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
        return attention(q, k, v, cu_seqlens_q=ends, cu_seqlens_k=ends, causal=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    out, want = compiled(q, k, v, ends), call(q, k, v, ends)
    same_bits("out", out, want)
    for x, y in zip(torch.autograd.grad(out.sum(), (q, k, v)),
                    torch.autograd.grad(want.sum(), (q, k, v)), strict=True):
        same_bits("gradient", x, y)


def test_pages() -> None:
    table = torch.tensor([[1, 3], [0, 2]], dtype=torch.int32)
    used = torch.tensor([5, 8], dtype=torch.int32)
    pages, q = normal(4, 4, 2, 8), normal(2, 3, 4, 8)

    def call(q: Tensor, pages: Tensor) -> Tensor:
        return attention(q, pages, pages, block_table=table, seqused_k=used, causal=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    same_bits("out", compiled(q, pages), call(q, pages))


def test_dropout_of_a_compiled_call() -> None:
    """Seeds are drawn at run time: manual_seed repeats them, calls differ, gradients agree."""
    n = 48
    eye = torch.eye(n)[None, :, None].expand(1, n, 4, n).contiguous().requires_grad_()
    q, k, _ = tokens(rows=n, keys=n, heads_kv=4, batch=1, dtype=torch.float32)
    call = torch.compile(lambda q, k, v: attention(q, k, v, dropout_p=0.4), fullgraph=True,
                         backend="aot_eager")
    torch.manual_seed(3)
    first, second = call(q, k, eye), call(q, k, eye)
    torch.manual_seed(3)
    again = call(q, k, eye)
    assert torch.equal(first, again) and not torch.equal(first, second)
    torch.manual_seed(3)
    same_bits("eager of the same seed", attention(q, k, eye, dropout_p=0.4), first)
    dv = torch.autograd.grad(first, eye, eye.detach())[0]
    assert torch.equal(dv[0].permute(1, 2, 0) != 0, first[0].transpose(0, 1) != 0)


def test_autocast_in_a_compiled_call() -> None:
    given = tokens(dtype=torch.float32)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attention(q, k, v, causal=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    out, want = compiled(*given), call(*given)
    assert out.dtype == torch.bfloat16
    same_bits("out", out, want)
    for x, y in zip(torch.autograd.grad(out.float().sum(), given),
                    torch.autograd.grad(want.float().sum(), given), strict=True):
        same_bits("gradient", x, y)


def test_bad_calls_of_a_compiled_function() -> None:
    q, k, v = tokens(grad=False)
    call = torch.compile(lambda *x: attention(*x), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="num_heads_q is 4, but it must be a multiple"):
        call(q, torch.cat([k, k[:, :, :1]], 2), torch.cat([v, v[:, :, :1]], 2))
    same_bits("out", call(q, k, v), attention(q, k, v))


class Module(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attention(q, k, v, causal=True, softmax_scale=0.3)
        return out


def test_export(tmp_path: Any) -> None:
    given = tuple(tokens(grad=False))
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(Module(), given, dynamic_shapes=({1: rows}, None, None))
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert OPERATOR in targets
    torch.export.save(program, str(tmp_path / "module.pt2"))
    loaded = torch.export.load(str(tmp_path / "module.pt2")).module()
    for count in (5, 11):
        longer = (normal(2, count, 4, 8), *given[1:])
        same_bits("out", loaded(*longer), Module()(*longer))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_records_the_operator() -> None:
    """A call below the dispatcher would leave the tracer with an empty tensor."""
    given = tokens(grad=False)
    traced = torch.jit.trace(lambda *x: attention(*x, causal=True), tuple(given))
    other = [2 * x for x in given]
    same_bits("out", traced(*other), attention(*other, causal=True))
    layer = FlashAttention().eval()
    qkv = normal(2, 5, 3, 4, 8)
    same_bits("layer", torch.jit.trace(lambda x: layer(x)[0], qkv)(2 * qkv), layer(2 * qkv)[0])


def test_make_fx_holds_one_operator() -> None:
    given = tokens(grad=False)
    graph = make_fx(lambda *x: attention(*x, causal=True), tracing_mode="symbolic")(*given)
    assert sum(n.target is OPERATOR for n in graph.graph.nodes) == 1
    same_bits("out", graph(*given), attention(*given, causal=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_fake_tensors_promise_what_comes(layout: Any, dtype: torch.dtype) -> None:
    """Shapes, dtypes and strides of fake results are those of real ones."""
    cases = {"dense": tokens(dtype=dtype, dim_v=12), "same": tokens(dtype=dtype)}
    cases["transposed"] = [x.detach().transpose(1, 2).contiguous().transpose(1, 2)
                           for x in cases["same"]]
    for name, given in cases.items():
        given = [x.transpose(1, 2) for x in given] if layout == "bhsd" else given
        real = OPERATOR(*given, layout=layout)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = OPERATOR(*(mode.from_tensor(x) for x in given), layout=layout)
        for f, r in zip(fake, real, strict=True):
            assert (f.shape, f.dtype, f.stride()) == (r.shape, r.dtype, r.stride()), name


@pytest.mark.parametrize("feature", ["plain", "all", "mask with dead rows", "alibi of batch"])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool, feature: str) -> None:
    keywords = dict(FEATURES[feature])
    given = tokens(dtype=torch.float32, grad=grad)
    if "bias" in keywords:
        keywords["bias"] = keywords["bias"].detach().float().requires_grad_(grad)
    results = opcheck(OPERATOR, tuple(given), keywords)
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_of_other_forms() -> None:
    q, k, v = tokens(dtype=torch.float32)
    swapped = tuple(x.detach().transpose(1, 2).requires_grad_() for x in (q, k, v))
    assert set(opcheck(OPERATOR, swapped, {"layout": "bhsd"}).values()) == {"SUCCESS"}
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    packed = tuple(normal(5, 4, 8, dtype=torch.float32).requires_grad_() for _ in range(3))
    keywords = {"cu_seqlens_q": ends, "cu_seqlens_k": ends}
    assert set(opcheck(OPERATOR, packed, keywords).values()) == {"SUCCESS"}


def test_opcheck_of_backward() -> None:
    given = tokens(dtype=torch.float32, grad=False)
    out, lse = OPERATOR(*given, causal=True)
    arguments = (torch.ones_like(out), None, *given, out, lse)
    results = opcheck(torch.ops.attentile.backward.default, arguments,
                      {"causal": True, "needs_dbias": False})
    assert set(results.values()) == {"SUCCESS"}


def test_sdpa_keeps_the_choice_of_its_trace() -> None:
    """Compiled inside the scope, attentile's operator is in the graph, outside as well."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def inner(traced: Any, _: Any) -> Any:
            graphs.append([str(n.target) for n in traced.graph.nodes])
            return traced.forward

        return torch._dynamo.backends.common.aot_autograd(fw_compiler=inner)(graph, inputs)

    given = [x.transpose(1, 2) for x in tokens(grad=False, heads_kv=4)]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)

    inside = torch.compile(call, fullgraph=True, backend=backend)
    with attentile.torch.sdpa():
        eager = call(*given)
        first = inside(*given)
    assert any("attentile" in target for target in graphs[0])
    same_bits("compiled inside", first, eager)
    same_bits("and called outside", inside(*given), eager)
    assert len(graphs) == 1, "it was traced again"

    torch._dynamo.reset()
    outside = torch.compile(call, fullgraph=True, backend=backend)
    plain = outside(*given)
    with attentile.torch.sdpa():
        same_bits("compiled outside", outside(*given), plain)
    assert not any("attentile" in target for targets in graphs[1:] for target in targets)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_sdpa_compiled_with_gradients(backend: str) -> None:
    q, k, v = (x.transpose(1, 2) for x in tokens(dtype=torch.float32, heads_kv=4))
    mask = normal(5, 6, dtype=torch.float32).requires_grad_()

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with attentile.torch.sdpa():
        want = call(q, k, v, mask)
        got = torch.compile(call, fullgraph=True, backend=backend)(q, k, v, mask)
    same_bits("out", got, want)
    for x, y in zip(torch.autograd.grad(got.sum(), (q, k, v, mask)),
                    torch.autograd.grad(want.sum(), (q, k, v, mask)), strict=True):
        same_bits("gradient", x, y)
