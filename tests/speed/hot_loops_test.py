# SPDX-License-Identifier: Apache-2.0
"""The loop finder on small disassemblies, and what is said of loops that change."""

import itertools
import unittest

import check_hot_loops
from hot_loops import Loop, find_loops, short_name


def disassembly(*lines, name="f"):
    """Instructions one byte long each, from address 0 on."""
    address = itertools.count()
    body = [line if line.startswith(" ") else f"   {next(address):x}:\t{line}" for line in lines]
    return "\n".join([f"0000000000000000 <{name}>:", *body])


def loops(*lines):
    return [loop for _, loop in find_loops(disassembly(*lines))]


FMAS = ["vfmadd231ps %ymm0,%ymm1,%ymm2"] * 7
PRODUCT = Loop("product", multiplies=8, instructions=10, loads=2, stores=0, stack=0)


class FindLoops(unittest.TestCase):
    def test_counts_one_block(self):
        self.assertEqual(loops(
            "xor %eax,%eax",
            "vmovups (%rdi,%rax,4),%ymm0",
            *FMAS,
            "vfmadd231ps (%rsi){1to8},%ymm1,%ymm2   # ymm2 = (mem)",
            "nopw   0x0(%rax,%rax,1)",
            "jne 1 <f+0x1>",
            "ret"), [PRODUCT])

    def test_outer_loop_is_judged_without_the_inner_one(self):
        self.assertEqual(loops(
            "vmovups %ymm0,(%rdi)",
            *FMAS,
            "vfmadd231ps %ymm0,%ymm1,%ymm2",
            "jne 0x1 <f+0x1>",
            "jne 0x0 <f>",
            "ret"), [Loop("other", 0, 2, 0, 1, 0), Loop("product", 8, 9, 0, 0, 0)])

    def test_loop_that_is_entered_in_the_middle(self):
        self.assertEqual(loops(
            "jmp 2 <f+0x2>",
            "vmovups %ymm0,(%rdi)",
            "cmp (%rsi),%rax",
            "jb 1 <f+0x1>",
            "ret"), [Loop("other", 0, 3, 1, 1, 0)])

    def test_jump_back_that_closes_no_loop(self):
        self.assertEqual(loops("je 2 <f+0x2>", "ret", "je 1 <f+0x1>", "jmp 1 <f+0x1>"), [])

    def test_tail_call_does_not_lead_into_the_next_block(self):
        self.assertEqual(loops(
            "je 3 <f+0x3>",
            "jmp 2 <f+0x2>",
            "    2: R_X86_64_PLT32\tg-0x4",
            "vscalefps %zmm0,%zmm1,%zmm2",
            "vscalefps %zmm0,%zmm1,%zmm2",
            "jne 2 <f+0x2>",
            "ret"), [Loop("exponential", 0, 3, 0, 0, 0)])

    def test_stack_accesses(self):
        turn = ["vmovups %ymm0,0x20(%rsp)", "vmovups (%rbp),%ymm1", "tdpbf16ps %tmm6,%tmm4,%tmm0",
                "lea (%rsp,%rax),%rcx"]
        self.assertEqual(loops(*turn, "jne 0 <f>"), [Loop("tiles", 1, 5, 1, 0, 1)])
        framed = loops("mov %rsp,%rbp", *turn, "jne 1 <f+0x1>")
        self.assertEqual(framed, [Loop("tiles", 1, 5, 1, 0, 2)])

    def test_short_names(self):
        self.assertEqual(short_name(
            "void attentile::cpu::gemm<attentile::cpu::Avx2, float>(attentile::cpu::GemmTile<float>"
            " const&, int)"), "gemm<Avx2, float>")
        self.assertEqual(short_name("attentile::cpu::f<A, float>(B (*)(C))::{lambda(int)#1}"
                                    "::operator()(int) const"),
                         "f<A, float>::{lambda#1}::operator")


class Compare(unittest.TestCase):
    def compare(self, before, after):
        def rows(by_function):
            return [("avx2", function, loop) for function, loops in by_function.items()
                    for loop in loops]
        return check_hot_loops.compare(rows(before), rows(after))

    def assert_finding(self, after, *words, before=PRODUCT):
        findings, _ = self.compare({"gemm": [before]}, {"gemm": [after]})
        self.assertEqual(len(findings), 1)
        for word in ("avx2: gemm", *words):
            self.assertIn(word, findings[0])

    def test_equal_loops_and_moved_ones_are_silent(self):
        self.assertEqual(self.compare({"gemm": [PRODUCT]}, {"gemm": [PRODUCT]}), ([], []))
        self.assertEqual(self.compare({"gemm": [PRODUCT]}, {"other": [PRODUCT]}), ([], []))

    def test_more_instructions(self):
        self.assert_finding(PRODUCT._replace(instructions=11),
                            "instructions per multiply-add 1.25 -> 1.38")

    def test_more_instructions_of_a_longer_loop(self):
        self.assert_finding(PRODUCT._replace(multiplies=16, instructions=24, loads=4),
                            "instructions per multiply-add 1.25 -> 1.50")

    def test_more_loads(self):
        self.assert_finding(PRODUCT._replace(loads=3), "loads per multiply-add 0.25 -> 0.38")

    def test_spill(self):
        self.assert_finding(PRODUCT._replace(stack=1), "stack accesses per multiply-add")

    def test_multiply_add_more_in_an_exponential(self):
        weigh = Loop("exponential", multiplies=6, instructions=25, loads=5, stores=1, stack=3)
        self.assert_finding(weigh._replace(multiplies=7, instructions=26),
                            "instructions per store 25.00 -> 26.00", before=weigh)

    def test_loop_that_is_gone(self):
        findings, _ = self.compare({"gemm": [PRODUCT]}, {})
        self.assertIn("gone", findings[0])

    def test_other_loop_in_another_function(self):
        findings, notes = self.compare({"gemm<6>": [PRODUCT]}, {
            "gemm<8>": [PRODUCT._replace(multiplies=16, instructions=30, stack=4)]})
        self.assertEqual((len(findings), notes), (1, []))
        self.assertIn("gemm<8>: product loop: stands for one of gemm<6>, instructions per multiply"
                      "-add 1.25 -> 1.88", findings[0])

    def test_one_of_two_equal_loops(self):
        worse = PRODUCT._replace(stack=2)
        findings, _ = self.compare({"gemm": [PRODUCT]}, {"gemm": [PRODUCT, worse]})
        self.assertEqual(len(findings), 1)

    def test_better_and_new_loops_are_only_told(self):
        better = PRODUCT._replace(instructions=9)
        findings, notes = self.compare({"gemm": [PRODUCT]}, {"gemm": [better], "new": [PRODUCT]})
        self.assertEqual((findings, len(notes)), ([], 2))


if __name__ == "__main__":
    unittest.main()
