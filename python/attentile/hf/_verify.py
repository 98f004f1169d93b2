# SPDX-License-Identifier: Apache-2.0
"""A batch through a model twice: proof that attention ran here and that the result is eager's."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel

from attentile.hf import _attention, _guard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

# Largest difference allowed, as a part of the largest value of an output, by dtype. Most models'
# eager attention takes its softmax in float32 also for float64.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_BATCH, _TOKENS = 2, 24


class Report(NamedTuple):
    """What `verify` found: layers that ran here, and the largest difference from eager.

    calls: attention layers in one forward (the first, if several were run). max_difference: largest
    absolute difference over the outputs compared, on tokens that are no padding. largest: largest
    absolute value of the output where it was found. compared: names of the outputs compared.
    """

    calls: int
    max_difference: float
    largest: float
    compared: tuple[str, ...]


def verify(model: Any, batch: Mapping[str, Any] | None = None, *,
           tolerance: float | None = None) -> Report:
    """Run a batch with "eager" and with "attentile", and compare every output.

    Args: model, a PreTrainedModel, which gets its own implementation and mode back; batch, keywords
    of its forward (a tokenizer's or processor's result; default: random tokens, pixels or audio
    features of the shapes that the configuration tells; tokens twice, without padding and with the
    last row padded on the right); tolerance, the largest difference as a part of an output's
    largest value (default by dtype: float32 1e-4, bfloat16 6e-2). Tokens that attention_mask hides
    are not compared.

    Raises: UnsupportedError for a model with a part that ignores attention functions; RuntimeError
    if no layer ran here, or if results differ; ValueError if a batch is needed or nothing can be
    compared.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model: was a {type(model).__name__}, expected a PreTrainedModel, or a "
                        "module around one that has its config")
    if batch is not None and not hasattr(batch, "keys"):
        raise TypeError(f"batch: was a {type(batch).__name__}, expected the keywords of the "
                        "model's forward")
    for part in _parts(model):
        _guard.refuse_model(part)
    batches = [dict(batch)] if batch is not None else _default_batches(model)
    with restored(model), torch.no_grad():
        model.eval()
        found = [_verify(model, given, tolerance) for given in batches]
    worst = max(found, key=lambda report: report.max_difference)
    return worst._replace(calls=found[0].calls)


def _default_batches(model: Any) -> list[dict[str, Any]]:
    """Without padding first: then masks are what they are for most users, and not built."""
    padded = make_batch(model)
    plain = {name: value for name, value in padded.items() if name != "attention_mask"}
    return [plain, padded] if len(plain) < len(padded) else [padded]


def _verify(model: Any, given: dict[str, Any], tolerance: float | None) -> Report:
    eager = _run(model, "eager", given)
    with _attention.counting() as counted:
        ours = _run(model, _guard.NAME, given)
    calls = counted[0]
    if calls == 0:
        raise RuntimeError(f"verify: no attention layer of {type(model).__name__} ran in attentile,"
                           " expected at least one; its code does not ask for the function")
    return _compare(model, given, (eager, ours), tolerance, calls)


def _parts(model: Any) -> list[PreTrainedModel]:
    return [m for m in model.modules() if isinstance(m, PreTrainedModel)]


