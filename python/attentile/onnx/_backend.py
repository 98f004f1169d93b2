# SPDX-License-Identifier: Apache-2.0
"""The onnx.backend interface: models whose nodes are Attention nodes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.helper
import onnx.numpy_helper
from onnx.backend import base

from attentile import UnsupportedError
from attentile.onnx._attention import attention

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

_VERSIONS = (23, 24, 25)
_INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
_ATTRIBUTES = frozenset(name for name, p in inspect.signature(attention).parameters.items()
                        if p.kind is p.KEYWORD_ONLY) - {"want_qk_matmul_output"}
_DOMAINS = ("", "ai.onnx")


class _Step(NamedTuple):
    """One node: names of its inputs and outputs ("" where left out), and its attributes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The named outputs."""
        wants_qk = len(self.outputs) > 3 and bool(self.outputs[3])
        given = (values[name] if name else None for name in self.inputs)
        results = attention(*given, want_qk_matmul_output=wants_qk, **self.attributes)
        named = zip(self.outputs, results, strict=False)
        return {name: result for name, result in named if name}


def _step(node: NodeProto) -> _Step:
    """A node's step, or UnsupportedError."""
    if node.op_type != "Attention" or node.domain not in _DOMAINS:
        domain = node.domain or "ai.onnx"
        raise UnsupportedError(f"node {node.name!r}: was {domain}.{node.op_type}, expected "
                               "ai.onnx.Attention, the one operator of this backend")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    unknown = sorted(set(attributes) - _ATTRIBUTES)
    if unknown:
        raise UnsupportedError(f"node {node.name!r}: had the attributes {unknown}, expected only "
                               f"{sorted(_ATTRIBUTES)}")
    step = _Step(tuple(node.input), tuple(node.output), attributes)
    if len(step.inputs) > len(_INPUTS) or not all(step.inputs[:3]) or len(step.inputs) < 3:
        raise ValueError(f"node {node.name!r}: had the inputs {list(step.inputs)}, expected Q, K, "
                         f"V and at most {', '.join(_INPUTS[3:])}")
    if any(step.inputs[6:]) and any(step.outputs[1:3]):
        raise ValueError(f"node {node.name!r}: had nonpad_kv_seqlen and present_key or "
                         "present_value, expected one of them: their cache is outside the operator")
    return step


def _check_opset(model: ModelProto) -> None:
    versions = [o.version for o in model.opset_import if o.domain in _DOMAINS]
    found = 0
    if versions and versions[0] >= _VERSIONS[0]:
        found = onnx.defs.get_schema("Attention", versions[0], "").since_version
    if found not in _VERSIONS:
        raise UnsupportedError(f"opset_import: was {versions}, expected an opset of ai.onnx whose "
                               f"Attention is of version {', '.join(map(str, _VERSIONS))}")


def _check_device(device: str) -> None:
    if not Backend.supports_device(device):
        raise UnsupportedError(f"device: was {device!r}, expected 'CPU'")


def _check_value(info: ValueInfoProto, value: Any) -> Any:
    """value, if it is what the graph declares."""
    declared = info.type.tensor_type
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{info.name}: was a {type(value).__name__}, expected a NumPy array")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)
    if value.dtype != dtype:
        raise TypeError(f"{info.name}: was of {value.dtype}, expected {dtype}")
    if declared.HasField("shape"):
        dims = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
        if len(dims) != value.ndim or any(d not in (None, n) for d, n in zip(dims, value.shape,
                                                                             strict=True)):
            wanted = tuple("any" if d is None else d for d in dims)
            raise ValueError(f"{info.name}: was of shape {value.shape}, expected {wanted}")
    return value


