# SPDX-License-Identifier: Apache-2.0
"""One decoder on one text with several attention implementations, side by side."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attentile.hf._guard import NAME
from attentile.hf._verify import restored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

IMPLEMENTATIONS = ("eager", "sdpa", NAME)
_ROWS = 512  # of logits held at once


class Row(NamedTuple):
    """One implementation on one text.

    loss: mean next-token cross-entropy. logits_error: largest difference of its logits from the
    reference's. prefill, decode: tokens per second (medians over rounds). peak_bytes: resident
    memory beyond what was there before, -1: not known. generated: tokens chosen greedily after the
    text. fits: False if it was not run; peak_bytes is then what its scores would have needed.
    """

    tokens: int
    dtype: torch.dtype
    implementation: str
    loss: float = math.nan
    logits_error: float = math.nan
    prefill: float = math.nan
    decode: float = math.nan
    peak_bytes: int = -1
    generated: tuple[int, ...] = ()
    fits: bool = True


class _Run(NamedTuple):
    hidden: Tensor
    generated: tuple[int, ...]
    prefill_s: float
    decode_s: float
    peak_bytes: int


def eager_bytes(config: Any, batch: int, tokens: int, dtype: torch.dtype) -> int:
    """Least memory of eager attention: scores, their copy for the softmax (float32), and a mask."""
    text = config.get_text_config()
    size = dtype.itemsize
    scores = batch * text.num_attention_heads * tokens * tokens
    return int(scores * (2 * 4 if size >= 4 else size + 2 * 4) + batch * tokens * tokens * size)


def side_by_side(model: Any, input_ids: Tensor, *, new_tokens: int = 200, rounds: int = 3,
                 implementations: Sequence[str] = IMPLEMENTATIONS, reference: Tensor | None = None,
                 memory_limit: int = 20 << 30) -> tuple[list[Row], Tensor | None]:
    """Run a causal language model on a text with each implementation in turn.

    Args: model, a decoder whose logits are its output embeddings' of the last hidden state (also
    softcapped); input_ids [1, tokens]; new_tokens, how many to generate greedily after them (or
    after the first of them, where the model's positions end); rounds, how often each runs,
    interleaved; reference, hidden states [1, tokens, hidden_size] to compare logits with (default:
    the first implementation's that runs); memory_limit in bytes, for eager: where `eager_bytes` is
    more, or more than the machine has free, it is not run.

    Returns: a Row each, and the reference (None if nothing ran and none was given). The model's
    implementations are put back, also where its parts had different ones.
    """
    batch, tokens = input_ids.shape
    limit = min(memory_limit, _available_bytes())
    needed = eager_bytes(model.config, batch, tokens, model.dtype)
    fits = [name for name in implementations if name != "eager" or needed <= limit]
    runs: dict[str, list[_Run]] = {name: [] for name in fits}
    with restored(model), torch.inference_mode():
        for _ in range(rounds):
            for name in fits:
                model.set_attn_implementation(name)
                model.base_model(input_ids[:, :16])
                runs[name].append(_run(model, input_ids, new_tokens))
    if reference is None and fits:
        reference = runs[fits[0]][0].hidden
    rows = [Row(tokens, model.dtype, name, peak_bytes=needed, fits=False)
            if reference is None or name not in runs else
            _row(model, input_ids, name, runs[name], reference) for name in implementations]
    return rows, reference


def _run(model: Any, input_ids: Tensor, new_tokens: int) -> _Run:
    before = _reset_peak()
    start = time.perf_counter()
    result = model.base_model(input_ids, use_cache=True)
    middle = time.perf_counter()
    hidden, cache = result.last_hidden_state, result.past_key_values
    used = min(input_ids.shape[1], _positions(model) - new_tokens)
    if used < input_ids.shape[1]:
        cache.crop(used - input_ids.shape[1])
    head = model.get_output_embeddings()
    token = head(hidden[:, used - 1:used]).argmax(-1)
    generated = [int(token)]
    decode_start = time.perf_counter()
    while len(generated) < new_tokens:
        result = model.base_model(token, past_key_values=cache, use_cache=True)
        token = head(result.last_hidden_state).argmax(-1)
        generated.append(int(token))
    end = time.perf_counter()
    return _Run(hidden, tuple(generated), middle - start, end - decode_start,
                _peak() - before if before >= 0 else -1)


def _positions(model: Any) -> int:
    text = model.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 1 << 62)


def _row(model: Any, input_ids: Tensor, name: str, runs: list[_Run], reference: Tensor) -> Row:
    tokens = input_ids.shape[1]
    loss, error = _loss_and_error(model, input_ids, runs[0].hidden, reference)
    return Row(tokens, model.dtype, name, loss, error,
               tokens / statistics.median(r.prefill_s for r in runs),
               (len(runs[0].generated) - 1) / statistics.median(r.decode_s for r in runs),
               max(r.peak_bytes for r in runs), runs[0].generated)


def _loss_and_error(model: Any, input_ids: Tensor, hidden: Tensor,
                    reference: Tensor) -> tuple[float, float]:
    """Loss, in float32 and float64, and the largest difference of logits, some rows at a time."""
    head = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    weight = head.weight.detach().float()
    bias = None if head.bias is None else head.bias.detach().float()

    def logits(rows: Tensor) -> Tensor:
        found = torch.nn.functional.linear(rows.float(), weight, bias)
        return found if cap is None else cap * torch.tanh(found / cap)

    targets = input_ids[:, 1:].flatten()
    total, error = 0.0, 0.0
    with torch.no_grad():
        for start in range(0, hidden.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            ours, theirs = logits(hidden[0, rows]), logits(reference[0, rows])
            error = max(error, float((ours - theirs).abs().max()))
            wanted = targets[rows]
            total += float(torch.nn.functional.cross_entropy(ours[:len(wanted)].double(), wanted,
                                                             reduction="sum"))
    return total / len(targets), error


def measure(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """What a call returns, the seconds it took, and its peak memory: resident bytes, -1 unknown.

    The memory is what came on top of what was resident before; it is known on Linux.
    """
    before = _reset_peak()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return result, seconds, _peak() - before if before >= 0 else -1


def _available_bytes() -> int:
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 * 9 // 10
    return 1 << 62


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes; -1 where there is none."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return -1


def _reset_peak() -> int:
    """Let the kernel's record of resident memory start again; returns what is resident, or -1."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return -1
    return _status("VmRSS:")


def _peak() -> int:
    return _status("VmHWM:")


def table(rows: Sequence[Row]) -> str:
    """The rows as text; differences are from the first row of the same length and dtype."""
    lines = [f"{'tokens':>6} {'dtype':>8} {'attention':>9} {'loss':>10} {'loss -':>9} "
             f"{'logits -':>9} {'prefill/s':>9} {'decode/s':>8} {'memory':>10} same tokens"]
    for row in rows:
        start = f"{row.tokens:6} {str(row.dtype).rpartition('.')[2]:>8} {row.implementation:>9}"
        if not row.fits:
            lines.append(f"{start} does not fit: its scores alone need {row.peak_bytes:,} bytes")
            continue
        first = next(r for r in rows if r.fits and r[:2] == row[:2])
        same = sum(1 for _ in _common(first.generated, row.generated))
        memory = "?" if row.peak_bytes < 0 else f"{row.peak_bytes / 2**20:,.0f} MiB"
        lines.append(
            f"{start} {row.loss:10.6f} {row.loss - first.loss:9.1e} {row.logits_error:9.1e} "
            f"{row.prefill:9,.0f} {row.decode:8.1f} {memory:>10} {same}/{len(row.generated)}")
    return os.linesep.join(lines)


def _common(a: Sequence[int], b: Sequence[int]) -> Any:
    for x, y in zip(a, b, strict=False):
        if x != y:
            return
        yield x
