# SPDX-License-Identifier: Apache-2.0
"""attentile/c_api.h for ctypes: the structs that a call needs, fields in the header's order."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "i32": 4, "u8": 5}
ALGORITHMS = {"attentile": 0, "standard": 2, "flash1": 3}
ISA_NAMES = ("auto", "scalar", "avx2", "avx512", "avx512_bf16", "neon", "neon_bf16", "amx")
ALGORITHM_NAMES = ("auto", "reference", "standard", "flash1", "flash2")


class Struct(ctypes.Structure):
    """Begins with struct_size, which the constructor sets."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class Tensor(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("data", ctypes.c_void_p),
                ("dtype", ctypes.c_int32), ("device", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("shape", ctypes.c_int64 * 4),
                ("stride", ctypes.c_int64 * 4)]


def pointers(*names: str) -> list[tuple[str, Any]]:
    return [("struct_size", ctypes.c_size_t), *((name, ctypes.POINTER(Tensor)) for name in names)]


class Inputs(Struct):
    _fields_ = pointers("q", "k", "v", "bias", "mask", "sink", "alibi_slopes", "cu_seqlens_q",
                        "cu_seqlens_k", "seqused_k", "block_table", "cache_batch_idx", "leftpad_k",
                        "block_mask")


class Outputs(Struct):
    _fields_ = pointers("out", "lse", "keep")


class Gradients(Struct):
    _fields_ = pointers("dout", "dlse", "dq", "dk", "dv", "dbias", "dsink")


class Options(Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t), ("has_softmax_scale", ctypes.c_int32),
        ("has_position_offset", ctypes.c_int32), ("softmax_scale", ctypes.c_double),
        ("position_offset", ctypes.c_int64), ("causal", ctypes.c_int32),
        ("alignment", ctypes.c_int32), ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64), ("softcap", ctypes.c_double),
        ("dropout_p", ctypes.c_double), ("dropout_seed", ctypes.c_uint64),
        ("dropout_offset", ctypes.c_uint64), ("query_base", ctypes.c_int64),
        ("key_base", ctypes.c_int64), ("head_base", ctypes.c_int64),
        ("batch_base", ctypes.c_int64), ("dropout_num_heads_q", ctypes.c_int64),
        ("block_size_q", ctypes.c_int64), ("block_size_k", ctypes.c_int64),
        ("algorithm", ctypes.c_int32), ("isa", ctypes.c_int32),
        ("fast_memory_bytes", ctypes.c_int64), ("max_seqlen_q", ctypes.c_int64),
        ("max_seqlen_k", ctypes.c_int64), ("atomic_dq", ctypes.c_int32),
        ("reserved", ctypes.c_int32)]


class Context(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("num_threads", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("executor", ctypes.c_void_p),
                ("poll", ctypes.c_void_p), ("poll_data", ctypes.c_void_p),
                ("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_int64),
                ("traffic", ctypes.c_void_p), ("stream", ctypes.c_void_p)]


class PlanInfo(Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t), ("backward", ctypes.c_int32),
        ("algorithm", ctypes.c_int32), ("isa", ctypes.c_int32), ("threads", ctypes.c_int32),
        ("tile_m", ctypes.c_int64), ("tile_n", ctypes.c_int64), ("num_tasks", ctypes.c_int64),
        ("workspace_bytes", ctypes.c_int64), ("fast_memory_bytes", ctypes.c_int64),
        ("visible_pairs", ctypes.c_int64), ("flops", ctypes.c_double),
        ("standard_bytes_read", ctypes.c_int64), ("standard_bytes_written", ctypes.c_int64),
        ("flash1_bytes_read", ctypes.c_int64), ("flash1_bytes_written", ctypes.c_int64),
        ("flash2_bytes_read", ctypes.c_int64), ("flash2_bytes_written", ctypes.c_int64),
        ("notes", ctypes.c_char_p)]


class TimedCall(ctypes.Structure):
    """struct Call of native/timer.c."""

    _fields_ = [("function", ctypes.c_void_p), ("arguments", ctypes.c_void_p * 5)]


def view(array: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """A view of any strided array."""
    if array.ndim > 4:
        raise ValueError(f"array: rank {array.ndim}, expected at most 4")
    tensor = Tensor(data=array.ctypes.data, dtype=DTYPES[dtype], rank=array.ndim)
    for i, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        tensor.shape[i], tensor.stride[i] = size, stride // array.itemsize
    return tensor


class Library:
    """The shared library and the timer beside it."""

    def __init__(self, folder: Path) -> None:
        self.attentile = ctypes.CDLL(str(folder / "libattentile.so"))
        self.attentile.attentile_last_error.restype = ctypes.c_char_p
        self.attentile.attentile_version.restype = ctypes.c_char_p
        self.time_calls = ctypes.CDLL(str(folder / "libtimer.so")).bench_time_calls
        self.time_calls.restype = ctypes.c_int64
        self.time_calls.argtypes = [ctypes.c_void_p, ctypes.c_double, ctypes.c_int64,
                                    ctypes.c_void_p]
        self.stream = ctypes.CDLL(str(folder / "libstream.so")).bench_stream
        self.stream.restype = ctypes.c_double
        self.stream.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int32, ctypes.c_int64,
                                ctypes.c_int32, ctypes.c_int64]

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self.attentile.attentile_last_error().decode())
