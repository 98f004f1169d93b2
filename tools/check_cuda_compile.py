#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The kernels that the emulator runs also compile for GPUs: nvcc, no warning, no spill, no stack;
and the wrappers of the device layer become the instructions they are named after.

    check_cuda_compile.py [--keep FOLDER]

Prints registers and spills of every kernel for sm_80, with ATTENTILE_FULL set for sm_90 too, and
compares them with src/cuda/kernel_facts.inc where nvcc is the one that was made with. What ccache
knows is not compiled again. Exits 77, which ctest counts as skipped, with a sentence where
there is no nvcc.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests/cuda/kernels/compile.cu"
# Of src/cuda/gpu; those that take longest first.
NUM_KERNELS = {"forward_bf16": 13, "forward_f16": 13, "backward_bf16": 27, "backward_f16": 27,
               "backward_f32": 11, "forward_f32": 5}
FACTS = ROOT / "src/cuda/kernel_facts.inc"
FACTS_RELEASE = "release 13.0"
ARCHITECTURES = (80, 90) if os.environ.get("ATTENTILE_FULL") else (80,)
SKIPPED = 77
MAX_REGISTERS = 128

# What the PTX of every architecture holds, and of sm_90 besides.
INSTRUCTIONS = """
ldmatrix.sync.aligned.m8n8.x1.shared ldmatrix.sync.aligned.m8n8.x2.shared
ldmatrix.sync.aligned.m8n8.x4.shared ldmatrix.sync.aligned.m8n8.x1.trans
ldmatrix.sync.aligned.m8n8.x2.trans ldmatrix.sync.aligned.m8n8.x4.trans
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
cp.async.cg.shared.global cp.async.ca.shared.global cp.async.commit_group cp.async.wait_group
bar.arrive shfl.sync.bfly shfl.sync.idx shfl.sync.down shfl.sync.up
redux.sync.add redux.sync.min redux.sync.max vote.sync.ballot vote.sync.any vote.sync.all
ex2.approx.ftz.f32 lg2.approx.ftz.f32 rcp.approx.ftz.f32 tanh.approx.f32 max.NaN.f32
cvt.rn.f16x2.f32 cvt.rn.bf16x2.f32 cvt.rna.tf32.f32 cvt.f32.f16
ld.shared.b32 ld.shared.v2.b32 ld.shared.v4.b32 st.shared.b32 st.shared.v2.b32 st.shared.v4.b32
ld.global.nc ld.global.cs st.global.cs atom.acq_rel.gpu.global.add.s32
ld.acquire.gpu.global.s32 st.release.gpu.global.s32
""".split()
ONLY_SM90 = ["stmatrix.sync.aligned.m8n8.x1", "stmatrix.sync.aligned.m8n8.x2",
             "stmatrix.sync.aligned.m8n8.x4"]


