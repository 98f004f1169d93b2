# SPDX-License-Identifier: Apache-2.0
"""Committed baselines of what a compiler made of the kernels: a table, one row a line.

    {"compiler": "Clang 19.1.7", "columns": ["a", "b"], "rows": [["x", 1], ...]}

Another compiler makes other code, so a baseline holds for the compiler it names and no other.
"""

import json
import re

NOTICE = "notice: "  # lines that `./dev` shows although the step went well


def compiler_of(build_dir):
    """Name and version of the C++ compiler that a build folder was configured with."""
    for path in sorted(build_dir.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")):
        found = dict(re.findall(r'set\((\w+) "([^"]*)"\)', path.read_text()))
        return f"{found['CMAKE_CXX_COMPILER_ID']} {found['CMAKE_CXX_COMPILER_VERSION']}"
    raise SystemExit(f"{build_dir}: no build is configured there")


def read(path):
    """(compiler, rows) of a baseline; none of either where there is no file."""
    if not path.exists():
        return None, []
    table = json.loads(path.read_text())
    return table["compiler"], [tuple(row) for row in table["rows"]]


def write(path, compiler, columns, rows):
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.write_text(f'{{\n "compiler": {json.dumps(compiler)},\n "columns": '
                    f'{json.dumps(columns)},\n "rows": [\n{lines}\n ]\n}}\n')


def of_other_compiler(build_dir, recorded):
    """Whether nothing can be compared; says so."""
    built_by = compiler_of(build_dir)
    if built_by != recorded:
        print(f"{NOTICE}skipped: other compiler: {build_dir} is of {built_by}, the baseline of "
              f"{recorded}")
    return built_by != recorded