class AttentionRep(base.BackendRep):
    """A model made ready; `run` may be called from several threads."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        if model.functions:
            raise UnsupportedError(f"functions: was {[f.name for f in model.functions]}, expected "
                                   "a model without functions of its own")
        if graph.sparse_initializer:
            raise UnsupportedError("sparse_initializer: was given, expected dense initializers")
        if not graph.node:
            raise UnsupportedError("graph: had no node, expected nodes of the operator Attention")
        _check_opset(model)
        self._steps = [_step(node) for node in graph.node]
        self._constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        for info in graph.input:
            if not info.type.HasField("tensor_type"):
                raise UnsupportedError(f"{info.name}: was a {info.type.WhichOneof('value')}, "
                                       "expected a tensor")
        self._inputs = {info.name: info for info in graph.input}
        self._outputs = [info.name for info in graph.output]

    def _values(self, inputs: Any) -> dict[str, Any]:
        """Arrays by name, from a mapping or from a sequence in the graph's order."""
        needed = [name for name in self._inputs if name not in self._constants]
        if isinstance(inputs, np.ndarray) and len(needed) == 1:
            inputs = [inputs]
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
            names = needed if len(inputs) == len(needed) else list(self._inputs)
            if len(inputs) != len(names):
                raise ValueError(f"inputs: was {len(inputs)} arrays, expected {len(needed)}: "
                                 f"{needed}")
            given = dict(zip(names, inputs, strict=True))
        else:
            raise TypeError(f"inputs: was a {type(inputs).__name__}, expected a sequence of arrays "
                            "or a mapping from names to arrays")
        missing = [name for name in needed if name not in given]
        unknown = [name for name in given if name not in self._inputs]
        if missing or unknown:
            raise ValueError(f"inputs: was {list(given)}, expected {needed}; missing {missing}, "
                             f"unknown {unknown}")
        checked = {name: _check_value(self._inputs[name], value) for name, value in given.items()}
        return {**self._constants, **checked}

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The graph's outputs, in its order.

        inputs: arrays in the order of the graph's inputs, or a mapping from their names. Raises
        ValueError, TypeError.
        """
        if kwargs:
            raise TypeError(f"run: got the keywords {sorted(kwargs)}, expected none")
        values = self._values(inputs)
        for step in self._steps:
            values.update(step.run(values))
        return tuple(values[name] for name in self._outputs)


class Backend(base.Backend):
    """The backend: models of one Attention node, or of several; opsets 23 to 25."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` takes this model; `prepare` says why not."""
        try:
            cls.prepare(model, device, **kwargs)
        except (ValueError, TypeError, onnx.checker.ValidationError):
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> AttentionRep:
        """A model made ready to run.

        Raises onnx.checker.ValidationError for a model that is not valid, UnsupportedError for one
        with another operator, opset or device.
        """
        if kwargs:
            raise TypeError(f"prepare: got the keywords {sorted(kwargs)}, expected none")
        _check_device(device)
        if not isinstance(model, onnx.ModelProto):
            raise TypeError(f"model: was a {type(model).__name__}, expected an onnx.ModelProto")
        onnx.checker.check_model(model)
        return AttentionRep(model)

    @classmethod
    def run_node(cls, node: NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None,
                 **kwargs: Any) -> tuple[Any, ...]:
        """One Attention node on arrays: a named tuple of its outputs.

        inputs: one for each of node.input (None where a name is empty), or for each that is not
        empty. kwargs: opset_version. outputs_info is not needed.
        """
        _check_device(device)
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        step = _step(node)
        present = [name for name in step.inputs if name]
        names = present if len(inputs) == len(present) else list(step.inputs)
        if len(inputs) != len(names):
            raise ValueError(f"inputs: was {len(inputs)} arrays, expected {len(present)}: "
                             f"{present}")
        results = step.run({name: value for name, value in zip(names, inputs, strict=True) if name})
        names = [name for name in step.outputs if name]
        made: Any = base.namedtupledict("Outputs", names)
        return made(*(results[name] for name in names))  # type: ignore[no-any-return]

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether device is 'CPU', or 'CPU:0'."""
        return device in ("CPU", "CPU:0")
