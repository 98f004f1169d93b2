# SPDX-License-Identifier: Apache-2.0
"""Tensors of a GPU that is not there: a type that speaks DLPack's exchange API as torch's does, and
says that its memory is CUDA's. The memory is the emulated backend's where there is one.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from typing import Any

import numpy as np

CPU, CUDA, METAL = 1, 2, 8
_DTYPES = {"float16": (2, 16), "float32": (2, 32), "int32": (0, 32)}
SENTENCE_BYTES = 4096

# What the binding asked the exchange API for: (device type, device id), and what it was told.
asked: list[tuple[int, int]] = []
STREAM = 0x5EED0


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


_FromObject = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_DLTensor))
_WorkStream = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int32,
                               ctypes.POINTER(ctypes.c_void_p))


class _Exchange(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32),
                ("previous", ctypes.c_void_p), ("allocator", ctypes.c_void_p),
                ("from_object", ctypes.c_void_p), ("to_object", ctypes.c_void_p),
                ("tensor_from_object", _FromObject), ("current_work_stream", _WorkStream)]


@_FromObject
def _tensor_from_object(given: Any, out: Any) -> int:
    t = out.contents
    t.data, t.ndim, t.lanes, t.byte_offset = given.address, len(given.shape), 1, 0
    t.device_type, t.device_id = given.place
    t.code, t.bits = _DTYPES[given.dtype]
    t.shape = ctypes.cast(given.sizes, ctypes.POINTER(ctypes.c_int64))
    t.strides = None
    return 0


@_WorkStream
def _current_work_stream(device_type: int, device_id: int, stream: Any) -> int:
    asked.append((device_type, device_id))
    stream[0] = STREAM
    return 0


_exchange = _Exchange(1, 3, None, None, None, None, _tensor_from_object, _current_work_stream)
_NAME = b"dlpack_exchange_api"  # the capsule keeps its address
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class _Table(ctypes.Structure):
    """The beginning of BackendTable (src/cuda/backend_table.h)."""

    _fields_ = [("numbers", ctypes.c_uint32 * 4), ("name", ctypes.c_char_p),
                ("others", ctypes.c_void_p * 4),
                ("allocate", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p,
                                              ctypes.c_void_p))]


_addresses = itertools.count(1 << 20, 1 << 20)


def _memory(size: int) -> int:
    """size bytes of the emulated backend; without one an address that nobody may touch."""
    path = os.environ["ATTENTILE_CUDA_LIBRARY"]
    if not os.path.exists(path):
        return next(_addresses)
    library = ctypes.CDLL(path)
    library.attentile_cuda_backend.restype = ctypes.POINTER(_Table)
    address = ctypes.c_void_p()
    sentence = ctypes.create_string_buffer(SENTENCE_BYTES)
    table = library.attentile_cuda_backend().contents
    if table.allocate(size, ctypes.addressof(address), ctypes.addressof(sentence)) != 0:
        raise MemoryError(sentence.value.decode())
    return address.value or 0


class Tensor:
    """An array in that memory."""

    __dlpack_c_exchange_api__ = _capsule(ctypes.addressof(_exchange), _NAME, None)

    def __init__(self, shape: tuple[int, ...], dtype: str = "float16",
                 place: tuple[int, int] = (CUDA, 0)) -> None:
        self.shape, self.dtype, self.place = shape, dtype, place
        self.device = f"cuda:{place[1]}" if place[0] == CUDA else "mps"
        self.sizes = (ctypes.c_int64 * len(shape))(*shape)
        self.address = _memory(max(1, math.prod(shape)) * _DTYPES[dtype][1] // 8)

    def numpy(self) -> Any:
        """The emulated memory, to fill and to read."""
        size = math.prod(self.shape) * _DTYPES[self.dtype][1] // 8
        buffer = (ctypes.c_char * size).from_address(self.address)
        return np.frombuffer(buffer, self.dtype).reshape(self.shape)
