#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calls on a side stream and captured into a CUDA graph, bit for bit as on torch's own stream.

A line of JSON for each shape. With --first: whether the first launch of a process, when the
driver may still have to load the kernel, can be captured; a fact, not a check.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from device_call import Call, Memory
from shapes import Shape, stream_shapes

LATE = 50_000_000  # clock cycles by which the side stream is late: some hundredths of a second


def on_side_stream(call: Call) -> None:
    """Its q is NaN until the side stream, which is late, has put it right."""
    if call.memory.rehearse:
        return call.run()
    side, q = torch.cuda.Stream(), call.tensors["q"]
    right = q.clone()
    q.fill_(math.nan)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LATE)
        q.copy_(right)
        call.run()
    side.synchronize()


def as_graph(call: Call) -> Callable[[], Any]:
    """A function that replays the call; capturing it runs nothing."""
    if call.memory.rehearse:
        return call.run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def bits_after(call: Call, run: Callable[[], Any]) -> list[torch.Tensor]:
    """Of the results, which are NaN before."""
    for tensor in call.results:
        tensor.fill_(math.nan)
    run()
    return [x.contiguous().view(torch.uint8).clone() for x in call.results]


def check(memory: Memory, shape: Shape) -> list[str]:
    """What differs."""
    call = Call(memory, shape)
    call.prepare()
    want = bits_after(call, lambda: on_torchs_stream(call))
    replay = as_graph(call)
    ways = {"side stream": lambda: on_side_stream(call), "graph": replay, "graph again": replay}
    return [name for name, run in ways.items()
            if not all(map(torch.equal, bits_after(call, run), want))]


def on_torchs_stream(call: Call) -> None:
    call.run()
    if not call.memory.rehearse:
        torch.cuda.synchronize()


def first_launch(memory: Memory, shape: Shape) -> str:
    call = Call(memory, shape)
    call.arrange()
    try:
        replay = as_graph(call)
        found = bits_after(call, replay)
    except RuntimeError as error:
        return f"does not work: {str(error).splitlines()[0][:200]}"
    same = all(map(torch.equal, found, bits_after(call, lambda: on_torchs_stream(call))))
    return "works" if same else "gives other results than a call that is not captured"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--first", action="store_true")
    given = parser.parse_args()
    memory = Memory(given.rehearse)
    shapes = stream_shapes(given.rehearse)
    if given.first:
        print(json.dumps({"fact": "the first launch inside a capture",
                          "words": first_launch(memory, shapes[0])}))
        return 0
    status = 0
    for shape in shapes:
        try:
            differ = check(memory, shape)
            what = f"other bits than on torch's own stream: {', '.join(differ)}" if differ else ""
        except RuntimeError as error:
            what = str(error)[:300]
        print(json.dumps({"name": shape.words, "good": not what}), flush=True)
        if what:
            print(json.dumps({"failure": shape.words, "what": what, "again": ""}), flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
