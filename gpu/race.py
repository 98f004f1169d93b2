#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attentile's CUDA kernels against torch's backends, in turns: `race.py peers|decode`.

`peers` follows the protocol by which FlashAttention is measured: 16,384 tokens in all, hidden size
2,048, bfloat16; useful flops (causal: visible pairs; backward: 2.5 x forward). `decode` measures
bytes per second of K and V with one to four queries. Every contender runs on the same tensors; a
round times each in turn by events, a row tells medians of rounds. JSON, one object a line: ceilings
("kind": "ceiling"), then rows ("kind": "row").
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from device_call import Call, Memory
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
MATH_SEQLEN = 2048  # the longest that its matrix of scores is let to have
TOLERANCE = 0.05  # of bfloat16 results against each other; the table slice judges accuracy
Run = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    batch: int
    seqlen_q: int
    seqlen_k: int
    heads_q: int
    heads_kv: int
    head_dim: int
    causal: bool = False
    backward: bool = False

    @property
    def words(self) -> str:
        heads = f"{self.heads_q}" if self.heads_q == self.heads_kv else \
            f"{self.heads_q}/{self.heads_kv}"
        rows = f"{self.seqlen_k}" if self.seqlen_q == self.seqlen_k else \
            f"{self.seqlen_q} on {self.seqlen_k}"
        return (f"{'backward' if self.backward else 'forward'} d {self.head_dim} {rows} x "
                f"{self.batch}, heads {heads}{', causal' if self.causal else ''}")

    @property
    def flops(self) -> float:
        # Bottom-right: the last query sees every key.
        q, k = self.seqlen_q, self.seqlen_k
        pairs = q * k - q * (q - 1) / 2 if self.causal else q * k
        return (10 if self.backward else 4) * self.head_dim * pairs * self.batch * self.heads_q

    @property
    def cache_bytes(self) -> float:
        return 4.0 * self.batch * self.seqlen_k * self.heads_kv * self.head_dim


class Timer:
    """Seconds of a call, by events on a GPU, by the clock in a rehearsal."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.rounds = 1 if rehearse else 7
        self.window = 0.0 if rehearse else 0.02  # seconds that one contender runs in a round

    def once(self, run: Run, repeats: int) -> float:
        if self.rehearse:
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - begin) / repeats
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin_event.record()
        for _ in range(repeats):
            run()
        end_event.record()
        end_event.synchronize()
        return float(begin_event.elapsed_time(end_event)) * 1e-3 / repeats

    def medians(self, contenders: dict[str, Run]) -> dict[str, float]:
        repeats: dict[str, int] = {}
        for name, run in contenders.items():
            self.once(run, 1)
            repeats[name] = max(1, min(200, round(self.window / max(self.once(run, 2), 1e-7))))
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.rounds):
            for name, run in contenders.items():
                times[name].append(self.once(run, repeats[name]))
        return {name: statistics.median(found) for name, found in times.items()}


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def ceilings(memory: Memory, timer: Timer) -> None:
    n = 256 if memory.rehearse else 8192
    for dtype in (torch.bfloat16, torch.float16):
        x, y = (torch.randn(n, n, device=memory.torch_device).to(dtype) for _ in range(2))
        seconds = timer.medians({"": lambda x=x, y=y: x @ y})[""]
        say(kind="ceiling", name="matmul", dtype=str(dtype)[6:], tflops=2 * n**3 / seconds / 1e12)
    count = 1 << (20 if memory.rehearse else 29)
    source = torch.zeros(count, device=memory.torch_device)
    target = torch.empty_like(source)
    seconds = timer.medians({"": lambda: target.copy_(source)})[""]
    say(kind="ceiling", name="copy", gbytes_per_s=8 * count / seconds / 1e9)


def in_backend(backend: SDPBackend, run: Run) -> Run:
    def inside() -> Any:
        with sdpa_kernel(backend):
            return run()

    return inside


def torch_runs(shape: Shape, tensors: dict[str, torch.Tensor]) -> dict[str, Run]:
    """Calls of torch's backends that take this shape, tried once."""
    q, k, v = (tensors[name].transpose(1, 2) for name in "qkv")
    keywords: dict[str, Any] = {"is_causal": shape.causal and shape.seqlen_q > 1,
                                "enable_gqa": shape.heads_q != shape.heads_kv}
    found: dict[str, Run] = {}
    for name, backend in BACKENDS.items():
        if name == "math" and max(shape.seqlen_q, shape.seqlen_k) > MATH_SEQLEN:
            continue
        try:
            with sdpa_kernel(backend):
                if shape.backward:
                    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                    out = F.scaled_dot_product_attention(*leaves, **keywords)
                    dout = tensors["dout"].transpose(1, 2)
                    run = in_backend(backend, lambda o=out, leaves=leaves, g=dout:
                                     torch.autograd.grad(o, leaves, g, retain_graph=True))
                else:
                    run = in_backend(backend, lambda: F.scaled_dot_product_attention(
                        q, k, v, **keywords))
                with torch.no_grad() if not shape.backward else torch.enable_grad():
                    run()
        except RuntimeError as error:
            say(kind="left out", words=shape.words, name=name, why=str(error).splitlines()[0][:120])
            continue
        found[name] = run if shape.backward else without_graph(run)
    return found


