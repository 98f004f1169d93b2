# SPDX-License-Identifier: Apache-2.0
"""Calls on tensors of torch run on the threads of torch's own operators (OpenMP)."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import same_bits
from test_process import run

import attentile.torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")

_COUNTED = """
import os, numpy, torch, attentile, attentile.torch
def threads(): return len(os.listdir('/proc/self/task'))
torch.set_num_threads(3)
x = torch.randn(400, 400)
x @ x; (x + 1).sum(); torch.randn(1 << 20).exp()
q = torch.randn(2, 300, 4, 32)
before = threads()
"""


def test_no_thread_beside_those_of_torch() -> None:
    """The team is torch's; only calls on NumPy arrays start the library's own pool."""
    result = run(_COUNTED + """
leaf = q.clone().requires_grad_()
attentile.torch.attention(leaf, leaf, leaf, causal=True).sum().backward()
after = threads()
attentile.attention(*[q.numpy()] * 3, num_threads=3)
print(before, after - before, threads() - after)
""")
    assert result.returncode == 0, result.stderr
    before, started, pool = map(int, result.stdout.split())
    assert before >= 3 and started == 0 and pool == 2


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_more_and_fewer_threads_than_torch_has(num_threads: int) -> None:
    q = torch.randn(2, 130, 6, 32)
    want = attentile.torch.attention(q, q, q, num_threads=1)
    same_bits("out", attentile.torch.attention(q, q, q, num_threads=num_threads), want)


def test_a_smaller_call_leaves_the_team_as_it_was() -> None:
    """Two tasks on a team of three: the third thread is not ended."""
    result = run(_COUNTED + """
tids = sorted(os.listdir('/proc/self/task'))
small = torch.randn(1, 300, 2, 32)
for _ in range(5):
    attentile.torch.attention(small, small, small, num_threads=2)
    (x + 1).sum()
print(sorted(os.listdir('/proc/self/task')) == tids)
""")
    assert result.returncode == 0 and result.stdout.strip() == "True", result.stderr


def test_calls_from_many_threads() -> None:
    q = torch.randn(2, 200, 4, 32)
    want = attentile.torch.attention(q, q, q, causal=True, num_threads=1)
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda _: attentile.torch.attention(q, q, q, causal=True,
                                                                num_threads=2), range(24)):
            same_bits("out", got, want)


def test_progress_is_called_on_the_calling_thread_and_may_raise() -> None:
    q = torch.randn(1, 3000, 8, 64)
    seen: list[float] = []

    def stop(fraction: float) -> None:
        seen.append(fraction)
        if len(seen) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        attentile.torch.attention(q, q, q, num_threads=2, progress=stop)
    assert len(seen) == 3
    small = torch.randn(1, 40, 2, 16)
    inner: list[torch.Tensor] = []
    attentile.torch.attention(q, q, q, num_threads=2, progress=lambda _: inner.append(
        attentile.torch.attention(small, small, small, num_threads=2)))
    assert inner
    for out in inner:
        same_bits("inner", out, attentile.torch.attention(small, small, small))


def test_more_threads_than_can_be_had() -> None:
    """libgomp would end the process; the library's own pool goes on with what it gets."""
    result = run(_COUNTED + """
import resource
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
many = torch.randn(1, 64, 2048, 8)
want = attentile.torch.attention(many, many, many, num_threads=1)
got = attentile.torch.attention(many, many, many, num_threads=4096)
print(torch.equal(got, want))
""")
    assert result.returncode == 0 and result.stdout.strip() == "True", result.stderr


def test_a_callback_may_fork() -> None:
    """The child's call ends with an error, the parent's goes on."""
    result = run(_COUNTED + """
import signal
children, long = [], torch.randn(1, 4000, 4, 64)
def fork(fraction):
    if not children:
        children.append(os.fork())
        if children[0] == 0: signal.alarm(60)
try:
    attentile.torch.attention(long, long, long, num_threads=2, progress=fork)
except RuntimeError as error:
    os._exit(7 if children == [0] and 'forked' in str(error) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
""")
    assert result.returncode == 0 and result.stdout.strip() == "7", result.stderr


def test_entries_of_numpy_keep_to_the_threads_of_torch() -> None:
    result = run(_COUNTED + """
torch.set_num_threads(1)
attentile.merge([attentile.attention(q, q, q, return_lse=True)] * 2)
print(threads() - before)
""")
    assert result.returncode == 0 and result.stdout.strip() == "0", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork of POSIX")
def test_a_forked_process_does_not_wait_for_the_parents_team() -> None:
    result = run(_COUNTED + """
import signal, warnings
warnings.simplefilter('ignore')
want = attentile.torch.attention(q, q, q, causal=True)
child = os.fork()
if child == 0:
    signal.alarm(60)
    got = attentile.torch.attention(q, q, q, causal=True, num_threads=3)
    os._exit(0 if (got.numpy() == want.numpy()).all() else 5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert result.returncode == 0 and result.stdout.strip() == "0", result.stderr


def test_a_library_that_is_not_there_changes_nothing() -> None:
    result = run("import attentile._core as core, torch\n"
                 "print(core.use_openmp('/nowhere/libtorch_cpu.so'), core.use_openmp('libc.so.6'))")
    assert result.stdout.split() == ["False", "False"], result.stderr
