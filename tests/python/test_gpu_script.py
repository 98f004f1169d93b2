# SPDX-License-Identifier: Apache-2.0
"""`./dev gpu` (gpu/*.py) with programs that misbehave in the place of its own."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "gpu"))
import calls  # noqa: E402
import device_call  # noqa: E402
import race  # noqa: E402
import report  # noqa: E402
import run as gpu_run  # noqa: E402
import shapes  # noqa: E402
import slices  # noqa: E402
import timer  # noqa: E402

Fake = Callable[[str], calls.Run]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A Run whose gpu_check is a Python program of that text."""
    def make(text: str, rehearse: bool = False) -> calls.Run:
        run = calls.Run(rehearse, tmp_path / "tree", tmp_path / "work", "sources")
        run.check.parent.mkdir(parents=True, exist_ok=True)
        head = f"#!{sys.executable}\nimport json, sys, time\n"
        run.check.write_text(head + textwrap.dedent(text))
        run.check.chmod(0o755)
        run.begin(60)
        return run

    return make


TABLE = """
    line = {"dtype": sys.argv[2], "passed": 5, "failed": 0, "refused": 1, "stopped": ""}
"""


# --- what programs print -------------------------------------------------------------------------
def test_a_table_is_a_process_of_each_dtype(fake: Fake) -> None:
    run = fake(TABLE + "    line['seconds'] = float(sys.argv[4]); print(json.dumps(line))")
    found = slices.table(run)
    assert found["verdict"] == "ok"
    assert [line["dtype"] for line in found["lines"]] == ["bf16", "f16", "f32", "bf16+atomic_dq"]
    assert found["lines"][0]["seconds"] <= 60 / 4  # of what is left


@pytest.mark.parametrize("text", ['{"dtype": "f16", "ratio": inf}', '{"dtype": "f16", \\xff'])
def test_a_bad_line_costs_no_other(fake: Fake, text: str) -> None:
    run = fake(TABLE + f"""
    if sys.argv[2] == "f16":
        sys.stdout.buffer.write(b'{text}\\n')
    else:
        print(json.dumps(line))
    """)
    found = slices.table(run)
    assert found["verdict"] == "FAILED"
    assert [line["dtype"] for line in found["lines"]] == ["bf16", "f32", "bf16+atomic_dq"]
    assert found["failures"][0]["what"].startswith('{"dtype": "f16"')


def test_what_json_lacks_counts_as_null(fake: Fake) -> None:
    run = fake("print('{\"x\": Infinity, \"y\": NaN}')")
    assert run.lines([run.check]).lines == [{"x": None, "y": None}]


