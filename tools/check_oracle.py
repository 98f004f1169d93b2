#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A second implementation of attention, written from the contract alone, against the C++ oracle.

Random problems with every feature of the operation are written as .safetensors files, computed by
`attentile attend --algorithm reference` and by numpy_attention.py, and compared. Nothing is shared:
the file reader and writer here are their own too.

    tools/check_oracle.py build/release/bin/attentile [--cases 500] [--seed 0] [--keep-files DIR]

Exit status 0: all cases agree. 1: some differ; each prints one line with the command to repeat it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy_attention import Array, Case, attention

# --- files -------------------------------------------------------------------------------------

FILE_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "u1", "BOOL": "?"}


def write_tensors(path: Path, tensors: dict[str, Array]) -> None:
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    names = {np.dtype(text): name for name, text in FILE_TYPES.items()}
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def read_tensors(path: Path) -> dict[str, Array]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + size + begin : 8 + size + end], FILE_TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


# --- a case ------------------------------------------------------------------------------------


def flags_of(case: Case) -> list[str]:
    """The case's options as the command line spells them."""
    words = ["--algorithm", "reference"]
    if case.backward:
        words.append("--backward")
    if case.causal:
        words.append("--causal")
    if case.window != (-1, -1):
        words += ["--window", f"{case.window[0]},{case.window[1]}"]
    if case.top_left:
        words += ["--alignment", "top_left"]
    if case.position_offset is not None:
        words += ["--position-offset", str(case.position_offset)]
    if case.softcap > 0:
        words += ["--softcap", repr(case.softcap)]
    if case.scale is not None:
        words += ["--scale", repr(case.scale)]
    if case.dropout > 0:
        words += ["--dropout", repr(case.dropout)]
        words += ["--seed", str(case.seed), "--offset", str(case.offset)]
        if "varlen" not in case.features:
            words.append("--keep-mask")
    if case.block_size:
        words += ["--block-size", f"{case.block_size[0]},{case.block_size[1]}"]
    return words


