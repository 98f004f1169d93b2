# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own logic, without peers and without timing: cases, figures, verdicts, waivers,
the file. Run by ./dev test."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import cells  # noqa: E402
import files  # noqa: E402
import tables  # noqa: E402
from cases import TABLES, Request, all_cases  # noqa: E402
from cases_peers import FULL_GRID, HEAD_DIMS, SEQLENS, peer_target  # noqa: E402
from contenders import CONTENDERS, environment  # noqa: E402
from machine import machine_slug  # noqa: E402
from measure import agrees, needed_bytes  # noqa: E402
from plan import Attempt, Cell, Comparison, Timing, square  # noqa: E402
from problem import Problem, Subject, band_pairs  # noqa: E402

PEERS = tuple(name for name in CONTENDERS if name != "attentile")
RECORD_FIELDS = {
    "name", "pass", "dtype", "batch", "seqlen_q", "seqlen_k", "num_heads_q", "num_heads_kv",
    "head_dim", "head_dim_v", "causal", "layout", "device", "varlen", "threads", "median_s",
    "min_s", "runs", "gflops", "peak_gflops", "fraction_of_peak", "bytes_per_s", "algorithm", "isa"}


def cases(full: bool) -> list[Comparison]:
    return all_cases(Request(full, 2, PEERS, 32e6, intel=False), list(TABLES))


def timed(comparison: Comparison, ours_s: float, other_s: float) -> Attempt:
    """An attempt in which attentile takes ours_s and everybody else other_s."""
    attempt = Attempt(peaks={(d, t): 500.0 for d in ("f32", "f16", "bf16") for t in (1, 2)})
    for subject in comparison.subjects:
        seconds = ours_s if subject.name.startswith("attentile") else other_s
        attempt.timings[subject] = Timing(seconds, seconds, 3, (seconds,),
                                          {"fraction_of_peak": 0.5})
        attempt.streams[subject] = 100e9
    return attempt


class ProblemTest(unittest.TestCase):
    def test_visible_pairs_are_those_of_the_mask(self) -> None:
        for sizes in ((5, 5), (3, 9), (9, 3), (1, 7)):
            for left, right in ((-1, -1), (-1, 0), (2, 0), (1, 3), (0, -1)):
                offset = sizes[1] - sizes[0]
                slow = sum((left < 0 or j >= i + offset - left)
                           and (right < 0 or j <= i + offset + right)
                           for i in range(sizes[0]) for j in range(sizes[1]))
                self.assertEqual(band_pairs(*sizes, (left, right)), slow, (sizes, left, right))

    def test_flops_and_bytes(self) -> None:
        problem = Problem(4, 8, 6, 2, 16, batch=3, causal=True)
        pairs = 3 * (5 + 6 + 7 + 8)
        self.assertEqual(problem.flops(), 4 * 16 * 6 * pairs)
        self.assertEqual(replace(problem, backward=True).flops(), 10 * 16 * 6 * pairs)
        self.assertEqual(replace(problem, dtype="bf16").cache_bytes(), 2 * 3 * 8 * 2 * 16 * 2)
        packed = Problem(0, 0, 2, 2, 64, seqlens=(3, 5))
        self.assertEqual(packed.visible_pairs(), 9 + 25)
        self.assertEqual(Problem.from_json(json.loads(json.dumps(packed.to_json()))), packed)

    def test_standard_at_64k_needs_all_of_its_matrix(self) -> None:
        problem = square(65536, 8, 64, backward=True)
        self.assertGreater(needed_bytes(Subject("standard", problem, 2)), 2 * 8 * 65536**2 * 4)
        self.assertLess(needed_bytes(Subject("attentile", problem, 2)), 4e9)


