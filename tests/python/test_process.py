# SPDX-License-Identifier: Apache-2.0
"""The process around a call: imports, signals, threads, fork, spawn, pickling."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from oracle import same_bits
from torch.utils.data import DataLoader, Dataset

import attentile
import attentile.torch

_PACKAGE = str(pathlib.Path(attentile.__file__).resolve().parent.parent)
_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(
    [_PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])])}
_POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and fork of POSIX")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=_ENVIRONMENT, text=True,
                          capture_output=True, timeout=120)


def tokens(rows: int = 60, heads: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [rng.standard_normal((2, rows, heads, 16)).astype(np.float32) for _ in range(3)]


# --- imports -------------------------------------------------------------------------------------

def test_importing_attentile_imports_no_framework() -> None:
    result = run("import sys, attentile; attentile.info()\n"
                 "print([m for m in ('torch', 'jax', 'onnx', 'transformers') if m in sys.modules])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_changes_nothing_of_torch() -> None:
    """No thread, no active scope, no warning; torch's SDPA keeps its kernel."""
    result = run(
        "import warnings; warnings.simplefilter('error')\n"
        "import torch, threading, torch.nn.functional as F\n"
        "import os; tasks = '/proc/self/task'\n"
        "own = lambda: len(os.listdir(tasks)) if os.path.isdir(tasks) else 0\n"
        "before = threading.active_count(), own()\n"
        "import attentile.torch\n"
        "after = threading.active_count(), own()\n"
        "assert before == after, (before, after)\n"
        "q = torch.ones(1, 1, 4, 8, requires_grad=True)\n"
        "out = F.scaled_dot_product_attention(q, q, q)\n"
        "assert 'Flash' in str(out.grad_fn), out.grad_fn\n"
        "assert attentile.torch.last_dispatch() is None\n")
    assert result.returncode == 0, result.stderr


def test_names() -> None:
    assert set(attentile.__all__) <= set(dir(attentile))
    with pytest.raises(AttributeError, match="atention"):
        attentile.atention  # noqa: B018


# --- signals -------------------------------------------------------------------------------------

_LONG_CALL = """
import sys, time, numpy as np
{extra}
q = np.ones((1, 30000, 16, 64), np.float32)
{prepare}
print("ready", flush=True)
try:
    {call}
    print("finished")
except KeyboardInterrupt:
    print("interrupted", repr(time.time()), flush=True)
"""
_LONG_CALLS = {
    "numpy": ("import attentile", "", "attentile.attention(q, q, q)"),
    "backward": ("import attentile", "lse = np.zeros((1, 16, 30000), np.float32)",
                 "attentile.attention_backward(q, q, q, q, q, lse)"),
    "torch": ("import torch, attentile.torch", "q = torch.from_numpy(q)",
              "attentile.torch.attention(q, q, q)"),
    "sdpa": ("import torch, attentile.torch, torch.nn.functional as F",
             "q = torch.from_numpy(q).transpose(1, 2); s = attentile.torch.sdpa(); s.__enter__()",
             "F.scaled_dot_product_attention(q, q, q)"),
}


@_POSIX
@pytest.mark.parametrize("kind", _LONG_CALLS)
def test_control_c_stops_a_long_call(kind: str) -> None:
    """Within 100 ms on a quiet machine; the limit here is that of a loaded one."""
    extra, prepare, call = _LONG_CALLS[kind]
    code = _LONG_CALL.format(extra=extra, prepare=prepare, call=call)
    with subprocess.Popen([sys.executable, "-c", code], env=_ENVIRONMENT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == "ready"
            time.sleep(0.5)
            sent = time.time()
            process.send_signal(signal.SIGINT)
            answer = process.stdout.readline().split()
        finally:
            process.kill()
    assert answer and answer[0] == "interrupted", answer
    took = float(answer[1]) - sent
    print(f"Ctrl-C stopped a long call ({kind}) after {took * 1000:.1f} ms")
    assert took < 2.0


@_POSIX
def test_a_handler_of_the_caller_runs_during_a_call() -> None:
    """A signal handler that does not raise runs, and the call goes on."""
    code = """
import signal, os, threading, numpy as np, attentile
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
q = np.ones((1, 3000, 8, 64), np.float32)
timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)); timer.start()
seen_within = []
while not seen_within:
    attentile.attention(q, q, q, progress=lambda f: seen_within.append(f) if seen else None)
print("done", len(seen))
"""
    result = run(code)
    assert result.returncode == 0 and result.stdout.strip() == "done 1", result.stderr


# --- threads -------------------------------------------------------------------------------------

def test_the_interpreter_runs_on_during_a_call() -> None:
    """Another thread of Python counts while a long call is under way."""
    q = np.ones((1, 3000, 8, 64), np.float32)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    begin, before = time.perf_counter(), counted[0]
    attentile.attention(q, q, q, num_threads=1)
    took, during = time.perf_counter() - begin, counted[0] - before
    stop.set()
    thread.join()
    print(f"{during} steps of another thread during a call of {took * 1000:.0f} ms")
    assert during >= 10 or took < 0.05


@pytest.mark.parametrize("threads", [1, 3])
def test_calls_from_several_threads(threads: int) -> None:
    """NumPy, torch with gradients and sdpa at once: the bits of calls alone."""
    arrays = tokens(90)
    tensors = [torch.from_numpy(x) for x in arrays]

    def numpy_call() -> tuple[Any, ...]:
        return tuple(attentile.attention(*arrays, causal=True, return_lse=True,
                                         num_threads=threads))

    def torch_call() -> tuple[Any, ...]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = attentile.torch.attention(*leaves, causal=True, num_threads=threads)
        return (out, *torch.autograd.grad(out.sum(), leaves))

    def sdpa_call() -> tuple[Any, ...]:
        with attentile.torch.sdpa():
            return (torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in tensors)),)

    calls = (numpy_call, torch_call, sdpa_call)
    want = [call() for call in calls]
    with ThreadPoolExecutor(6) as pool:
        jobs = [(i % 3, pool.submit(calls[i % 3])) for i in range(90)]
        for which, job in jobs:
            for x, y in zip(job.result(), want[which], strict=True):
                same_bits("result", x, y)


