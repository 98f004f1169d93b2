# SPDX-License-Identifier: Apache-2.0
"""Models of Transformers with attn_implementation="attentile" against "eager"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import attentile.hf as hf  # noqa: E402
import hf_models  # noqa: E402
from attentile import UnsupportedError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDES = ("none", "left", "right")
# (name, side): images and audio features have no padding.
CASES = [(name, side) for name in hf_models.ALL for side in SIDES
         if side == "none" or name not in ("vit", "whisper")]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hf.register()
    yield
    hf.unregister()
    torch.set_num_threads(threads)


def gradients(model: Any, batch: dict[str, Any], name: str) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of one training step."""
    model.set_attn_implementation(name)
    model.train()
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: tuple[float, Any], eager: tuple[float, Any], part: float = 1e-4) -> None:
    """Loss and each gradient equal, to a part of the largest gradient of all."""
    assert ours[0] == pytest.approx(eager[0], rel=1e-5)
    assert set(ours[1]) == set(eager[1]) and eager[1]
    for key, expected in eager[1].items():
        error = (ours[1][key] - expected).abs().max().item()
        assert error <= part * expected.abs().max().item() + 1e-6, key


@pytest.mark.parametrize(("name", "side"), CASES)
def test_forward(name: str, side: str) -> None:
    model = hf_models.build(name)
    model.set_attn_implementation("sdpa" if name in ("llama", "bert") else "eager")
    before = model.config._attn_implementation
    report = hf.verify(model, hf_models.make_batch(name, side), tolerance=2e-5)
    assert report.calls in (2, 4, 6)  # attention layers of these models
    assert report.max_difference <= 2e-5 * report.largest
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(("name", "side"), CASES)
def test_training_step(name: str, side: str) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name, side)
    before = hf.calls()
    ours = gradients(model, batch, hf.NAME)
    assert hf.calls() > before
    assert_same(ours, gradients(model, batch, "eager"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bert", "t5"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    if name == "gpt_oss" and dtype == torch.float64:
        pytest.skip("torch has no grouped product of experts in float64")
    model = hf_models.build(name).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # small weights: rounding stays what it is
            parameter.mul_(0.5)
    # In float64 eager's hidden scores overflow its float32 softmax, and padding becomes NaN.
    side = "none" if dtype == torch.float64 else "right"
    hf.verify(model, hf_models.make_batch(name, side))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", list(hf_models.DECODERS))
def test_generate(name: str, cache: str) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name, "left")
    tokens = {}
    for implementation in ("eager", hf.NAME):
        model.set_attn_implementation(implementation)
        before = hf.calls()
        tokens[implementation] = model.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=12,
            min_new_tokens=12, do_sample=False,
            cache_implementation="static" if cache == "static" else None)
    assert hf.calls() - before == 2 * 12  # two layers, a prefill and 11 tokens
    assert tokens[hf.NAME].tolist() == tokens["eager"].tolist()


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_generate_with_encoder(name: str) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name, "right")
    batch = {key: value for key, value in batch.items() if "label" not in key
             and "decoder" not in key}
    tokens = []
    for implementation in ("eager", hf.NAME):
        model.set_attn_implementation(implementation)
        tokens.append(model.generate(**batch, max_new_tokens=8, do_sample=False).tolist())
    assert tokens[0] == tokens[1]


def test_beams() -> None:
    model = hf_models.build("llama")
    batch = hf_models.make_batch("llama", "left")
    tokens = []
    for implementation in ("eager", hf.NAME):
        model.set_attn_implementation(implementation)
        tokens.append(model.generate(batch["input_ids"], attention_mask=batch["attention_mask"],
                                     max_new_tokens=8, num_beams=3, do_sample=False).tolist())
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bert", "t5"])
def test_gradient_checkpointing(name: str, reentrant: bool) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name, "right")
    expected = gradients(model, batch, "eager")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    before = hf.calls()
    ours = gradients(model, batch, hf.NAME)
    layers = 6 if name == "t5" else 2
    assert hf.calls() - before == 2 * layers  # each layer twice
    assert_same(ours, expected)


