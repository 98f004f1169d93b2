# SPDX-License-Identifier: Apache-2.0
"""What is measured: a problem of attention, and who solves it. Plain data that travels as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Problem:
    """One call. Shapes are [batch, seqlen, heads, head_dim]; a feature changes one thing."""

    seqlen_q: int
    seqlen_k: int
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    batch: int = 1
    dtype: str = "f32"
    causal: bool = False  # bottom_right: the last query sees every key
    backward: bool = False
    layout: str = "bhsd"  # in memory; peers bring the one they like best
    seqlens: tuple[int, ...] = ()  # packed sequences in place of batch and seqlens
    feature: str = ""  # mask, softcap, dropout, alibi, window, sink, bias, bias_shared

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Problem:
        return Problem(**{**fields, "seqlens": tuple(fields["seqlens"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def pass_name(self) -> str:
        return "backward" if self.backward else "forward"

    @property
    def window(self) -> tuple[int, int]:
        """Keys to the left and to the right of the diagonal; -1: all of them."""
        if self.feature == "window":
            return self.seqlen_k // 2 - 1, 0
        return -1, 0 if self.causal else -1

    def visible_pairs(self) -> int:
        """Query-key pairs inside the band, of all sequences, of one head."""
        lengths = [(n, n) for n in self.seqlens] or [(self.seqlen_q, self.seqlen_k)] * self.batch
        return sum(band_pairs(q, k, self.window) for q, k in lengths)

    def flops(self) -> float:
        per_pair = (10 if self.backward else 4) * self.head_dim
        return float(per_pair) * self.num_heads_q * self.visible_pairs()

    def tokens(self) -> tuple[int, int]:
        """Queries and keys of all sequences."""
        total = sum(self.seqlens)
        if total:
            return total, total
        return self.batch * self.seqlen_q, self.batch * self.seqlen_k

    def cache_bytes(self) -> float:
        """Bytes of K and V."""
        return 2.0 * self.tokens()[1] * self.num_heads_kv * self.head_dim * BYTES[self.dtype]

    def tensor_bytes(self) -> float:
        """Bytes of q, k, v, out and, backward, their gradients."""
        queries, keys = self.tokens()
        values = 2 * queries * self.num_heads_q + 2 * keys * self.num_heads_kv
        return (2.0 if self.backward else 1.0) * values * self.head_dim * BYTES[self.dtype]

    def matrix_bytes(self, value_bytes: int = 4) -> float:
        """Bytes of one whole matrix of scores."""
        return float(self.batch) * self.num_heads_q * self.seqlen_q * self.seqlen_k * value_bytes

    def words(self) -> str:
        sizes = f"{self.batch}x{self.seqlen_q}"
        if self.seqlens:
            sizes = f"{len(self.seqlens)} sequences of {sum(self.seqlens)}"
        elif self.seqlen_q != self.seqlen_k:
            sizes += f"x{self.seqlen_k}"
        heads = str(self.num_heads_q)
        if self.num_heads_kv != self.num_heads_q:
            heads += f"/{self.num_heads_kv}"
        parts = [self.pass_name, self.dtype, sizes, f"h{heads}", f"d{self.head_dim}"]
        parts += ["causal"] if self.causal else []
        parts += [self.feature] if self.feature else []
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """The fields of a bench record that say what was computed."""
        left, right = self.window
        fields: dict[str, Any] = {
            "pass": self.pass_name, "dtype": self.dtype,
            "batch": len(self.seqlens) or self.batch,
            "seqlen_q": max(self.seqlens, default=self.seqlen_q),
            "seqlen_k": max(self.seqlens, default=self.seqlen_k),
            "num_heads_q": self.num_heads_q, "num_heads_kv": self.num_heads_kv,
            "head_dim": self.head_dim, "head_dim_v": self.head_dim,
            "causal": left == -1 and right == 0, "layout": "bshd" if self.seqlens else self.layout,
            "device": "cpu", "varlen": bool(self.seqlens)}
        if self.feature == "window":
            fields |= {"window_left": left, "window_right": right}
        if self.feature == "softcap":
            fields["softcap"] = SOFTCAP
        if self.seqlens:
            fields["seqlens"] = list(self.seqlens)
        if self.feature:
            fields["feature"] = self.feature
        return fields


SOFTCAP = 30.0


def band_pairs(seqlen_q: int, seqlen_k: int, window: tuple[int, int]) -> int:
    """Pairs (i, j) with i + offset - left <= j <= i + offset + right."""
    left, right = window
    if left < 0 and right < 0:
        return seqlen_q * seqlen_k
    offset = seqlen_k - seqlen_q
    pairs = 0
    for i in range(seqlen_q):
        first = max(0, i + offset - left) if left >= 0 else 0
        last = min(seqlen_k - 1, i + offset + right) if right >= 0 else seqlen_k - 1
        pairs += max(0, last - first + 1)
    return pairs


@dataclass(frozen=True)
class Subject:
    """A contender with a problem to solve on so many threads."""

    name: str
    problem: Problem
    threads: int


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan
