# SPDX-License-Identifier: Apache-2.0
"""Gradients of gradients raise and are never zero without a word; many gradients at once work; what
a backward call needs of the forward call is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attentile
import attentile.torch
from attentile.torch import attention

Tensor = torch.Tensor


def tokens(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, rows, 2, 8, dtype=torch.float64) for _ in range(3))


def by_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)


def by_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with attentile.torch.sdpa():
        return F.scaled_dot_product_attention(q, k, v)


def penalty_by_grad(f: Callable[[Tensor], Tensor], q: Tensor) -> Any:
    q = q.requires_grad_()
    (g,) = torch.autograd.grad(f(q).sum(), q, create_graph=True)
    return torch.autograd.grad(q.sum() + g.square().sum(), q)


def penalty_by_backward(f: Callable[[Tensor], Tensor], q: Tensor) -> Any:
    q = q.requires_grad_()
    (g,) = torch.autograd.grad(f(q).sum(), q, create_graph=True)
    (q.sum() + g.square().sum()).backward(inputs=[q])


TWICE: dict[str, Callable[..., Any]] = {
    "hessian": lambda f, q: torch.autograd.functional.hessian(lambda x: f(x).square().sum(), q),
    "vhp": lambda f, q: torch.autograd.functional.vhp(lambda x: f(x).square().sum(), q, q),
    "penalty by grad": penalty_by_grad,
    "penalty by backward": penalty_by_backward}


@pytest.mark.parametrize("call", [by_attention, by_sdpa])
@pytest.mark.parametrize("twice", TWICE)
def test_a_second_derivative_raises(twice: str, call: Callable[..., Tensor]) -> None:
    q, k, v = tokens()
    with pytest.raises(NotImplementedError, match="second derivative"):
        TWICE[twice](lambda x: call(x, k, v), q)


@pytest.mark.parametrize("call", [by_attention, by_sdpa])
def test_a_graph_that_is_not_used_costs_nothing(call: Callable[..., Tensor]) -> None:
    q, k, v = (x.requires_grad_() for x in tokens())
    plain = torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v))
    graph = torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v), create_graph=True)
    assert all(torch.equal(a, b.detach()) for a, b in zip(plain, graph, strict=True))


@pytest.mark.parametrize("call", [by_attention, by_sdpa])
def test_many_gradients_at_once(call: Callable[..., Tensor]) -> None:
    q, k, v = tokens(3)
    jacobian = torch.autograd.functional.jacobian
    one_by_one = jacobian(lambda x: call(x, k, v), q)
    assert torch.equal(jacobian(lambda x: call(x, k, v), q, vectorize=True), one_by_one)
    q = q.requires_grad_()
    out = call(q, k, v)
    many = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
    (batched,) = torch.autograd.grad(out, q, many, is_grads_batched=True)
    assert torch.equal(batched.view_as(one_by_one), one_by_one)


def test_batched_backward_call() -> None:
    q, k, v = tokens()
    out, lse = attention(q, k, v, return_lse=True)
    douts = torch.randn(3, *out.shape, dtype=out.dtype)
    together = torch.vmap(lambda d: attentile.torch.attention_backward(d, q, k, v, out, lse)[:3])(
        douts)
    for i, dout in enumerate(douts):
        alone = attentile.torch.attention_backward(dout, q, k, v, out, lse)
        assert all(torch.equal(a, b[i]) for a, b in zip(alone[:3], together, strict=True))


def test_seeds_are_asked_for() -> None:
    q, k, v = tokens()
    out, lse = attention(q, k, v, dropout_p=0.5, return_lse=True)
    with pytest.raises(ValueError, match="dropout_seed: is missing"):
        attentile.torch.attention_backward(out, q, k, v, out, lse, dropout_p=0.5)
    with pytest.raises(ValueError, match="dropout_offset: was given without dropout_seed"):
        attention(q, k, v, dropout_p=0.5, dropout_offset=7)


def test_negated_dlse() -> None:
    q, k, v = tokens()
    out, lse = attention(q, k, v, return_lse=True)
    dlse = torch.randn(lse.shape, dtype=torch.complex128).conj().imag
    assert dlse.is_neg()
    got = attentile.torch.attention_backward(out * 0, q, k, v, out, lse, dlse=dlse)
    want = attentile.torch.attention_backward(out * 0, q, k, v, out, lse, dlse=dlse.resolve_neg())
    assert torch.equal(got.dq, want.dq)


T = torch.zeros(1, 4, 2, 8)
A = T.numpy()
REFUSED: dict[str, Callable[[], Any]] = {
    "mask: of DLPack type": lambda: attentile.attention(
        A, A, A, mask=memoryview(np.ones((4, 4), np.int64))),
    "bias: was a ndarray, expected a torch": lambda: attention(
        T, T, T, bias=np.zeros((4, 4), np.float32)),
    "sink: was a list": lambda: attention(T, T, T, sink=[0.0, 0.0]),
    "bias: was a tensor of torch that requires": lambda: attentile.attention(
        A, A, A, bias=torch.zeros(4, 4, requires_grad=True)),
    "bias: was a MaskedArray": lambda: attentile.attention(
        A, A, A, bias=np.ma.masked_array(np.zeros((4, 4), np.float32), mask=True)),
    "window_left: was 2.0": lambda: (attentile.attention(A, A, A, window_left=2),
                                     attentile.attention(A, A, A, window_left=2.0))}


@pytest.mark.parametrize("words", REFUSED)
def test_refused(words: str) -> None:
    with pytest.raises(TypeError) as caught:
        REFUSED[words]()
    assert words.replace("mask: of", "mask: was of") in str(caught.value)
