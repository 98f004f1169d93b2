# SPDX-License-Identifier: Apache-2.0
"""torch.nn.functional.scaled_dot_product_attention, heads first and contiguous, as its own kernel
wants it. The backward pass is autograd's, on a graph that is kept."""

from __future__ import annotations

from typing import Any

import torch
from inputs import make_inputs, sample_of
from problem import Problem
from serve import Worker, serve

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class TorchCall:
    def __init__(self, problem: Problem, threads: int) -> None:
        self.threads = threads
        self.backward = problem.backward
        arrays = make_inputs(problem, heads_first=True)
        tensors = {name: torch.from_numpy(array).to(DTYPES[problem.dtype])
                   for name, array in arrays.items()}
        self.q, self.k, self.v = (tensors[name].requires_grad_(self.backward) for name in "qkv")
        self.options: dict[str, Any] = {"is_causal": problem.causal}
        if problem.causal and problem.seqlen_q != problem.seqlen_k:
            # Its is_causal counts from the first key; new tokens stand at the end.
            sizes = (problem.seqlen_q, problem.seqlen_k)
            mask = torch.ones(sizes, dtype=torch.bool).tril(sizes[1] - sizes[0])
            self.options = {"attn_mask": mask}
        if problem.num_heads_q != problem.num_heads_kv:
            self.options["enable_gqa"] = True
        torch.set_num_threads(threads)
        self.out = self.forward()
        self.dout = tensors.get("dout")

    def forward(self) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            self.q, self.k, self.v, **self.options)

    def run(self) -> None:
        torch.set_num_threads(self.threads)
        if self.backward:
            self.gradients = torch.autograd.grad(self.out, (self.q, self.k, self.v), self.dout,
                                                 retain_graph=True)
        else:
            with torch.inference_mode():
                self.out = self.forward()

    def sample(self) -> list[float]:
        result = self.gradients[0] if self.backward else self.out
        return sample_of(result.detach().float().permute(0, 2, 1, 3).numpy())


class TorchWorker(Worker):
    def make_call(self, name: str, problem: Problem, threads: int) -> TorchCall:
        return TorchCall(problem, threads)

    def facts(self) -> dict[str, Any]:
        return {"version": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(),
                "mkl": torch.backends.mkl.is_available()}


if __name__ == "__main__":
    serve(TorchWorker())
