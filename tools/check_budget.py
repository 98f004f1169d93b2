#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Budgets and wording of the tree: lengths of files, functions and lines, parameters, banned words.

Reads every file that git tracks or would track. Prints `path:line: what` for each finding and exits
1 if there is any. The limits are those of CONTRIBUTING.md.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 150
MAX_PARAMETERS = 6
MAX_COLUMNS = 100
MAX_EXAMPLE_LINES = 60
MAX_BYTES = 1 << 20  # outside data/

CPP = {".cc", ".h", ".c"}
CODE = CPP | {".py", ".sh", ".cmake"}
NO_COLUMN_LIMIT = {".md", ".json", ".svg", ".cff", ".patch", ".html"}

# This file names what it bans, so it does not read itself.
BANNED = [
    (r"\b(TODO|FIXME|XXX)\b", "an open end: open an issue instead"),
    (r"for some reason", "say the reason"),
    (r"(^|[\s\"'(=])/(work|root|home|Users)/", "a path of one machine"),
    (r"\b(this|earlier|previous|other|next) sessions?\b|\b(sub)?agents?\b",
     "not about the project"),
    (r"^[^#]*-ffast-math\b.*[)\"]", "never"),
]
LIBRARY_BANNED = [
    (r"#include <iostream>|std::(cout|cerr)\b|\b(std::)?f?printf\(|\bputs\(",
     "the library is silent"),
    (r"\b(std::)?(abort|exit|_Exit|terminate)\(", "the library never ends the process"),
    (r"\bassert\(", "the library reports a Status"),
]
# A comment line that reads like a statement; usage blocks are indented by more than one space.
COMMENTED_OUT = re.compile(r"^\s*// ?[\w:.>\-\[\]]+(\(.*\))?( = .*)?;\s*$"
                           r"|^\s*// ?(if|for|while) \(.*\{$")
NOT_FUNCTIONS = {"if", "for", "while", "switch", "catch", "return", "sizeof", "alignas",
                 "decltype", "constexpr", "requires", "noexcept", "defined", "asm",
                 "__attribute__"}


def tree():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode == 0:
        names = sorted(name for name in listed.stdout.split("\0") if name)
    else:
        names = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file())
        names = [n for n in names if not n.startswith(("build/", ".git/"))]
    return [name for name in names if (ROOT / name).is_file()]


def without_comments_and_strings(text, directives=r"|^[ \t]*#(?:\\\n|[^\n])*"):
    """The same text, comments, strings and preprocessor lines blanked, newlines kept."""
    token = re.compile(
        r'R"(\w*)\((?:.|\n)*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\''
        r"|//[^\n]*|/\*(?:.|\n)*?\*/" + directives, re.MULTILINE)
    return token.sub(lambda m: "".join(c if c == "\n" else " " for c in m.group()), text)


def matching(text, start, opening, closing):
    """Index of the bracket that closes the one at start."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] == opening:
            depth += 1
        elif text[i] == closing:
            depth -= 1
            if depth == 0:
                return i
    return -1


def count_parameters(text):
    """Parameters of a list without its parentheses; commas inside brackets do not count."""
    if text.strip() in ("", "void"):
        return 0
    depth, count = 0, 1
    for i, char in enumerate(text):
        if char in "([{" or (char == "<" and text[i - 1] != "<"):
            depth += 1
        elif char in ")]}" or (char == ">" and text[i - 1] != "-"):
            depth -= 1
        elif char == "," and depth == 0:
            count += 1
    return count


def cpp_functions(text):
    """(name, first line, lines, parameters) of every function and lambda with a body."""
    text = without_comments_and_strings(text)
    after = re.compile(r"\s*(const|noexcept|override|final|mutable|&&?|->\s*[\w:<>*&, ]+"
                       r"|requires\s+[^{;]+|:\s[^{;]*)*\s*(?=\{)")
    for match in re.finditer(r"([\w~:]+|\]|operator\s*[^\s\w(]+)\s*\(", text):
        name = match.group(1).strip()
        before = text[:match.start()].rstrip()[-1:]
        # A name after a comma or a colon is a call in a list of member initialisers.
        if name in NOT_FUNCTIONS or name.isupper() or (before in (",", ":") and name != "]"):
            continue
        opened = match.end() - 1
        closed = matching(text, opened, "(", ")")
        if closed < 0:
            continue
        tail = after.match(text, closed + 1)
        if not tail:
            continue
        body = tail.end()
        end = matching(text, body, "{", "}")
        line = text.count("\n", 0, match.start()) + 1
        yield ("lambda" if name == "]" else name, line, text.count("\n", match.start(), end) + 1,
               count_parameters(text[opened + 1:closed]))


def python_functions(text, package):
    """Likewise. In the package and its tests keyword-only parameters, named at every call, are
    structs, and a signature that somebody else decided is marked by a comment above it."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args
            named = arguments.posonlyargs + arguments.args
            if not package:
                named = named + arguments.kwonlyargs
            count = sum(argument.arg not in ("self", "cls", "ctx") for argument in named)
            if package and lines[node.lineno - 2].strip().startswith("# signature of "):
                count = 0
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1, count


