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
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P[0-9T]+\s+)?([A-Z0-9_.]+)(.*?);")


@dataclass
class Block:
    """Instructions without a jump among them, and the blocks that may follow."""

    counts: Counter[str] = field(default_factory=Counter)
    next: list[str] = field(default_factory=list)


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
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        guard, word, rest = instruction.group(2, 3, 4)
        operation = word.split(".")[0]
        block.counts[operation] += 1
        target = re.search(r"`\((\.L_\w+)\)", rest)
        if operation == "BRA" and target:
            block.next.append(target.group(1))
            conditional = bool(guard) or re.search(r"!?U?P\d", rest)
            if not conditional:
                open_end = False
            number += 1
            begin(f"{name}+{number}")
        elif operation in ("EXIT", "RET"):
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


# What makes a tile a full one: a way around the loop may leave out none of it.
COUNTED = (("HMMA",), ("LDGSTS",), ("RED", "REDG"))


def full_tile(lines: list[str], num_mma: int, num_copies: int,
              num_atomics: int = 0) -> Counter[str] | None:
    """The fewest instructions of a way around the inner loop with that many mma, copies and
    atomic additions."""
    blocks = blocks_of(lines)
    for loop in loops_of(blocks):
        if sum(blocks[label].counts["HMMA"] for label in loop) < num_mma:
            continue
        found = cheapest(blocks, loop, (num_mma, num_copies, num_atomics))
        if found is not None:
            return found
    return None


def cheapest(blocks: dict[str, Block], loop: list[str],
             wanted: tuple[int, ...]) -> Counter[str] | None:
    """Over the loop's blocks in code order, jumps back only to its head; state: how many of
    COUNTED so far."""
    place = {label: i for i, label in enumerate(loop)}
    best: list[dict[tuple[int, ...], Counter[str]]] = [{} for _ in loop]
    best[0][(0,) * len(COUNTED)] = Counter()
    answer: Counter[str] | None = None
    for i, label in enumerate(loop):
        block = blocks[label]
        for before, counts in best[i].items():
            state = tuple(n + sum(block.counts[name] for name in names)
                          for n, names in zip(before, COUNTED, strict=True))
            if any(n > most for n, most in zip(state, wanted, strict=True)):
                continue
            after = counts + block.counts
            for target in block.next:
                if target == loop[0]:
                    if state == wanted:
                        if answer is None or after.total() < answer.total():
                            answer = after
                elif place.get(target, -1) > i:
                    states = best[place[target]]
                    if state not in states or after.total() < states[state].total():
                        states[state] = after
    return answer


def mix(counts: Counter[str]) -> Counter[str]:
    """By class; what is in none is index arithmetic."""
    found: Counter[str] = Counter()
    for operation, count in counts.items():
        found[CLASS_OF.get(operation, "index")] += count
    return found
