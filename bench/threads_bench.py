# SPDX-License-Identifier: Apache-2.0
"""Layers of a matrix product and causal attention: torch alone, then attentile on a pool of its own
threads and on torch's threads, in turns. What decision 12 rests on.

    python bench/threads_bench.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import attentile.torch
from attentile import _core

HEADS, HEAD_DIM, LAYERS = 9, 64, 4
WIDTH = HEADS * HEAD_DIM


def layers(tokens: int) -> Callable[[], torch.Tensor]:
    weight = torch.randn(WIDTH, 3 * WIDTH) * WIDTH**-0.5
    x = torch.randn(1, tokens, WIDTH)

    def run() -> torch.Tensor:
        y = x
        for _ in range(LAYERS):
            q, k, v = (y @ weight).view(1, tokens, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = y.transpose(1, 2).reshape(1, tokens, WIDTH)
        return y

    return run


@contextlib.contextmanager
def on_threads(library: str) -> Iterator[None]:
    """Inside, torch's attention is attentile's, on the OpenMP threads of a library, "" for none."""
    _core.use_openmp(library)
    with attentile.torch.sdpa():
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds

    contenders: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "torch": contextlib.nullcontext,
        "own pool": functools.partial(on_threads, ""),
        "torch's threads": functools.partial(on_threads, attentile.torch.OPENMP)}
    print(f"{torch.get_num_threads()} threads; milliseconds, ratio to torch alone")
    print("tokens" + "".join(f"{name:>24}" for name in contenders))
    with torch.no_grad():
        for tokens in (64, 128, 256, 512, 1024):
            run = layers(tokens)
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(rounds):
                for name, context in contenders.items():
                    with context():
                        run()  # not timed: the contender before may still spin
                        begin = time.perf_counter()
                        run()
                        times[name].append(1e3 * (time.perf_counter() - begin))
            medians = {name: statistics.median(t) for name, t in times.items()}
            cells = (f"{m:.2f} ({medians['torch'] / m:.2f})" for m in medians.values())
            print(f"{tokens:6}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
