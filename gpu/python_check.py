#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""attentile.torch on CUDA tensors: results and gradients against torch's math backend in float32,
and torch's checks of the two operators. A line of JSON for each. Exit status 3 where the package
cannot be imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-4}


def gradients(out: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    dout = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given, dout)]


def attention_check(device: str, dtype: torch.dtype, causal: bool) -> str:
    """What differs, or ""."""
    from attentile.torch import attention

    given = [torch.randn(2, 150, 4, 64, device=device).to(dtype).requires_grad_() for _ in "qkv"]
    ours = gradients(attention(*given, causal=causal), given)
    exact = [x.detach().float().requires_grad_() for x in given]
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in exact), is_causal=causal)
        theirs = gradients(out.transpose(1, 2), exact)
    for name, x, y in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        worst = float((x.float() - y).abs().max() / y.abs().max())
        if not worst < TOLERANCE[dtype]:
            return f"{name} differs by {worst:.3g} of the largest value"
    return ""


def operators_check(device: str) -> str:
    q, k, v = (torch.randn(1, 9, 2, 32, device=device).requires_grad_() for _ in range(3))
    forward = torch.ops.attentile.forward.default
    backward = torch.ops.attentile.backward.default
    found = dict(torch.library.opcheck(forward, (q, k, v), {"causal": True}))
    with torch.no_grad():
        out, lse = forward(q, k, v, causal=True)
        given = (torch.ones_like(out), None, *(x.detach() for x in (q, k, v)), out, lse)
    found |= {f"backward {name}": verdict for name, verdict in torch.library.opcheck(
        backward, given, {"causal": True, "needs_dbias": False}).items()}
    return ", ".join(name for name, verdict in found.items() if verdict != "SUCCESS")


def checks(device: str) -> dict[str, Callable[[], str]]:
    found: dict[str, Callable[[], str]] = {
        f"{str(dtype)[6:]}{' causal' if causal else ''}":
            lambda dtype=dtype, causal=causal: attention_check(device, dtype, causal)
        for dtype, causal in ((torch.bfloat16, True), (torch.float16, False),
                              (torch.float32, True))}
    return {**found, "opcheck": lambda: operators_check(device)}


def main() -> int:
    try:
        import attentile.torch  # noqa: F401
    except (ImportError, AttributeError, RuntimeError) as error:
        print(f"attentile.torch with torch {torch.__version__}: {type(error).__name__}: {error}",
              file=sys.stderr)
        return 3
    torch.manual_seed(1)
    status = 0
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, run in checks("cpu" if "--rehearse" in sys.argv else "cuda").items():
        try:
            what = run()
        except Exception as error:  # what a check raises is what it found
            what = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"name": name, "good": not what}), flush=True)
        if what:
            print(json.dumps({"failure": name, "what": what, "again": ""}), flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