def test_failures_and_refusals_leave_the_machine(fake: Fake,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    run = fake("""
    for n in range(25):
        print(json.dumps({"failure": f"case={n}", "what": "is wrong", "again": f"cell 'case={n}'"}))
    print(json.dumps({"dtype": "bf16", "passed": 0, "failed": 25, "refused": 3, "stopped": "",
                      "refusals": {"no such kernel": 3}}))
    print("first\\nthe last words", file=sys.stderr)
    sys.exit(1 if sys.argv[2] == "bf16" else 4)
    """)
    run.store("table", slices.table(run))
    found = run.stored("table")
    assert found["verdict"] == "FAILED"
    assert len(found["failures"]) == 20
    assert found["lines"][0]["refusals"] == {"no such kernel": 3}
    assert "f16: exit status 4: the last words" in found["words"]
    report.print_all(run, ["table"])
    said = capsys.readouterr().out
    assert said.index("FAILED") < said.index("table: case=0: is wrong")
    assert f"{run.check} cell 'case=0'" in said
    assert "12 failures more" in said


def test_a_rehearsed_size_is_checked(fake: Fake) -> None:
    text = """
    print(json.dumps({"name": "x", "elements": int(sys.argv[2]) - TAKEN, "bytes": 9}))
    """
    assert slices.wide(fake(text.replace("TAKEN", "0"), True))["verdict"] == "ok"
    assert slices.wide(fake(text.replace("TAKEN", "5000"), True))["verdict"] == "FAILED"


# --- gpu_check on a GPU whose every kernel fails -------------------------------------------------
TREE = Path(os.environ.get("ATTENTILE_GPU_TREE", ROOT / "build/release"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """The lines of a call of gpu_check."""
    check, library = TREE / "gpu/gpu_check", tmp_path_factory.mktemp("broken") / "broken.so"
    compiler = shutil.which("clang++-19") or shutil.which("c++")
    if not check.exists() or compiler is None:
        pytest.skip("gpu_check, which the rehearsal builds, or a compiler is not there")
    subprocess.run([compiler, "-std=c++20", "-shared", "-fPIC", f"-I{ROOT}/src",
                    f"-I{ROOT}/include", f"-I{TREE}/include",
                    str(Path(__file__).parent / "broken_backend.cc"), "-o", str(library)],
                   check=True)

    def run(*arguments: str) -> list[dict[str, Any]]:
        done = subprocess.run([str(check), *arguments], capture_output=True, text=True, check=False,
                              env={**os.environ, "ATTENTILE_CUDA_LIBRARY": str(library)})
        if "version" in done.stderr:
            pytest.skip(done.stderr)  # built from other sources
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_an_error_that_stays_ends_a_table(broken: Any) -> None:
    failure, line = broken("table", "f16", "500", "20")
    assert "an illegal memory access" in failure["what"]
    assert (line["cells"], line["failed"]) == (1, 1)
    assert line["stopped"]
    again = broken(*shlex.split(failure["again"]))
    assert again[0] == failure
    assert [line["failure"] for line in broken("short")] == ["plain 32"]
    assert [line["failure"] for line in broken("repeat", "2", "1", "full 128")] == ["full 128"]


def test_wide_tensors_fit_a_gpu(broken: Any) -> None:
    lines = broken("sizes", str(slices.WIDE))
    assert [line["name"] for line in lines] == ["decode 64", "forward 64", "backward 128"]
    for line in lines:
        assert line["elements"] > 1 << 31
        assert line["bytes"] < 100e9
    too_many = broken("sizes", str(16 * slices.WIDE))
    assert [line["failure"] for line in too_many if "failure" in line] == [
        "decode 64", "forward 64", "backward 128"]


# --- time ----------------------------------------------------------------------------------------
def only(monkeypatch: pytest.MonkeyPatch, **acts: Any) -> None:
    """These slices and no others."""
    monkeypatch.setattr(gpu_run, "SLICES",
                        {name: slices.Slice(act, 1) for name, act in acts.items()})


def test_what_the_end_of_the_call_cuts_is_not_failed(fake: Fake,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = fake("print('{\"name\": \"x\"}', flush=True); time.sleep(60)")
    only(monkeypatch, sleep=lambda run: run.lines([run.check]).judged(""))
    sleeper.end = time.monotonic() + 1
    assert gpu_run.act(sleeper, "sleep")["verdict"] == "unfinished"
    assert sleeper.stored("sleep")["lines"] == [{"name": "x"}]
    sleeper.end = time.monotonic() + 60  # late by its own patience
    assert gpu_run.act(sleeper, "sleep")["verdict"] == "FAILED"


def test_what_had_failed_before_the_cut_is_failed(fake: Fake,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake("print('{\"failure\": \"x\"}', flush=True); time.sleep(60)")
    only(monkeypatch, sleep=lambda run: run.lines([run.check]).judged(""))
    run.end = time.monotonic() + 1
    assert gpu_run.act(run, "sleep")["verdict"] == "FAILED"


def test_reservations_cover_what_is_run() -> None:
    assert slices.SLICES["table"].seconds >= 4 * 45 + calls.ENDING
    assert slices.SLICES["repeat"].seconds >= 5 * 20 + calls.ENDING
    ends = [s.seconds for name, s in slices.SLICES.items() if name != "build"]
    assert max(ends) <= 570


def test_a_race_goes_on_where_it_stopped(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake("""
    print(json.dumps({"kind": "shapes", "of": 5}))
    skip = int(sys.argv[sys.argv.index("--skip") + 1])
    for n in range(skip, min(5, skip + 3)):
        print(json.dumps({"kind": "refused" if n == 1 else "row", "words": n, "ratio": 2}))
    """)
    monkeypatch.setattr(slices, "script", lambda name: [run.check])
    first = slices.peers(run)
    assert first["verdict"] == "unfinished"
    assert first["words"].startswith("3 of 5 shapes, 2 at least")
    run.store("peers", first)
    second = slices.peers(run)
    assert second["verdict"] == "ok"
    assert [line["words"] for line in second["lines"] if "words" in line] == [0, 1, 2, 3, 4]


# --- which slices run ----------------------------------------------------------------------------
@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """main() of slices that note their names, and of sources that a test can change."""
    state = SimpleNamespace(done=[], sources="a", verdicts={}, json=tmp_path / "all.json")

    def slice_named(name: str) -> Callable[[calls.Run], calls.Answer]:
        def act(run: calls.Run) -> calls.Answer:
            state.done.append(name)
            return calls.answer(state.verdicts.get(name, "ok"), "")

        return act

    def main(*arguments: str) -> int:
        state.done.clear()
        monkeypatch.setattr(sys, "argv", ["run.py", "--work", str(tmp_path / "work"), "--json",
                                          str(state.json), *arguments])
        return gpu_run.main()

    only(monkeypatch, **{name: slice_named(name) for name in ("machine", "build", "a", "b")})
    monkeypatch.setattr(gpu_run, "fingerprint", lambda: state.sources)
    state.main = main
    return state


def test_a_slice_alone_brings_what_it_needs(script: Any) -> None:
    assert script.main("b") == 0
    assert script.done == ["machine", "build", "b"]


def test_what_is_built_is_never_old(script: Any) -> None:
    script.main()
    assert script.main() == 0
    assert script.done == ["build"]
    script.sources = "b"
    assert script.main("a") == 0
    assert script.done == ["machine", "build", "a"]
    script.verdicts["build"] = "FAILED"
    assert script.main("b") == 3
    assert "b" not in script.done


def test_all_answers_are_written_always(script: Any) -> None:
    script.main()
    script.json.unlink()
    script.main()
    assert set(json.loads(script.json.read_text())["slices"]) == {"machine", "build", "a", "b"}


def test_exit_statuses(script: Any) -> None:
    script.verdicts["a"] = "left out"
    assert script.main() == 0
    script.verdicts["b"] = "unfinished"
    assert script.main("--again") == 75
    script.verdicts["b"] = "FAILED"
    assert script.main() == 1
    assert script.main("--again", "--seconds", "0.5", "a") in (1, 75)


def test_a_mistake_in_a_slice_is_its_own(script: Any) -> None:
    gpu_run.SLICES["a"].act = lambda run: {}["no such key"]
    assert script.main() == 1
    assert script.done == ["machine", "build", "b"]


def test_answers_are_those_of_the_sources(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.cc").write_text("one")
    (tmp_path / "CMakeLists.txt").write_text("")
    before = calls.fingerprint(tmp_path)
    (tmp_path / "src/b.pyc").write_text("no source")
    assert calls.fingerprint(tmp_path) == before
    (tmp_path / "src/a.cc").write_text("two")
    assert calls.fingerprint(tmp_path) != before


def test_nvcc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    monkeypatch.setattr(calls, "CUDA_BIN", tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    (tmp_path / "nvcc").write_text(f"#!{sys.executable}\nprint('release 9')\n")
    (tmp_path / "nvcc").chmod(0o755)
    run = fake("")
    assert run.find("nvcc") == str(tmp_path / "nvcc")
    assert run.call("nvcc").stdout == "release 9\n"


# --- tools ---------------------------------------------------------------------------------------
def test_missing_tools_are_left_out(fake: Fake) -> None:
    run = fake("print('{\"name\": \"plain\"}')")
    run.path = ""
    assert slices.counters(run)["verdict"] == "left out"
    found = slices.sanitize(run)
    assert found["verdict"] == "left out"
    assert "there is no compute-sanitizer" in found["words"]
    wrong = fake("print('{\"failure\": \"plain\", \"what\": \"differs\"}'); sys.exit(1)")
    wrong.path = ""
    assert slices.sanitize(wrong)["verdict"] == "FAILED"


def test_findings_of_the_sanitizer(fake: Fake, tmp_path: Path) -> None:
    run = fake("print('{\"name\": \"plain\"}')")
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!{sys.executable}\nimport sys\nprint('=========  COMPUTE-SANITIZER')\n"
                    "print('=========  Invalid read of size 2')\n"
                    "sys.exit(9 if 'memcheck' in sys.argv else 0)\n")
    tool.chmod(0o755)
    run.path = str(tmp_path)
    found = slices.sanitize(run)
    assert found["verdict"] == "FAILED"
    assert [(f["failure"], f["what"]) for f in found["failures"]] == [
        ("memcheck", "Invalid read of size 2")]


# --- the race ------------------------------------------------------------------------------------
def test_nan_is_never_the_smaller() -> None:
    assert math.isnan(race.largest([0.1, math.nan, 0.2]))
    assert race.largest([0.1, 0.3, 0.2]) == 0.3


def test_a_result_with_nan_fails(capsys: pytest.CaptureFixture[str]) -> None:
    shape = shapes.Shape(1, 4, 4, 1, 1, 8, backward=True)
    right = [torch.ones(1, 4, 1, 8) for _ in range(3)]
    wrong = [right[0], torch.full((1, 4, 1, 8), math.nan), right[2]]
    peer = timer.Contender([lambda: tuple(x.transpose(1, 2) for x in right)])
    it = race.Race.__new__(race.Race)
    it.which, it.good = "peers", True
    assert it.compare(shape, {"attentile": [SimpleNamespace(results=right)]}, peer) == 0
    assert it.good
    assert it.compare(shape, {"attentile": [SimpleNamespace(results=wrong)]}, peer) is None
    assert not it.good
    assert "differs from torch by nan" in json.loads(capsys.readouterr().out)["what"]


def test_what_torch_needs_around_a_call_is_not_timed() -> None:
    entered = []

    @contextmanager
    def around() -> Any:
        entered.append(None)
        time.sleep(0.2)
        yield

    calls_of = [lambda: None] * 3
    seconds = timer.Timer(True).once(timer.Contender(calls_of, around), 50)
    assert len(entered) == 1
    assert seconds < 0.2 / 150


def test_buffers_are_more_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = 60 << 20
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda device: SimpleNamespace(L2_cache_size=cache))
    memory = device_call.Memory.__new__(device_call.Memory)
    memory.rehearse = False
    for shape in (*shapes.decode_shapes(False), *shapes.peer_shapes(False)):
        assert memory.sets_of(shape.bytes) * shape.bytes >= 2 * cache
    assert memory.sets_of(shapes.peer_shapes(False)[0].bytes) == 1


def test_contenders_that_cannot_all_be_captured_are_timed_alike(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(contender: timer.Contender) -> timer.Contender:
        if contender.calls[0] is refusing:
            raise RuntimeError("operation not permitted\nmore")
        return timer.Contender([lambda: None], count=40)

    def refusing() -> None:
        pass

    monkeypatch.setattr(timer, "captured", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    it = timer.Timer(False, graphs=True)
    good = timer.Contender([lambda: None])
    assert it._as_graphs({"a": good})[1] == "replays of graphs"
    given = {"a": good, "b": timer.Contender([refusing])}
    found, how = it._as_graphs(given)
    assert found is given
    assert how == "eager calls, as b was not captured: operation not permitted"


def test_every_shape_is_printed(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake("")
    for name, found in (("peers", shapes.peer_shapes(False)),
                        ("decode", shapes.decode_shapes(False))):
        rows = [{"kind": "row", "unit": "TFLOP/s", "timed": "eager calls", **shape.place,
                 "attentile": n + 1000.0, "ratio": 0.5, "best_name": "flash", "atomic_dq": 900.0}
                for n, shape in enumerate(found)]
        run.store(name, calls.answer("ok", "", lines=rows))
    report.print_all(run, slices.SLICES)
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 60
    assert max(map(len, said.splitlines())) <= 120
    for n in range(72):
        assert f"{n + 1000.0:.1f}" in said
    for d in (64, 128, 256):
        assert f"d {d}, 512 x 32" in said
