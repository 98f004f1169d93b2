# SPDX-License-Identifier: Apache-2.0
"""Tensors on a GPU, as far as a machine without one can tell: which device and stream a call takes,
what is said without a backend, and a whole call where the emulated backend was built.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attentile
from attentile import _core
from attentile._call import keys_of, make_options

ROOT = Path(__file__).resolve().parent.parent.parent
EMULATED = ROOT / "build/release/libattentile_cuda_emulated.so"

_TENSORS = """
import numpy as np
from attentile import _core
from device_fake import *
q, out = Tensor((1, 5, 2, 32)), Tensor((1, 5, 2, 32))
k, v = Tensor((1, 7, 1, 32)), Tensor((1, 7, 1, 32))
lse = Tensor((1, 2, 5), "float32")
def run(*tensors, **options):
    _core.forward((q, k, v, out, lse, None, *tensors), _core.Options(**options), 0, None)
"""


def script(text: str, library: str) -> str:
    """What a process of its own prints: the backend is looked for once per process."""
    environment = {**os.environ, "ATTENTILE_CUDA_LIBRARY": library,
                   "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", _TENSORS + text], env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_of(statement: str) -> str:
    return script(f"try:\n    {statement}\nexcept Exception as error:\n"
                  "    print(type(error).__name__, error, asked)", "/nowhere/none.so")


def test_without_a_backend_the_library_says_what_it_tried() -> None:
    assert error_of("run()") == (
        "UnsupportedError device: is cuda, but the CUDA backend was not found; tried "
        "/nowhere/none.so; ATTENTILE_CUDA_LIBRARY can name the file [(2, 0)]\n")


class _OnGpu:
    """Index arrays of a GPU, which nobody reads."""

    is_cuda = True

    def __init__(self, *shape: int) -> None:
        self.shape = shape


def test_keep_of_pages_on_a_gpu_has_a_column_for_each_key_there_may_be() -> None:
    call: dict[str, Any] = {"block_table": _OnGpu(2, 4), "seqused_k": _OnGpu(2)}
    assert keys_of((9, 8, 1, 64), call) == 32
    assert keys_of((9, 1, 8, 64), {**call, "layout": "bhsd"}) == 32
    assert keys_of((9, 8, 1, 64), {**call, "max_seqlen_k": 20}) == 20


def test_tensors_of_two_devices_are_refused() -> None:
    assert error_of("q.place = (2, 1); run()").startswith(
        "TypeError k: was on device cuda:0, expected cuda:1")
    assert error_of("k = np.zeros((1, 7, 1, 32), np.float16); run()").startswith(
        "ValueError k: device is cpu, but q is on cuda")


def test_other_devices_are_refused_by_name() -> None:
    assert error_of("q = Tensor((1, 5, 2, 32), place=(METAL, 0)); run()").startswith(
        "TypeError q: was on device mps, expected the CPU or a GPU of CUDA")


def test_index_arrays_are_not_read() -> None:
    # Their address is no memory: reading it would end the process.
    sentence = error_of("q, out = Tensor((5, 2, 32)), Tensor((5, 2, 32)); "
                        "lse, ends = Tensor((2, 5), 'float32'), Tensor((2,), 'int32'); "
                        "run(None, None, None, None, ends, max_seqlen_q=5)")
    assert sentence.startswith("UnsupportedError device: is cuda"), sentence


def test_merge_is_refused() -> None:
    assert error_of("_core.merge([(out, lse)], (out, lse), False, 0)").startswith(
        "UnsupportedError result.out: device is cuda, but merge computes on cpu only")


@pytest.mark.skipif(not EMULATED.exists(), reason="the emulated backend was not built")
def test_emulated_call_equals_the_cpu(tmp_path: Path) -> None:
    text = """
rng = np.random.default_rng(3)
for tensor in (q, k, v):
    tensor.numpy()[:] = rng.standard_normal(tensor.shape)
try:
    run(causal=True)
except _core.UnsupportedError as error:
    print(error)
np.savez(sys.argv[1], q=q.numpy(), k=k.numpy(), v=v.numpy(), out=out.numpy(), lse=lse.numpy())
"""
    path = tmp_path / "call.npz"
    said = script(text.replace("sys.argv[1]", repr(str(path))), str(EMULATED))
    if "belongs to another version" in said:
        pytest.skip(said)
    assert said == ""
    with np.load(path) as found:
        got = dict(found)
    out, lse = attentile.attention(got["q"], got["k"], got["v"], causal=True, return_lse=True)
    np.testing.assert_allclose(got["out"].astype(float), out.astype(float), atol=2e-3)
    np.testing.assert_allclose(got["lse"], lse, atol=2e-3)


_PLANS = """
import attentile
shape = (1, 200, 2, 64)
for plan in (attentile.plan(Tensor(shape), Tensor(shape), backward=True),
             attentile.plan(shape, shape, dtype="bfloat16", device="cuda",
                            bias=("float32", (2, 200, 200))),
             attentile.plan(Tensor(shape), Tensor(shape), device="cpu")):
    print(plan["device"], plan["kernel"])
