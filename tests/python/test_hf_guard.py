# SPDX-License-Identifier: Apache-2.0
"""Models of Transformers that would run wrongly: made right, or refused."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import attentile.hf as hf  # noqa: E402
import hf_models  # noqa: E402
from attentile import UnsupportedError  # noqa: E402
from attentile.hf import _guard  # noqa: E402
from transformers import AttentionInterface, PreTrainedModel, masking_utils  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

DECODING = ("nllb_moe", "pegasus_x", "informer")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hf.register()
    yield
    hf.unregister()
    torch.set_num_threads(threads)


@pytest.fixture
def none_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask function that returns None where that of "sdpa" does."""
    def mask(*args: Any, **kwargs: Any) -> Any:
        if masking_utils.sdpa_mask(*args, **kwargs) is None:
            return None
        return hf._mask.compact_mask(*args, **kwargs)

    monkeypatch.setattr(hf, "compact_mask", mask)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", list(hf_models.UNTOLD))
def test_models_that_do_not_tell_causality(name: str, side: str) -> None:
    model = hf_models.build(name)
    report = hf.verify(model, hf_models.make_batch(name, side), tolerance=2e-5)
    assert report.compared[0] == "last_hidden_state"
    # PegasusX's encoder is its own, and gets no mask.
    assert report.calls == {"pegasus_x": 4}.get(name, 6 if name in DECODING else 2)


@pytest.mark.parametrize("name", list(hf_models.UNTOLD))
def test_verify_finds_lost_causality(none_masks: None, name: str) -> None:
    model = hf_models.build(name)
    with pytest.raises(RuntimeError, match="differs from eager by"):
        hf.verify(model, hf_models.make_batch(name))


def test_verify_runs_without_padding_too(none_masks: None) -> None:
    """A padded batch alone would have passed: its mask says it all."""
    model = hf_models.build("splinter")
    hf.verify(model, hf_models.make_batch("splinter", "right"))
    with pytest.raises(RuntimeError, match="last_hidden_state of SplinterModel differs"):
        hf.verify(model)


@pytest.mark.parametrize("name", ["splinter", "nllb_moe"])
def test_gradients_of_models_that_do_not_tell_causality(name: str) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name)
    towards = torch.randn(32, generator=torch.Generator().manual_seed(3))
    found = []
    for implementation in ("eager", hf.NAME):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        (model(**batch).last_hidden_state * towards).sum().backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert found[0] and set(found[0]) == set(found[1])
    for key, expected in found[0].items():
        limit = 1e-4 * expected.abs().max().item() + 1e-5
        assert (found[1][key] - expected).abs().max().item() <= limit, key


@pytest.mark.parametrize("name", DECODING)
def test_decoders_do_not_see_what_comes_later(name: str) -> None:
    model = hf_models.build(name)
    model.set_attn_implementation(hf.NAME)
    batch = hf_models.make_batch(name)
    key = "future_time_features" if name == "informer" else "decoder_input_ids"
    with torch.no_grad():
        whole = model(**batch).last_hidden_state
        changed = batch[key].clone()
        changed[:, 6:] = changed[:, 6:] + 1
        other = model(**{**batch, key: changed}).last_hidden_state
    torch.testing.assert_close(other[:, :6], whole[:, :6], rtol=0, atol=1e-5)
    assert (other[:, 6:] - whole[:, 6:]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["pegasus_x", "splinter", "bert"])
def test_compiled(name: str) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name)
    batch.pop("labels", None)
    batch |= {"use_cache": False} if name == "pegasus_x" else {}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**batch)[0]
        model.set_attn_implementation(hf.NAME)
        torch._dynamo.reset()
        found = torch.compile(model, backend="eager")(**batch)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_models_with_layers_of_their_own_are_refused() -> None:
    small = {**hf_models._WIDE, "vocab_size": 40, "max_position_embeddings": 64}
    config = transformers.BigBirdPegasusConfig(**small, attention_type="original_full",
                                               attn_implementation=hf.NAME)
    with pytest.raises(UnsupportedError, match="BigBirdPegasusSelfAttention"):
        transformers.BigBirdPegasusModel(config)
    times = {**hf_models._TIMES, **hf_models._WIDE, "attn_implementation": hf.NAME}
    with pytest.raises(UnsupportedError, match="InformerProbSparseAttention"):
        transformers.InformerModel(transformers.InformerConfig(**times, attention_type="prob"))
    model = transformers.InformerModel(transformers.InformerConfig(**times, attention_type="full"))
    assert model.config._attn_implementation == hf.NAME


def test_a_built_model_is_not_switched_in_silence() -> None:
    """Transformers itself logs a line and leaves the model as it is."""
    bloom = transformers.BloomModel(transformers.BloomConfig(
        vocab_size=40, hidden_size=32, n_layer=1, n_head=4, attn_implementation="eager"))
    with pytest.raises(UnsupportedError, match="modeling_bloom"):
        bloom.set_attn_implementation(hf.NAME)
    with pytest.raises(UnsupportedError, match="modeling_bloom"):
        bloom.set_attn_implementation({"": hf.NAME})
    bloom.set_attn_implementation("eager")
    assert bloom.config._attn_implementation == "eager"


