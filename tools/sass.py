# SPDX-License-Identifier: Apache-2.0
"""The instructions of a kernel's inner loop, from nvdisasm's listing: which a warp executes for one
full tile, none of whose elements a mask hides."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

CLASSES = {
    "mma": ("HMMA",),
    "ldmatrix": ("LDSM",),
    "copy": ("LDGSTS",),
    "exp": ("MUFU",),
    "float": ("FFMA", "FMUL", "FADD", "FMNMX", "FSEL", "FSETP", "F2FP", "FSET", "F2F", "HADD2",
              "HFMA2", "FCHK"),
    "memory": ("LDS", "STS", "LDG", "STG", "LD", "ST", "LDC", "ULDC", "STSM", "RED", "REDG",
               "ATOM", "ATOMG"),
    "shuffle": ("SHFL", "VOTE", "VOTEU", "REDUX"),
    "control": ("BRA", "BSSY", "BSYNC", "BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "EXIT", "NOP",
                "BREAK", "YIELD", "CALL", "RET"),
}
CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names}
# Of 128 bytes, that a warp's access of that width takes where no two lanes meet in a bank.
WAVEFRONTS = {"LDSM.4": 4, "STSM.4": 4, "LDGSTS.128": 4, "LDS.128": 4, "STS.128": 4, "LDS.64": 2,
              "STS.64": 2, "LDS": 1, "STS": 1}
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P[0-9T]+\s+)?([A-Z0-9_.]+)(.*?);")


@dataclass
class Instruction:
    """As `@!P0 IADD3 R1, R1.reuse, 0x4, RZ`."""

    guard: str
    name: str
    operands: list[str]

    @property
    def operation(self) -> str:
        return self.name.split(".")[0]

    @property
    def counted_as(self) -> str:
        """The operation, with what tells exponentials, and widths in shared memory, apart."""
        if self.guard == "@!PT":
            return "NOP"
        last = self.name.split(".")[-1]
        in_shared = self.operation in ("LDS", "STS", "LDSM", "STSM", "LDGSTS")
        if self.operation == "MUFU" or (in_shared and last in ("4", "64", "128")):
            return f"{self.operation}.{last}"
        return self.operation


@dataclass
class Block:
    """Instructions without a jump among them, and the blocks that may follow."""

    code: list[Instruction] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(one.counted_as for one in self.code)


def functions(listing: str) -> dict[str, list[str]]:
    """Mangled name -> lines."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        start = re.match(r"^\.text\.(\S+):$", line)
        if start:
            lines = found.setdefault(start.group(1), [])
        lines.append(line)
    return found


def blocks_of(lines: list[str]) -> dict[str, Block]:
    """Label -> block, in the order of the code."""
    blocks: dict[str, Block] = {}
    name, number = "start", 0
    block = blocks.setdefault(name, Block())
    open_end = True  # falls through into what follows

    def begin(label: str) -> None:
        nonlocal block, name, open_end
        if open_end:
            block.next.append(label)
        name, block, open_end = label, blocks.setdefault(label, Block()), True

    for line in lines:
        label = re.match(r"^(\.L_\w+):", line)
        if label:
            begin(label.group(1))
            continue
        found = INSTRUCTION.match(line)
        if not found:
            continue
        guard, word, rest = found.group(2, 3, 4)
        operands = [one.strip().replace(".reuse", "") for one in rest.split(",")]
        one = Instruction((guard or "").strip(), word, operands)
        block.code.append(one)
        target = target_of(one)
        if target:
            block.next.append(target)
            conditional = bool(guard) or re.search(r"!?U?P\d", rest)
            if not conditional:
                open_end = False
            number += 1
            begin(f"{name}+{number}")
        elif one.operation in ("EXIT", "RET"):
            if not guard:
                open_end = False
            number += 1
            begin(f"{name}+{number}")
    return blocks


def loops_of(blocks: dict[str, Block]) -> list[list[str]]:
    """Loops as runs of blocks in code order, from a label to the jump back to it; small first."""
    order = list(blocks)
    place = {label: i for i, label in enumerate(order)}
    found = [order[place[target]:i + 1] for i, label in enumerate(order)
             for target in blocks[label].next if target in place and place[target] <= i]
    return sorted(found, key=len)


# --- how often a loop that was not unrolled goes around ------------------------------------------

SUMS = ("IADD3", "UIADD3", "VIADD")
ZERO = ("RZ", "URZ", "SRZ")
MOST_TIMES = 4096  # around any loop within a tile's
COMPARES = {"GE": lambda a, b: a >= b, "NE": lambda a, b: a != b, "LT": lambda a, b: a < b,
            "GT": lambda a, b: a > b, "LE": lambda a, b: a <= b, "EQ": lambda a, b: a == b}