def without_graph(run: Run) -> Run:
    def inside() -> Any:
        with torch.no_grad():
            return run()

    return inside


def flash_attn_runs(shape: Shape, tensors: dict[str, torch.Tensor]) -> dict[str, Run]:
    """The flash_attn package, FA-2's and FA-3's, where it is installed."""
    found: dict[str, Run] = {}
    q, k, v = (tensors[key] for key in "qkv")
    for name, module in (("flash-attn 2", "flash_attn"), ("flash-attn 3", "flash_attn_interface")):
        if importlib.util.find_spec(module) is None or shape.backward:
            continue
        function = importlib.import_module(module).flash_attn_func
        found[name] = without_graph(
            functools.partial(function, q, k, v, causal=shape.causal))
    return found


def results_of(shape: Shape, result: Any) -> list[torch.Tensor]:
    """As [batch, seqlen, heads, head_dim]."""
    tensors = result if isinstance(result, tuple) else (result,)
    return [x.transpose(1, 2) for x in tensors] if shape.backward else [tensors[0].transpose(1, 2)]


def largest_difference(shape: Shape, call: Call, peer: Run) -> float:
    ours = [call.tensors[name] for name in (("dq", "dk", "dv") if shape.backward else ("out",))]
    theirs = results_of(shape, peer())
    return max(float((x.float() - y.float()).abs().max() / y.float().abs().max())
               for x, y in zip(ours, theirs, strict=True))


def run_shape(memory: Memory, timer: Timer, shape: Shape, unit: str) -> bool:
    calls = {"attentile": Call(memory, shape)}
    if shape.backward:
        calls["atomic_dq"] = Call(memory, shape, atomic_dq=True)
        for name in ("q", "k", "v", "dout"):
            calls["atomic_dq"].tensors[name].copy_(calls["attentile"].tensors[name])
    call = calls["attentile"]
    try:
        for one in calls.values():
            one.prepare()
    except RuntimeError as error:
        say(kind="refused", words=shape.words, why=str(error)[:200])
        return False
    peers = torch_runs(shape, call.tensors)
    seconds = timer.medians({**{name: one.run for name, one in calls.items()}, **peers,
                             **flash_attn_runs(shape, call.tensors)})
    work = shape.cache_bytes / 1e9 if unit == "GB/s" else shape.flops / 1e12
    rates = {name: work / s for name, s in seconds.items()}
    row: dict[str, Any] = {"kind": "row", "words": shape.words, "unit": unit,
                           **{name: rates.pop(name) for name in calls},
                           "rates": rates, "seconds": seconds}
    ours = row["attentile"]
    good = True
    if rates:
        best = max(rates, key=lambda name: rates[name])
        row |= {"best": rates[best], "best_name": best, "ratio": ours / rates[best]}
    if peers:
        peer = next(iter(peers.values()))
        row["difference"] = max(largest_difference(shape, one, peer) for one in calls.values())
        good = row["difference"] < TOLERANCE
    say(**row)
    if not good:
        print(f"{shape.words}: differs by {row['difference']:.3g}", file=sys.stderr)
    return good


def peer_shapes(rehearse: bool) -> list[Shape]:
    if rehearse:
        return [Shape(1, 64, 64, 2, 2, 64, causal, backward)
                for causal in (False, True) for backward in (False, True)]
    return [Shape(16384 // n, n, n, 2048 // d, 2048 // d, d, causal, backward)
            for d in (128, 64, 256) for causal in (False, True)
            for n in (512, 1024, 2048, 4096, 8192, 16384) for backward in (False, True)]


def decode_shapes(rehearse: bool) -> list[Shape]:
    if rehearse:
        return [Shape(1, 1, 128, 4, 2, 64)]
    return [Shape(batch, queries, cache, 32, heads, 128)
            for batch, cache in ((1, 8192), (1, 65536), (16, 8192), (64, 4096))
            for heads in (8, 32) for queries in (1, 4)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["peers", "decode"])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9, help="no shape begins after so many")
    given = parser.parse_args()
    torch.manual_seed(1)
    memory = Memory(given.rehearse)
    timer = Timer(given.rehearse)
    shapes = peer_shapes if given.which == "peers" else decode_shapes
    if given.which == "peers":
        ceilings(memory, timer)
    unit = "TFLOP/s" if given.which == "peers" else "GB/s"
    end = time.monotonic() + given.seconds
    good = True
    for shape in shapes(given.rehearse):
        if time.monotonic() < end:
            good = run_shape(memory, timer, shape, unit) and good
        else:
            say(kind="left out", words=shape.words, name="all", why="no time was left")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
