# SPDX-License-Identifier: Apache-2.0
"""Tensors on a GPU, as far as a machine without one can tell: which device and stream a call takes,
what is said without a backend, and a whole call where the emulated backend was built.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import attentile

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
