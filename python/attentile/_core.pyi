# SPDX-License-Identifier: Apache-2.0
from typing import Any

__version__: str

class UnsupportedError(ValueError, NotImplementedError): ...

class Options:
    def __init__(self, **keywords: Any) -> None: ...

def forward(
    tensors: tuple[Any, ...], options: Options, num_threads: int, progress: Any
) -> None: ...
def backward(
    tensors: tuple[Any, ...],
    gradients: tuple[Any, ...],
    options: Options,
    num_threads: int,
    progress: Any,
) -> None: ...
def merge(
    parts: list[tuple[Any, Any]], result: tuple[Any, Any], heads_second: bool, num_threads: int
) -> None: ...
def plan(
    tensors: tuple[Any, ...], gradients: tuple[Any, ...] | None, options: Options, num_threads: int
) -> dict[str, Any]: ...
def use_openmp(path: str) -> bool: ...
def machine_facts(measure: bool) -> dict[str, Any]: ...