def test_errors_in_threads_stay_there() -> None:
    q, k, v = tokens(30)

    def work(i: int) -> bool:
        if i % 2:
            with pytest.raises(ValueError, match=rf"window_left: is {-2 - i}"):
                attentile.attention(q, k, v, window_left=-2 - i)
            return True
        return bool(np.isfinite(attentile.attention(q, k, v)).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(80)))


def test_progress_from_a_thread() -> None:
    q = np.ones((1, 3000, 8, 64), np.float32)
    seen: list[tuple[float, int]] = []

    def work() -> int:
        attentile.attention(q, q, q, num_threads=2,
                            progress=lambda f: seen.append((f, threading.get_ident())))
        return threading.get_ident()

    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(work).result()
    assert seen and {ident for _, ident in seen} == {caller}


def test_calls_within_progress() -> None:
    """The callback may call attention itself."""
    q = np.ones((1, 3000, 8, 64), np.float32)
    small = tokens(20)
    want, inner = attentile.attention(*small), []
    attentile.attention(q, q, q, num_threads=2,
                        progress=lambda f: inner.append(attentile.attention(*small)))
    assert inner
    for x in inner:
        same_bits("inner", x, want)


# --- fork and spawn ------------------------------------------------------------------------------

class Attended(Dataset[torch.Tensor]):
    """Items that are results of attention, with torch's and NumPy's entry."""

    def __init__(self) -> None:
        self.arrays = tokens(40)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        scaled = [x * (index + 1) for x in self.arrays]
        by_numpy = attentile.attention(*scaled, causal=True, num_threads=2)
        by_torch = attentile.torch.attention(*(torch.from_numpy(x) for x in scaled), causal=True)
        same_bits("torch and NumPy", by_torch, by_numpy)
        return by_torch


@_POSIX
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(method: str) -> None:
    """Workers compute the parent's bits, though its pool of threads ran before the fork."""
    dataset = Attended()
    want = [dataset[i] for i in range(len(dataset))]
    attentile.attention(*tokens(300), num_threads=2)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=method,
                        timeout=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork of a process that has threads
        got = torch.cat(list(loader))
    for x, y in zip(got, want, strict=True):
        same_bits("worker", x, y)
    same_bits("parent", dataset[3], want[3])


def _child(pipe: Any) -> None:
    with attentile.torch.sdpa():
        given = [torch.from_numpy(x).transpose(1, 2).requires_grad_() for x in tokens()]
        out = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True)
        gradient = torch.autograd.grad(out.sum(), given[0])[0]
    pipe.send((out.detach().numpy(), gradient.numpy(), attentile.torch.last_dispatch()))


@_POSIX
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing(method: str) -> None:
    context = multiprocessing.get_context(method)
    attentile.attention(*tokens(300), num_threads=2)
    here, there = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = context.Process(target=_child, args=(there,))
        process.start()
    assert here.poll(100), "the child did not answer"
    out, gradient, dispatch = here.recv()
    process.join(100)
    assert process.exitcode == 0 and dispatch.who == "attentile"
    own, mine = context.Pipe()
    _child(mine)
    same = own.recv()
    same_bits("out", out, same[0])
    same_bits("gradient", gradient, same[1])


# --- pickling ------------------------------------------------------------------------------------

class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 16)
        self.attend = functools.partial(attentile.torch.attention, causal=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(x)
        out: torch.Tensor = self.attend(y, y, y)
        return out


def test_pickles() -> None:
    """Functions, results, errors, and modules that hold the functions."""
    for thing in (attentile.attention, attentile.attention_backward, attentile.torch.attention,
                  attentile.torch.sdpa, attentile.torch.last_dispatch, attentile.Gradients,
                  attentile.UnsupportedError):
        assert pickle.loads(pickle.dumps(thing)) is thing
    call = functools.partial(attentile.attention, causal=True)
    same_bits("partial", pickle.loads(pickle.dumps(call))(*tokens()), call(*tokens()))
    gradients = attentile.Gradients(1, 2, 3)
    assert pickle.loads(pickle.dumps(gradients)) == gradients
    dispatch = attentile.torch.Dispatch("torch", "why")
    assert pickle.loads(pickle.dumps(dispatch)) == dispatch
    error = pickle.loads(pickle.dumps(attentile.UnsupportedError("a sentence")))
    assert isinstance(error, attentile.UnsupportedError) and str(error) == "a sentence"
    block, x = Block(), torch.randn(2, 5, 4, 16)
    for twin in (pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        same_bits("module", twin(x), block(x))


def test_graphs_are_freed() -> None:
    """Neither calls nor graphs that are dropped keep memory."""
    import gc
    import weakref

    leaves = [torch.from_numpy(x).requires_grad_() for x in tokens()]
    out = attentile.torch.attention(*leaves, return_lse=True)
    watched = [weakref.ref(x) for x in out]
    del out
    gc.collect()
    assert all(w() is None for w in watched)
    arrays = tokens()
    counts = [sys.getrefcount(x) for x in arrays]
    for _ in range(50):
        attentile.attention(*arrays, return_lse=True)
        with pytest.raises(ValueError):
            attentile.attention(*arrays, softcap=-1)
    assert [sys.getrefcount(x) for x in arrays] == counts
