# SPDX-License-Identifier: Apache-2.0
"""Costs from a callgrind profile, and what is said of calls that change."""

import unittest

from check_call_counts import ALL, compare, self_costs

PROFILE = """positions: line
events: Ir
summary: 1000

fn=void attentile::cpu::gemm<attentile::cpu::Avx2, float>(int)
0 700
cfn=memset
calls=3 38
0 200
1 50

fn=memset
38 200
fn=attentile::cli::main()
0 50
"""


class CallCounts(unittest.TestCase):
    def test_kernels_without_callees(self):
        self.assertEqual(self_costs(PROFILE), {"gemm<Avx2, float>": 750})

    def test_growth_names_the_function(self):
        findings, _ = compare({"call": {ALL: 1000, "gemm": 800, "exp": 200}},
                              {"call": {ALL: 1020, "gemm": 800, "exp": 220}})
        self.assertEqual(findings, ["call: 1000 -> 1020 thousand (+2.0%)",
                                    "    exp: 200 -> 220 thousand"])

    def test_within_tolerance(self):
        self.assertEqual(compare({"call": {ALL: 1000}}, {"call": {ALL: 1005}}), ([], []))

    def test_better_and_missing_calls_are_only_told(self):
        findings, notes = compare({"call": {ALL: 1000}, "old": {ALL: 1}},
                                  {"call": {ALL: 900}, "new": {ALL: 1}})
        self.assertEqual((findings, len(notes)), ([], 3))


if __name__ == "__main__":
    unittest.main()
