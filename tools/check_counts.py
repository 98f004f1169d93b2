#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Adds up what the test programs wrote: the last line is exactly "N passed, N failed".

    check_counts.py BUILD_DIR [FAILED_STEP...]

Reads BUILD_DIR/*/test-results/: ctest.xml says which programs ran and how each ended, NAME.json
what GoogleTest counted in it; pytest.xml holds what pytest counted. A program that ended badly
without a failed case (a crash, a time-out) counts as one failure; one without JSON (a script) as
one case. checks.txt holds more results, one `passed NAME` or `failed NAME` a line. There are at
least as many failures as FAILED_STEPs.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# What GoogleTest says of every case; anything else was recorded by the test.
OF_GTEST = {"name", "file", "line", "status", "result", "timestamp", "time", "classname",
            "failures", "type_param", "value_param"}


def count_json(path):
    """(passed, failed, names of skipped cases) of one GoogleTest program; prints its properties."""
    passed, failed, skipped = 0, 0, []
    for suite in json.loads(path.read_text())["testsuites"]:
        for case in suite["testsuite"]:
            properties = [f"{key} {value}" for key, value in case.items() if key not in OF_GTEST]
            if properties:
                print(f"{suite['name']}.{case['name']}: {', '.join(properties)}")
            if isinstance(case.get("failures"), list):
                failed += 1
            elif case.get("result") == "SKIPPED" or case.get("status") == "NOTRUN":
                skipped.append(f"{suite['name']}.{case['name']}")
            else:
                passed += 1
    return passed, failed, skipped


def count_pytest(path):
    """(passed, failed, names of skipped cases) of one pytest run."""
    passed, failed, skipped = 0, 0, []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed += 1
        elif "skipped" in outcomes:
            skipped.append(f"{case.get('classname')}.{case.get('name')}")
        else:
            passed += 1
    return passed, failed, skipped


def count_results(folder):
    """(passed, failed, skipped) of one build's test-results."""
    passed, failed, skipped = 0, 0, []
    junit = folder / "ctest.xml"
    for case in ElementTree.parse(junit).getroot().iter("testcase") if junit.exists() else ():
        name, ended_well = case.get("name"), case.get("status") == "run"
        result = folder / f"{name}.json"
        counted = (0, 0, [])
        if result.exists():
            counted = count_json(result)
        elif ended_well:
            counted = (1, 0, [])
        if not ended_well and counted[1] == 0:
            print(f"{folder.parent.name}/{name}: ended with status {case.get('status')}")
            counted = (counted[0], 1, counted[2])
        passed += counted[0]
        failed += counted[1]
        skipped += [f"{folder.parent.name}: {case_name}" for case_name in counted[2]]
    if (folder / "pytest.xml").exists():
        counted = count_pytest(folder / "pytest.xml")
        passed, failed = passed + counted[0], failed + counted[1]
        skipped += [f"python: {case_name}" for case_name in counted[2]]
    checks = folder / "checks.txt"
    for line in checks.read_text().splitlines() if checks.exists() else ():
        passed += line.startswith("passed ")
        failed += line.startswith("failed ")
    return passed, failed, skipped


def main():
    build, failed_steps = Path(sys.argv[1]), sys.argv[2:]
    passed, failed, skipped = 0, 0, []
    for folder in sorted(build.glob("*/test-results")):
        counts = count_results(folder)
        print(f"{folder.parent.name:12} {counts[0]:6} passed {counts[1]:4} failed "
              f"{len(counts[2]):4} skipped")
        passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + counts[2]
    for name in skipped:
        print(f"skipped {name}")
    failed = max(failed, len(failed_steps))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