def nvcc(architecture, *arguments, launcher=()):
    command = [*launcher, "nvcc", "-std=c++20", f"-arch=sm_{architecture}",
               "--expt-relaxed-constexpr", "-fmad=false", "-Werror", "all-warnings",
               "-Xcompiler", "-Wall,-Wextra,-Wno-psabi",
               "-I", ROOT / "src", "-I", ROOT / "include", "-I", ROOT / "tests", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def resources(log):
    """(kernel, registers, stack bytes, spilled bytes) of each kernel that ptxas lists."""
    pattern = (r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill "
               r"stores, (\d+) bytes spill loads.*?Used (\d+) registers")
    for match in re.finditer(pattern, log, re.DOTALL):
        name, stack, stores, loads, registers = match.groups()
        yield name, int(registers), int(stack), int(stores) + int(loads)


def plan_name(mangled):
    """As LaunchPlan.kernel: without namespaces and default arguments."""
    words = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    name = re.search(r"kernel_entry<(.*?) ?>\(", words).group(1)
    return short_name(re.sub(r"attentile::|cuda::|\(bool\)|\(int\)", "", name).replace(" >", ">"))


def short_name(kernel):
    """Without the default argument."""
    return kernel[:-len(", false>")] + ">" if re.search(r"<.*,.*,.*, false>$", kernel) else kernel


def recorded_registers():
    """(kernel, architecture) -> registers by kernel_facts.inc; {} for another nvcc than its own."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False)
    if FACTS_RELEASE not in version.stdout:
        return {}
    rows = re.findall(r'{"(.*?)", (\d+), (\d+),', FACTS.read_text())
    return {(kernel, int(architecture)): int(count) for kernel, architecture, count in rows}


def readable(name):
    types = "bf16" if "BFloat16" in name else "f16" if "Float16" in name else "f32"
    forward = re.search(r"Forward.*Li(\d+)ELb(\d)ELb(\d)E", name)
    if forward:
        head_dim, with_options, is_packed = forward.groups()
        options = ", packed" if is_packed == "1" else ", options" if with_options == "1" else ""
        return f"Forward {types} {head_dim}{options}"
    if "KeepMask" in name:
        return "KeepMask"
    backward = re.search(r"([A-Z][a-z]+(?:Stats|Gradients?|Rounding))I?(?:.*?Li(\d+)E)?", name)
    if backward:
        return f"{backward.group(1)} {types} {backward.group(2) or ''}".strip()
    found = re.search(r"\d+(Gemm|Instructions|Combine)", name)
    row_major = " row-major b" if "Lb1E" in name else ""
    return f"{found.group(1) if found else name} {types}{row_major}"


def compile_kernels(architecture, source, folder, limits):
    """Compiles one source to an object and PTX; (findings, PTX). limits: kernels, registers,
    and those of each by kernel_facts.inc."""
    expected, most_registers, recorded = limits
    name = f"sm_{architecture} {source.name}"
    output = folder / f"{source.stem}_sm{architecture}.o"
    # Uncompressed, PTX lies in the object as text; -c is what ccache keeps.
    compiled = nvcc(architecture, "-c", "-Xptxas", "-v", "--no-compress", source, "-o", output,
                    launcher=[ccache] if (ccache := shutil.which("ccache")) else [])
    if compiled.returncode != 0 or "warning" in compiled.stderr:
        return [f"{name}: nvcc failed:\n{compiled.stdout}{compiled.stderr}"], ""
    findings = []
    kernels = list(resources(compiled.stderr))
    if len(kernels) != expected:
        findings.append(f"{name}: {len(kernels)} kernels, expected {expected}")
    for kernel, registers, stack, spilled in sorted(kernels, key=lambda k: readable(k[0])):
        print(f"sm_{architecture}  {readable(kernel):26}{registers:4} registers"
              f"{spilled:4} spilled", flush=True)
        if stack or spilled or registers > most_registers:
            findings.append(f"{name}: {readable(kernel)}: {registers} registers, "
                            f"{stack} bytes of stack, {spilled} spilled")
        told = recorded.get((plan_name(kernel), architecture)) if recorded else registers
        if told != registers:
            findings.append(f"{name}: {plan_name(kernel)}: {registers} registers, but {FACTS.name} "
                            f"says {told}: run tools/cuda_facts.py")
    code = output.read_bytes()
    start = code.index(b".version")
    text = code[start:code.index(b"\0", start)].decode()
    output.with_suffix(".ptx").write_text(text)
    # Sites and their strings exist on the host only.
    if ".h\"" in text or "call.uni" in text:
        findings.append(f"{name}: a wrapper was not inlined")
    return findings, text


def check(architecture, folder):
    recorded = recorded_registers()
    sources = [(ROOT / f"src/cuda/gpu/{name}.cu", count, 255, recorded)
               for name, count in NUM_KERNELS.items()]
    sources.append((SOURCE, 5, MAX_REGISTERS, {}))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda s: compile_kernels(architecture, s[0], folder, s[1:]), sources))
    wanted = INSTRUCTIONS + (ONLY_SM90 if architecture >= 90 else [])
    findings = [f"sm_{architecture}: no {word} in the PTX" for word in wanted
                if word not in done[-1][1]]
    return findings + [finding for found, _ in done for finding in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="FOLDER", help="leave PTX and objects there")
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("nvcc was not found: the CUDA kernels were not compiled")
        return SKIPPED
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        findings = [finding for arch in ARCHITECTURES for finding in check(arch, folder)]
    print("\n".join(findings + [f"{len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