"""


@pytest.mark.skipif(not EMULATED.exists(), reason="the emulated backend was not built")
def test_plans_are_of_the_tensors_device() -> None:
    said = script(f"try:\n    exec({_PLANS!r})\nexcept _core.UnsupportedError as error:\n"
                  "    print(error)", str(EMULATED))
    if "belongs to another version" in said:
        pytest.skip(said)
    backward, forward, cpu = said.splitlines()
    assert backward.startswith("cuda KeyGradients<Float16, 64"), backward
    assert forward.startswith("cuda Forward<BFloat16, 64, "), forward
    assert cpu.rstrip() == "cpu"


def test_a_plan_without_a_gpu_says_what_it_tried() -> None:
    assert error_of("import attentile; attentile.plan(q, k)").startswith(
        "UnsupportedError device: is cuda, but the CUDA backend was not found; tried /nowhere")
    with pytest.raises(ValueError, match="device: was 'metal', expected cpu, cuda or None"):
        attentile.plan((1, 2, 3, 4), (1, 2, 3, 4), device="metal")


def test_operators_have_kernels_for_cuda() -> None:
    import attentile.torch  # noqa: F401, PLC0415 (registers them)

    for name in ("attentile::forward", "attentile::backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("attentile::forward", "AutocastCUDA")


def test_options_of_device_calls_are_known() -> None:
    q = np.zeros((1, 2, 1, 8), np.float32)
    attentile.attention(q, q, q, max_seqlen_q=2, max_seqlen_k=2)
    with pytest.raises(ValueError, match="max_seqlen_k: is -1, but it must be at least 0"):
        attentile.attention(q, q, q, max_seqlen_k=-1)


def _gradients(framework: Any, **keywords: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    q, k, v, dout = (rng.standard_normal((2, 9, 2, 8)).astype(np.float32) for _ in range(4))
    q, k, v, dout = (framework(x) for x in (q, k, v, dout))
    out, lse = attentile.attention(q, k, v, causal=True, return_lse=True, **keywords)
    found = attentile.attention_backward(dout, q, k, v, out, lse, causal=True, **keywords)
    return [np.asarray(x) for x in found[:3]]


@pytest.mark.parametrize("framework", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_atomic_dq_changes_nothing_on_the_cpu(framework: Any) -> None:
    want = _gradients(framework)
    for value in (False, True):
        for x, y in zip(_gradients(framework, atomic_dq=value), want, strict=True):
            np.testing.assert_array_equal(x, y)


def _torch_gradients(**keywords: Any) -> list[torch.Tensor]:
    from attentile.torch import attention  # noqa: PLC0415 (registers the operators)

    given = [torch.linspace(-1, 1, 64).reshape(1, 4, 2, 8).roll(n, 3).requires_grad_()
             for n in range(3)]
    out = attention(*given, causal=True, **keywords)
    return list(torch.autograd.grad(out, given, torch.ones_like(out)))


def test_atomic_dq_reaches_the_eager_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def backward(tensors: Any, gradients: Any, options: Any, *rest: Any) -> None:
        seen.append(options)
        run(tensors, gradients, options, *rest)

    run = _core.backward
    monkeypatch.setattr(_core, "backward", backward)
    want, got = _torch_gradients(), _torch_gradients(atomic_dq=True)
    assert seen == [make_options({"causal": True}),
                    make_options({"causal": True, "atomic_dq": True})]
    assert seen[0] is not seen[1]
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


class _Calls(TorchDispatchMode):
    """Notes atomic_dq of every operator of this library that is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        if function.namespace == "attentile":
            self.seen.append((function.__name__, (kwargs or {}).get("atomic_dq", False)))
        return function(*args, **(kwargs or {}))


def test_atomic_dq_reaches_the_operators() -> None:
    want = _torch_gradients()
    for value in (False, True):
        with _Calls() as calls:
            got = _torch_gradients(atomic_dq=value)
        assert calls.seen == [("forward.default", value), ("backward.default", value)]
        for x, y in zip(got, want, strict=True):
            assert torch.equal(x, y)
