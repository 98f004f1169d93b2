# SPDX-License-Identifier: Apache-2.0
"""How often loops of small listings go around, and the way around a tile's loop."""

import unittest

import sass


def lines(text):
    """Numbered as nvdisasm does; labels stand alone, a line ends in `;` by itself."""
    found = []
    for i, line in enumerate(text.strip().splitlines()):
        line = line.strip()
        label = line.startswith(".L_")
        found.append(line if label else f"        /*{16 * i:04x}*/                   {line} ;")
    return found


def times(text):
    """Of the only loop."""
    blocks = sass.blocks_of(lines(text))
    order = [one for block in blocks.values() for one in block.code]
    (loop,) = sass.loops_of(blocks)
    first = blocks[loop[0]].code[0]
    begin = next(i for i, one in enumerate(order) if one is first)
    end = begin + sum(len(blocks[label].code) for label in loop)
    return sass.times_around(order[:begin], order[begin:end], loop)


class TimesAround(unittest.TestCase):
    def test_from_zero_after_the_sum(self):
        self.assertEqual(times("""
            IMAD.MOV.U32 R183, RZ, RZ, RZ
            .L_x_1:
            IADD3 R183, R183.reuse, 0x4, RZ
            ISETP.GE.U32.AND P0, PT, R183, 0x20, PT
            @!P0 BRA `(.L_x_1)
            EXIT"""), 8)

    def test_from_one(self):
        self.assertEqual(times("""
            HFMA2.MMA R81, -RZ, RZ, 0, 5.9604644775390625e-08
            .L_x_1:
            IADD3 R81, R81, 0x1, RZ
            ISETP.NE.AND P0, PT, R81, 0x4, PT
            @P0 BRA `(.L_x_1)
            EXIT"""), 3)

    def test_uniform_registers(self):
        self.assertEqual(times("""
            UMOV UR4, URZ
            .L_x_1:
            UIADD3 UR4, UR4, 0x40, URZ
            UISETP.GE.U32.AND UP0, UPT, UR4, 0xc0, UPT
            PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0
            @!P0 BRA `(.L_x_1)
            EXIT"""), 3)

    def test_compared_before_the_sum(self):
        self.assertEqual(times("""
            CS2R R76, SRZ
            .L_x_1:
            ISETP.GE.AND P1, PT, R77.reuse, 0x30, PT
            IADD3 R77, R77, 0x10, RZ
            @!P1 BRA `(.L_x_1)
            EXIT"""), 4)

    def test_far_jump_out(self):
        self.assertEqual(times("""
            MOV R81, RZ
            .L_x_1:
            VIADD R81, R81, 0x1
            ISETP.NE.AND P0, PT, R81, 0x4, PT
            @!P0 CALL.REL.NOINC `(.L_x_2)
            UIADD3 UR6, UR6, 0x20, URZ
            BRA `(.L_x_1)
            .L_x_2:
            EXIT"""), 4)

    def test_not_constant(self):
        text = """
            MOV R1, RZ
            .L_x_1:
            FADD R5, R5, R5
            IADD3 R1, R1, 0x4, RZ
            ISETP.LT.AND P0, PT, R1, 0x6, PT
            @P0 BRA `(.L_x_1)
            EXIT"""
        self.assertEqual(times(text), 2)
        for old, new in (("0x6, PT", "R9, PT"),             # up to a register
                         ("0x4, RZ", "R8, RZ"),             # in steps of a register
                         ("MOV R1, RZ", "LDG.E R1, [R2]"),  # from anywhere
                         ("FADD R5, R5, R5", "MOV R1, R7")):  # written twice
            self.assertIsNone(times(text.replace(old, new)), new)


TILE = """
    MOV R1, RZ
    .L_x_1:
    BAR.SYNC 0x0
    @P3 BRA `(.L_x_2)
    @!PT LDS RZ, [RZ]
    LDGSTS.E.BYPASS.128 [R71+0x8000], [R60.64], P4
    LDSM.16.M88.4 R172, [R172+0x16000]
    .L_x_2:
    MOV R2, RZ
    .L_x_3:
    HMMA.16816.F32.BF16 R140, R172.reuse, R156, R84
    HMMA.16816.F32.BF16 R156, R172.reuse, R158, R88
    IADD3 R2, R2, 0x1, RZ
    ISETP.NE.AND P0, PT, R2, 0x8, PT
    @P0 BRA `(.L_x_3)
    @P2 BRA `(.L_x_4)
    MUFU.EX2 R5, R5
    MUFU.EX2 R6, R6
    .L_x_4:
    ISETP.NE.AND P0, PT, R1, R9, PT
    @P0 BRA `(.L_x_1)
    EXIT"""