class Maker:
    """Draws cases. Every choice comes from one generator, so a seed names a case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape: int, dtype: Any = np.float64) -> Array:
        return self.rng.standard_normal(shape).astype(dtype)

    def case(self) -> Case:
        heads_kv = self.integer(1, 3)
        c = Case(
            batch=self.integer(1, 3),
            heads_q=heads_kv * self.integer(1, 3),
            heads_kv=heads_kv,
            head_dim=self.integer(1, 20),
            head_dim_v=self.integer(1, 20),
            seqlen_q=self.integer(1, 24),
            seqlen_k=self.integer(1, 70),
        )
        self.dtype = [np.float64, np.float32, np.float16][self.integer(0, 9) // 4]
        c.features.append(np.dtype(self.dtype).name)
        self.layout(c)
        self.options(c)
        self.score_terms(c)
        if c.backward:
            c.tensors["dout"] = self.normal(
                *c.tensors["q"].shape[:-1], c.head_dim_v, dtype=self.dtype
            )
            if self.flag(c, 0.4, "dlse"):
                wide = np.float64 if self.dtype is np.float64 else np.float32
                packed = "varlen" in c.features
                rows = c.tensors["q"].shape[0] if packed else c.seqlen_q
                shape = (c.heads_q, rows) if packed else (c.batch, c.heads_q, rows)
                c.tensors["dlse"] = self.normal(*shape, dtype=wide)
        elif self.flag(c, 0.5, "nan"):
            name = ["q", "k", "v"][self.integer(0, 2)]
            if c.tensors[name].size:
                c.tensors[name].flat[self.integer(0, c.tensors[name].size - 1)] = np.nan
        return c

    def flag(self, c: Case, p: float, name: str) -> bool:
        on = self.chance(p)
        if on:
            c.features.append(name)
        return on

    def lengths(self, c: Case, longest: int) -> Array:
        lengths = [self.integer(0, longest) for _ in range(c.batch - 1)] + [longest]
        return np.array([0, *np.cumsum(self.rng.permutation(lengths))], dtype=np.int32)

    def layout(self, c: Case) -> None:
        kind = self.integer(0, 9)
        rows_q: tuple[int, ...] = (c.batch, c.seqlen_q)
        rows_k: tuple[int, ...] = (c.batch, c.seqlen_k)
        used = None
        if kind in (0, 1, 2):
            c.features.append("varlen")
            c.tensors["cu_seqlens_q"] = self.lengths(c, c.seqlen_q)
            c.tensors["cu_seqlens_k"] = self.lengths(c, c.seqlen_k)
            rows_q = (int(c.tensors["cu_seqlens_q"][-1]),)
            rows_k = (int(c.tensors["cu_seqlens_k"][-1]),)
        elif kind == 3:
            c.features.append("paged")
            c.backward = False
            page_size = self.integer(1, 9)
            pages = -(-c.seqlen_k // page_size)
            rows_k = (c.batch * pages + 2, page_size)
            table = self.rng.permutation(rows_k[0])[: c.batch * pages].astype(np.int32)
            c.tensors["block_table"] = table.reshape(c.batch, pages)
            used = self.rng.integers(0, c.seqlen_k + 1, c.batch)
            c.seqlen_k = int(used.max())
        elif kind == 4:
            c.features.append("cache")
            c.backward = False
            rows_k = (c.batch + 2, c.seqlen_k)
            index = self.rng.integers(0, rows_k[0], c.batch)
            c.tensors["cache_batch_idx"] = index.astype(np.int32)
            if self.flag(c, 0.7, "leftpad_k"):
                used = self.rng.integers(0, c.seqlen_k + 1, c.batch)
                pad = [self.integer(0, int(u)) for u in used]
                c.tensors["leftpad_k"] = np.array(pad, dtype=np.int32)
        elif self.chance(0.35):
            c.features.append("seqused_k")
            used = self.rng.integers(0, c.seqlen_k + 1, c.batch)
        if kind > 4 and self.flag(c, 0.15, "forward only"):
            c.backward = False
        if used is not None:
            c.tensors["seqused_k"] = used.astype(np.int32)
        c.tensors["q"] = self.normal(*rows_q, c.heads_q, c.head_dim, dtype=self.dtype)
        c.tensors["k"] = self.normal(*rows_k, c.heads_kv, c.head_dim, dtype=self.dtype)
        c.tensors["v"] = self.normal(*rows_k, c.heads_kv, c.head_dim_v, dtype=self.dtype)

    def options(self, c: Case) -> None:
        c.causal = self.flag(c, 0.4, "causal")
        if self.flag(c, 0.3, "window"):
            c.window = (self.integer(-1, 12), self.integer(-1, 8))
        c.top_left = self.flag(c, 0.35, "top_left")
        if self.flag(c, 0.2, "position_offset"):
            far = self.chance(0.1)
            c.position_offset = self.integer(-(2**62), 2**62) if far else self.integer(-20, 40)
        if self.flag(c, 0.3, "softcap"):
            c.softcap = float(0.3 + 3 * self.rng.random())
        if self.flag(c, 0.3, "scale"):
            c.scale = [0.0, -0.3, float(self.rng.random())][self.integer(0, 2)]
        if self.flag(c, 0.3, "dropout"):
            c.dropout = [1.0, 0.5, float(self.rng.random())][min(self.integer(0, 9), 2)]
            c.seed = int(self.rng.integers(0, 2**63))
            c.offset = int(self.rng.integers(0, 2**63))

    def score_terms(self, c: Case) -> None:
        full = (c.batch, c.heads_q, c.seqlen_q, c.seqlen_k)

        def broadcast() -> tuple[int, ...]:
            shape = tuple(1 if self.chance(0.4) else n for n in full)
            while len(shape) > 1 and shape[0] == 1 and self.chance(0.5):
                shape = shape[1:]
            return shape

        if self.flag(c, 0.35, "bias"):
            bias_type = np.float32 if self.chance(0.3) else self.dtype
            if self.dtype is np.float64:
                bias_type = np.float64
            c.tensors["bias"] = self.normal(*broadcast(), dtype=bias_type)
            if self.chance(0.2):
                c.features.append("bias -inf")
                hit = self.rng.random(c.tensors["bias"].shape) < 0.2
                c.tensors["bias"][hit] = -np.inf
        if self.flag(c, 0.35, "mask"):
            visible = self.rng.random(broadcast()) < 0.7
            as_bytes = visible.astype(np.uint8) * np.uint8(self.integer(1, 255))
            c.tensors["mask"] = visible if self.chance(0.5) else as_bytes
        if self.flag(c, 0.3, "sink"):
            c.tensors["sink"] = self.normal(c.heads_q, dtype=np.float32)
        if self.flag(c, 0.25, "alibi") and abs(c.position_offset or 0) < 1000:
            shape = (c.heads_q,) if self.chance(0.5) else (c.batch, c.heads_q)
            c.tensors["alibi_slopes"] = self.rng.random(shape).astype(np.float32)
        if self.flag(c, 0.2, "block_mask"):
            c.block_size = (self.integer(1, 9), self.integer(1, 9))
            tiles = [-(-n // m) for n, m in zip(full[2:], c.block_size, strict=True)]
            heads = 1 if self.chance(0.5) else c.heads_q
            c.tensors["block_mask"] = self.rng.random((heads, *tiles)) < 0.7


# --- comparison --------------------------------------------------------------------------------


def difference(name: str, got: Array, expected: Array) -> str | None:
    """What is wrong with one output, or None. Half an ulp of the stored dtype is rounding."""
    if got.shape != expected.shape:
        return f"{name} has shape {got.shape}, expected {expected.shape}"
    if name == "keep":
        wrong = int((got != expected).sum())
        return f"keep differs in {wrong} of {got.size} places" if wrong else None
    wide = got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(wide[~finite], expected[~finite], equal_nan=True):
        return f"{name} has other NaN or infinite elements"
    if not np.isfinite(wide[finite]).all():
        return f"{name} is not finite everywhere it should be"
    if not finite.any():
        return None
    info = np.finfo(got.dtype)
    size = float(np.abs(expected[finite]).max())
    rounding = np.abs(expected[finite]) * float(info.eps) * 0.501
    tiny = float(info.smallest_subnormal)
    allowed = rounding + tiny + 1e-12 * max(size, 1.0)
    excess = np.abs(wide[finite] - expected[finite]) - allowed
    if (excess <= 0).all():
        return None
    worst = int(excess.argmax())
    pair = f"{wide[finite][worst]!r}, expected {expected[finite][worst]!r}"
    return f"{name} differs in {int((excess > 0).sum())} of {got.size} elements, e.g. {pair}"


def run_case(program: str, seed: int, folder: Path) -> tuple[Case, str | None]:
    case = Maker(seed).case()
    source, target = folder / f"case-{seed}.safetensors", folder / f"out-{seed}.safetensors"
    write_tensors(source, case.tensors)
    command = [program, "attend", str(source), "--out", str(target), *flags_of(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return case, f"status {done.returncode}: {done.stderr.strip()} ({shlex.join(command)})"
    got = read_tensors(target)
    expected = attention(case)
    if got.keys() != expected.keys():
        return case, f"outputs {sorted(got)}, expected {sorted(expected)}"
    wrong = [difference(name, got[name], expected[name]) for name in expected]
    text = "; ".join(message for message in wrong if message)
    if not text:
        source.unlink()
        target.unlink()
    return case, text or None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", help="the attentile command")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--keep-files", type=Path, help="folder for the files of failed cases")
    arguments = parser.parse_args()
    features: Counter[str] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep_files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.seed, arguments.seed + arguments.cases):
            case, wrong = run_case(arguments.program, seed, folder)
            features.update([*case.features, "backward" if case.backward else "forward"])
            if wrong is None:
                continue
            failures += 1
            print(f"case {seed} ({' '.join(case.features)}): {wrong}")
            print(f"  repeat: {sys.argv[0]} {arguments.program} --cases 1 --seed {seed}")
    print(" ".join(f"{name}:{count}" for name, count in sorted(features.items())))
    print(f"{arguments.cases - failures} of {arguments.cases} cases agree with NumPy")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
