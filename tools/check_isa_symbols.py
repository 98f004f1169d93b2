#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Code of one instruction set must not be reachable on a machine that lacks it.

    check_isa_symbols.py BUILD_DIR [--nm nm] [--objdump objdump]

A weak symbol (inline function, template instance) of an object built with -mavx512f may be the copy
that the linker keeps for the whole program. So every weak symbol of isa_<name> must carry that
instruction set's tag (Avx512, say) in its name, and every other object of the library must hold no
AVX instruction at all. Exits 1 with one line per finding.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

TAGS = {"scalar": "Scalar", "avx2": "Avx2", "avx512": "Avx512", "avx512_bf16": "Avx512Bf16",
        "amx": "Amx", "neon": "Neon", "neon_bf16": "NeonBf16"}
WEAK = "WVuvw"
# VEX and EVEX instructions all begin with v; these do too and are none.
NOT_AVX = {"verr", "verw", "vmcall", "vmfunc"}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def weak_symbols(nm, path):
    """Defined weak symbols, demangled."""
    for line in run(nm, "-C", "--defined-only", str(path)).splitlines():
        parts = line.split(maxsplit=2)
        if len(parts) == 3 and parts[1] in WEAK:
            yield parts[2]


def avx_instructions(objdump, path):
    for line in run(objdump, "-d", "--no-show-raw-insn", "--demangle", str(path)).splitlines():
        match = re.match(r"\s*[0-9a-f]+:\s+(v[a-z0-9]+)", line)
        if match and match.group(1) not in NOT_AVX:
            yield line.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build_dir", type=Path)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--objdump", default="objdump")
    arguments = parser.parse_args()

    objects = sorted((arguments.build_dir / "CMakeFiles").glob("attentile*.dir/**/*.o"))
    findings, symbols, isas = [], 0, []
    for path in objects:
        target = path.relative_to(arguments.build_dir / "CMakeFiles").parts[0]
        isa = re.fullmatch(r"attentile_isa_(\w+)\.dir", target)
        if isa:
            isas.append(isa.group(1))
            for symbol in weak_symbols(arguments.nm, path):
                symbols += 1
                if TAGS[isa.group(1)] not in symbol:
                    findings.append(f"{path.name}: weak symbol without the tag "
                                    f"{TAGS[isa.group(1)]}: {symbol}")
        elif target == "attentile_objects.dir":
            for line in avx_instructions(arguments.objdump, path):
                findings.append(f"{path.name}: AVX instruction: {line}")
                break
    for finding in findings:
        print(finding)
    if not isas:
        print(f"{arguments.build_dir}: no object of an instruction set was found")
        return 1
    print(f"{len(objects)} objects, instruction sets {' '.join(isas)}, {symbols} weak symbols, "
          f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
