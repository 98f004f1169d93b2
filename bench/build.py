# SPDX-License-Identifier: Apache-2.0
"""Builds what the workers load, into build/bench: the release library as a shared object from its
own objects, and the small C files of native/."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "bench/native"
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-O3", "-fopenmp-simd", "-shared", "-fPIC",
         "-march=native"]


def run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip()[-2000:]}")


def link_library(target: Path) -> None:
    archive = ROOT / "build/release/libattentile.a"
    exports = ROOT / "cmake/attentile.map"
    run("c++", "-shared", "-o", target, "-Wl,--whole-archive", archive, "-Wl,--no-whole-archive",
        f"-Wl,--version-script={exports}", "-pthread")


def build_libraries(folder: Path) -> Path:
    """Returns the folder, filled: libattentile.so, libtimer.so, libstream.so, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = list(FLAGS)
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    link_library(folder / "libattentile.so")
    for source in sorted(NATIVE.glob("*.c")):
        run("cc", *flags, source, "-o", folder / f"lib{source.stem}.so", "-pthread")
    return folder
