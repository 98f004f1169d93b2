# SPDX-License-Identifier: Apache-2.0
"""The compact mask: it shows what Transformers' own mask shows, and it is never built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("transformers")

import attentile.hf as hf  # noqa: E402
import hf_models  # noqa: E402
from attentile import UnsupportedError  # noqa: E402
from transformers import masking_utils as mu  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    hf.register()
    yield
    hf.unregister()


class Module:
    """What an attention layer is to the attention function."""

    is_causal = True


def reference(q: Any, k: Any, v: Any, mask: torch.Tensor) -> torch.Tensor:
    """Attention in float64 from a mask of bool; rows without a key are 0."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = q.double() @ k.transpose(2, 3) / q.shape[3] ** 0.5
    weights = torch.softmax(scores.masked_fill(~mask, -1e300), dim=-1)
    weights = weights * mask.any(dim=-1, keepdim=True)
    return (weights @ v).transpose(1, 2)


PATTERNS: dict[str, Any] = {
    "causal": lambda w: mu.causal_mask_function,
    "bidirectional": lambda w: mu.bidirectional_mask_function,
    "window": mu.sliding_window_causal_mask_function,
    "both sides": mu.sliding_window_bidirectional_mask_function,
    "chunks": lambda w: mu.chunked_causal_mask_function(w, torch.zeros(2, dtype=torch.long)),
    "user": lambda w: mu.and_masks(mu.causal_mask_function, lambda b, h, i, j: (i + j) % w != 1),
}
COMPACT = ("causal", "bidirectional", "window", "both sides")


