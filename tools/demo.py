#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo: attention on the real tensors in data/, verified, timed and drawn.

    tools/demo.py [--cli PATH] [--out FOLDER] [--budget SECONDS]

Runs forward and backward on every file and judges each output by the float64 oracle; times flash2
against standard attention in the same process; measures the peak memory of each in a process of its
own; then does the same on synthetic input of growing length, up to where standard no longer fits.
Leaves demo.json, time.svg, memory.svg, attention.svg and index.html in FOLDER (build/demo). A run
that would take longer than --budget seconds is not made; its time is extrapolated and drawn so.
Exit 1 when an output fails its check.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from demo_charts import Chart, Point, Series, draw_chart

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768]
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64  # SmolLM2-135M's
FLASH_COLOR, STANDARD_COLOR = "#0072b2", "#e69f00"
HEAD = 3  # of HEAD_FILE: the one that looks furthest back
HEAD_FILE = "smollm2-layer17.safetensors"
MIB, GIB = 1 << 20, 1 << 30


class Cli:
    """Runs the command line; stops the demo with its sentence when it fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *words: str, allowed: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run([self.path, *words], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in allowed:
            sys.exit(f"demo: 'attentile {' '.join(words)}' ended with status {done.returncode}")
        return done.stdout

    def peak_memory(self, *words: str) -> tuple[float, Any]:
        """Peak resident bytes of a process of its own, and the JSON that it printed."""
        facts = json.loads(self.run(*words, "--json"))
        return float(facts["peak_resident_bytes"]), facts

    def bench(self, *words: str) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench.json"
            self.run("bench", *words, "--json", str(file))
            records: list[dict[str, Any]] = json.loads(file.read_text())["records"]
            return records


def seconds_words(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit * 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def bytes_words(count: float) -> str:
    return f"{count / MIB:.3g} MiB" if count < 1000 * MIB else f"{count / GIB:.3g} GiB"


def print_table(title: str, heading: list[str], rows: list[list[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]

    def line(cells: list[str]) -> str:
        first, *others = [c.ljust(w) if i == 0 else c.rjust(w)
                          for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join([first, *others])

    print(f"\n{title}\n{line(heading)}\n{'-' * len(line(heading))}")
    for row in rows:
        print(line(row))
    sys.stdout.flush()


def read_metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata: dict[str, str] = json.loads(file.read(length)).get("__metadata__", {})
        return metadata


def verify_file(cli: Cli, path: Path, out: Path) -> dict[str, Any]:
    causal = ["--causal"] if read_metadata(path).get("causal") == "true" else []
    words = ["attend", str(path), *causal, "--backward"]
    facts = json.loads(cli.run(*words, "--verify", "--json", "--out",
                               str(out / f"{path.stem}-result.safetensors"), allowed=(0, 1)))
    shape = ",".join(str(facts[name]) for name in (
        "batch", "seqlen_q", "seqlen_k", "num_heads_q", "num_heads_kv", "head_dim"))
    records = cli.bench("--shape", shape, "--dtype", facts["dtype"], "--pass", "both",
                        "--min-time", "0.3", *causal)
    memory = {}
    for name in ("flash2", "standard"):
        target = str(out / "discarded.safetensors")
        memory[name], _ = cli.peak_memory(*words, "--algorithm", name, "--out", target)
        Path(target).unlink()
    return {"file": path.name, "metadata": read_metadata(path), "facts": facts, "bench": records,
            "peak_resident_bytes": memory}


def verdict_word(verdict: dict[str, Any]) -> str:
    """mistrusted: passed, but so would have zeros."""
    if not verdict["passed"]:
        return "FAIL"
    return "mistrusted" if verdict["mistrusted"] else "pass"


def print_files(files: list[dict[str, Any]]) -> bool:
    rows = []
    passed = True
    for entry in files:
        for verdict in entry["facts"]["verify"]:
            passed = passed and verdict["passed"]
            rows.append([entry["file"], verdict["output"], f"{verdict['max_error']:.2e}",
                         f"{verdict['standard_error']:.2e}", f"{verdict['allowed']:.2e}",
                         verdict_word(verdict)])
    print_table("Real data, flash2 against the float64 oracle", [
        "file", "output", "max error", "standard's", "allowed", "verdict"], rows)
    rows = []
    for entry in files:
        by_name = {(r["pass"], r["name"]): r for r in entry["bench"]}
        for which in ("forward", "backward"):
            ours, standard = by_name[which, "attentile"], by_name[which, "standard"]
            rows.append([entry["file"], which, seconds_words(ours["median_s"]),
                         seconds_words(standard["median_s"]),
                         f"{standard['median_s'] / ours['median_s']:.2f}x",
                         f"{100 * ours['fraction_of_peak']:.0f} %"])
    print_table("The same shapes, time in one process", [
        "file", "pass", "flash2", "standard", "ratio", "of peak"], rows)
    rows = [[entry["file"], bytes_words(entry["peak_resident_bytes"]["flash2"]),
             bytes_words(entry["peak_resident_bytes"]["standard"])] for entry in files]
    print_table("Peak memory, forward and backward, each in its own process", [
        "file", "flash2", "standard"], rows)
    return bool(passed)


def sweep_shape(seqlen: int) -> str:
    return f"1,{seqlen},{seqlen},{HEADS},{KV_HEADS},{HEAD_DIM}"


def needed_memory(cli: Cli, seqlen: int, algorithm: str, base: float) -> float:
    """Peak bytes that a run would have: workspace, inputs and results, and the program itself."""
    plan = json.loads(cli.run("plan", "--shape", sweep_shape(seqlen), "--causal", "--json",
                              "--algorithm", algorithm))
    values = 4 * seqlen * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    return base + float(plan["forward"]["workspace_bytes"]) + values


def sweep(cli: Cli, budget: float) -> list[dict[str, Any]]:
    """Points {seqlen, flash2: {...}, standard: {...}} with seconds and bytes, measured or not."""
    available = float(json.loads(cli.run("info", "--json"))["available_memory_bytes"] or 1e18)
    base, _ = cli.peak_memory("attend", "--random", "1,1,1,1,1,64")
    points: list[dict[str, Any]] = []
    for seqlen in LENGTHS:
        point: dict[str, Any] = {"seqlen": seqlen}
        for name in ("flash2", "standard"):
            needed = needed_memory(cli, seqlen, name, base)
            # Time grows with the square of the length.
            expected = 4 * points[-1][name]["seconds"] if points else 0.0
            point[name] = {"bytes": needed, "seconds": expected, "measured": False,
                           "fits": needed < available, "expected_seconds": expected}
        measure_point(cli, point, budget)
        points.append(point)
        print(f"  {seqlen:>6} tokens: " + ", ".join(
            f"{name} {seconds_words(point[name]['seconds'])}"
            f"{'' if point[name]['measured'] else ' (extrapolated)'}"
            for name in ("flash2", "standard")), flush=True)
    return points


def measure_point(cli: Cli, point: dict[str, Any], budget: float) -> None:
    shape = sweep_shape(point["seqlen"])
    runnable = [name for name in ("flash2", "standard")
                if point[name]["fits"] and point[name]["expected_seconds"] <= budget]
    for name in runnable:
        peak, facts = cli.peak_memory("attend", "--random", shape, "--causal", "--algorithm", name)
        point[name].update(bytes=peak, seconds=facts["seconds"], measured=True)
    # Short runs are timed again, in turn and in one process.
    if len(runnable) == 2 and max(point[name]["seconds"] for name in runnable) < budget / 8:
        for record in cli.bench("--shape", shape, "--causal", "--min-time", "0.1"):
            name = "standard" if record["name"] == "standard" else "flash2"
            point[name].update(seconds=record["median_s"], interleaved=True)


def first_alone(points: list[dict[str, Any]]) -> int:
    """The first length whose times are single runs in separate processes; 0 if there is none."""
    return next((p["seqlen"] for p in points if any(
        p[n]["measured"] and not p[n].get("interleaved") for n in ("flash2", "standard"))), 0)


def print_sweep(points: list[dict[str, Any]]) -> None:
    rows = []
    for point in points:
        row = [f"{point['seqlen']:,}"]
        for name in ("flash2", "standard"):
            entry = point[name]
            mark = "" if entry["measured"] else "*"
            once = "'" if entry["measured"] and not entry.get("interleaved") else mark
            seconds = seconds_words(entry["seconds"]) + once if entry["fits"] else "does not fit"
            row += [seconds, bytes_words(entry["bytes"]) + mark]
        flash, standard = point["flash2"]["seconds"], point["standard"]["seconds"]
        alone = "" if point["standard"].get("interleaved") else "'"
        row.append(f"{standard / flash:.1f}x{alone}" if point["standard"]["measured"] else "-")
        rows.append(row)
    print_table(f"Growing length: forward, float32, causal, {HEADS} query and {KV_HEADS} KV heads, "
                f"head_dim {HEAD_DIM}", [
        "tokens", "flash2", "memory", "standard", "memory", "ratio"], rows)
    if first_alone(points):
        print("' one run in a process of its own, not the median of runs in turn: a rough figure")
    if any(not p[n]["measured"] for p in points for n in ("flash2", "standard")):
        print("* computed, not run: time from the length before, memory from the plan")


def make_series(points: list[dict[str, Any]], field: str, keep_unfit: bool) -> list[Series]:
    result = []
    for name, label, color in (("standard", "standard", STANDARD_COLOR),
                               ("flash2", "flash2 (Attentile's default)", FLASH_COLOR)):
        def pick(measured: bool, name: str = name) -> list[Point]:
            return [(p["seqlen"], p[name][field]) for p in points
                    if p[name]["measured"] == measured and (keep_unfit or p[name]["fits"])]
        result.append(Series(label, color, pick(True), pick(False)))
    return result


def draw_sweep(points: list[dict[str, Any]], memory: float, out: Path) -> None:
    unfit = [p for p in points if not p["standard"]["fits"]]
    no_fit = None
    if unfit:
        need = bytes_words(unfit[0]["standard"]["bytes"])
        no_fit = (unfit[0]["seqlen"],
                  f"from here standard does not fit in memory: it needs {need} \u2192")
    shape = (f"Forward pass, float32, causal, {HEADS} query and {KV_HEADS} KV heads, head_dim "
             f"{HEAD_DIM}, {os.cpu_count()} cores")
    alone = first_alone(points)
    how = f"; from {alone:,} on, single runs" if alone else ""
    (out / "time.svg").write_text(draw_chart(Chart(
        title="Time against sequence length", subtitle=shape + how, y_label="time (log scale)",
        y_words=seconds_words, series=make_series(points, "seconds", False), no_fit=no_fit,
        computed_word="extrapolated, not run")))
    (out / "memory.svg").write_text(draw_chart(Chart(
        title="Peak memory against sequence length", subtitle=shape + ", one process each",
        y_label="peak resident memory (log scale)", y_words=bytes_words,
        series=make_series(points, "bytes", True), no_fit=no_fit,
        limit=(memory, f"available on this machine: {bytes_words(memory)}"),
        y_base=4.0, y_unit=4.0 * MIB)))


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Attentile demo</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #24292f; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0; }}
th, td {{ padding: .25em .9em; text-align: right; border-bottom: 1px solid #d0d7de; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; height: auto; margin: 1em 0; }}
.FAIL, .mistrusted {{ color: #cf222e; font-weight: bold; }}
</style></head><body>
<h1>Attentile demo</h1>
<p>{machine}; {version}. Exact attention, forward and backward, on tensors of real models reading
real text. Every output was compared with a float64 evaluation of the definition.</p>
<table><tr><th>file</th><th>output</th><th>max error</th><th>standard's</th><th>allowed</th>
<th>verdict</th></tr>
{rows}</table>
<img src="attention.svg" alt="A head's attention pattern with tiles drawn over it">
<p>The largest weight within each cell, on a logarithmic scale, evaluated in float64 by attentile
explain, with the tiles that it was asked for. Kernels choose tiles of their own (attentile plan
tells which); of those too, hidden ones are never read, partly visible ones are masked element by
element, and in full ones no mask is looked at.</p>
<img src="time.svg" alt="Time against sequence length">
<img src="memory.svg" alt="Peak memory against sequence length">
<p>Standard attention keeps the matrix of scores, which grows with the square of the length; flash2
keeps one tile of it.</p>
</body></html>
"""


