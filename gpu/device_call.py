# SPDX-License-Identifier: Apache-2.0
"""A call of attentile on tensors in device memory, through the C interface.

Memory is torch's on a GPU. In a rehearsal it is what the emulated backend hands out, which is host
memory that the emulator knows, as tensors of torch on the CPU.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "bench/workers")]
import c_api  # noqa: E402

if TYPE_CHECKING:
    from shapes import Shape

_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_CUDA = 1  # attentile_device
_SENTENCE_BYTES = 4096


class _Table(ctypes.Structure):
    """The beginning of BackendTable (src/cuda/backend_table.h), up to what is called here."""

    _fields_ = [("version", ctypes.c_uint32), ("table_bytes", ctypes.c_uint32),
                ("forward_params_bytes", ctypes.c_uint32),
                ("backward_params_bytes", ctypes.c_uint32), ("name", ctypes.c_char_p),
                ("device_count", ctypes.c_void_p), ("device_info", ctypes.c_void_p),
                ("current_device", ctypes.c_void_p), ("set_device", ctypes.c_void_p),
                ("allocate", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p,
                                              ctypes.c_void_p))]


class Memory:
    """Where tensors live, and the library."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.torch_device = "cpu" if rehearse else "cuda"
        self.library = ctypes.CDLL(os.environ["ATTENTILE_LIBRARY"])
        self.library.attentile_last_error.restype = ctypes.c_char_p
        self.table: Any = None
        if rehearse:
            backend = ctypes.CDLL(os.environ["ATTENTILE_CUDA_LIBRARY"])
            backend.attentile_cuda_backend.restype = ctypes.POINTER(_Table)
            self.table = backend.attentile_cuda_backend().contents

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if not self.rehearse:
            return torch.empty(shape, dtype=dtype, device="cuda")
        count = math.prod(shape)
        size = max(1, count * dtype.itemsize)
        address = ctypes.c_void_p()
        sentence = ctypes.create_string_buffer(_SENTENCE_BYTES)
        if self.table.allocate(size, ctypes.addressof(address), ctypes.addressof(sentence)) != 0:
            raise RuntimeError(sentence.value.decode())
        buffer = (ctypes.c_char * size).from_address(address.value or 0)
        return torch.frombuffer(buffer, dtype=dtype, count=count).view(shape)

    def sets_of(self, size: int) -> int:
        """How many sets of buffers of that size, used by turns, are no matter of the L2 cache."""
        if self.rehearse:
            return 2
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        return max(1, math.ceil(2 * cache / size))

    def stream(self) -> int | None:
        return None if self.rehearse else torch.cuda.current_stream().cuda_stream

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self.library.attentile_last_error().decode())


class Call:
    """The tensors of a shape, [batch, seqlen, heads, head_dim] in memory of (batch, heads, seqlen,
    head_dim), and the structs that point at them."""

    def __init__(self, memory: Memory, shape: Shape, atomic_dq: bool = False,
                 like: Call | None = None) -> None:
        """like: a call of that shape, whose inputs this one has."""
        self.memory = memory
        self.shape = shape
        self.atomic_dq = atomic_dq
        self.tensors: dict[str, torch.Tensor] = {}
        self.views: dict[str, c_api.Tensor] = {}
        names = ["q", "k", "v", "out"]
        if shape.backward:
            names += ["dout", "dq", "dk", "dv"]
        for name in names:
            self.add_rows(name)
        for name in ("q", "k", "v", "dout") if like is not None else ():
            if name in self.tensors:
                self.tensors[name].copy_(like.tensors[name])
        self.lse = memory.empty((shape.batch, shape.heads_q, shape.seqlen_q), torch.float32)
        self.views["lse"] = self.view(self.lse)

    def add_rows(self, name: str) -> None:
        s = self.shape
        of_keys = name in ("k", "v", "dk", "dv")
        heads, rows = (s.heads_kv, s.seqlen_k) if of_keys else (s.heads_q, s.seqlen_q)
        memory = self.memory.empty((s.batch, heads, rows, s.head_dim), torch.bfloat16)
        if name in ("q", "k", "v", "dout"):
            memory.copy_(torch.randn(memory.shape, device=memory.device))
        else:
            memory.fill_(math.nan)
        self.tensors[name] = memory.transpose(1, 2)
        self.views[name] = self.view(self.tensors[name])

    @staticmethod
    def view(tensor: torch.Tensor) -> c_api.Tensor:
        found = c_api.Tensor(data=tensor.data_ptr(), dtype=c_api.DTYPES[_DTYPES[tensor.dtype]],
                             device=_CUDA, rank=tensor.dim())
        for i, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            found.shape[i], found.stride[i] = size, stride
        return found

    def struct(self, kind: Any) -> Any:
        fields = [name for name, _ in kind._fields_[1:]]
        return kind(**{name: ctypes.pointer(self.views[name])
                       for name in fields if name in self.views})

    def prepare(self) -> None:
        """Runs once; RuntimeError with the library's sentence where it refuses."""
        self.arrange()
        self.run()
        if self.shape.backward:
            self.turn_backward()
            self.run()
        if not self.memory.rehearse:
            torch.cuda.synchronize()

    def arrange(self) -> None:
        """Structs and workspace of the forward pass; starts nothing."""
        library, byref = self.memory.library, ctypes.byref
        inputs, outputs = self.struct(c_api.Inputs), self.struct(c_api.Outputs)
        options = c_api.Options(causal=self.shape.causal, window_left=-1, window_right=-1,
                                atomic_dq=self.atomic_dq)
        context = c_api.Context(stream=self.memory.stream())
        gradients = self.struct(c_api.Gradients) if self.shape.backward else None
        self.kept = (inputs, outputs, gradients, options, context)
        self.give_workspace(None)
        self.call = (library.attentile_attention_forward, byref(inputs), byref(outputs),
                     byref(options), byref(context))

    def turn_backward(self) -> None:
        """From now on run() is the backward pass, which reads what forward has left."""
        inputs, outputs, gradients, options, context = self.kept
        self.give_workspace(gradients)
        self.call = (self.memory.library.attentile_attention_backward,
                     *map(ctypes.byref, (inputs, outputs, gradients, options, context)))

    def give_workspace(self, gradients: Any) -> None:
        """As a caller that captures graphs does: a call then allocates nothing."""
        inputs, outputs, _, options, context = self.kept
        size = ctypes.c_int64()
        self.memory.check(self.memory.library.attentile_workspace_size(
            *(None if s is None else ctypes.byref(s)
              for s in (inputs, outputs, gradients, options, context)), ctypes.byref(size)))
        self.workspace = self.memory.empty((max(16, size.value),), torch.uint8)
        context.workspace = self.workspace.data_ptr()
        context.workspace_bytes = size.value

    def run(self) -> None:
        """On torch's current stream."""
        function, *arguments = self.call
        self.kept[-1].stream = self.memory.stream()
        self.memory.check(function(*arguments))

    @property
    def results(self) -> list[torch.Tensor]:
        """Of the pass that run() is."""
        if self.shape.backward:
            return [self.tensors[name] for name in ("dq", "dk", "dv")]
        return [self.tensors["out"], self.lse]
