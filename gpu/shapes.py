# SPDX-License-Identifier: Apache-2.0
"""The calls that are raced."""

from __future__ import annotations

from dataclasses import dataclass


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
        rows = f"{self.seqlen_k}" if self.seqlen_q == self.seqlen_k else \
            f"{self.seqlen_q} on {self.seqlen_k}"
        return (f"{'backward' if self.backward else 'forward'} d {self.head_dim} {rows} x "
                f"{self.batch}, heads {self.heads}{', causal' if self.causal else ''}")

    @property
    def heads(self) -> str:
        same = self.heads_q == self.heads_kv
        return f"{self.heads_q}" if same else f"{self.heads_q}/{self.heads_kv}"

    @property
    def place(self) -> dict[str, str]:
        """Line and column of the printed table."""
        if self.seqlen_q != self.seqlen_k:
            return {"line": f"{self.seqlen_k} x {self.batch}, {self.heads}",
                    "column": f"{self.seqlen_q} quer{'y' if self.seqlen_q == 1 else 'ies'}"}
        return {"line": f"d {self.head_dim}, {self.seqlen_k} x {self.batch}",
                "column": f"{'backward' if self.backward else 'forward'}"
                          f"{' causal' if self.causal else ''}"}

    @property
    def flops(self) -> float:
        # Bottom-right: the last query sees every key.
        q, k = self.seqlen_q, self.seqlen_k
        pairs = q * k - q * (q - 1) / 2 if self.causal else q * k
        return (10 if self.backward else 4) * self.head_dim * pairs * self.batch * self.heads_q

    @property
    def cache_bytes(self) -> int:
        """K and V."""
        return 4 * self.batch * self.seqlen_k * self.heads_kv * self.head_dim

    @property
    def bytes(self) -> int:
        """q, k, v and out."""
        return self.cache_bytes + 4 * self.batch * self.seqlen_q * self.heads_q * self.head_dim


def peer_shapes(rehearse: bool) -> list[Shape]:
    if rehearse:
        return [Shape(1, 64, 64, 2, 2, 64, causal, backward)
                for causal in (False, True) for backward in (False, True)]
    return [Shape(16384 // n, n, n, 2048 // d, 2048 // d, d, causal, backward)
            for d in (128, 64, 256) for n in (512, 1024, 2048, 4096, 8192, 16384)
            for causal in (False, True) for backward in (False, True)]


def decode_shapes(rehearse: bool) -> list[Shape]:
    if rehearse:
        return [Shape(1, queries, 128, 4, 2, 64) for queries in (1, 4)]
    return [Shape(batch, queries, cache, 32, heads, 128)
            for batch, cache in ((1, 8192), (1, 65536), (16, 8192), (64, 4096))
            for heads in (8, 32) for queries in (1, 4)]


def stream_shapes(rehearse: bool) -> list[Shape]:
    n = 32 if rehearse else 1000
    few = [Shape(2, n, n, 4, 2, d, True, backward)
           for d in (64, 128) for backward in (False, True)]
    return few[:2] if rehearse else [*few, Shape(2, 1, 8192, 8, 2, 128)]