class FullTile(unittest.TestCase):
    def test_rolled_loops_count_as_often_as_they_go_around(self):
        found = sass.full_tile(lines(TILE), sass.Tile(mma=16, copies=1, ex2=2))
        self.assertEqual(found["HMMA"], 16)
        self.assertEqual(found["LDGSTS.128"], 1)
        self.assertEqual(found["LDS"], 0)  # never executed
        self.assertEqual(sass.wavefronts(found), 8)
        self.assertEqual(found["MUFU.EX2"], 2)
        self.assertEqual(found["BRA"], 8 + 3)
        self.assertEqual(sass.mix(found)["exp"], 2)
        self.assertEqual(sass.mix(found)["index"], 1 + 8 * 2 + 1)

    def test_the_shortest_way_that_does_it(self):
        found = sass.full_tile(lines(TILE), sass.Tile(mma=16))
        self.assertEqual(found["LDGSTS.128"] + found["MUFU.EX2"], 0)

    def test_what_a_predicate_is_known_to_be(self):
        # Masks are skipped by a vote on P0, which the way through .L_x_2 has just set.
        text = """
            MOV R1, RZ
            .L_x_1:
            @P3 BRA `(.L_x_2)
            FADD R5, R5, R5
            FADD R5, R5, R5
            ISETP.NE.AND P0, PT, R6, R9, PT
            BRA `(.L_x_3)
            .L_x_2:
            PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0
            .L_x_3:
            VOTE.ANY P0, P0
            @!P0 BRA `(.L_x_4)
            SHFL.IDX PT, R1, R2, R3, 0x1f
            SHFL.IDX PT, R1, R2, R3, 0x1f
            SHFL.IDX PT, R1, R2, R3, 0x1f
            .L_x_4:
            HMMA.16816.F32.BF16 R140, R172.reuse, R156, R84
            @P4 BRA `(.L_x_1)
            EXIT"""
        found = sass.full_tile(lines(text), sass.Tile(mma=1))
        self.assertEqual((found["FADD"], found["SHFL"]), (2, 0))
        for constant in ("0x8, 0x0", "0x40, 0x0"):  # false
            found = sass.full_tile(lines(text.replace("0x80, 0x0", constant)), sass.Tile(mma=1))
            self.assertEqual((found["FADD"], found["SHFL"]), (0, 0))
        found = sass.full_tile(lines(text.replace("VOTE.ANY P0, P0", "R2P PR, R7, 0x1")),
                               sass.Tile(mma=1))
        self.assertEqual((found["FADD"], found["SHFL"]), (0, 0))  # not known any more

    def test_no_way(self):
        self.assertIsNone(sass.full_tile(lines(TILE), sass.Tile(mma=15)))
        self.assertIsNone(sass.full_tile(lines(TILE), sass.Tile(mma=16, copies=2)))
        self.assertIsNone(sass.full_tile(lines(TILE), sass.Tile(mma=16, copies=1, ex2=3)))
        self.assertIsNone(sass.full_tile(lines(TILE), sass.Tile(mma=16, copies=1, fadd=1)))
        self.assertIsNone(sass.full_tile(lines(TILE), sass.Tile(mma=16, copies=1, ldg=1)))

    def test_few_more_multiply_adds(self):
        text = TILE.replace("HMMA.16816.F32.BF16", "FFMA")
        tile = {"copies": 1, "ex2": 2}
        self.assertIsNotNone(sass.full_tile(lines(text), sass.Tile(ffma=15, **tile)))
        self.assertIsNotNone(sass.full_tile(lines(text), sass.Tile(**tile)))
        self.assertIsNone(sass.full_tile(lines(text), sass.Tile(ffma=17, **tile)))
        text = text.replace("R2, 0x8, PT", "R2, 0x80, PT")  # 256 are not a few more than 15
        self.assertIsNone(sass.full_tile(lines(text), sass.Tile(ffma=15, **tile)))


if __name__ == "__main__":
    unittest.main()