def check_file(name, report):
    path = ROOT / name
    if not name.startswith("data/") and path.stat().st_size > MAX_BYTES:
        report(name, 1, f"{path.stat().st_size} bytes; at most {MAX_BYTES} outside data/")
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    lines = text.split("\n")
    suffix = path.suffix
    code = suffix in CODE or name in ("dev", ".ci/run", "CMakeLists.txt") or \
        name.endswith("/CMakeLists.txt")
    fixture = name.startswith("tests/fuzz/corpus/") or name == "LICENSE"
    if fixture:
        return

    if code:
        if len(lines) - 1 > MAX_FILE_LINES:
            report(name, MAX_FILE_LINES, f"{len(lines) - 1} lines; at most {MAX_FILE_LINES}")
        if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(lines[:3]):
            report(name, 1, "no SPDX line")
    if name.startswith("examples/") and suffix in (CPP | {".py"}) and \
            len(lines) - 1 > MAX_EXAMPLE_LINES:
        report(name, MAX_EXAMPLE_LINES, f"an example of {len(lines) - 1} lines; at most "
               f"{MAX_EXAMPLE_LINES}")

    rules = [] if name == "tools/check_budget.py" else BANNED
    for number, line in enumerate(lines, 1):
        if suffix not in NO_COLUMN_LIMIT and len(line) > MAX_COLUMNS and "NOLINT" not in line:
            report(name, number, f"{len(line)} columns; at most {MAX_COLUMNS}")
        for pattern, why in rules:
            found = re.search(pattern, line)
            if found:
                report(name, number, f"{found.group().strip()!r}: {why}")
        if suffix in CPP and COMMENTED_OUT.match(line):
            report(name, number, "commented-out code")

    if name.startswith(("src/", "include/")):
        for number, line in enumerate(without_comments_and_strings(text, "").split("\n"), 1):
            for pattern, why in LIBRARY_BANNED:
                found = re.search(pattern, line)
                if found:
                    report(name, number, f"{found.group().strip()!r}: {why}")
    package = name.startswith(("python/", "tests/python/"))
    functions = cpp_functions(text) if suffix in CPP else \
        python_functions(text, package) if suffix == ".py" else ()
    for function, line, length, parameters in functions:
        if package and lines[line - 2].strip().startswith("// signature of "):
            parameters = 0
        if length > MAX_FUNCTION_LINES:
            report(name, line, f"{function}: {length} lines; at most {MAX_FUNCTION_LINES}")
        if parameters > MAX_PARAMETERS:
            report(name, line, f"{function}: {parameters} parameters; at most {MAX_PARAMETERS}")


def main():
    findings = []
    names = tree()
    for name in names:
        check_file(name, lambda *finding: findings.append(finding))
    for name, line, what in findings:
        print(f"{name}:{line}: {what}")
    print(f"{len(names)} files read, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
