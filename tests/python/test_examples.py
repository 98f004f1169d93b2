# SPDX-License-Identifier: Apache-2.0
"""The training examples, each in a reduced form in a process of its own."""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import attentile

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/python"


def run(name, *words):
    """The lines that an example prints, on one thread, importing the same attentile as this."""
    package = str(Path(attentile.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1",
                   "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *words], text=True, timeout=300,
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(line):
    return [float(word) for word in re.findall(r"-?\d+\.?\d*", line)]


@pytest.fixture
def layer(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("efficient_transformer_layer")


@pytest.fixture
def attend(layer):
    return importlib.import_module("_attend").ATTEND


def test_layer_shapes_and_module(layer):
    module = layer.EfficientTransformerLayer(24, 3)
    assert isinstance(module.attend, attentile.nn.FlashAttention)
    assert module(torch.randn(2, 5, 72)).shape == (2, 5, 24)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("other", ["eager", "sdpa"])
def test_layer_agrees(layer, attend, other, causal):
    torch.manual_seed(0)
    ours = layer.EfficientTransformerLayer(24, 3, causal)
    theirs = layer.EfficientTransformerLayer(24, 3, causal, attend[other])
    theirs.load_state_dict(ours.state_dict())
    first = torch.randn(2, 33, 72, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    one, two = ours(first), theirs(second)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    one.square().sum().backward()
    two.square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=0, atol=1e-4)


def test_the_copied_view_is_refused(layer):
    """view(batch, seqlen, 3, -1).transpose(1, 2) loses the heads: an error, not another result."""
    qkv = torch.randn(2, 5, 72)
    with pytest.raises(ValueError, match="not transposed"):
        attentile.nn.FlashAttention()(qkv.view(2, 5, 3, -1).transpose(1, 2))


@pytest.mark.parametrize("name", ["attentile", "eager"])
def test_layer_learns(layer, attend, name):
    """Reversal cannot be guessed: without attention the loss stays at ln(16)."""
    assert layer.train(attend[name], 60) < 0.2
    assert layer.train(lambda qkv, causal: (0 * qkv[:, :, 2], None), 20) > 0.9 * math.log(16)


def test_efficient_transformer_layer():
    ours, eager = (numbers(line)[-1] for line in run("efficient_transformer_layer.py", "--steps",
                                                     "40"))
    assert ours == pytest.approx(eager, abs=1e-3) and ours < 2.5


def test_train_gpt(tmp_path):
    picture = tmp_path / "loss.svg"
    lines = run("train_gpt.py", "--steps", "4", "--context", "32", "--out", str(picture))
    assert [line.split()[0] for line in lines] == ["eager", "sdpa", "attentile"]
    losses = [numbers(line)[:2] for line in lines]
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)
    assert losses[0][0] < 0.95 * math.log(59)
    drawing = ElementTree.parse(picture).getroot()
    assert drawing.tag.endswith("svg") and "attentile" in "".join(drawing.itertext())


def test_train_step():
    pytest.importorskip("transformers")
    lines = run("train_step.py", "--model", "bert", "--seqlen", "32", "--layers", "1", "--steps",
                "1", "--attention", "eager", "attentile")
    eager, ours = (float(re.search(r"loss (\S+);", line)[1]) for line in lines)
    assert ours == pytest.approx(eager, abs=1e-4) and 9 < ours < 12


def test_long_context():
    lines = run("long_context.py", "--positions", "256")
    assert [int(numbers(line)[0]) for line in lines] == [64, 256]
    assert int(numbers(lines[-1])[1]) >= 7


def test_int8_linear():
    lines = run("int8_linear.py", "--steps", "12", "--context", "32")
    full, int8 = (numbers(line.split(None, 1)[1]) for line in lines)
    assert full[0] > 0.15 and abs(full[0] - int8[0]) < 0.02
    assert abs(full[2] - int8[2]) < 0.05
    assert int8[3] < 0.5 * full[3]


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path.name