def test_dropout_is_replayed_by_checkpointing() -> None:
    model = hf_models.build("llama")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    batch = hf_models.make_batch("llama")

    def run(seed: int) -> tuple[float, Any]:
        torch.manual_seed(seed)
        return gradients(model, batch, hf.NAME)

    plain, other = run(5), run(6)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(run(5), plain, part=1e-6)
    assert plain[0] != other[0]
    model.eval()
    assert model(**batch).loss.item() == model(**batch).loss.item()


def test_autocast() -> None:
    model = hf_models.build("gpt_oss")
    batch = hf_models.make_batch("gpt_oss", "right")
    with torch.autocast("cpu", torch.bfloat16):
        report = hf.verify(model, batch, tolerance=0.06)
    assert report.calls == 2


def test_compile() -> None:
    model = hf_models.build("llama")
    model.set_attn_implementation(hf.NAME)
    batch = hf_models.make_batch("llama")
    expected = gradients(model, batch, hf.NAME)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss = compiled(**batch, use_cache=False).loss
    loss.backward()
    found = {key: p.grad for key, p in model.named_parameters()}
    assert_same((loss.item(), found), expected)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "bert", "gpt_oss"])
def test_compile_with_padding(name: str) -> None:
    model = hf_models.build(name)
    batch = hf_models.make_batch(name, "right")
    seen = batch["attention_mask"].bool()
    model.set_attn_implementation("eager")
    keywords = {} if name == "bert" else {"use_cache": False}
    with torch.no_grad():
        expected = model(**batch, **keywords).logits[seen]
        model.set_attn_implementation(hf.NAME)
        torch._dynamo.reset()
        found = torch.compile(model, backend="eager")(**batch, **keywords).logits[seen]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_packed_sequences() -> None:
    """Positions that start again mean sequences that do not see each other."""
    batch = hf_models.make_batch("mistral")
    lengths = ((8, 12), (3, 17))
    batch["position_ids"] = torch.stack([torch.cat([torch.arange(n) for n in row])
                                         for row in lengths])
    for name in ("llama", "mistral"):
        model = hf_models.build(name)
        packed = {**batch, "use_cache": False}
        assert hf.verify(model, packed, tolerance=2e-5).calls == 2
        model.set_attn_implementation(hf.NAME)
        whole = model(**packed).logits[0, 8:]
        alone = model(batch["input_ids"][:1, 8:]).logits[0]
        torch.testing.assert_close(whole, alone, rtol=0, atol=1e-4)


REFUSED = {
    "codegen": lambda t: t.CodeGenForCausalLM(t.CodeGenConfig(
        vocab_size=40, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=32)),
    "bloom": lambda t: t.BloomForCausalLM(t.BloomConfig(
        vocab_size=40, hidden_size=32, n_layer=1, n_head=4)),
    "xglm": lambda t: t.XGLMForCausalLM(t.XGLMConfig(
        vocab_size=40, d_model=32, ffn_dim=32, num_layers=1, attention_heads=4)),
    "roformer": lambda t: t.RoFormerModel(t.RoFormerConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=32)),
    "gptj": lambda t: t.GPTJForCausalLM(t.GPTJConfig(
        vocab_size=40, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=32)),
    "gpt_neo": lambda t: t.GPTNeoForCausalLM(t.GPTNeoConfig(
        vocab_size=40, hidden_size=32, num_layers=1, num_heads=4,
        attention_types=[[["global"], 1]])),
    "falcon": lambda t: t.FalconForCausalLM(t.FalconConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)),
    "deberta": lambda t: t.DebertaModel(t.DebertaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=32)),
    "mpt": lambda t: t.MptForCausalLM(t.MptConfig(
        vocab_size=40, d_model=32, n_layers=1, n_heads=4)),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_that_ignore_the_interface_are_refused(name: str) -> None:
    class Named:
        """transformers, whose configurations ask for "attentile"."""

        def __getattr__(self, key: str) -> Any:
            made = getattr(transformers, key)
            if not key.endswith("Config"):
                return made
            return lambda **keywords: made(**keywords, attn_implementation=hf.NAME)

    with pytest.raises(UnsupportedError, match="computes attention by itself"):
        REFUSED[name](Named())
    with pytest.raises(UnsupportedError, match="computes attention by itself"):
        hf.verify(REFUSED[name](transformers))


