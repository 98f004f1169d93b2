# SPDX-License-Identifier: Apache-2.0
"""What the Python package costs and gains: `./dev bench --python [--json FILE] [--rounds N]`.

    calls      microseconds of a call on one token, from the C interface up to torch with gradients
    drop-ins   what a user had before against the same call on attentile: ratio of medians

Contenders of a row take turns, so a busy machine meets them alike; a row prints medians. One
thread for calls, all cores for the rest. JSON: one record a row.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import attentile
import attentile.torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "workers")]
import build as native  # noqa: E402
import c_api  # noqa: E402
from attentile_worker import AttentileCall  # noqa: E402
from machine import cpu_field, usable_cores  # noqa: E402
from problem import Problem  # noqa: E402

Row = dict[str, Any]  # callables, or what has seconds()


class InPython:
    """A call timed by Python's clock, repeated for `least` seconds a round."""

    def __init__(self, call: Callable[[], Any], least: float) -> None:
        self.call = call
        call()
        self.repeats = 1
        self.repeats = max(1, round(least / max(self.seconds(), 1e-7)))

    def seconds(self) -> float:
        begin = time.perf_counter()
        for _ in range(self.repeats):
            self.call()
        return (time.perf_counter() - begin) / self.repeats


class InC:
    """One token by the C interface, timed in C."""

    def __init__(self) -> None:
        folder = native.build_libraries(Path(__file__).parent.parent / "build/bench")
        self.call = AttentileCall(c_api.Library(folder), "attentile", Problem(1, 1, 1, 1, 64), 1)

    def seconds(self) -> float:
        return statistics.median(self.call.time(self.call.measured, 0.02))


def measure(contenders: Row, rounds: int, least: float) -> dict[str, float]:
    """Median seconds of each, its rounds interleaved with the others'."""
    clocks = {name: InPython(call, least) if callable(call) else call
              for name, call in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, clock in clocks.items():
            times[name].append(clock.seconds())
    return {name: statistics.median(found) for name, found in times.items()}


def sdpa_inside(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with attentile.torch.sdpa():
            return call()

    return run


def call_rows() -> dict[str, Row]:
    from attentile import _core
    from attentile._call import make_options

    t = torch.randn(1, 1, 1, 64)
    g = t.clone().requires_grad_()
    a = t.numpy()
    out, options = torch.empty_like(t), make_options({})
    own = attentile.torch.attention
    return {"one token": {
        "C interface": InC(),
        "binding": lambda: _core.forward((t, t, t, out, None), options, 1, None),
        "attentile.attention, NumPy": lambda: attentile.attention(a, a, a, num_threads=1),
        "attentile.torch.attention": lambda: own(t, t, t),
        "attentile.torch.attention, gradients": lambda: own(g, g, g),
        "torch's sdpa": lambda: F.scaled_dot_product_attention(t, t, t),
        "torch's sdpa, gradients": lambda: F.scaled_dot_product_attention(g, g, g),
        "sdpa() context": sdpa_inside(lambda: F.scaled_dot_product_attention(t, t, t))}}


def pair(call: Callable[[], Any]) -> Row:
    return {"torch": call, "attentile": sdpa_inside(call)}


def with_backward(call: Callable[[], Any], leaves: list[torch.Tensor]) -> Callable[[], Any]:
    gradient = torch.randn_like(call())

    def run() -> Any:
        return torch.autograd.grad(call(), leaves, gradient)

    return run


def attention_rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, shape in (("seqlen 512", (1, 16, 512, 64)), ("seqlen 2048", (1, 8, 2048, 64))):
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            word = str(dtype).rpartition(".")[2]

            def causal(q: Any = q, k: Any = k, v: Any = v) -> Any:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

            rows[f"causal {word} {name}, forward"] = pair(torch.no_grad()(causal))
            rows[f"causal {word} {name}, with backward"] = pair(with_backward(causal, [q, k, v]))
    q, k, v = (torch.randn(1, 8, 1024, 64) for _ in range(3))
    visible = torch.rand(1024, 1024) > 0.1
    rows["boolean mask, dropout 0.1, seqlen 1024"] = pair(
        lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=0.1))
    bias = torch.randn(1, 8, 1024, 1024, requires_grad=True)
    rows["bias with gradient, seqlen 1024"] = pair(with_backward(
        lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias), [bias]))
    one = torch.randn(1, 32, 1, 128)
    cache = torch.randn(1, 8, 4096, 128)
    rows["decode, GQA 32/8, 4096 cached tokens"] = pair(
        lambda: F.scaled_dot_product_attention(one, cache, cache, enable_gqa=True))
    return rows


def numpy_rows() -> dict[str, Row]:
    q = np.random.default_rng(0).standard_normal((1, 1024, 8, 64), dtype=np.float32)

    def standard() -> Any:
        s = np.einsum("bihd,bjhd->bhij", q, q, optimize=True) / 8
        s -= s.max(-1, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(-1, keepdims=True)
        return np.einsum("bhij,bjhd->bihd", s, q, optimize=True)

    return {"NumPy, seqlen 1024, forward": {"NumPy": standard,
                                            "attentile": lambda: attentile.attention(q, q, q)}}


def jax_rows() -> dict[str, Row]:
    import jax

    import attentile.jax

    q = jax.random.normal(jax.random.key(0), (1, 1024, 8, 64))
    theirs = jax.jit(lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True))
    ours = jax.jit(lambda x: attentile.jax.attention(x, x, x, is_causal=True))
    rows = {"jax, causal, seqlen 1024, forward": {
        "jax": lambda: theirs(q).block_until_ready(),
        "attentile": lambda: ours(q).block_until_ready()}}
    their_grad, our_grad = (jax.jit(jax.grad(lambda x, f=f: f(x).sum())) for f in (theirs, ours))
    rows["jax, causal, seqlen 1024, gradient"] = {
        "jax": lambda: their_grad(q).block_until_ready(),
        "attentile": lambda: our_grad(q).block_until_ready()}
    return rows


def print_row(name: str, found: dict[str, float]) -> None:
    names = list(found)
    if len(names) == 2:
        before, after = found[names[0]], found[names[1]]
        print(f"{name:44} {names[0]:>6} {1e3 * before:10.3f} ms   attentile {1e3 * after:10.3f} ms"
              f"   {before / after:6.2f}x", flush=True)
        return
    for contender in names:
        print(f"{name:12} {contender:40} {1e6 * found[contender]:8.2f} us", flush=True)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True,
                           text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench --python",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write records here")
    parser.add_argument("--rounds", type=int, default=9)
    request = parser.parse_args()
    records = []
    threads = torch.get_num_threads()
    for rows, wanted, least in ((call_rows(), 1, 0.02), (attention_rows(), threads, 0.05),
                                (numpy_rows(), threads, 0.05), (jax_rows(), threads, 0.05)):
        torch.set_num_threads(wanted)
        for name, contenders in rows.items():
            found = measure(contenders, request.rounds, least)
            print_row(name, found)
            records.append({"name": name, "threads": wanted, "median_s": found})
    if request.json:
        head = {"version": attentile.__version__, "commit": commit(),
                "machine": f"{cpu_field('model name')}, {usable_cores()} cores",
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "command": " ".join(["./dev bench --python", *sys.argv[1:]]),
                "torch": torch.__version__}
        request.json.write_text(json.dumps({**head, "records": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