def constant(operand: str) -> int | None:
    if operand in ZERO:
        return 0
    return int(operand, 0) if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", operand) else None


def written(code: list[Instruction], register: str) -> int | None:
    """Where the last instruction in code order that writes a register or predicate is; of loads
    into several registers only the first counts."""
    for i in reversed(range(len(code))):
        one = code[i]
        results = one.operands[:2] if "SETP" in one.name else one.operands[:1]
        if one.name == "CS2R":  # a pair
            results = results + [f"R{int(results[0][1:]) + 1}"]
        if register in results:
            return i
    return None


def target_of(one: Instruction) -> str | None:
    """The label that a jump leads to. Within a kernel ptxas writes far jumps as calls that never
    return."""
    found = re.search(r"`\((\.L_\w+)\)", " ".join(one.operands))
    return found.group(1) if found and one.operation in ("BRA", "CALL") else None


def times_around(before: list[Instruction], body: list[Instruction],
                 labels: list[str]) -> int | None:
    """Of a loop that counts a register up in constant steps from one constant to another; None for
    any other."""
    last = len(body) - 1
    leaves = not body[last].guard  # the jump back is for all: another one leads out of the loop
    while leaves and last > 0 and not (body[last].guard and target_of(body[last])
                                       and target_of(body[last]) not in labels):
        last -= 1
    jump, predicate = body[last], body[last].guard.lstrip("@!")
    if len(jump.operands) > 1:  # by a second predicate, too
        return None
    at = written(body[:last], predicate) if predicate else None
    if at is not None and body[at].operation == "PLOP3":  # from a uniform predicate
        uniform = next((one for one in body[at].operands if one.startswith("UP")), "")
        at = written(body[:at], uniform)
    if at is None or "SETP" not in body[at].name or body[at].guard \
            or body[at].operands[-1] not in ("PT", "UPT") or not body[at].name.endswith(".AND"):
        return None
    counter, limit = body[at].operands[2], constant(body[at].operands[3])
    sums = [i for i, one in enumerate(body) if one.operands[0] == counter]
    if limit is None or len(sums) != 1:
        return None
    add = body[sums[0]]
    step = constant(add.operands[2]) if len(add.operands) > 2 else None
    if add.operation not in SUMS or add.operands[1] != counter or not step or step < 0 \
            or add.guard:
        return None
    start = written(before, counter)
    value = start_of(before[start]) if start is not None else None
    compare = COMPARES.get(body[at].name.split(".")[1])
    if compare is None or value is None:
        return None
    while_true = jump.guard.startswith("@!") == leaves
    for count in range(1, MOST_TIMES):
        after = value + step
        if compare(after if sums[0] < at else value, limit) != while_true:
            return count
        value = after
    return None


def start_of(one: Instruction) -> int | None:
    """The constant that an instruction puts into a register."""
    if one.guard:
        return None
    if one.operation in ("MOV", "UMOV", "CS2R"):
        return constant(one.operands[1])
    if one.name == "IMAD.MOV.U32" and one.operands[1:3] == ["RZ", "RZ"]:
        return constant(one.operands[3])
    if one.name == "HFMA2.MMA" and one.operands[1:4] == ["-RZ", "RZ", "0"]:
        return round(float(one.operands[4]) * 2**24)  # a small integer is a subnormal half
    return None


def repetitions(blocks: dict[str, Block], loop: list[str]) -> dict[str, int]:
    """How often blocks run on one way around a loop: the product of the times around of the loops
    within it that they are in. None of those whose loop has no constant number of them."""
    order = [one for label in blocks for one in blocks[label].code]
    start: dict[str, int] = {}
    length = 0
    for label in blocks:
        start[label] = length
        length += len(blocks[label].code)
    times = dict.fromkeys(loop, 1)
    inside = [one for one in loops_of({label: blocks[label] for label in loop})
              if one[0] != loop[0]]
    heads = Counter(inner[0] for inner in inside)
    for inner in inside:
        begin = start[inner[0]]
        end = start[inner[-1]] + len(blocks[inner[-1]].code)
        one_way_back = heads[inner[0]] == 1
        count = times_around(order[:begin], order[begin:end], inner) if one_way_back else None
        for label in inner:
            if label in times and count is not None:
                times[label] *= count
            else:
                times.pop(label, None)
    return times


# --- the way around ------------------------------------------------------------------------------

FEW_EX2 = 4
FEW_FFMA = 16


