#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attentile's CUDA kernels against torch's backends, in turns: `race.py peers|decode`.

`peers` follows the protocol by which FlashAttention is measured: 16,384 tokens in all, hidden size
2,048, bfloat16; useful flops (causal: visible pairs; backward: 2.5 x forward). `decode` measures
bytes per second of K and V with one to four queries, as replays of CUDA graphs if every contender
can be captured, on sets of buffers that together are twice the L2 cache. Every contender runs on
the same tensors; a round times each in turn by events, a row tells medians of rounds. JSON, one
object a line: the number of shapes ("kind": "shapes"), ceilings ("ceiling"), then for each shape a
row ("row") or why there is none ("refused").
"""

from __future__ import annotations

import time

BEGIN = time.monotonic()  # --seconds count what importing torch takes

import argparse  # noqa: E402
import contextlib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from device_call import Call, Memory  # noqa: E402
from shapes import Shape, decode_shapes, peer_shapes  # noqa: E402
from timer import Contender, Timer  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
MATH_SEQLEN = 2048  # the longest that its matrix of scores is let to have
TOLERANCE = 0.05  # of bfloat16 results against each other; the table slice judges accuracy


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def ceilings(memory: Memory, timer: Timer) -> None:
    n = 256 if memory.rehearse else 8192
    for dtype in (torch.bfloat16, torch.float16):
        x, y = (torch.randn(n, n, device=memory.torch_device).to(dtype) for _ in range(2))
        seconds = timer.medians({"": Contender([lambda x=x, y=y: x @ y])})[0][""]
        say(kind="ceiling", name="matmul", dtype=str(dtype)[6:], tflops=2 * n**3 / seconds / 1e12)
    count = 1 << (20 if memory.rehearse else 29)
    source = torch.randn(count, device=memory.torch_device)  # zeros would be faster than data
    target = torch.empty_like(source)
    seconds = timer.medians({"": Contender([lambda: target.copy_(source)])})[0][""]
    say(kind="ceiling", name="copy", gbytes_per_s=8 * count / seconds / 1e9)


# --- contenders ----------------------------------------------------------------------------------
def without_graph(backend: SDPBackend | None = None) -> Any:
    def around() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(torch.no_grad())
        if backend is not None:
            stack.enter_context(sdpa_kernel(backend))
        return stack

    return around


def torch_contender(shape: Shape, sets: list[Call], backend: SDPBackend) -> Contender:
    keywords: dict[str, Any] = {"is_causal": shape.causal and shape.seqlen_q > 1,
                                "enable_gqa": shape.heads_q != shape.heads_kv}
    calls: list[Any] = []
    for one in sets:
        q, k, v = (one.tensors[name].transpose(1, 2) for name in "qkv")
        if shape.backward:
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*leaves, **keywords)
            dout = one.tensors["dout"].transpose(1, 2)
            calls.append(lambda out=out, leaves=leaves, dout=dout:
                         torch.autograd.grad(out, leaves, dout, retain_graph=True))
        else:
            calls.append(lambda q=q, k=k, v=v:
                         F.scaled_dot_product_attention(q, k, v, **keywords))
    if shape.backward:  # the forward pass has chosen the kernel
        return Contender(calls)
    return Contender(calls, without_graph(backend))


def torch_contenders(shape: Shape, sets: list[Call]) -> dict[str, Contender]:
    """Those of torch's backends that take this shape, tried once."""
    found: dict[str, Contender] = {}
    for name, backend in BACKENDS.items():
        if name == "math" and max(shape.seqlen_q, shape.seqlen_k) > MATH_SEQLEN:
            continue
        try:
            contender = torch_contender(shape, sets, backend)
            with contender.around():
                contender.calls[0]()
        except RuntimeError as error:
            say(kind="left out", words=shape.words, name=name, why=str(error).splitlines()[0][:120])
            continue
        found[name] = contender
    return found


def flash_attn_contenders(shape: Shape, sets: list[Call]) -> dict[str, Contender]:
    """The flash_attn package, FA-2's and FA-3's, where it is installed."""
    found: dict[str, Contender] = {}
    for name, module in (("flash-attn 2", "flash_attn"), ("flash-attn 3", "flash_attn_interface")):
        if importlib.util.find_spec(module) is None or shape.backward:
            continue
        function = importlib.import_module(module).flash_attn_func
        found[name] = Contender([lambda f=function, one=one: f(
            *(one.tensors[x] for x in "qkv"), causal=shape.causal) for one in sets],
            without_graph())
    return found


