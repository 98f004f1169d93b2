# SPDX-License-Identifier: Apache-2.0
"""The proof that a capture is right: attention from its definition, against the model's own.

Used by capture_qkv.py. Attention over the captured tensors is computed in float64, forward and
backward, and compared with what the model computed at that layer, before and after the rounding
to float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


class CaptureError(Exception):
    """A capture that could not be made, or that is not right."""


@dataclass
class Recording:
    """What one layer's attention was given and returned, with autograd history."""

    q: torch.Tensor  # [batch, num_heads_q, seqlen, head_dim]
    k: torch.Tensor  # [batch, num_heads_kv, seqlen, head_dim]
    v: torch.Tensor
    out: torch.Tensor  # [batch, seqlen, num_heads_q, head_dim]
    softmax_scale: float
    causal: bool


@dataclass
class Capture:
    """The content of one output file."""

    name: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    report: list[str] = field(default_factory=list)


def attention_from_definition(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dout: torch.Tensor,
    scale: float,
    causal: bool,
) -> tuple[dict[str, torch.Tensor], float]:
    """Compute out, dq, dk, dv in float64, and the bound on sum |q||k| * scale over all scores.

    All tensors are [batch, seqlen, heads, dim].
    """
    q, k, v, dout = (tensor.detach().double() for tensor in (q, k, v, dout))
    group_size = q.shape[2] // k.shape[2]
    out, dq, dk, dv = (torch.zeros_like(tensor) for tensor in (dout, q, k, v))
    magnitude = 0.0
    seqlen, chunk = q.shape[1], 512
    for batch in range(q.shape[0]):
        for head in range(q.shape[2]):
            keys, values = k[batch, :, head // group_size], v[batch, :, head // group_size]
            for start in range(0, seqlen, chunk):
                at = (batch, slice(start, start + chunk), head)
                end = min(start + chunk, seqlen) if causal else seqlen
                seen = (batch, slice(0, end), head // group_size)
                scores = q[at] @ keys[:end].T * scale
                magnitude = max(magnitude, (q[at].abs() @ keys[:end].abs().T).max().item() * scale)
                if causal:
                    rows = torch.arange(start, start + len(scores))[:, None]
                    scores.masked_fill_(torch.arange(end)[None, :] > rows, -math.inf)
                p = scores.softmax(-1)
                out[at] = p @ values[:end]
                dp = dout[at] @ values[:end].T
                ds = p * (dp - (dout[at] * out[at]).sum(-1, keepdim=True))
                dq[at] = ds @ keys[:end] * scale
                dk[seen] += ds.T @ q[at] * scale
                dv[seen] += p.T @ dout[at]
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}, magnitude


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def prove(recording: Recording, rows: slice, capture: Capture) -> None:
    """Compare the definition over the captured tensors with what the model itself computed."""
    scale, causal = recording.softmax_scale, recording.causal
    gradients = [tensor.grad for tensor in (recording.q, recording.k, recording.v, recording.out)]
    if any(gradient is None for gradient in gradients):
        raise CaptureError(f"{capture.name}: no gradient reached the layer")
    model = {
        name: tensor.detach().double()[rows]
        for name, tensor in zip(
            ("out", "dq", "dk", "dv"),
            (recording.out, *(gradient.transpose(1, 2) for gradient in gradients[:3])),
            strict=True,
        )
    }
    q, k, v = (t.transpose(1, 2)[rows] for t in (recording.q, recording.k, recording.v))
    exact, magnitude = attention_from_definition(q, k, v, gradients[3][rows], scale, causal)
    dout_scale = float(capture.metadata["dout_scale"])
    stored = {name: tensor.double() for name, tensor in capture.tensors.items()}
    rounded, _ = attention_from_definition(
        stored["q"], stored["k"], stored["v"], stored["dout"] / dout_scale, scale, causal
    )
    tolerance = 1e-12 if recording.q.dtype == torch.float64 else 1e-4
    # Rounding moves a score by at most 2^-10 of sum |q||k| * scale, hence a probability by the
    # factor exp(2 * that), and v by 2^-11 of itself.
    bound = math.expm1(2 * magnitude * 2.0**-10) + 2.0**-11
    for name, expected in model.items():
        before = relative_error(exact[name], expected)
        after = relative_error(rounded[name], expected)
        capture.report.append(
            f"  {name:4} against the model's own: {before:.1e} before rounding, "
            f"{after:.1e} from the float16 tensors"
        )
        if not before <= tolerance:
            raise CaptureError(f"{capture.name}: {name} is off by {before:.1e} before rounding")
        if name == "out":
            v_ratio = (stored["v"].abs().max() / expected.abs().max()).item()
            if not after <= bound * max(1.0, v_ratio):
                raise CaptureError(f"{capture.name}: out is off by {after:.1e} after rounding")
