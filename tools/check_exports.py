#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What leaves the library is what its public headers declare, no more and no less.

    check_exports.py libattentile.so [libattentile.a]
    check_exports.py --backend libattentile_cuda.so

The shared library's dynamic symbols must be exactly the functions of attention.h and c_api.h; in
the static one every strong symbol must carry the project's name, so that it clashes with nobody's.
The backend exports one function.
Exits 1 with one line per finding.
"""

import re
import subprocess
import sys
from pathlib import Path

INCLUDE = Path(__file__).resolve().parent.parent / "include" / "attentile"


def declared():
    """Names of the functions that the headers declare without a body."""
    names = set()
    for header, prefix in (("attention.h", "attentile::"), ("c_api.h", "")):
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", (INCLUDE / header).read_text(), flags=re.DOTALL)
        pattern = r"^[A-Za-z_][\w:<>*& ]*[ *&](\w+)\((?:[^;{}]|\{\})*\)(?: noexcept)?;"
        for match in re.finditer(pattern, text, flags=re.MULTILINE):
            if not match.group().startswith(("typedef", "using", "#")):
                names.add(prefix + match.group(1))
    return names


def defined(path, *flags):
    """(type, demangled name without parameters) of every defined external symbol."""
    out = subprocess.run(["nm", "-C", "--defined-only", "--extern-only", *flags, path], check=True,
                         capture_output=True, text=True).stdout
    for line in out.splitlines():
        parts = line.split(maxsplit=2)
        if len(parts) == 3:
            yield parts[1], re.sub(r"(\[abi:\w+\])?\(.*", "", parts[2])


def main():
    if sys.argv[1] == "--backend":
        exported = {name for kind, name in defined(sys.argv[2], "-D") if kind != "A"}
        if exported == {"attentile_cuda_backend"}:
            return 0
        print(f"{sys.argv[2]}: exports {sorted(exported)}, expected attentile_cuda_backend alone")
        return 1
    wanted, findings = declared(), []
    exported = {name for kind, name in defined(sys.argv[1], "-D") if kind != "A"}
    findings += [f"{name}: declared in a public header, not exported"
                 for name in sorted(wanted - exported)]
    findings += [f"{name}: exported, not declared in a public header"
                 for name in sorted(exported - wanted)]
    if len(sys.argv) > 2:
        findings += [f"{name}: a global symbol without the project's name"
                     for kind, name in defined(sys.argv[2])
                     if kind in "TDBR" and "attentile" not in name]
    print("\n".join(findings + [f"{len(exported)} exported, {len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