@dataclass(frozen=True)
class Tile:
    """Of one warp and a full tile: exactly so many mma, copies and atomic additions; so many
    exponentials and multiply-adds or a few more (the compiler computes some before a branch knows
    whether it needs them); at least so many additions and loads."""

    mma: int = 0
    copies: int = 0
    atomics: int = 0
    ex2: int = 0
    ffma: int | None = None  # any number
    fadd: int = 0
    ldg: int = 0

    def after(self, counts: Counter[str], times: int) -> Tile | None:
        """What is left when these instructions are done; None if they are too many."""
        left = Tile(self.mma - times * counts["HMMA"], self.copies - times * counts["LDGSTS.128"],
                    self.atomics - times * (counts["RED"] + counts["REDG"]),
                    self.ex2 - times * counts["MUFU.EX2"],
                    None if self.ffma is None else self.ffma - times * counts["FFMA"],
                    max(0, self.fadd - times * counts["FADD"]),
                    max(0, self.ldg - times * counts["LDG"]))
        return None if min(left.mma, left.copies, left.atomics, left.ex2 + FEW_EX2,
                           (left.ffma or 0) + FEW_FFMA) < 0 else left

    def is_done(self) -> bool:
        exact = self.mma == self.copies == self.atomics == self.fadd == self.ldg == 0
        return exact and self.ex2 <= 0 and (self.ffma or 0) <= 0


# Predicates whose value is known on the way here, since constants were put into them.
Known = frozenset[tuple[str, bool]]


def known_after(code: list[Instruction], known: Known) -> Known:
    values = dict(known)
    for one in code:
        if one.operation in ("BRA", "CALL"):
            continue
        found: tuple[str, bool] | None = None
        writes = [name for name in one.operands if re.fullmatch(r"U?P\d", name)]
        if one.operation == "PLOP3" and one.operands[2:5] == ["PT", "PT", "PT"]:
            writes = one.operands[:2]
            found = (writes[0], bool(int(one.operands[5], 16) >> 7))
        elif one.operation == "VOTE" and one.operands[-1] in values:  # of all lanes alike
            writes = writes[:1]
            found = (writes[0], values[one.operands[-1]])
        elif "SETP" in one.name or one.operation == "PLOP3":
            writes = one.operands[:2]
        elif one.operation == "R2P":
            values.clear()
        for name in writes:  # or perhaps reads
            values.pop(name, None)
        if found is not None and not one.guard:
            values[found[0]] = found[1]
    return frozenset(values.items())


def ways_on(block: Block, known: Known) -> list[str]:
    """The blocks that may follow, by what is known."""
    jump = block.code[-1] if block.code else None
    target = target_of(jump) if jump is not None else None
    if jump is None or target is None:
        return block.next
    values = dict(known)
    needs = [name for name in [jump.guard.lstrip("@"), *jump.operands]
             if re.fullmatch(r"!?U?P\d", name)]
    told = [values[name.lstrip("!")] != name.startswith("!") for name in needs
            if name.lstrip("!") in values]
    if not all(told):
        return [label for label in block.next if label != target]
    if needs and len(told) == len(needs):
        return [target]
    return block.next


def full_tile(lines: list[str], tile: Tile) -> Counter[str] | None:
    """The fewest instructions of a way around the inner loop that computes such a tile."""
    blocks = blocks_of(lines)
    for loop in loops_of(blocks):
        found = cheapest(blocks, loop, tile)
        if found is not None:
            return found
    return None


def cheapest(blocks: dict[str, Block], loop: list[str], tile: Tile) -> Counter[str] | None:
    """Over the loop's blocks in code order, each as often as the loops within make it run (but for
    what stands behind an exit in the middle of one, which is not counted); state: what is left of
    the tile, and which predicates are known."""
    times = repetitions(blocks, loop)
    place = {label: i for i, label in enumerate(loop)}
    best: list[dict[tuple[Tile, Known], Counter[str]]] = [{} for _ in loop]
    best[0][tile, frozenset()] = Counter()
    answer: Counter[str] | None = None
    for i, label in enumerate(loop):
        if label not in times:
            continue
        own = blocks[label].counts
        repeated = Counter({name: times[label] * count for name, count in own.items()})
        for (before, known), counts in best[i].items():
            left = before.after(own, times[label])
            if left is None:
                continue
            after = counts + repeated
            known = known_after(blocks[label].code, known) if times[label] == 1 else frozenset()
            for target in ways_on(blocks[label], known):
                if target == loop[0]:
                    if left.is_done() and (answer is None or after.total() < answer.total()):
                        answer = after
                elif place.get(target, -1) > i:
                    states = best[place[target]]
                    here = (left, known)
                    if here not in states or after.total() < states[here].total():
                        states[here] = after
    return answer


def wavefronts(counts: Counter[str]) -> int:
    """Of shared memory, without bank conflicts."""
    return sum(count * WAVEFRONTS.get(name, 0) for name, count in counts.items())


def mix(counts: Counter[str]) -> Counter[str]:
    """By class; what is in none is index arithmetic."""
    found: Counter[str] = Counter()
    for operation, count in counts.items():
        found[CLASS_OF.get(operation.split(".")[0], "index")] += count
    return found
