# SPDX-License-Identifier: Apache-2.0
"""onnxruntime's three operators for attention, each a graph of one node, inputs and outputs bound
in place: MultiHeadAttention, ai.onnx Attention, and GroupQueryAttention on a cache that present and
past share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from inputs import Array, aligned, make_inputs, sample_of
from onnx import TensorProto, helper
from problem import Problem
from serve import Worker, serve

NUMPY = {"f32": np.float32, "f16": np.float16}
ONNX = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}
MICROSOFT = "com.microsoft"
ATTENTION_OPSET = 23


def node_of(name: str, problem: Problem) -> Any:
    heads = {"num_heads": problem.num_heads_q, "kv_num_heads": problem.num_heads_kv}
    if name == "onnxruntime-mha":
        return helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["out"], domain=MICROSOFT,
                                num_heads=problem.num_heads_q, unidirectional=int(problem.causal))
    if name == "onnxruntime-attention":
        return helper.make_node("Attention", ["q", "k", "v"], ["out"],
                                q_num_heads=problem.num_heads_q,
                                kv_num_heads=problem.num_heads_kv, is_causal=int(problem.causal))
    return helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "past_key", "past_value", "seqlens_k", "total_sequence_length"],
        ["out", "present_key", "present_value"], domain=MICROSOFT, **heads)


def model_of(name: str, problem: Problem, inputs: dict[str, Array]) -> bytes:
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16,
             np.dtype(np.int32): TensorProto.INT32}
    node = node_of(name, problem)
    graph = helper.make_graph(
        [node], "attention",
        [helper.make_tensor_value_info(n, kinds[a.dtype], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, ONNX[problem.dtype], None) for n in node.output])
    model = helper.make_model(graph, opset_imports=[
        helper.make_opsetid("", ATTENTION_OPSET), helper.make_opsetid(MICROSOFT, 1)])
    model.ir_version = 11
    return bytes(model.SerializeToString())


class OnnxCall:
    def __init__(self, name: str, problem: Problem, threads: int) -> None:
        self.problem = problem
        if name == "onnxruntime-mha" and problem.num_heads_q != problem.num_heads_kv:
            raise ValueError("not offered: grouped heads")
        inputs = self.make_inputs(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model_of(name, problem, inputs), options, providers=["CPUExecutionProvider"])
        self.out = aligned((problem.batch, problem.seqlen_q, problem.num_heads_q, problem.head_dim),
                           NUMPY[problem.dtype])
        self.bind(inputs)

    def make_inputs(self, name: str) -> dict[str, Array]:
        p = self.problem
        arrays = {n: a.astype(NUMPY[p.dtype]) for n, a in make_inputs(p, False).items()}
        flat = {n: a.reshape(a.shape[0], a.shape[1], -1) for n, a in arrays.items()}
        if name != "onnxruntime-gqa":
            return flat
        # The last tokens are the new ones; the cache, heads first, holds all of them already.
        cached = p.seqlen_k - p.seqlen_q
        return {
            "q": flat["q"], "k": np.ascontiguousarray(flat["k"][:, cached:]),
            "v": np.ascontiguousarray(flat["v"][:, cached:]),
            "past_key": np.ascontiguousarray(arrays["k"].transpose(0, 2, 1, 3)),
            "past_value": np.ascontiguousarray(arrays["v"].transpose(0, 2, 1, 3)),
            "seqlens_k": np.full((p.batch,), p.seqlen_k - 1, np.int32),
            "total_sequence_length": np.full((1,), p.seqlen_k, np.int32)}

    def bind(self, inputs: dict[str, Array]) -> None:
        self.binding = self.session.io_binding()
        self.values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
                       for name, array in inputs.items()}
        self.values["out"] = onnxruntime.OrtValue.ortvalue_from_numpy(
            self.out.reshape(*self.out.shape[:2], -1))
        for name in inputs:
            self.binding.bind_ortvalue_input(name, self.values[name])
        self.binding.bind_ortvalue_output("out", self.values["out"])
        for past, present in (("past_key", "present_key"), ("past_value", "present_value")):
            if past in inputs:
                self.binding.bind_ortvalue_output(present, self.values[past])

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def sample(self) -> list[float]:
        return sample_of(self.values["out"].numpy().reshape(self.out.shape))


class OnnxWorker(Worker):
    def make_call(self, name: str, problem: Problem, threads: int) -> OnnxCall:
        return OnnxCall(name, problem, threads)

    def facts(self) -> dict[str, Any]:
        return {"version": onnxruntime.__version__}


if __name__ == "__main__":
    serve(OnnxWorker())