@given(pattern=st.sampled_from(list(PATTERNS)), window=st.integers(1, 9),
       q_length=st.integers(1, 12), past=st.integers(0, 6), slots=st.integers(0, 5),
       kv_offset=st.integers(0, 3), left=st.integers(0, 8), right=st.integers(0, 8),
       hole=st.booleans(), padded=st.booleans(), tensor_offset=st.booleans(),
       skip=st.booleans())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_same_keys_as_the_mask(*, pattern: str, window: int, q_length: int, past: int, slots: int,
                               kv_offset: int, left: int, right: int, hole: bool, padded: bool,
                               tensor_offset: bool, skip: bool) -> None:
    kv_length = past + q_length + slots
    q_offset: Any = past + kv_offset
    padding = None
    if padded:
        padding = torch.ones((2, kv_length + kv_offset - slots), dtype=torch.bool)
        padding[0, :left] = False
        padding[1, max(0, padding.shape[1] - right):] = False
        if hole:
            padding[:, padding.shape[1] // 2] = False
    causal = pattern not in ("bidirectional", "both sides")
    request = {
        "batch_size": 2, "q_length": q_length, "kv_length": kv_length,
        "q_offset": torch.tensor(q_offset) if tensor_offset else q_offset, "kv_offset": kv_offset,
        "mask_function": PATTERNS[pattern](window), "attention_mask": padding, "device": "cpu",
        "use_vmap": False, "dtype": torch.float32}
    skips = {"allow_is_causal_skip": skip and causal,
             "allow_is_bidirectional_skip": skip and not causal}
    expected = mu.sdpa_mask(**request, allow_is_causal_skip=False,
                            allow_is_bidirectional_skip=False)
    found = hf.compact_mask(**request, **skips)
    generator = torch.Generator().manual_seed(q_length)
    q = torch.randn((2, q_length, 4, 8), generator=generator).transpose(1, 2)
    k, v = torch.randn((2, 2, 2, kv_length, 8), generator=generator)
    module = Module()
    module.is_causal = not causal  # the mask tells all
    out, weights = hf.attention_forward(module, q, k, v, found)
    assert weights is None and out.is_contiguous()
    torch.testing.assert_close(out.double(), reference(q, k, v, expected), rtol=0, atol=1e-5)
    assert isinstance(found, hf.CompactMask) == (pattern in COMPACT)
    dense = found.dense() if isinstance(found, hf.CompactMask) else found
    assert torch.equal(dense.expand_as(expected), expected)


def make(**changes: Any) -> hf.CompactMask:
    """A compact causal mask of 2 sequences of 6 tokens, the second padded on the left."""
    padding = torch.ones((2, 6), dtype=torch.bool)
    padding[1, :2] = False
    mask = hf.compact_mask(**{**{
        "batch_size": 2, "q_length": 6, "kv_length": 6, "attention_mask": padding,
        "mask_function": mu.causal_mask_function}, **changes})
    assert isinstance(mask, hf.CompactMask)
    return mask


def test_mask_is_one_byte_and_looks_like_a_mask() -> None:
    mask = make()
    assert mask.shape == (2, 1, 6, 6) and mask.dtype == torch.bool and mask.ndim == 4
    assert mask.size(-1) == 6 and mask.dim() == 4 and mask.device.type == "cpu"
    with torch._C.DisableTorchFunctionSubclass():
        assert mask.untyped_storage().nbytes() == 1
    for same in (mask.contiguous(), mask.detach(), mask.clone(), mask.to("cpu"), mask.bool(),
                 mask.to(torch.bool), mask.to(device="cpu", dtype=torch.bool)):
        assert same is mask
    assert "CompactMask((2, 1, 6, 6)" in repr(mask)


@pytest.mark.parametrize("use", [
    lambda m: m[:, :, 2:, :4], lambda m: ~m, lambda m: m & torch.ones(6, dtype=torch.bool),
    lambda m: m.float(), lambda m: m.to(torch.float32), lambda m: torch.where(m, 0.0, -1e9),
    lambda m: torch.cat([m, m], dim=-1), lambda m: m.sum(), lambda m: m.expand(2, 4, 6, 6),
    lambda m: torch.zeros(2, 4, 6, 6).masked_fill(m, 1.0), lambda m: m.tolist(),
    lambda m: m.repeat(1, 2, 1, 1), lambda m: m[1].any(-1), lambda m: m.numpy()])
def test_whoever_computes_with_it_gets_the_true_mask(use: Any) -> None:
    mask = make()
    result, expected = use(mask), use(mask.dense())
    assert not isinstance(result, hf.CompactMask)
    if isinstance(result, torch.Tensor):
        assert torch.equal(result, expected)
    else:
        assert str(result) == str(expected)


@pytest.mark.parametrize("write", [
    lambda m: m.__setitem__((0, 0), False), lambda m: m.fill_(False),
    lambda m: m.masked_fill_(m.dense(), False), lambda m: m.logical_not_(),
    lambda m: torch.logical_not(m.dense(), out=m)])
def test_writing_is_refused(write: Any) -> None:
    with pytest.raises(UnsupportedError, match="attention mask: was written in place"):
        write(make())


@pytest.mark.parametrize("use", [
    lambda m, x: m + x, lambda m, x: x + m, lambda m, x: x - m, lambda m, x: m * x,
    lambda m, x: x * m, lambda m, x: x.add(m), lambda m, x: torch.add(x, m),
    lambda m, x: torch.sub(x, m, alpha=2), lambda m, x: x.add_(m), lambda m, x: m * -1e9,
    lambda m, x: x.__iadd__(m), lambda m, x: torch.addcmul(x, m, x)])
def test_adding_to_scores_is_refused(use: Any) -> None:
    """True would add 1 to a score, where a mask should hide it."""
    with pytest.raises(UnsupportedError, match="attention mask: was in arithmetic"):
        use(make(), torch.zeros(2, 4, 6, 6))
    assert (make() * make().dense().long()).sum() == make().dense().sum()  # counting is no misuse


def test_augmented_assignment_builds_the_mask() -> None:
    mask: Any = make()
    expected = mask.dense() & ~torch.eye(6, dtype=torch.bool)
    mask &= ~torch.eye(6, dtype=torch.bool)
    assert torch.equal(mask, expected)


def test_keywords_are_the_cheapest_that_say_it() -> None:
    everything = torch.ones((2, 6), dtype=torch.bool)
    right, left = everything.clone(), everything.clone()
    right[1, 4:] = left[1, :2] = False
    causal = {"causal": True, "position_offset": 0}
    assert make(attention_mask=everything).keywords == causal
    assert make(q_length=1, q_offset=5, attention_mask=everything).keywords == {}
    found = make(attention_mask=right).keywords
    assert found.pop("seqused_k").tolist() == [6, 4] and found == causal
    found = make(attention_mask=left).keywords
    assert found.pop("mask").shape == (2, 1, 1, 6) and found == causal
    window = mu.sliding_window_causal_mask_function(3)
    assert make(mask_function=window, attention_mask=None).keywords == {**causal, "window_left": 2}
    wide = mu.sliding_window_causal_mask_function(6)
    assert make(mask_function=wide, allow_is_causal_skip=False,
                attention_mask=None).keywords == causal
    static = make(q_length=1, kv_length=9, q_offset=torch.tensor(5),  # 3 slots wait for tokens
                  attention_mask=everything).keywords
    assert static.pop("seqused_k").tolist() == [6, 6]
    assert static == {"causal": True, "position_offset": 5}


class Watch(TorchDispatchMode):
    """The largest memory behind any tensor that an operator made, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, elements)
        return result


@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_nothing_of_length_times_length_is_made(name: str, side: str) -> None:
    length = 4096
    model = hf_models.ALL[name]()
    if name == "bert":
        config = model.config
        config.max_position_embeddings = length
        model = type(model)(config)
    model.set_attn_implementation(hf.NAME)
    batch = {"input_ids": torch.randint(3, 90, (2, length))}
    if side != "none":
        batch["attention_mask"] = hf_models.padding(side, length=length)
    with Watch() as watch, torch.no_grad():
        model(**batch)
    assert 0 < watch.largest < length * length // 8
    if name == "mistral" and side == "none":  # the test can fail: "sdpa" builds the window
        model.set_attn_implementation("sdpa")
        with Watch() as watch, torch.no_grad():
            model(**batch)
        assert watch.largest >= length * length


@pytest.mark.parametrize("kind", ["additive", "bool", "float32 beside bfloat16"])
def test_masks_of_the_user(kind: str) -> None:
    model = hf_models.build("llama")
    ids = hf_models.make_batch("llama")["input_ids"]
    seen = torch.ones((2, 1, 20, 20), dtype=torch.bool).tril()
    seen[:, :, 10:, 2:5] = False
    mask = seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, -1e9)
    if kind.endswith("bfloat16"):
        model = model.bfloat16()
    model.set_attn_implementation(hf.NAME)
    out = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    additive = torch.zeros(seen.shape).masked_fill(~seen, -1e9).to(out.dtype)
    expected = model(ids, attention_mask=additive).logits
    limit = 6e-2 if out.dtype == torch.bfloat16 else 2e-5
    assert (out - expected).abs().max() <= limit * expected.abs().max()
    other = model(ids).logits
    assert (out - other).abs().max() > 2 * limit * expected.abs().max()