def test_the_mask_itself_stops_layers_that_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the guard: were BigBirdPegasus accepted, its encoder would raise, not go wrong."""
    name = transformers.BigBirdPegasusModel.__module__
    monkeypatch.setitem(_guard._read, name, ())
    model = transformers.BigBirdPegasusModel(transformers.BigBirdPegasusConfig(
        **hf_models._WIDE, vocab_size=hf_models.VOCAB, max_position_embeddings=64,
        attention_type="original_full"))
    ids = hf_models.make_batch("bert")["input_ids"]
    with pytest.raises(UnsupportedError, match="attention mask: was in arithmetic"):
        hf.verify(model, {"input_ids": ids, "decoder_input_ids": ids,
                          "attention_mask": hf_models.padding("right")})


class OwnConfig(transformers.BloomConfig):
    model_type = "own-bloom"


class OwnModel(transformers.BloomForCausalLM):
    config_class = OwnConfig


def test_classes_made_of_refused_ones_are_refused() -> None:
    small = {"vocab_size": 40, "hidden_size": 32, "n_layer": 1, "n_head": 4}
    with pytest.raises(UnsupportedError, match="OwnModel.*modeling_bloom"):
        OwnModel(OwnConfig(**small, attn_implementation=hf.NAME))
    model = OwnModel(OwnConfig(**small))
    model.config._attn_implementation = hf.NAME  # by hand: found when a mask is asked for
    with pytest.raises(UnsupportedError, match="OwnConfig.*modeling_bloom"):
        model(torch.tensor([[5, 6, 7]]))


def test_the_answer_for_a_module_that_is_not_there_is_not_kept(
        monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.codegen import modeling_codegen

    name = modeling_codegen.__name__
    monkeypatch.setattr(_guard, "_read", {})
    with monkeypatch.context() as hidden:
        hidden.delitem(sys.modules, name)
        assert _guard.own_layers(name) == ()
    assert _guard.own_layers(name) != ()


def test_a_patch_on_top_is_left() -> None:
    ours = PreTrainedModel.get_correct_attn_implementation

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    PreTrainedModel.get_correct_attn_implementation = theirs
    try:
        with pytest.warns(RuntimeWarning, match="patched by others"):
            hf.unregister()
        assert PreTrainedModel.get_correct_attn_implementation is theirs
        hf.register()
        with pytest.raises(UnsupportedError, match="modeling_bloom"):
            transformers.BloomModel(transformers.BloomConfig(
                vocab_size=40, hidden_size=32, n_layer=1, n_head=4, attn_implementation=hf.NAME))
    finally:
        PreTrainedModel.get_correct_attn_implementation = ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.unregister()
    assert PreTrainedModel.get_correct_attn_implementation is not ours


def test_continuous_batching_contexts_that_overlap() -> None:
    stock = AttentionInterface._global_mapping["sdpa"]
    a, b = hf.continuous_batching(), hf.continuous_batching()
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    assert AttentionInterface._global_mapping["sdpa"] is not stock
    b.__exit__(None, None, None)
    assert AttentionInterface._global_mapping["sdpa"] is stock

    def enter_often() -> None:
        for _ in range(200):
            with contextlib.ExitStack() as stack:
                stack.enter_context(hf.continuous_batching())
                assert AttentionInterface._global_mapping["sdpa"] is not stock

    threads = [threading.Thread(target=enter_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AttentionInterface._global_mapping["sdpa"] is stock


def test_side_by_side_when_nothing_fits() -> None:
    model = hf_models.build("llama")
    rows, reference = hf.side_by_side(model, torch.randint(3, 90, (1, 30)), memory_limit=0,
                                      implementations=("eager",))
    assert [row.fits for row in rows] == [False] and reference is None
    assert "does not fit" in hf.table(rows)


def test_implementations_of_parts_are_put_back() -> None:
    model = hf_models.build("clip")
    model.set_attn_implementation({"text_config": hf.NAME, "vision_config": "sdpa", "": "eager"})

    def names() -> list[str]:
        config = model.config
        return [c._attn_implementation for c in (config, config.text_config, config.vision_config)]

    assert names() == ["eager", hf.NAME, "sdpa"]
    hf.verify(model)
    assert names() == ["eager", hf.NAME, "sdpa"]
    decoder = hf_models.build("llama")
    decoder.set_attn_implementation("sdpa")
    hf.side_by_side(decoder, torch.randint(3, 90, (1, 20)), new_tokens=2, rounds=1)
    assert decoder.config._attn_implementation == "sdpa"


def test_verify_of_a_model_that_draws_numbers() -> None:
    """ViTMAE drops patches by chance: both runs must drop the same."""
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**hf_models._VISION)).eval()
    state = torch.get_rng_state()
    assert hf.verify(model).calls == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_of_other_threads_are_not_counted() -> None:
    """A model that never asks is found, though another runs at the same time."""
    silent = transformers.FNetModel(transformers.FNetConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, intermediate_size=32,
        max_position_embeddings=32, tpu_short_seq_length=32))
    busy = hf_models.build("llama")
    busy.set_attn_implementation(hf.NAME)
    ids = torch.ones((1, 32), dtype=torch.long)

    def other(*_: Any) -> None:
        thread = threading.Thread(target=lambda: busy(ids))
        thread.start()
        thread.join()

    silent.register_forward_pre_hook(other)
    before = hf.calls()
    with pytest.raises(RuntimeError, match="no attention layer of FNetModel ran in attentile"):
        hf.verify(silent, {"input_ids": ids})
    assert hf.calls() - before == 4  # two forwards of two layers
