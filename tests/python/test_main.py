# SPDX-License-Identifier: Apache-2.0
"""python -m attentile, run as a user runs it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import attentile
from attentile import __main__ as program
from attentile import _demo

SVG = "{http://www.w3.org/2000/svg}"


def run(*arguments, **keywords):
    return subprocess.run([sys.executable, "-m", "attentile", *arguments], text=True,
                          capture_output=True, timeout=120, **keywords)


def test_info_tells_what_the_library_tells():
    done = run("info")
    assert done.returncode == 0 and not done.stderr
    told = {line.partition("  ")[0]: line.partition("  ")[2].strip()
            for line in done.stdout.splitlines()}
    facts = attentile.info()
    assert told["attentile"] == facts["version"]
    assert told["instruction sets"].split(", ") == facts["isas"]
    assert told["numpy"] == np.__version__
    assert set(program.DROP_INS) <= set(told)
    columns = {re.search(r"\s{2,}", line).end() for line in done.stdout.splitlines()}
    assert len(columns) == 1  # one column of values, aligned


def test_info_json():
    done = run("info", "--json")
    found = json.loads(done.stdout)
    facts = attentile.info()
    assert {key: found[key] for key in facts} == facts
    assert "peaks" not in found
    for package, version in found["packages"].items():
        if version is None:
            with pytest.raises(importlib.metadata.PackageNotFoundError):
                importlib.metadata.version(package)
        else:
            assert version == importlib.metadata.version(package)
    for state in found["drop_ins"].values():
        assert state["usable"] == (state["why_not"] is None)


def test_info_measure():
    found = json.loads(run("info", "--json", "--measure").stdout)
    isas = {peak["isa"] for peak in found["peaks"]}
    assert isas == set(found["isas"])
    assert all(peak[name] > 0 for peak in found["peaks"]
               for name in ("gflops_1_thread", "gflops", "product_gflops_1_thread",
                            "product_gflops"))
    text = program.describe(found)
    assert "GFLOP/s" in text and all(isa in text for isa in isas)


def test_info_imports_no_framework():
    code = ("import sys; from attentile.__main__ import main; main(['info']); "
            "print([m for m in ('torch', 'jax', 'onnx', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("version", "why"), [
    (None, "needs torch >= 2.13, which is not installed"),
    ("2.9.1", "needs torch >= 2.13, found 2.9.1"), ("2.13.0+cpu", None), ("3.0a1", None)])
def test_an_obstacle_is_named(monkeypatch, version, why):
    monkeypatch.setattr(program, "installed", lambda package: version)
    assert program.obstacle("attentile.torch") == why


def test_jax_without_handlers_and_absent_parts_are_named(monkeypatch):
    monkeypatch.setattr(program, "installed", lambda package: "99.0")
    monkeypatch.delattr(program._core, "jax_handlers", raising=False)
    assert "no handlers for XLA" in program.obstacle("attentile.jax")
    assert program.obstacle("attentile.nothing") == "this build does not have it"


def test_versions_are_those_of_the_project():
    tomllib = pytest.importorskip("tomllib")
    path = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = {extra: dict(requirement.split(">=") for requirement in requirements)
              for extra, requirements in extras.items()}
    for part, needs in program.DROP_INS.items():
        extra = {"nn": "torch", "compat": "torch"}.get(part.split(".")[1], part.split(".")[1])
        assert needs == wanted[extra], part


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((), "required: info | demo"), (("inform",), "invalid choice: 'inform'"),
    (("info", "--jsn"), "unrecognized arguments: --jsn"), (("info", "x"), "unrecognized"),
    (("demo", "--out"), "expected one argument"),
    (("demo", "--out", "picture.png"), "was 'picture.png', expected a name that ends in .html"),
    (("demo", "--out", "no/such/place.svg"), "expected a file in a folder that exists")])
def test_wrong_usage_is_one_sentence_and_status_2(arguments, sentence):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("python -m attentile") and sentence in done.stderr


def test_a_folder_is_no_picture(tmp_path):
    (tmp_path / "taken.svg").mkdir()
    done = run("demo", "--out", str(tmp_path / "taken.svg"))
    assert done.returncode == 2 and "which is a folder" in done.stderr


def test_help_and_version():
    assert "demo" in run("--help").stdout
    assert run("--version").stdout.split() == ["attentile", attentile.__version__]


def foreign(text):
    """Addresses that a picture would load from elsewhere."""
    return [x for x in re.findall(r"""(?:https?:)?//[^\s"'<>]+""", text)
            if x != "http://www.w3.org/2000/svg"] + re.findall(r"<(?:script|link|img|iframe)", text)


def test_demo(tmp_path):
    page = tmp_path / "page.html"
    done = run("demo", "--out", str(page))
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.splitlines()[-1] == f"Picture written to {page.resolve()}"
    table = [line.split() for line in done.stdout.splitlines() if re.match(r" *\d", line)]
    assert [int(line[0]) for line in table] == list(_demo.SEQLENS)
    for line in table:
        assert float(line[1]) > 0 and float(line[2]) > 0
        assert float(line[8]) < 1e-5 and float(line[9]) < 1e-5
    # The scores of NumPy grow with seqlen squared, and were really there; flash2's memory was not.
    last = table[-1]
    assert float(last[4]) > 100 * float(last[6])
    if sys.platform == "linux":
        assert 0.9 * float(last[4]) < float(last[5]) < 1.3 * float(last[4])
        assert float(last[7]) < 0.1 * float(last[4])
    text = page.read_text(encoding="utf-8")
    assert not foreign(text)
    for line in table:
        assert all(f"<td>{cell}</td>" in text for cell in line)


def row(seqlen, **changed):
    return _demo.Row(seqlen, 1e-3 * seqlen, 1e-4 * seqlen, 4 * seqlen ** 2, 4096,
                     4 * seqlen ** 2, 0, 1e-7, 1e-7)._replace(**changed)


def test_picture_draws_every_value_and_nothing_foreign():
    text = _demo.picture([row(512), row(1024), row(2048, numpy_measured=None)], html=False)
    root = ElementTree.fromstring(text)
    lines = root.findall(f"{SVG}polyline")
    # Seconds twice, computed memory twice, measured once: flash2 never moved the peak.
    assert [len(line.get("points").split()) for line in lines] == [3, 3, 2, 3, 3]
    assert len(root.findall(f"{SVG}circle")) == 14
    assert not foreign(text)
    _, _, width, height = map(float, root.get("viewBox").split())
    for dot in root.findall(f"{SVG}circle"):
        assert 0 < float(dot.get("cx")) < width and 0 < float(dot.get("cy")) < height
    # Longer is higher (y counts downwards), in every line.
    for line in lines[:2]:
        heights = [float(point.split(",")[1]) for point in line.get("points").split()]
        assert heights == sorted(heights, reverse=True)


def test_the_demo_s_standard_attention_is_attention():
    q, k, v = (x.astype(np.float64) for x in _demo._inputs(64))
    scores = np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(_demo.HEAD_DIM)
    weights = np.exp(scores)
    want = np.einsum("bhij,bhjd->bhid", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(_demo.standard(q, k, v), want, atol=1e-12)
    np.testing.assert_allclose(_demo.flash(q, k, v), want, atol=1e-12)
