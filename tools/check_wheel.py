#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a wheel promises: size, platform tag, what it needs to run.

    check_wheel.py WHEEL

At most 5 MB; cp310-abi3; manylinux_2_34 or older; needs nothing but NumPy and nanobind-backend; its
extension module needs only the C library and libgcc, and exports its entry point alone.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MAX_BYTES = 5 << 20
LIBRARIES = {"libm.so.6", "libc.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2",
             "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
REQUIREMENTS = {"numpy", "nanobind-backend"}
FILES = {"attentile/py.typed", "attentile/_core.pyi", "attentile/torch/__init__.py",
         "attentile/hf/__init__.py", "attentile/compat/__init__.py"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check(path):
    findings = []
    size = path.stat().st_size
    if size > MAX_BYTES:
        findings.append(f"{size} bytes; at most {MAX_BYTES}")
    tag = re.search(r"-cp310-abi3-.*?manylinux_2_(\d+)_\w+\.whl$", path.name)
    if not tag or int(tag.group(1)) > 34:
        findings.append("its name is not cp310-abi3 for manylinux_2_34 or older")
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = set(wheel.namelist())
        findings += [f"{name} is missing" for name in sorted(FILES - names)]
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        needed = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==).*$",
                            wheel.read(metadata).decode(), re.MULTILINE)
        if not set(needed) <= REQUIREMENTS:
            findings.append(f"needs {sorted(set(needed) - REQUIREMENTS)}")
        module = wheel.extract("attentile/_core.abi3.so", folder)
        libraries = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", module))
        if not set(libraries) <= LIBRARIES:
            findings.append(f"links to {sorted(set(libraries) - LIBRARIES)}")
        exported = [line.split()[-1] for line in
                    output("nm", "-D", "--defined-only", module).splitlines()]
        if exported != ["PyInit__core"]:
            findings.append(f"exports {exported[:5]}, {len(exported)} in all")
    return size, findings


def main():
    path = Path(sys.argv[1])
    size, findings = check(path)
    for finding in findings:
        print(f"{path.name}: {finding}")
    print(f"notice: {path.name}, {size / 1e6:.2f} MB")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
