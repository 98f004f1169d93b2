# SPDX-License-Identifier: Apache-2.0
"""Tiny models of Transformers with random weights, and a batch for each."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

VOCAB, LENGTH = 97, 20
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128}
_GQA: dict[str, Any] = {**_BASE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
                        "bos_token_id": 1, "eos_token_id": 2}
_VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "image_size": 16, "patch_size": 4}

DECODERS: dict[str, Any] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_GQA)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_GQA, sliding_window=5)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(
        **_GQA, sliding_window=5, attn_logit_softcapping=2.0, query_pre_attn_scalar=8)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(
        **_GQA, sliding_window=5, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"])),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_GQA)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(
        **{k: v for k, v in _GQA.items() if k != "head_dim"}, sliding_window=6)),
    "gpt_oss": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(
        **_GQA, sliding_window=5, num_local_experts=2, num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"])),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1,
        eos_token_id=2, pad_token_id=0)),
    "deepseek_v3": lambda: tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(
        **_BASE, num_key_value_heads=4, q_lora_rank=12, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=4, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2)),
}

ENCODERS: dict[str, Any] = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**_BASE)),
    "modernbert": lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(
        **_BASE, local_attention=6, global_attn_every_n_layers=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_BASE)),
}

SEQ2SEQ: dict[str, Any] = {
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0)),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=64)),
}


def _clip() -> Any:
    text = {**_BASE, "max_position_embeddings": 40, "eos_token_id": 2}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16))


def _whisper() -> Any:
    return tf.WhisperForConditionalGeneration(tf.WhisperConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=8,
        max_source_positions=15, max_target_positions=24, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[]))


def _llava() -> Any:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**_VISION), text_config=tf.LlamaConfig(**_GQA),
        image_token_index=VOCAB - 1, vision_feature_layer=-1,
        vision_feature_select_strategy="default")
    return tf.LlavaForConditionalGeneration(config)


OTHERS: dict[str, Any] = {
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_VISION, num_labels=3)),
    "clip": _clip, "whisper": _whisper, "llava": _llava}

_WIDE: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_TIMES = {"context_length": 12, "prediction_length": 8, "lags_sequence": [1, 2, 3]}

# Models without support of "sdpa", whose layers do not set is_causal to what they are.
UNTOLD: dict[str, Any] = {
    "nllb_moe": lambda: tf.NllbMoeModel(tf.NllbMoeConfig(
        vocab_size=VOCAB, **_WIDE, max_position_embeddings=64, encoder_sparse_step=0,
        decoder_sparse_step=0, num_experts=2, expert_capacity=64)),
    "pegasus_x": lambda: tf.PegasusXModel(tf.PegasusXConfig(
        vocab_size=VOCAB, **_WIDE, max_position_embeddings=64, num_global_tokens=2, block_size=4)),
    "informer": lambda: tf.InformerModel(tf.InformerConfig(
        **_TIMES, **_WIDE, attention_type="full", distil=False, num_time_features=2)),
    "splinter": lambda: tf.SplinterModel(tf.SplinterConfig(**_BASE)),
    "align_text": lambda: tf.AlignTextModel(tf.AlignTextConfig(**_BASE)),
    "clap_text": lambda: tf.ClapTextModel(tf.ClapTextConfig(**_BASE)),
}

ALL = {**DECODERS, **ENCODERS, **SEQ2SEQ, **OTHERS}


_DECODING = ("nllb_moe", "pegasus_x", "informer")


def build(name: str) -> Any:
    """The model, in evaluation, with the same random weights each time and no dropout."""
    torch.manual_seed(0)
    model = (ALL | UNTOLD)[name]()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 or "sinks" in key:
                parameter.normal_(0.0, 0.3)  # attention that is not uniform
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for key in ("attention_dropout", "dropout", "activation_dropout", "encoder_layerdrop",
                    "decoder_layerdrop", "layerdrop"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, 0.0)
    return model.eval()


def padding(side: str, batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    """[batch, length] of 0 and 1: the second sequence is 7 tokens shorter, on "left" or "right"."""
    mask = torch.ones((batch, length), dtype=torch.long)
    if side == "left":
        mask[1, :7] = 0
    elif side == "right":
        mask[1, -7:] = 0
    return mask


def make_batch(name: str, side: str = "none") -> dict[str, torch.Tensor]:
    """Keywords of the model's forward; text is padded on `side`."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int, top: int = VOCAB - 1) -> torch.Tensor:
        return torch.randint(3, top, (2, length), generator=generator)

    if name == "informer":
        steps = 12 + 3
        past, future = torch.randn((2, steps + 8), generator=generator).split([steps, 8], dim=1)
        known = torch.randn((2, steps + 8, 2), generator=generator)
        seen = torch.ones((2, steps))
        if side != "none":
            seen[1, :5] = 0  # enters as a feature: this model hides nothing from its attention
        return {"past_values": past, "future_values": future, "past_observed_mask": seen,
                "past_time_features": known[:, :steps], "future_time_features": known[:, steps:]}
    pixels = torch.randn((2, 3, 16, 16), generator=generator)
    if name == "vit":
        return {"pixel_values": pixels, "labels": torch.tensor([0, 2])}
    if name == "whisper":
        return {"input_features": torch.randn((2, 8, 30), generator=generator),
                "decoder_input_ids": tokens(9), "labels": tokens(9)}
    batch = {"input_ids": tokens(LENGTH)}
    if side != "none":
        batch["attention_mask"] = padding(side)
    if name in UNTOLD:
        return {**batch, "decoder_input_ids": tokens(11)} if name in _DECODING else batch
    if name == "clip":
        batch["input_ids"][:, -1] = 2
        return {**batch, "pixel_values": pixels, "return_loss": torch.tensor(True)}
    if name == "llava":
        images = torch.full((2, 16), VOCAB - 1)
        batch["input_ids"] = torch.cat([batch["input_ids"], images, tokens(3)], dim=1)
        batch["pixel_values"] = pixels
        if side != "none":
            batch["attention_mask"] = padding(side, length=LENGTH + 19)
            if side == "right":  # images are no padding: the text before them is
                batch["attention_mask"] = padding("left", length=LENGTH + 19).flip(0)
    if name in SEQ2SEQ:
        return {**batch, "labels": tokens(11)}
    return {**batch, "labels": _labels(batch)}


def _labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Labels of the tokens that are no padding, and that are not predicted from padding."""
    labels = batch["input_ids"].clone()
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        before = torch.cat([mask[:, :1], mask[:, :-1]], dim=1)
        labels[(mask & before) == 0] = -100
    return labels
