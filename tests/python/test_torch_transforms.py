# SPDX-License-Identifier: Apache-2.0
"""attentile.torch.attention under torch.func and vmap; derivatives that are not there raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from features import FEATURES, normal, tokens
from oracle import assert_close, same_bits

from attentile.torch import attention

Tensor = torch.Tensor
features = pytest.mark.parametrize("feature", FEATURES)


def test_forward_mode_raises() -> None:
    """A jvp must never be zero without a word."""
    q, k, v = (x.detach() for x in tokens())
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: attention(x, k, v), (q,), (q,))
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jacfwd(lambda x: attention(x, k, v).sum())(q)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        attention(q, torch.autograd.forward_ad.make_dual(k, k), v)


TWICE: dict[str, Any] = {
    "hessian": torch.func.hessian,
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "grad of grad": lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).sum()),
    "jvp of grad": lambda f: lambda x: torch.func.jvp(torch.func.grad(f), (x,), (x,)),
}


@pytest.mark.parametrize("twice", TWICE)
def test_second_derivatives_of_torch_func_raise(twice: str) -> None:
    """They are not computed, so they must not come out as zeros."""
    q, k, v = (x.detach() for x in tokens(batch=1, rows=2, keys=3))
    with pytest.raises((NotImplementedError, RuntimeError)):
        TWICE[twice](lambda x: attention(x, k, v).square().sum())(q)


@features
def test_func_grad(feature: str) -> None:
    """torch.func.grad gives the bits of autograd."""
    keywords = FEATURES[feature]
    given = tokens()

    def total(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, **keywords).square().sum()

    want = torch.autograd.grad(total(*given), given)
    got = torch.func.grad(total, (0, 1, 2))(*(x.detach() for x in given))
    for x, y in zip(got, want, strict=True):
        same_bits("gradient", x, y)


def test_func_vjp_and_jacrev() -> None:
    q, k, v = (x.detach() for x in tokens(batch=1, rows=2, keys=3))
    out, back = torch.func.vjp(lambda x: attention(x, k, v), q)
    want = back(torch.ones_like(out))[0]
    jacobian = torch.func.jacrev(lambda x: attention(x, k, v))(q)
    assert jacobian.shape == (*out.shape, *q.shape)
    assert_close("the jacobian's sum", jacobian.sum((0, 1, 2, 3)), want, 1e-12)


MAPPED = [name for name in FEATURES if name != "dropout" and name != "all"]


@pytest.mark.parametrize("feature", MAPPED)
def test_vmap(feature: str) -> None:
    """vmap is a loop: forward and per-example gradients."""
    keywords = FEATURES[feature]
    examples = [normal(3, *x.shape, seed=i) for i, x in enumerate(tokens())]

    def total(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, **keywords).square().sum()

    got = torch.vmap(lambda *x: attention(*x, **keywords))(*examples)
    want = torch.stack([attention(*(x[i] for x in examples), **keywords) for i in range(3)])
    assert_close("out", got, want, 1e-12)
    gradients = torch.vmap(torch.func.grad(total, (0, 1, 2)))(*examples)
    for i in range(3):
        each = torch.func.grad(total, (0, 1, 2))(*(x[i] for x in examples))
        for x, y in zip(gradients, each, strict=True):
            assert_close("gradient", x[i], y, 1e-12)


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 1, 2), (2, 0, None)])
def test_vmap_of_some_inputs(in_dims: tuple[int | None, ...]) -> None:
    given = [x.detach() for x in tokens()]
    mapped = [x if d is None else normal(3, *x.shape, seed=i).movedim(0, d)
              for i, (x, d) in enumerate(zip(given, in_dims, strict=True))]
    got = torch.vmap(lambda *x: attention(*x, causal=True), in_dims=in_dims)(*mapped)
    want = torch.stack([attention(*(x if d is None else x.select(d, i)
                                    for x, d in zip(mapped, in_dims, strict=True)), causal=True)
                        for i in range(3)])
    assert_close("out", got, want, 1e-12)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (4, 1, 6), (5, 6), (2, 1, 1, 6), (1, 1, 1, 1)])
@pytest.mark.parametrize("mapped", [True, False])
def test_vmap_and_bias_gradients(mapped: bool, shape: tuple[int, ...]) -> None:
    given = [normal(3, *x.shape, seed=i) for i, x in enumerate(tokens())]
    bias = normal(*((3,) if mapped else ()), *shape, seed=9)

    def total(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return attention(q, k, v, bias=b).square().sum()

    gradients = torch.vmap(torch.func.grad(total, (0, 3)),
                           in_dims=(0, 0, 0, 0 if mapped else None))(*given, bias)
    for i in range(3):
        each = torch.func.grad(total, (0, 3))(*(x[i] for x in given), bias[i] if mapped else bias)
        for x, y in zip(gradients, each, strict=True):
            assert_close("gradient", x[i], y, 1e-12)


def test_vmap_and_dropout() -> None:
    x = normal(1, 2, 40, 2, 8).expand(3, -1, -1, -1, -1)

    def call(q: Tensor) -> Tensor:
        return attention(q, q, q, dropout_p=0.5)

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(call)(x)
    same = torch.vmap(call, randomness="same")(x)
    different = torch.vmap(call, randomness="different")(x)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    assert not torch.equal(different[0], different[1])


def test_progress_and_keep_need_an_eager_call() -> None:
    given = [normal(3, *x.shape) for x in tokens()]
    with pytest.raises(ValueError, match="progress"):
        torch.vmap(lambda *x: attention(*x, progress=print))(*given)
    with pytest.raises(ValueError, match="return_keep"):
        torch.vmap(lambda *x: attention(*x, return_keep=True)[0])(*given)
