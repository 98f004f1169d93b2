#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `attentile plan --gpu` knows of each CUDA kernel. src/cuda/tile_counts.inc: what the
emulator counts for one tile of the inner loop; src/cuda/kernel_facts.inc: registers by ptxas, and
the instructions of that tile in the machine code.

    cuda_facts.py [--cubins FOLDER] [TESTS]

TESTS (build/release/tests/attentile_cuda_tests) runs the emulator. Cubins and ptxas's words are
taken from FOLDER/forward_bf16_sm80.{cubin,log} and so on where they are there and younger than
every source, else made (minutes). nvdisasm comes from PyPI into build/venv.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import check_cuda_compile
import sass

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90)
COUNTS = check_cuda_compile.FACTS.with_name("tile_counts.inc")
# Products of two matrices on each walk over the tiles; of float32, whose QueryGradients walks twice
# (the counts are of both).
PRODUCTS = {"Forward": (2,), "QueryGradients": (2, 3), "KeyGradients": (4,), "BiasGradient": (2,)}
COLUMNS = ("mma", "ldmatrix", "copy", "exp", "float", "memory", "shuffle", "control", "index")


def disassembler():
    found = list((ROOT / "build/venv").glob("lib/python3*/site-packages/nvidia/*/bin/nvdisasm"))
    if not found:
        subprocess.run([ROOT / "build/venv/bin/pip", "install", "--quiet",
                        "nvidia-cuda-nvdisasm"], check=True)
        found = list((ROOT / "build/venv").glob("lib/python3*/site-packages/nvidia/*/bin/nvdisasm"))
    return found[0]


def counted_tiles(program):
    """Kernel name -> its tile and what the emulator counts of it."""
    done = subprocess.run([program, "--gtest_filter=TileCounts.*"], capture_output=True, text=True,
                          check=False)  # fails where the table is out of date
    rows = [json.loads(line[len("tile "):]) for line in done.stdout.splitlines()
            if line.startswith("tile {")]
    if not rows:
        sys.exit(f"{program} printed no tiles:\n{done.stdout}{done.stderr}")
    return {row["kernel"]: row for row in rows}


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


def walks_of(kernel, tile):
    """What a warp does on each walk over a full tile."""
    family = kernel.split("<")[0]
    columns = int(re.search(r"<\w+, (\d+)", kernel)[1])
    threads = tile["threads"]
    mma, ex2, copies = tile["counts"][:3]
    # Of dq's sums, one element a thread at a time.
    atomics = tile["tile_m"] * columns // threads if family == "AtomicGradients" else 0
    if "<float" not in kernel:
        return [sass.Tile(mma * 32 // threads, copies // threads, atomics, ex2 // threads)]
    walks = PRODUCTS[family]
    pairs = tile["tile_m"] * tile["tile_n"]
    return [sass.Tile(0, copies // threads // len(walks), 0, ex2 // threads // len(walks),
                      products * pairs * columns // threads) for products in walks]


def mix_of(kernel, lines, tile):
    """Instructions of a full tile by class."""
    counts = Counter()
    for walk in walks_of(kernel, tile):
        found = sass.full_tile(lines, walk)
        if found is None:
            sys.exit(f"{kernel}: no way around a loop with {walk}")
        counts += found
    return sass.mix(counts)


def rows_of(architecture, folder, tiles):
    for source in check_cuda_compile.NUM_KERNELS:
        cubin, log = compiled(source, architecture, folder)
        registers = {name: count for name, count, _, _ in check_cuda_compile.resources(log)}
        listing = subprocess.run([disassembler(), "-c", cubin], capture_output=True, text=True,
                                 check=True).stdout
        for mangled, lines in sass.functions(listing).items():
            kernel = check_cuda_compile.plan_name(mangled)
            mix = mix_of(kernel, lines, tiles[kernel]) if kernel in tiles else Counter()
            counts = ", ".join(str(mix[column]) for column in COLUMNS)
            yield f'{{"{kernel}", {architecture}, {registers[mangled]}, {{{counts}}}}},'
            print(f"sm_{architecture} {kernel:40}{registers[mangled]:4} registers  {counts}",
                  flush=True)


def write(path, columns, rows):
    path.write_text("// SPDX-License-Identifier: Apache-2.0\n"
                    f"// Written by tools/cuda_facts.py: {columns}.\n"
                    "// clang-format off\n" + "\n".join(rows) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cubins", type=Path, default=ROOT / "build/cubins")
    parser.add_argument("tests", nargs="?",
                        default=ROOT / "build/release/tests/attentile_cuda_tests")
    given = parser.parse_args()
    given.cubins.mkdir(parents=True, exist_ok=True)
    tiles = counted_tiles(given.tests)
    write(COUNTS, "kernel, then as TileCounts",
          [f'{{"{kernel}", {", ".join(str(count) for count in tile["counts"])}}},'
           for kernel, tile in sorted(tiles.items())])
    rows = [row for architecture in ARCHITECTURES
            for row in sorted(set(rows_of(architecture, given.cubins, tiles)))]
    write(check_cuda_compile.FACTS, "kernel, architecture, registers, and of one full tile\n// "
          + ", ".join(COLUMNS), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