@contextlib.contextmanager
def restored(model: Any) -> Iterator[None]:
    """Put implementations and training modes back at the end."""
    configs = {id(c): c for part in _parts(model) for c in _tree(part.config)}
    names = [(c, c._attn_implementation) for c in configs.values()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for config, name in names:
            config._attn_implementation_internal = name
        for module, training in modes:
            module.training = training


def _tree(config: Any) -> list[Any]:
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [config, *(c for part in parts if part is not None for c in _tree(part))]


def _run(model: Any, name: str, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.set_attn_implementation(name)
    with torch.random.fork_rng(devices=[]):  # for models that draw numbers, as ViTMAE
        torch.manual_seed(0)
        result = model(**batch)
    found = result.items() if hasattr(result, "items") else [("output", result)]
    return {key: value for key, value in found
            if isinstance(value, torch.Tensor) and value.is_floating_point()}


def _compare(model: Any, batch: dict[str, Any], runs: tuple[dict[str, Tensor], ...],
             tolerance: float | None, calls: int) -> Report:
    eager, ours = runs
    worst, compared = (0.0, 0.0), []
    for key, expected in eager.items():
        visible = _visible(model, batch, key, expected)
        if visible is None and key == "loss" and _padded(batch):
            continue  # means over padding that attends to nothing
        a, b = (t if visible is None else t[visible] for t in (expected, ours[key]))
        if a.numel() == 0:
            continue
        limit = _TOLERANCE.get(a.dtype, 1e-4) if tolerance is None else tolerance
        largest = float(a.abs().max())
        difference = float((a.double() - b.double()).abs().max())
        if not difference <= limit * max(largest, 1e-30):
            raise RuntimeError(
                f"verify: {key} of {type(model).__name__} differs from eager by {difference:.3g} "
                f"where the largest value is {largest:.3g}, expected at most {limit:.1g} of it")
        compared.append(key)
        worst = max(worst, (difference, largest))
    if not compared:
        raise ValueError(f"batch: gave outputs {sorted(eager)}, expected at least one "
                         "floating-point tensor that can be compared")
    return Report(calls, worst[0], worst[1], tuple(compared))


def _padded(batch: dict[str, Any]) -> bool:
    masks = (batch.get("attention_mask"), batch.get("decoder_attention_mask"))
    return any(m is not None and not m.bool().all() for m in masks)


def _visible(model: Any, batch: dict[str, Any], key: str, output: Tensor) -> Tensor | None:
    """Which tokens of an output [batch, tokens, ...] are no padding; None: compare all of it."""
    decodes = model.config.is_encoder_decoder and not key.startswith("encoder")
    mask = batch.get("decoder_attention_mask" if decodes else "attention_mask")
    if mask is None or mask.ndim != 2 or output.ndim < 2 or mask.shape != output.shape[:2]:
        return None
    return mask.bool()  # type: ignore[no-any-return]


def make_batch(model: PreTrainedModel) -> dict[str, Any]:
    """A random batch by what the configuration tells; ValueError where it does not tell enough."""
    parameters = inspect.signature(model.forward).parameters
    text = getattr(model.config, "get_text_config", lambda: model.config)()
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {}
    if model.main_input_name == "input_ids":
        batch = _tokens(text, generator)
    elif model.main_input_name == "input_features":
        batch["input_features"] = _features(model.config, generator)
    vision = getattr(model.config, "vision_config", model.config)
    if model.main_input_name == "pixel_values" or (
            "pixel_values" in parameters and "input_ids" in parameters and _is_dual(model)):
        batch["pixel_values"] = _pixels(vision, generator, model.dtype)
    if model.config.is_encoder_decoder:
        size = text.vocab_size
        batch["decoder_input_ids"] = torch.randint(0, size, (_BATCH, 9), generator=generator)
    if not batch:
        raise ValueError(f"batch: was None, expected keywords of {type(model).__name__}.forward: "
                         f"no default is known for its main input {model.main_input_name!r}")
    return {name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in batch.items()}


def _is_dual(model: Any) -> bool:
    """A model with a text and a vision tower side by side, as CLIP; the others place images."""
    return hasattr(model, "text_model") and hasattr(model, "vision_model")


def _tokens(config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    longest = getattr(config, "max_position_embeddings", None) or _TOKENS
    length = max(2, min(_TOKENS, int(longest) - 4))
    ids = torch.randint(0, config.vocab_size, (_BATCH, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length - length // 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _pixels(config: Any, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    size = getattr(config, "image_size", None)
    if size is None:
        raise ValueError("batch: was None, expected keywords of forward: the configuration tells "
                         "no image_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape = (_BATCH, getattr(config, "num_channels", 3), height, width)
    return torch.randn(shape, generator=generator).to(dtype)


def _features(config: Any, generator: torch.Generator) -> Tensor:
    bins, length = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", 0)
    if bins is None or not length:
        raise ValueError("batch: was None, expected keywords of forward: the configuration tells "
                         "no num_mel_bins and max_source_positions")
    return torch.randn((_BATCH, bins, 2 * length), generator=generator)
