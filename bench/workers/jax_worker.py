# SPDX-License-Identifier: Apache-2.0
"""jax.nn.dot_product_attention under jit, [batch, seqlen, heads, dim], as it documents. XLA takes
the cores that the process may use: the parent sets them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inputs import make_inputs, sample_of
from problem import Problem
from serve import Worker, serve

DTYPES = {"f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16}


class JaxCall:
    def __init__(self, problem: Problem) -> None:
        tensors = {name: jnp.asarray(array, DTYPES[problem.dtype])
                   for name, array in make_inputs(problem, heads_first=False).items()}
        inputs = tuple(tensors[name] for name in "qkv")
        options: dict[str, Any] = {"is_causal": problem.causal}
        if problem.causal and problem.seqlen_q != problem.seqlen_k:
            sizes = (problem.seqlen_q, problem.seqlen_k)
            options = {"mask": jnp.tril(jnp.ones(sizes, bool), sizes[1] - sizes[0])[None, None]}

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jax.nn.dot_product_attention(q, k, v, **options)

        if problem.backward:
            # The pullback carries what the forward pass saved; only its application is timed.
            _, pullback = jax.jit(lambda *x: jax.vjp(attend, *x))(*inputs)
            self.function, self.arguments = jax.jit(lambda f, x: f(x)), (pullback, tensors["dout"])
        else:
            self.function, self.arguments = jax.jit(attend), inputs

    def run(self) -> None:
        self.result = jax.block_until_ready(self.function(*self.arguments))

    def sample(self) -> list[float]:
        result = self.result[0] if isinstance(self.result, tuple) else self.result
        return sample_of(np.asarray(result, np.float32))


class JaxWorker(Worker):
    def make_call(self, name: str, problem: Problem, threads: int) -> JaxCall:
        return JaxCall(problem)

    def facts(self) -> dict[str, Any]:
        return {"version": jax.__version__, "device": str(jax.devices()[0])}


if __name__ == "__main__":
    serve(JaxWorker())
