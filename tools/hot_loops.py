# SPDX-License-Identifier: Apache-2.0
"""The hot loops in a disassembly, and what one turn of each costs.

Reads what `objdump -dr --no-show-raw-insn --demangle` prints of x86-64 code. A function's basic
blocks give its natural loops: the blocks that reach a backward edge without passing its target. A
loop is judged by its own blocks, those in no loop inside it. No address enters the result.
"""

import re
from collections import defaultdict
from typing import NamedTuple

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
RELOCATION = re.compile(r"^\s+[0-9a-f]+: R_X86_64_")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+((?:(?:bnd|notrack|rep\w*|lock|data16|cs) )*)"
                         r"([a-z]\w*)\s*([^#]*)")
FMA = re.compile(r"vfn?m(add|sub)\d+p[sd]$")
TILES = re.compile(r"tdp")
# Scaling by a power of two, which is where every exponential ends, and 16-bit values to float.
EXPONENTIAL = re.compile(r"vscalefp[sd]|vcvtp[sd]2dq")
WIDENING = re.compile(r"vcvtph2ps|vpmovzxwd")
PRODUCT_FMAS = 8  # a loop with so many multiply-adds and nothing of the above is a product
ENDS = re.compile(r"ret|ud2|jmp")
NOT_ACCESSING = re.compile(r"lea|nop|prefetch")  # although they have a memory operand
READING_LAST = re.compile(r"cmp|test|v?u?comis|call|jmp|push|mul|div|idiv")
MEMORY_LAST = re.compile(r"\)(\s*\{%k\d\})?$")


class Loop(NamedTuple):
    """What one turn of a loop executes if every block of its own is taken."""
    kind: str          # tiles, exponential, widening, product, or other: not hot
    multiplies: int    # of tiles or by vector multiply-adds
    instructions: int  # without padding
    loads: int         # memory operands that are read, the stack's too
    stores: int        # memory operands that are written, other than on the stack
    stack: int         # instructions that access the stack: values without a register


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str
    external: bool = False  # what it jumps to is not in this function


def functions(text):
    """(name, instructions) of each function; the name as short as it stays unique."""
    name, body = None, []
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            if body:
                yield name, body
            name, body = short_name(match.group(1)), []
        elif RELOCATION.match(line):
            if body and body[-1].name.startswith("j"):
                body[-1] = body[-1]._replace(external=True)
        elif match := INSTRUCTION.match(line):
            address, _, mnemonic, operands = match.groups()
            body.append(Instruction(int(address, 16), mnemonic, operands.strip()))
    if body:
        yield name, body


def short_name(demangled):
    """`void attentile::cpu::gemm<attentile::cpu::Avx2, float>(...)`: gemm<Avx2, float>."""
    name = re.sub(r"attentile::(cpu::)?", "", demangled)
    while (bare := re.sub(r"\([^()]*\)( const)?", "", name)) != name:
        name = bare
    depth = 0
    for i in range(len(name) - 1, -1, -1):  # the last blank outside of <> ends the return type
        depth += (name[i] == ">") - (name[i] == "<")
        if name[i] == " " and depth == 0:
            return name[i + 1:]
    return name


def target(instruction):
    """Address that a jump within the function goes to, else None."""
    match = re.match(r"(?:0x)?([0-9a-f]+)\b", instruction.operands)
    if not instruction.name.startswith("j") or instruction.external or not match:
        return None
    return int(match.group(1), 16)


def control_flow(body):
    """Basic blocks, each a list of instructions, and the indices of each block's successors."""
    index_of = {instruction.address: i for i, instruction in enumerate(body)}
    starts = {0}
    for i, instruction in enumerate(body):
        if instruction.name.startswith("j") or ENDS.match(instruction.name):
            starts |= {i + 1, index_of.get(target(instruction), i + 1)}
    starts = sorted(starts - {len(body)})
    block_at = {start: block for block, start in enumerate(starts)}
    blocks, successors = [], []
    for start, end in zip(starts, [*starts[1:], len(body)], strict=True):
        last = body[end - 1]
        following = [] if ENDS.match(last.name) else [end]
        following.append(index_of.get(target(last)))
        blocks.append(body[start:end])
        successors.append([block_at[i] for i in following if i in block_at])
    return blocks, successors


def backward_edges(successors):
    """Edges to a block that the depth-first walk from the entry is still inside of."""
    edges, inside, seen = [], {0}, {0}
    path = [(0, iter(successors[0]))]
    while path:
        block, rest = path[-1]
        following = next(rest, None)
        if following is None:
            inside.discard(block)
            path.pop()
        elif following in inside:
            edges.append((block, following))
        elif following not in seen:
            seen.add(following)
            inside.add(following)
            path.append((following, iter(successors[following])))
    return edges


def natural_loops(successors):
    """The blocks of each loop by its head, loops with the same head as one."""
    predecessors = defaultdict(list)
    for block, following in enumerate(successors):
        for other in following:
            predecessors[other].append(block)
    loops = defaultdict(set)
    for tail, head in backward_edges(successors):
        members, waiting = {head}, [tail]
        while waiting:
            block = waiting.pop()
            if block not in members:
                members.add(block)
                waiting += predecessors[block]
        if head == 0 or 0 not in members:  # else the head can be passed by: no loop of its own
            loops[head] |= members
    return loops


def own_blocks(loops, head):
    inner = [other for other in loops if other != head and other in loops[head]]
    return loops[head].difference(*(loops[other] for other in inner))


def has_frame_pointer(body):
    return any(i.name.startswith("mov") and re.fullmatch(r"%rsp,\s*%rbp", i.operands)
               for i in body)


def kind_of(names):
    for kind, pattern in (("tiles", TILES), ("exponential", EXPONENTIAL), ("widening", WIDENING)):
        if any(map(pattern.match, names)):
            return kind
    return "product" if sum(map(bool, map(FMA.match, names))) >= PRODUCT_FMAS else "other"


def is_padding(instruction):
    return instruction.name.startswith("nop") or (
        instruction.name == "xchg" and instruction.operands.replace(" ", "") == "%ax,%ax")


def measure(instructions, frame_pointer):
    """The Loop that these instructions are."""
    on_stack = re.compile(r"\(%r[sb]p" if frame_pointer else r"\(%rsp")
    executed = [i for i in instructions if not is_padding(i)]
    names = [i.name for i in executed]
    kind = kind_of(names)
    multiplying = TILES if kind == "tiles" else FMA
    loads = stores = stack = 0
    for name, operands in ((i.name, i.operands) for i in executed):
        if "(" not in operands or NOT_ACCESSING.match(name):
            continue
        on_the_stack = bool(on_stack.search(operands))
        written = bool(MEMORY_LAST.search(operands)) and not READING_LAST.match(name)
        loads += not written
        stores += written and not on_the_stack
        stack += on_the_stack
    multiplies = sum(bool(multiplying.match(name)) for name in names)
    return Loop(kind, multiplies, len(executed), loads, stores, stack)


def find_loops(text):
    """(function, Loop) of every loop of every function."""
    for function, body in functions(text):
        blocks, successors = control_flow(body)
        loops = natural_loops(successors)
        for head in loops:
            own = [i for block in sorted(own_blocks(loops, head)) for i in blocks[block]]
            yield function, measure(own, has_frame_pointer(body))