# --- results -------------------------------------------------------------------------------------
def largest(differences: Iterable[float]) -> float:
    """NaN if one is: max() would pass over it."""
    found = list(differences)
    return math.nan if any(map(math.isnan, found)) else max(found)


def difference(shape: Shape, call: Call, theirs: Any) -> float:
    """Largest of a call's results against a peer's, relative to the peer's largest value."""
    peers = theirs if isinstance(theirs, tuple) else (theirs,)
    ours = call.results if shape.backward else call.results[:1]  # without lse
    pairs = [(x.float(), y.transpose(1, 2).float()) for x, y in zip(ours, peers, strict=True)]
    return largest(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


class Race:
    def __init__(self, which: str, rehearse: bool) -> None:
        self.which = which
        self.unit = "TFLOP/s" if which == "peers" else "GB/s"
        self.memory = Memory(rehearse)
        self.timer = Timer(rehearse, graphs=which == "decode")
        self.good = True

    def fail(self, shape: Shape, what: str) -> None:
        self.good = False
        print(json.dumps({"failure": shape.words, "what": what,
                          "again": f"{self.which} --only '{shape.words}'"}), flush=True)

    def run(self, shape: Shape) -> bool:
        """A row of this shape, or why there is none; False: the device is of no more use."""
        try:
            say(**self.row(shape))
        except RuntimeError as error:
            say(kind="refused", words=shape.words, why=str(error)[:300])
            self.fail(shape, str(error)[:300])
        try:
            if not self.memory.rehearse:
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def row(self, shape: Shape) -> dict[str, Any]:
        ours = {"attentile": [Call(self.memory, shape)
                              for _ in range(self.memory.sets_of(shape.bytes))]}
        sets = ours["attentile"]
        if shape.backward:
            ours["atomic_dq"] = [Call(self.memory, shape, atomic_dq=True, like=x) for x in sets]
        for call in (call for calls in ours.values() for call in calls):
            call.prepare()
        peers = torch_contenders(shape, sets)
        seconds, timed = self.timer.medians({
            **{name: Contender([call.run for call in calls]) for name, calls in ours.items()},
            **peers, **flash_attn_contenders(shape, sets)})
        work = shape.cache_bytes / 1e9 if self.which == "decode" else shape.flops / 1e12
        rates = {name: work / s for name, s in seconds.items()}
        row: dict[str, Any] = {
            "kind": "row", "words": shape.words, **shape.place, "unit": self.unit, "timed": timed,
            "sets": len(sets), **{name: rates.pop(name) for name in ours}, "rates": rates,
            "seconds": seconds}
        if rates:
            best = max(rates, key=lambda name: rates[name])
            row |= {"best": rates[best], "best_name": best,
                    "ratio": row["attentile"] / rates[best]}
        if peers:
            row["difference"] = self.compare(shape, ours, next(iter(peers.values())))
        return row

    def compare(self, shape: Shape, ours: dict[str, list[Call]], peer: Contender) -> float | None:
        """On every set of buffers; null if it is NaN."""
        with peer.around():
            theirs = [call() for call in peer.calls]
        found = largest(difference(shape, call, result) for calls in ours.values()
                        for call, result in zip(calls, theirs, strict=True))
        if not found < TOLERANCE:  # nor NaN
            self.fail(shape, f"differs from torch by {found:.3g} of the largest value, expected "
                             f"less than {TOLERANCE}")
        return found if math.isfinite(found) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["peers", "decode"])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for the whole process")
    parser.add_argument("--skip", type=int, default=0, help="the first shapes, done before")
    parser.add_argument("--only", metavar="WORDS", help="one shape")
    given = parser.parse_args()
    torch.manual_seed(1)
    race = Race(given.which, given.rehearse)
    shapes = (peer_shapes if given.which == "peers" else decode_shapes)(given.rehearse)
    say(kind="shapes", of=len(shapes))
    if given.which == "peers" and given.only is None and given.skip == 0:
        ceilings(race.memory, race.timer)
    slowest = 0.0
    for shape in shapes[given.skip:]:
        if given.only not in (None, shape.words):
            continue
        begin = time.monotonic()
        if begin - BEGIN + slowest > given.seconds or not race.run(shape):
            break
        slowest = max(slowest, time.monotonic() - begin)
    return 0 if race.good else 1


if __name__ == "__main__":
    sys.exit(main())