class CasesTest(unittest.TestCase):
    def test_quick_and_full_cover_every_target(self) -> None:
        targets = cells.load_targets()
        wanted = {(table, row, column) for table, rows in targets.items()
                  for row, columns in rows.items() for column in columns}
        wanted.remove(("decode", "arithmetic peak that counts as well", "fraction"))
        for full in (False, True):
            named = {(c.table, c.target_row or c.row, c.target)
                     for comparison in cases(full) for c in comparison.cells if c.target}
            self.assertEqual(wanted - named, set(), f"full: {full}")
            for table, row, column in named:
                # A peers' row without a target is reported only.
                if table != "peers":
                    self.assertIn(column, targets[table][row])

    def test_the_full_grid_is_whole(self) -> None:
        self.assertEqual(SEQLENS, (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384))
        self.assertEqual((HEAD_DIMS[0], HEAD_DIMS[-1]), (32, 256))
        measured = [c.subjects[0].problem for c in cases(True) if c.table == "grid"]
        expected = len(SEQLENS) * len(HEAD_DIMS) * 2 * len(FULL_GRID)
        self.assertEqual(len(set(measured)), expected)

    def test_cells_are_told_apart_and_made_of_subjects(self) -> None:
        for full in (False, True):
            seen = set()
            for comparison in cases(full):
                for cell in comparison.cells:
                    key = (cell.table, cell.row, cell.detail)
                    self.assertNotIn(key, seen)
                    seen.add(key)
                    if not cell.kind.startswith("training"):
                        for subject in cells.subjects_of(cell):
                            self.assertIn(subject, comparison.subjects, cell)

    def test_on_intel_torch_has_the_targets_of_torch_unlocked(self) -> None:
        problem = square(1024, 8, 128)
        self.assertEqual(peer_target("torch", problem, False), ("torch forward f32", "full"))
        self.assertEqual(peer_target("torch", problem, True),
                         ("torch-unlocked forward f32", "full d128"))
        self.assertEqual(peer_target("torch", replace(problem, dtype="f16"), True),
                         ("torch forward f16", "full"))

    def test_what_a_peer_lacks_is_said(self) -> None:
        f16 = Problem(64, 64, 2, 2, 64, dtype="f16")
        self.assertEqual(CONTENDERS["openblas"].refusal(f16), "not offered: f16")
        self.assertEqual(CONTENDERS["onnxruntime-mha"].refusal(
            Problem(64, 64, 2, 2, 64, backward=True)), "not offered: backward")
        self.assertEqual(CONTENDERS["torch"].refusal(f16), "")
        self.assertIn("ours alone", CONTENDERS["torch"].refusal(replace(f16, feature="sink")))

    def test_workers_are_free_of_the_callers_settings(self) -> None:
        import os
        os.environ["OPENBLAS_CORETYPE"] = "Haswell"
        try:
            env = environment(CONTENDERS["torch-unlocked"], 2, Path("intel.so"))
        finally:
            del os.environ["OPENBLAS_CORETYPE"]
        self.assertNotIn("OPENBLAS_CORETYPE", env)
        self.assertEqual(env["LD_PRELOAD"], "intel.so")


