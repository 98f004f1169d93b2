#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels touch the machine only through src/cuda/device: that is what the emulator runs.

    check_device_layer.py [FILE...]

Reads the sources under src/cuda and tests/cuda that a kernel may stand in (or the files given) and
fails on inline assembly, CUDA's keywords, variables, types and intrinsics, and on tests of the
compiler or the architecture. src/cuda/device is the layer itself; in src/cuda/emulator only the
switch of stacks may hold assembly.
"""

import re
import subprocess
import sys
from pathlib import Path

from check_budget import without_comments_and_strings

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".h", ".cuh", ".cu", ".cc"}
LAYER = "src/cuda/device/"
ASSEMBLY = {"src/cuda/emulator/fiber.cc"}

ONLY_IN_THE_LAYER = [
    (r"\b(asm|__asm__|__asm)\b", "inline assembly"),
    (r"\b(threadIdx|blockIdx|blockDim|gridDim|warpSize)\b", "a built-in variable"),
    (r"\b__(global|device|host|shared|constant|managed|forceinline|launch_bounds)__\b"
     r"|\b__grid_constant__\b", "a CUDA keyword"),
    (r"\b__(syncthreads|syncwarp|threadfence|activemask|ldg|ldcs|stcs|cvta|shfl|ballot|any|all"
     r"|reduce|match|fmaf|fmul|fadd|fdiv|expf|logf|half|float2half|nv)\w*\b", "an intrinsic"),
    (r"\batomic(Add|Sub|Exch|Min|Max|CAS|And|Or|Xor|Inc|Dec)\b", "an intrinsic"),
    (r"\b(half2|nv_bfloat16|nv_bfloat162|float[24]|u?int[24]|dim3)\b(?!\s*\()", "a CUDA type"),
    (r"\b(__CUDACC__|__CUDA_ARCH__|__NVCC__|ATTENTILE_PTX)\b", "a test of the compiler"),
]
# Code of the host that starts kernels may name the runtime's types.
HOST = re.compile(r"cuda(Stream|Error|Func)\w*")


def findings(path, name):
    directives = r"|^[ \t]*#[ \t]*(include|pragma)(?:\\\n|[^\n])*"
    text = without_comments_and_strings(path.read_text(), directives)
    for number, line in enumerate(text.split("\n"), 1):
        for pattern, what in ONLY_IN_THE_LAYER:
            if what == "inline assembly" and name in ASSEMBLY:
                continue
            found = re.search(pattern, HOST.sub("", line))
            if found:
                yield f"{name}:{number}: '{found.group()}': {what} outside {LAYER}"


def tree():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "src/cuda",
                             "tests/cuda"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in sorted(listed.stdout.split()):
        if Path(name).suffix in SUFFIXES and not name.startswith(LAYER):
            yield name


def main():
    names = sys.argv[1:] or list(tree())
    found = [finding for name in names for finding in findings(ROOT / name, name)]
    for finding in found:
        print(finding)
    print(f"{len(names)} files read, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