def test_layers_looked_up_by_name_are_refused() -> None:
    from transformers.models.git import modeling_git

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    small = {**hf_models._BASE, "num_hidden_layers": 1, "vision_config": vision}
    with pytest.raises(UnsupportedError, match="GIT_SELF_ATTENTION_CLASSES"):
        transformers.GitModel(transformers.GitConfig(**small, attn_implementation=hf.NAME))
    hf.unregister()
    assert hf.NAME not in modeling_git.GIT_SELF_ATTENTION_CLASSES


def test_the_files_that_are_refused() -> None:
    """Which files of Transformers compute attention by themselves, by the text of all of them."""
    from pathlib import Path

    from attentile.hf._guard import source_layers

    files = sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py"))
    refused = {f.stem.removeprefix("modeling_") for f in files
               if source_layers(f.read_text(encoding="utf-8"))}
    assert {"bloom", "codegen", "xglm", "roformer", "gptj", "falcon", "deberta",
            "bigbird_pegasus", "informer", "pp_doclayout_v2"} <= refused
    assert not {"llama", "bert", "gpt2", "t5", "vit", "clip", "whisper", "llava"} & refused
    if transformers.__version__ == "5.23.0":
        assert len(refused) == 94 + 3


def test_mask_is_refused_for_a_model_that_was_switched_by_hand() -> None:
    model = REFUSED["bloom"](transformers)
    model.config._attn_implementation = hf.NAME
    with pytest.raises(UnsupportedError, match="modeling_bloom"):
        model(torch.tensor([[5, 6, 7]]))


def test_keywords_that_are_not_handled_are_refused() -> None:
    model = hf_models.build("llama")
    model.set_attn_implementation(hf.NAME)
    ids = torch.tensor([[5, 6, 7]])
    for name in ("indices", "block_indices", "sinks"):
        with pytest.raises(UnsupportedError, match=f"{name}: was given"):
            model(ids, **{name: ids})
    with pytest.raises(UnsupportedError, match="output_attentions"):
        model(ids, output_attentions=True)


def test_mask_of_another_shape_is_refused() -> None:
    mask = hf.compact_mask(1, 4, 4, mask_function=transformers.masking_utils.causal_mask_function,
                           allow_is_causal_skip=False)
    q = torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match=r"attention_mask: was for \(4, 4\)"):
        hf.attention_forward(None, q, q, q, mask)
    with pytest.raises(TypeError, match="attention_mask: was of torch.int64"):
        hf.attention_forward(None, q, q, q, torch.ones(5, 5, dtype=torch.int64))


def test_verify_finds_lost_masks() -> None:
    """Without the mask function padding and windows are lost, and Transformers says nothing."""
    model = hf_models.build("mistral")
    transformers.AttentionMaskInterface._global_mapping.pop(hf.NAME)
    with pytest.raises(RuntimeError, match="logits of MistralForCausalLM differs from eager by"):
        hf.verify(model)


def test_verify_finds_models_without_attention() -> None:
    model = transformers.FNetModel(transformers.FNetConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, intermediate_size=32,
        max_position_embeddings=32, tpu_short_seq_length=32))
    with pytest.raises(RuntimeError, match="no attention layer of FNetModel ran in attentile"):
        hf.verify(model, {"input_ids": torch.ones((1, 32), dtype=torch.long)})


@pytest.mark.parametrize("name", [n for n in hf_models.ALL if n != "llava"])
def test_verify_makes_a_batch(name: str) -> None:
    model = hf_models.build(name).train()
    report = hf.verify(model)
    assert report.calls > 0 and report.compared and model.training


