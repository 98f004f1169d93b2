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
import math
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
FAMILIES = ("Forward", "QueryGradients", "KeyGradients", "AtomicGradients", "BiasGradient")
NUM_TILES = 82
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
    if len(rows) != NUM_TILES:
        sys.exit(f"{program} counted {len(rows)} tiles, expected {NUM_TILES}:\n"
                 f"{done.stdout}{done.stderr}")
    return {check_cuda_compile.short_name(row["kernel"]): row for row in rows}


def compiled(source, architecture, folder):
    """(cubin, what ptxas printed)"""
    cubin = folder / f"{source}_sm{architecture}.cubin"
    log = cubin.with_suffix(".log")
    sources = [*(ROOT / "src/cuda").rglob("*.h"), *(ROOT / "src/cuda").rglob("*.cu"),
               *(ROOT / "src").glob("*.h"), *(ROOT / "include").rglob("*.h")]
    newest = max(path.stat().st_mtime for path in sources)
    if not log.exists() or log.stat().st_mtime < newest or not cubin.exists():
        done = check_cuda_compile.nvcc(architecture, "-cubin", "-Xptxas", "-v",
                                       ROOT / f"src/cuda/gpu/{source}.cu", "-o", cubin)
        if done.returncode != 0:
            sys.exit(done.stderr)
        log.write_text(done.stderr)
    return cubin, log.read_text()


def walks_of(kernel, tile):
    """What the warps do on their way around the loop for one full tile: (warps, their share of the
    busiest quarter of an SM, sass.Tile)."""
    family = kernel.split("<")[0]
    columns = int(re.search(r"<\w+, (\d+)", kernel)[1])
    threads = tile["threads"]
    warps = threads // 32
    mma, ex2, copies = tile["counts"][:3]
    pairs = tile["tile_m"] * tile["tile_n"]
    bias = pairs // threads if family == "BiasGradient" else 0  # always there, a load an element
    if "<float" not in kernel:
        # Of dq's sums, one element a thread at a time.
        atomics = tile["tile_m"] * columns // threads if family == "AtomicGradients" else 0
        return [(warps, 1, sass.Tile(mma // warps, copies // threads, atomics, ex2 // threads,
                                     ldg=bias))]
    found = []
    for some, share, num_weights, ffma, fadd in float32_walks(family, tile, columns):
        walks = 2 if family == "QueryGradients" else 1
        found.append((some, share, sass.Tile(copies=copies // threads // walks, ex2=num_weights,
                                             ffma=ffma, fadd=fadd, ldg=bias)))
    return found


def float32_walks(family, tile, columns):
    """Of float32: (warps, share, and of a thread: weights, multiply-adds, additions)."""
    threads = tile["threads"]
    warps = threads // 32
    pair_warps = tile["pair_warps"]
    pairs = tile["tile_m"] * tile["tile_n"]
    product = pairs * columns // threads
    weights = pairs // (32 * pair_warps)
    if family == "Forward":
        return [(warps, 1, weights, 2 * product, 0)]
    # A weight takes six multiply-adds of its own, eight additions and one for dS; sums over rows
    # one and 13. S and dP are added up in parts of 32.
    additions = weights * (columns // 16 + 9)
    if family == "BiasGradient":
        return [(warps, 1, weights, 2 * product + 6 * weights, additions)]
    if family == "QueryGradients":  # first for the sums of P dP and of P alone
        return [(warps, 1, weights, 2 * product + 7 * weights, additions + 12 * weights),
                (warps, 1, weights, 3 * product + 6 * weights, additions)]
    pair_product = product * warps // pair_warps
    of_pairs = (weights, 2 * pair_product + 2 * product + 7 * weights, additions)
    if pair_warps == warps:
        return [(warps, 1, *of_pairs)]
    share = math.ceil(pair_warps / 4) / (warps / 4)  # warp w works in quarter w % 4
    return [(pair_warps, share, *of_pairs), (warps - pair_warps, 1 - share, 0, 2 * product, 0)]


def mix_of(kernel, lines, tile):
    """Of a full tile, instructions of a warp by class (where warps differ, the mean of the busiest
    quarter of an SM) and wavefronts of the block."""
    of_warp = Counter()
    wavefronts = 0
    for warps, share, walk in walks_of(kernel, tile):
        found = sass.full_tile(lines, walk)
        if found is None:
            sys.exit(f"{kernel}: no way around a loop with {walk}")
        wavefronts += warps * sass.wavefronts(found)
        for kind, count in sass.mix(found).items():
            of_warp[kind] += share * count
    return {kind: round(count) for kind, count in of_warp.items()} | {"wavefronts": wavefronts}


def rows_of(architecture, folder, tiles):
    for source in check_cuda_compile.NUM_KERNELS:
        cubin, log = compiled(source, architecture, folder)
        registers = {name: count for name, count, _, _ in check_cuda_compile.resources(log)}
        listing = subprocess.run([disassembler(), "-c", cubin], capture_output=True, text=True,
                                 check=True).stdout
        for mangled, lines in sass.functions(listing).items():
            kernel = check_cuda_compile.plan_name(mangled)
            if kernel.startswith(FAMILIES) and kernel not in tiles:
                sys.exit(f"{kernel}: TileCounts does not count it")
            mix = mix_of(kernel, lines, tiles[kernel]) if kernel in tiles else {}
            counts = ", ".join(str(mix.get(column, 0)) for column in COLUMNS)
            wavefronts = mix.get("wavefronts", 0)
            yield (f'{{"{kernel}", {architecture}, {registers[mangled]}, {{{counts}}}, '
                   f'{wavefronts}}},')
            print(f"sm_{architecture} {kernel:40}{registers[mangled]:4} registers  {counts}, "
                  f"{wavefronts}", flush=True)


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
    rows = [row for architecture in ARCHITECTURES
            for row in sorted(set(rows_of(architecture, given.cubins, tiles)))]
    write(check_cuda_compile.FACTS, "kernel, architecture, registers, of one full tile\n// "
          + ", ".join(COLUMNS) + "; wavefronts", rows)
    write(COUNTS, "kernel, then as TileCounts",
          [f'{{"{kernel}", {", ".join(str(count) for count in tile["counts"])}}},'
           for kernel, tile in sorted(tiles.items())])
    return 0


if __name__ == "__main__":
    sys.exit(main())
