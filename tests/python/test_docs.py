# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the documents run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/python/README.md"]


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S), 1):
            found.append((f"{page} {number}", code))
    return found


def test_pages_have_blocks() -> None:
    pages = {name.rpartition(" ")[0] for name, _ in blocks()}
    assert pages == set(PAGES)


@pytest.mark.parametrize(("name", "code"), blocks(), ids=[name for name, _ in blocks()])
def test_block_runs(name: str, code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error::DeprecationWarning:attentile", "-c", code],
                          capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