def test_registration() -> None:
    hf.register()  # again
    hf.unregister()
    config = transformers.LlamaConfig(**hf_models._GQA, attn_implementation=hf.NAME)
    with pytest.raises(ValueError, match="is not supported"):
        transformers.LlamaForCausalLM(config)
    hf.unregister()  # again
    transformers.BloomConfig(attn_implementation="eager")
    hf.register()
    model = transformers.LlamaForCausalLM(config)
    before = hf.calls()
    model(torch.tensor([[5, 6, 7]]))
    assert hf.calls() - before == 2


def test_continuous_batching() -> None:
    prompts = [[5, 6, 7, 8, 9], [11, 12], [13, 14, 15]]
    for name in ("llama", "mistral"):
        model = hf_models.build(name)
        model.set_attn_implementation("sdpa")
        settings = transformers.GenerationConfig(max_new_tokens=9, do_sample=False,
                                                 eos_token_id=-1, pad_token_id=0)
        paging = transformers.ContinuousBatchingConfig(page_size=16, num_blocks=16,
                                                       max_batch_tokens=32)
        stock = transformers.AttentionInterface._global_mapping["sdpa"]
        before = hf.calls()
        with hf.continuous_batching():
            found = model.generate_batch(prompts, generation_config=settings,
                                         continuous_batching_config=paging)
        assert hf.calls() - before >= 2 * 9
        assert transformers.AttentionInterface._global_mapping["sdpa"] is stock
        model.set_attn_implementation("eager")
        for prompt, key in zip(prompts, sorted(found), strict=True):
            alone = model.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False,
                                   eos_token_id=-1, pad_token_id=0)
            assert list(found[key].generated_tokens) == alone[0, len(prompt):].tolist()


@pytest.mark.parametrize("tokens", [30, 124])  # of 128 positions: text is left out for the latter
def test_side_by_side(tokens: int) -> None:
    model = hf_models.build("llama")
    model.set_attn_implementation("sdpa")
    ids = torch.randint(3, 90, (1, tokens), generator=torch.Generator().manual_seed(2))
    rows, reference = hf.side_by_side(model, ids, new_tokens=8, rounds=1)
    assert model.config._attn_implementation == "sdpa"
    assert reference.shape == (1, tokens, 32)
    assert [row.implementation for row in rows] == ["eager", "sdpa", "attentile"]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    prompt = ids[:, :min(tokens, 120)]
    expected = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False,
                              eos_token_id=None)[0, prompt.shape[1]:].tolist()
    for row in rows:
        assert row.loss == pytest.approx(loss, rel=1e-5)
        assert row.logits_error < 1e-4
        assert list(row.generated) == expected
        assert row.prefill > 0 and row.decode > 0
    assert rows[0].logits_error == 0
    lines = hf.table(rows).splitlines()
    assert len(lines) == 4 and all(line.endswith("8/8") for line in lines[1:])


def test_side_by_side_leaves_out_what_does_not_fit() -> None:
    model = hf_models.build("mistral")
    ids = torch.randint(3, 90, (1, 30))
    rows, _ = hf.side_by_side(model, ids, new_tokens=4, rounds=1, memory_limit=1000)
    needed = 4 * 30 * 30 * 2 * 4 + 30 * 30 * 4
    assert hf.eager_bytes(model.config, 1, 30, torch.float32) == needed
    assert [row.fits for row in rows] == [False, True, True]
    assert f"does not fit: its scores alone need {needed:,} bytes" in hf.table(rows)
    assert rows[1].logits_error == 0


def test_side_by_side_with_softcapped_logits() -> None:
    model = hf_models.build("gemma2")
    ids = torch.randint(3, 90, (1, 30))
    rows, _ = hf.side_by_side(model, ids, new_tokens=2, rounds=1,
                              implementations=("eager", hf.NAME))
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert [row.loss for row in rows] == pytest.approx([loss, loss], rel=1e-5)
