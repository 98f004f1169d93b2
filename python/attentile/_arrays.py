# SPDX-License-Identifier: Apache-2.0
"""Attention on arrays: NumPy's, and whatever speaks DLPack. No framework is imported here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from attentile import _core
from attentile._call import TENSORS, keys_of, lse_shape, make_options, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Unpack

    from attentile._call import Keywords


class Gradients(NamedTuple):
    """What `attention_backward` returns; dbias and dsink are None without bias and sink."""

    dq: Any
    dk: Any
    dv: Any
    dbias: Any = None
    dsink: Any = None


def is_torch(array: Any) -> bool:
    """Whether array is a tensor of torch; without importing torch."""
    if type(array) is np.ndarray:
        return False
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_jax(array: Any) -> bool:
    if type(array) is np.ndarray:
        return False
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.Array)


def _numpy_dtype(array: Any) -> Any:
    """NumPy's dtype for a result of array's dtype."""
    if type(array) is np.ndarray:
        return array.dtype
    name = str(getattr(array, "dtype", "float32")).rpartition(".")[2]
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(np.float32)  # the binding refuses the array itself, by its name


def _check(optional: list[Any], **arrays: Any) -> None:
    """Refuses what would be read otherwise than it is meant: masked arrays, gradients dropped."""
    named = {**arrays, **dict(zip(TENSORS, optional, strict=False))} if optional else arrays
    for name, array in named.items():
        if array is None or type(array) is np.ndarray:
            continue
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name}: was a MaskedArray, expected an array without a mask of its "
                            "own; give `mask`")
        if is_torch(array) and array.requires_grad:
            raise TypeError(f"{name}: was a tensor of torch that requires a gradient beside an "
                            "array that is none, expected all of one framework")


def _shape(name: str, array: Any) -> tuple[int, ...]:
    shape = getattr(array, "shape", None)
    if shape is None:
        raise TypeError(f"{name}: was a {type(array).__name__}, expected an array in CPU memory")
    return tuple(shape)


def _as_given(results: tuple[Any, ...], like: Any) -> tuple[Any, ...]:
    """NumPy results in the framework of `like`, without a copy where it allows."""
    if not _is_jax(like):
        return results
    import jax

    return tuple(None if r is None else jax.numpy.asarray(r) for r in results)


def _lse_dtype(q: Any) -> Any:
    return np.float64 if _numpy_dtype(q) == np.float64 else np.float32


def attention(
    q: Any, k: Any, v: Any, *, return_lse: bool = False, return_keep: bool = False,
    num_threads: int | None = None, progress: Callable[[float], object] | None = None,
    **keywords: Unpack[Keywords],
) -> Any:
    """Exact attention of q over k and v, tile by tile, in O(seqlen) memory.

        S   = softmax_scale * q k^T;  S = softcap * tanh(S / softcap) if softcap > 0
        S   = S + bias - alibi_slopes[h] * |i + offset - j|, hidden keys -> -inf
        lse = log(sum_j exp(S_ij) [+ exp(sink_h)])
        out = dropout(exp(S - lse), dropout_p) v

    Arrays are NumPy's, CUDA tensors of torch, or anything in CPU memory that speaks DLPack
    (float32, float16, bfloat16, float64; any strides), read without copies. Tensors of torch go to
    `attentile.torch.attention`, which records gradients. Results come in q's framework and dtype:
    JAX for JAX, else NumPy.

    Args (shapes of layout "bshd"; "bhsd" swaps seqlen and heads of q, k, v and out):
        q: [batch, seqlen_q, num_heads_q, head_dim]; packed [total_q, num_heads_q, head_dim].
        k, v: [batch, seqlen_k, num_heads_kv, head_dim (v: head_dim_v)]; packed likewise; with
            block_table [num_pages, page_size, num_heads_kv, head_dim]. num_heads_q is a multiple of
            num_heads_kv.
        bias: broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k], q's dtype or float32.
        mask: likewise, bool or uint8; True: visible.
        sink: [num_heads_q] float32, one more logit per row without a value.
        alibi_slopes: [num_heads_q] or [batch, num_heads_q] float32.
        cu_seqlens_q, cu_seqlens_k: [batch + 1] int32: q, k and v are packed.
        seqused_k: [batch] int32, keys used of each sequence.
        block_table, cache_batch_idx, leftpad_k: paged and indexed caches, int32.
        block_mask: [num_heads_q or 1, tiles_q, tiles_k] with block_size_q, block_size_k.
        softmax_scale: default 1 / sqrt(head_dim).
        causal: key j is visible to query i if j <= i + offset.
        alignment: "bottom_right" (offset = seqlen_k - seqlen_q; flash_attn's) or "top_left"
            (offset = 0; PyTorch's and JAX's is_causal); position_offset overrides it.
        window_left, window_right: keys i + offset - left to i + offset + right, inclusive; -1: all.
        dropout_p, dropout_seed, dropout_offset: Philox, the same bits for the same three and
            (batch, head, i, j); the realised p is a multiple of 2^-16.
        max_seqlen_q, max_seqlen_k: of tensors on a GPU, whose index arrays the host does not read:
            the longest sequences, where cu_seqlens or block_table give the lengths; 0: as long as
            the tensors allow.
        atomic_dq: of tensors on a GPU, backward: dq may be summed by atomic additions, which saves
            a pass; its bits then differ from run to run. Everywhere else it changes nothing.
        algorithm: "auto" (flash2), "flash1", "flash2", "standard", "reference" (float64).
        num_threads: 0: all cores this process may use; None: likewise, of torch's tensors
            torch.get_num_threads().
        progress: called with the fraction done, 0 to 1, some times a second on a long call; what it
            raises ends the call. So does Ctrl-C.

    Returns: out [batch, seqlen_q, num_heads_q, head_dim_v] in q's dtype; with return_lse also lse
    [batch, num_heads_q, seqlen_q] float32 (packed [num_heads_q, total_q]; float64 for float64),
    natural logarithm; with return_keep also the uint8 keep decisions of dropout. A row that sees no
    key has out 0 and lse -inf.

    Raises: ValueError (UnsupportedError where this build cannot), TypeError; each sentence names
    the argument, what it was and what was expected. MemoryError.

    Source: Dao et al. 2022, algorithms 1, 2, 4, 5; Dao 2023, algorithms 1, 2.
    """
    if is_torch(q):
        from attentile.torch import attention as torch_attention

        return torch_attention(q, k, v, return_lse=return_lse, return_keep=return_keep,
                               num_threads=num_threads, progress=progress, **keywords)
    optional, scalars = split(keywords)
    _check(optional, q=q, k=k, v=v)
    layout = scalars.get("layout", "bshd")
    shape = _shape("q", q)
    out = np.empty(shape[:-1] + _shape("v", v)[-1:], _numpy_dtype(q))
    rows = lse_shape(shape, layout)
    lse = np.empty(rows, _lse_dtype(q)) if return_lse else None
    keep = None
    if return_keep:
        keep = np.empty((*rows, keys_of(_shape("k", k), keywords)), np.uint8)
    _core.forward((q, k, v, out, lse, keep, *optional), make_options(scalars),
                  0 if num_threads is None else num_threads, progress)
    if lse is None and keep is None:
        return _as_given((out,), q)[0]
    return tuple(r for r in _as_given((out, lse, keep), q) if r is not None)


def attention_backward(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *, dlse: Any = None,
    num_threads: int | None = None, progress: Callable[[float], object] | None = None,
    **keywords: Unpack[Keywords],
) -> Gradients:
    """The gradients of `attention`: dq, dk, dv, and dbias, dsink where bias and sink are given.

    Args: dout, shaped as out; the inputs and keywords of the forward call; its out and lse; dlse,
    shaped as lse, the gradient that comes into lse. With dropout the same seed and offset replay
    the mask. Errors as of `attention`. Source: Dao 2023, algorithm 2; Dao et al. 2022, algorithm 4.
    """
    if is_torch(q):
        from attentile.torch import attention_backward as torch_backward

        return torch_backward(dout, q, k, v, out, lse, dlse=dlse, num_threads=num_threads,
                              progress=progress, **keywords)
    optional, scalars = split(keywords)
    _check(optional, q=q, k=k, v=v, dout=dout, dlse=dlse)
    bias, sink = keywords.get("bias"), keywords.get("sink")
    dq, dk, dv = (np.empty(_shape(name, a), _numpy_dtype(a))
                  for name, a in (("q", q), ("k", k), ("v", v)))
    dbias = None if bias is None else np.empty(_shape("bias", bias), _numpy_dtype(bias))
    dsink = None if sink is None else np.empty(_shape("sink", sink), np.float32)
    _core.backward((q, k, v, out, lse, None, *optional), (dout, dq, dk, dv, dlse, dbias, dsink),
                   make_options(scalars), 0 if num_threads is None else num_threads, progress)
    return Gradients(*_as_given((dq, dk, dv, dbias, dsink), q))


def merge(parts: Sequence[tuple[Any, Any]], *, layout: str = "bshd",
          num_threads: int | None = None) -> tuple[Any, Any]:
    """(out, lse) over the union of disjoint sets of keys, from (out, lse) of each.

    lse = log(sum_p exp(lse_p)), out = sum_p exp(lse_p - lse) out_p; (0, -inf) is the neutral
    element. Shapes and dtypes as `attention` returns them, one and the same for all parts.
    Raises ValueError, TypeError.
    """
    try:
        pairs = list(parts)
    except TypeError:
        raise TypeError(f"parts: was {parts!r}, expected pairs (out, lse)") from None
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"parts: has {type(pair).__name__}, expected pairs (out, lse)")
    pairs = [tuple(pair) for pair in pairs]
    if not pairs:
        raise ValueError("parts: was empty, expected at least one (out, lse)")
    if layout not in ("bshd", "bhsd"):
        raise ValueError(f"layout: was {layout!r}, expected one of bshd, bhsd")
    like = pairs[0][0]
    if is_torch(like):
        import torch

        if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad
                                           for pair in pairs for t in pair):
            raise ValueError("parts: one requires a gradient, expected none that does: merge has "
                             "no derivative; merge detached tensors, or inside torch.no_grad()")
        num_threads = torch.get_num_threads() if num_threads is None else num_threads
        with torch.no_grad():
            result = (torch.empty_like(like), torch.empty_like(pairs[0][1]))
            _core.merge([(o.detach().resolve_neg(), s.detach().resolve_neg()) for o, s in pairs],
                        result, layout == "bhsd", num_threads)
        return result
    out = np.empty(_shape("out", like), _numpy_dtype(like))
    lse = np.empty(_shape("lse", pairs[0][1]), _numpy_dtype(pairs[0][1]))
    _core.merge(pairs, (out, lse), layout == "bhsd", 0 if num_threads is None else num_threads)
    merged = _as_given((out, lse), like)
    return merged[0], merged[1]


class _Described(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    device: str


def _described(name: str, given: Any, dtype: str | None, device: str | None) -> _Described:
    """Of an array, a shape, or a pair of dtype name and shape."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
        return _Described(given[0], tuple(given[1]), device or "cpu")
    if isinstance(given, (tuple, list)):
        return _Described(dtype or "float32", tuple(given), device or "cpu")
    shape = _shape(name, given)
    on_gpu = str(getattr(given, "device", "")).startswith("cuda")
    return _Described(dtype or str(given.dtype).rpartition(".")[2], shape,
                      device or ("cuda" if on_gpu else "cpu"))


def plan(
    q: Any, k: Any, v: Any = None, *, dtype: str | None = None, backward: bool = False,
    device: str | None = None, num_threads: int = 0, **keywords: Unpack[Keywords],
) -> dict[str, Any]:
    """What a call would do, found without doing it: kernel, tiles, memory, bytes moved, reasons.

    q, k, v: arrays, or their shapes (then of `dtype`, default float32); v defaults to k. device:
    "cpu" or "cuda" (needs a GPU), by default where the arrays are; shapes are on the CPU. Keywords
    as of `attention`; of optional tensors only shapes and index arrays matter. Returns a dict that
    JSON can hold: device, kernel (on a GPU), algorithm, isa, threads, tile_m (queries), tile_n
    (keys), num_tasks, workspace_bytes, flops, visible_pairs, traffic of each algorithm in bytes,
    and notes: why these tiles, and for each faster path why it does not run. Raises ValueError,
    TypeError; UnsupportedError where there is no GPU.
    """
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device: was {device!r}, expected cpu, cuda or None")
    optional, scalars = split(keywords)
    described = [_described(name, a, dtype, device)
                 for name, a in (("q", q), ("k", k), ("v", k if v is None else v))]
    dtype_name, shape, where = described[0]
    out = (dtype_name, shape[:-1] + described[2].shape[-1:], where)
    lse_dtype = "float64" if dtype_name == "float64" else "float32"
    lse = (lse_dtype, lse_shape(shape, scalars.get("layout", "bshd")), where)
    optional = [(*given, where) if isinstance(given, tuple) and len(given) == 2 else given
                for given in optional]
    gradients = None
    if backward:
        bias, sink = keywords.get("bias"), keywords.get("sink")
        gradients = (out, *described, None,
                     None if bias is None else _described("bias", bias, None, where),
                     None if sink is None else _described("sink", sink, None, where))
    return _core.plan((*described, out, lse, None, *optional), gradients, make_options(scalars),
                      num_threads)


def info(*, measure: bool = False) -> dict[str, Any]:
    """What this machine has and what this build runs on it; with measure, peaks in GFLOP/s."""
    facts = _core.machine_facts(measure)
    facts["devices"] = list(facts["devices"])
    return facts
