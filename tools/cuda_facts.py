#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ptxas and the disassembler say of each CUDA kernel: src/cuda/kernel_facts.inc, from which
`attentile plan --gpu` prints registers, occupancy and the inner loop's instructions.

    cuda_facts.py [--cubins FOLDER] [PROGRAM]

PROGRAM (build/release/bin/attentile) tells the kernels' tiles. Cubins and ptxas's words are taken
from FOLDER/forward_bf16_sm80.{cubin,log} and so on where they are there and younger than every
source, else made (minutes).
nvdisasm comes from PyPI into build/venv.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import check_cuda_compile
import sass

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90)
# Products of two matrices per tile, and whose rows pass by: those of keys or those of queries.
PRODUCTS = {"Forward": (2, "tile_n"), "QueryGradients": (3, "tile_n"),
            "KeyGradients": (4, "tile_m"), "AtomicGradients": (5, "tile_m"),
            "BiasGradient": (2, "tile_n")}
COLUMNS = ("mma", "ldmatrix", "copy", "exp", "float", "memory", "shuffle", "control", "index")


def disassembler():
    found = list((ROOT / "build/venv").glob("lib/python3*/site-packages/nvidia/*/bin/nvdisasm"))
    if not found:
        subprocess.run([ROOT / "build/venv/bin/pip", "install", "--quiet",
                        "nvidia-cuda-nvdisasm"], check=True)
        found = list((ROOT / "build/venv").glob("lib/python3*/site-packages/nvidia/*/bin/nvdisasm"))
    return found[0]


def tiles(program):
    """Kernel name -> its launch, of calls that reach every kernel with an inner loop."""
    found = {}
    for dtype in ("bf16", "f16"):
        for head_dim in (32, 64, 96, 128, 192, 256):
            for rows in (1024, 1):
                for options in ([], ["--softcap", "5"], ["--atomic-dq"]):
                    backward = ["--backward"] if rows > 1 else []
                    done = subprocess.run(
                        [program, "plan", "--gpu", "h200", "--dtype", dtype, "--shape",
                         f"1,{rows},4096,4,1,{head_dim}", *options, *backward, "--json"],
                        capture_output=True, text=True, check=True)
                    gpu = json.loads(done.stdout)["gpu"]
                    for one in ("forward", "backward"):
                        for launch in gpu.get(one, {}).get("launches", []):
                            found[launch["kernel"]] = launch
    return found


def compiled(source, architecture, folder):
    """(cubin, what ptxas printed)"""
    cubin = folder / f"{source}_sm{architecture}.cubin"
    log = cubin.with_suffix(".log")
    newest = max(path.stat().st_mtime for path in (ROOT / "src/cuda").rglob("*.h"))
    if not log.exists() or log.stat().st_mtime < newest or not cubin.exists():
        done = check_cuda_compile.nvcc(architecture, "-cubin", "-Xptxas", "-v",
                                       ROOT / f"src/cuda/gpu/{source}.cu", "-o", cubin)
        if done.returncode != 0:
            sys.exit(done.stderr)
        log.write_text(done.stderr)
    return cubin, log.read_text()


def loop_of(kernel, lines, launches):
    """Instructions of a full tile by class; none for kernels without one."""
    family = kernel.split("<")[0]
    head_dim = re.search(r"<\w+, (\d+)", kernel)
    launch = launches.get(kernel) or launches.get(kernel.replace("Float16", "BFloat16"))
    if family == "BiasGradient" and head_dim:  # plans have no bias: the tiles of its source
        launch = {"tile_m": 64, "tile_n": 64 if int(head_dim[1]) <= 128 else 32, "threads": 128}
    if family not in PRODUCTS or launch is None or "<float" in kernel:
        return None
    products, passing = PRODUCTS[family]
    columns = int(head_dim.group(1))
    num_mma = products * launch["tile_m"] * launch["tile_n"] * columns // 2048
    num_copies = 2 * launch[passing] * columns * 2 // 16 // launch["threads"]
    warps = launch["threads"] // 32
    # Of dq's sums, one element a thread at a time.
    num_atomics = launch["tile_m"] * columns // launch["threads"] \
        if family == "AtomicGradients" else 0
    for copies in range(num_copies, -1, -1):
        found = sass.full_tile(lines, num_mma // warps, copies, num_atomics)
        if found is not None:
            return sass.mix(found)
    return None


def rows_of(architecture, folder, launches):
    for source in check_cuda_compile.NUM_KERNELS:
        cubin, log = compiled(source, architecture, folder)
        registers = {name: count for name, count, _, _ in check_cuda_compile.resources(log)}
        listing = subprocess.run([disassembler(), "-c", cubin], capture_output=True, text=True,
                                 check=True).stdout
        for mangled, lines in sass.functions(listing).items():
            kernel = check_cuda_compile.plan_name(mangled)
            mix = loop_of(kernel, lines, launches)
            counts = ", ".join(str(mix[column]) if mix else "0" for column in COLUMNS)
            yield f'{{"{kernel}", {architecture}, {registers[mangled]}, {{{counts}}}}},'
            print(f"sm_{architecture} {kernel:40}{registers[mangled]:4} registers  {counts}",
                  flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cubins", type=Path, default=ROOT / "build/cubins")
    parser.add_argument("program", nargs="?", default=ROOT / "build/release/bin/attentile")
    given = parser.parse_args()
    given.cubins.mkdir(parents=True, exist_ok=True)
    launches = tiles(given.program)
    rows = [row for architecture in ARCHITECTURES
            for row in sorted(set(rows_of(architecture, given.cubins, launches)))]
    head = ("// SPDX-License-Identifier: Apache-2.0\n"
            "// Written by tools/cuda_facts.py: kernel, architecture, registers, and of one full "
            "tile\n// " + ", ".join(COLUMNS) + ".\n// clang-format off\n")
    check_cuda_compile.FACTS.write_text(head + "\n".join(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
