#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The device layer's fragment maps and swizzles against CuTe's, on the host.

    pip download --no-deps nvidia-cutlass && unzip -q nvidia_cutlass-*.whl -d cutlass
    check_cute_layouts.py cutlass/cutlass_library/source/include

Needs g++ and CUDA's headers (those beside nvcc). Prints how many positions were compared; exits 1
if any differs.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cuda_include():
    """The include folder beside the nvcc on PATH, as nvcc itself tells."""
    told = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "-"], input="", capture_output=True,
                          text=True, check=False).stderr
    for line in told.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")) / "include"
    raise SystemExit("nvcc did not say where it is installed")


def main():
    if len(sys.argv) != 2 or shutil.which("nvcc") is None:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cute_layouts"
        subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-I", ROOT / "src", "-isystem",
                        sys.argv[1], "-isystem", cuda_include(), "-isystem",
                        cuda_include() / "cccl",
                        ROOT / "tests/cuda/oracle/cute_layouts.cc", "-o", program], check=True)
        return subprocess.run([program], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