def write_page(out: Path, info: dict[str, Any], files: list[dict[str, Any]]) -> None:
    rows = ""
    for entry in files:
        for verdict in entry["facts"]["verify"]:
            word = verdict_word(verdict)
            rows += (f"<tr><td>{escape(entry['file'])}</td><td>{verdict['output']}</td>"
                     f"<td>{verdict['max_error']:.2e}</td><td>{verdict['standard_error']:.2e}</td>"
                     f"<td>{verdict['allowed']:.2e}</td><td class='{word}'>{word}</td></tr>\n")
    (out / "index.html").write_text(PAGE.format(
        machine=escape(info["cpu"]), version=f"version {info['version']}", rows=rows))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Attention on the real tensors in data/.")
    parser.add_argument("--cli", type=Path, default=ROOT / "build/release/bin/attentile")
    parser.add_argument("--out", type=Path, default=ROOT / "build/demo")
    parser.add_argument("--budget", type=float, default=30.0, help="longest single run, seconds")
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    cli = Cli(arguments.cli)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    info = json.loads(cli.run("info", "--json"))
    print(f"attentile {info['version']} on {info['cpu']}, {info['usable_cores']} cores", flush=True)

    paths = sorted((ROOT / "data").glob("*.safetensors"))
    if not paths:
        sys.exit("demo: data/ holds no .safetensors file, expected those that data/README.md names")
    files = [verify_file(cli, path, out) for path in paths]
    passed = print_files(files)

    print("\nGrowing length (each run stops the clock; this is the long part)", flush=True)
    points = sweep(cli, arguments.budget)
    print_sweep(points)
    memory = float(info["available_memory_bytes"] or 1e18)
    draw_sweep(points, memory, out)

    head_file = ROOT / "data" / HEAD_FILE
    picked = head_file if head_file.exists() else paths[0]
    causal = ["--causal"] if read_metadata(picked).get("causal") == "true" else []
    cli.run("explain", str(picked), *causal, "--head", str(HEAD),
            "--svg", str(out / "attention.svg"))
    write_page(out, info, files)
    (out / "demo.json").write_text(json.dumps(
        {"info": info, "files": files, "sweep": points}, indent=2) + "\n")
    print(f"\npictures: {out / 'index.html'} shows attention.svg, time.svg and memory.svg")
    doubtful = sum(verdict_word(verdict) == "mistrusted"
                   for entry in files for verdict in entry["facts"]["verify"])
    if doubtful:
        print(f"{doubtful} outputs are so small that zeros would have passed: mistrusted")
    print("every output agrees with the oracle" if passed else "an output FAILED its check")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