class VerdictTest(unittest.TestCase):
    def comparison(self) -> Comparison:
        problem = square(1024, 8, 64)
        ours, other = (Subject(name, problem, 2) for name in ("attentile", "torch"))
        cell = Cell("peers", "torch forward f32", "case", "speedup", ours, other, "full")
        return Comparison("grid", [ours, other], [cell])

    def judged(self, *ratios: float, waivers: list[cells.Waiver] | None = None) -> cells.Verdict:
        comparison = self.comparison()
        comparison.attempts = [timed(comparison, 1.0, ratio) for ratio in ratios]
        return cells.judge([comparison], cells.load_targets(), waivers or [])[0]

    def test_the_best_of_three_counts(self) -> None:
        self.assertEqual(self.judged(2.0, 2.3, 1.9).word, "met")  # must 2.2
        self.assertEqual(self.judged(2.0, 2.19).word, "MISSED")
        comparison = self.comparison()
        targets = cells.load_targets()
        for count in range(1, 4):
            comparison.attempts.append(timed(comparison, 1.0, 2.0))
            self.assertEqual(cells.needs_retry(comparison, targets), count < 3)

    def test_waivers_cover_a_small_shortfall_of_the_named_cell(self) -> None:
        waiver = {"table": "peers", "row": "torch forward f32", "cell": "case", "measured": 2.1,
                  "reason": "r", "doc": "d"}
        self.assertEqual(self.judged(2.1, waivers=[waiver]).word, "waived")
        self.assertEqual(self.judged(2.0, waivers=[waiver]).word, "MISSED")  # more than 5 %
        self.assertEqual(self.judged(2.1, waivers=[{**waiver, "cell": "x"}]).word, "MISSED")
        missed = cells.missed_musts([self.judged(2.1, waivers=[waiver]), self.judged(2.0)])
        self.assertEqual(len(missed), 1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "waivers.json"
            for wrong in ([waiver] * 6, [{"table": "peers"}]):
                path.write_text(json.dumps(wrong))
                with self.assertRaises(ValueError):
                    cells.load_waivers(path)

    def test_seconds_are_better_when_fewer(self) -> None:
        self.assertTrue(cells.worse("seconds", 3e-6, 2e-6))
        self.assertEqual(cells.best("seconds", [3.0, 2.0]), 2.0)

    def test_decoding_may_be_bound_by_arithmetic(self) -> None:
        comparison = next(c for c in cases(False) if c.table == "decode")
        problem = comparison.subjects[0].problem
        for share, expected in ((0.7, False), (0.3, True)):
            seconds = problem.flops() / (share * 500e9)
            comparison.attempts = [timed(comparison, seconds, 1.0)]
            comparison.attempts[0].streams = dict.fromkeys(comparison.subjects, 1e15)
            verdict = cells.judge([comparison], cells.load_targets(), [])[0]
            self.assertEqual(verdict.missed, expected)

    def test_a_rate_compares_useful_work(self) -> None:
        comparison = next(c for c in cases(False) if c.table == "features")
        comparison.attempts = [timed(comparison, 1.0, 1.0)]
        rates = {c.row: cells.KINDS["rate"](c, comparison.attempts[0]) for c in comparison.cells}
        self.assertEqual(rates["softcap"], 1.0)
        self.assertLess(rates["window"], 0.5)

    def test_what_was_not_measured_says_why_and_is_no_miss(self) -> None:
        comparison = self.comparison()
        comparison.refused = {comparison.subjects[1]: "not offered: f32"}
        comparison.attempts = [Attempt(timings={comparison.subjects[0]: Timing(1.0, 1.0, 1)})]
        verdict = cells.judge([comparison], cells.load_targets(), [])[0]
        self.assertEqual((verdict.word, verdict.missed), ("not offered: f32", False))

    def test_a_peer_that_was_held_back_makes_the_run_invalid(self) -> None:
        record = {"name": "torch", "pass": "forward", "dtype": "f32", "head_dim": 64,
                  "causal": False, "seqlen_q": 4096, "seqlen_k": 4096, "fraction_of_peak": 0.28}
        zen5 = {"vendor": "AuthenticAMD", "family": 26}
        held = [c for c in cells.validity([record], zen5) if c["held_back"]]
        self.assertEqual([c["name"] for c in held], ["torch"])
        self.assertFalse(any(c["held_back"] for c in cells.validity(
            [{**record, "fraction_of_peak": 0.31}], zen5)))
        self.assertEqual(cells.validity([record], {"vendor": "GenuineIntel", "family": 6}), [])

    def test_contenders_must_agree(self) -> None:
        problem = square(64, 1, 64)
        self.assertTrue(agrees([0.1, 2.0], [0.1, 2.0001], problem))
        self.assertFalse(agrees([0.1, 2.0], [0.1, 2.1], problem))


class FileTest(unittest.TestCase):
    def test_the_file_has_the_record_format_and_tells_records_apart(self) -> None:
        comparisons = cases(False)
        for comparison in comparisons:
            comparison.attempts = [timed(comparison, 2e-3, 3e-3), timed(comparison, 1e-3, 4e-3)]
        verdicts = cells.judge(comparisons, cells.load_targets(), [])
        records = files.records_of(comparisons)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "machine" / "file.json"
            files.write_file(path, {"version": "1"}, records, verdicts)
            whole = json.loads(path.read_text())
            self.assertEqual(list(path.parent.iterdir()), [path])
        self.assertEqual(len(whole["cells"]), len(verdicts))
        keys = set()
        for record in whole["records"]:
            self.assertLessEqual(RECORD_FIELDS, record.keys())
            self.assertIn(record["median_s"], (1e-3, 4e-3))  # the attempt with the fastest of ours
            keys.add(json.dumps({k: record.get(k) for k in (
                *sorted(RECORD_FIELDS - {"median_s", "min_s", "gflops", "fraction_of_peak",
                                         "bytes_per_s"}),
                "table", "feature", "window_left", "seqlens")}))
        self.assertEqual(len(keys), len(whole["records"]))

    def test_every_table_prints(self) -> None:
        comparisons = cases(False)
        for comparison in comparisons:
            comparison.attempts = [timed(comparison, 1e-3, 4e-3)]
        verdicts = cells.judge(comparisons, cells.load_targets(), [])
        for table in [*TABLES, "peers"]:
            chosen = [v for v in verdicts if v.cell.table == table]
            make = tables.grid_lines if table == "grid" else None
            lines = list(make(chosen) if make else tables.table_lines(table, chosen))
            self.assertGreater(len(lines), 3, table)
            self.assertNotIn("nan", "".join(lines))
        self.assertIn("missed", "\n".join(tables.summary_lines(verdicts, [])))

    def test_the_machines_name_is_a_slug(self) -> None:
        self.assertEqual(machine_slug("Intel(R) Xeon(R) Processor", 2), "intel-xeon-2c")
        self.assertEqual(machine_slug("AMD EPYC 9575F 64-Core Processor", 2), "amd-epyc-9575f-2c")


if __name__ == "__main__":
    unittest.main()
