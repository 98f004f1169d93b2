# SPDX-License-Identifier: Apache-2.0
"""python -m attentile info | demo: what this machine and build have, and what tiling is good for.

Exit status: 0, or 2 with one sentence on standard error for wrong usage.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import attentile
from attentile import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = ("numpy", "torch", "transformers", "jax", "jaxlib", "onnx")
# What each part needs, with the versions that pyproject.toml asks for.
_TORCH = {"torch": "2.13"}
DROP_INS: dict[str, dict[str, str]] = {
    "attentile.torch": _TORCH,
    "attentile.nn": _TORCH,
    "attentile.compat.flash_attn": _TORCH,
    "attentile.compat.xformers": _TORCH,
    "attentile.hf": {**_TORCH, "transformers": "5.23"},
    "attentile.jax": {"jax": "0.10"},
    "attentile.onnx": {"onnx": "1.18"},
}


class _Parser(argparse.ArgumentParser):
    """Says what was wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def installed(package: str) -> str | None:
    """The version of a package, found without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def obstacle(part: str) -> str | None:
    """Why a part cannot be used here; None if it can."""
    if importlib.util.find_spec(part) is None:
        return "this build does not have it"
    for package, least in DROP_INS[part].items():
        version = installed(package)
        if version is None:
            return f"needs {package} >= {least}, which is not installed"
        if _numbers(version) < _numbers(least):
            return f"needs {package} >= {least}, found {version}"
    if part == "attentile.jax" and not hasattr(_core, "jax_handlers"):
        return "this build has no handlers for XLA: it was made without jaxlib's headers"
    return None


def facts(measure: bool) -> dict[str, Any]:
    """Everything that info tells."""
    obstacles = {part: obstacle(part) for part in DROP_INS}
    return {
        **attentile.info(measure=measure),
        "packages": {package: installed(package) for package in PACKAGES},
        "drop_ins": {part: {"usable": why is None, "why_not": why}
                     for part, why in obstacles.items()},
    }


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows with their columns aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                     .rstrip() for row in rows)


def describe(found: dict[str, Any]) -> str:
    """The facts as text for people."""
    caches = ", ".join(f"{name} {_bytes(found[key])}" for name, key in
                       (("L1d", "l1d_bytes"), ("L2", "l2_bytes"), ("L3", "l3_bytes")))
    rows = [("attentile", found["version"]), ("cpu", found["cpu"] or "unknown"),
            ("cores", f"{found['cores']}, {found['usable_cores']} usable by this process"),
            ("caches", caches), ("instruction sets", ", ".join(found["isas"])),
            ("devices", ", ".join(found["devices"]))]
    rows += [(package, version or "not installed")
             for package, version in found["packages"].items()]
    rows += [(part, state["why_not"] or "usable") for part, state in found["drop_ins"].items()]
    text = table(rows)
    if "peaks" in found:
        threads = f"{found['usable_cores']} threads"
        peaks = [("peak, GFLOP/s", "dtype", "1 thread", threads, "tile product", threads)]
        peaks += [(p["isa"], p["dtype"], f"{p['gflops_1_thread']:.1f}", f"{p['gflops']:.1f}",
                   f"{p['product_gflops_1_thread']:.1f}", f"{p['product_gflops']:.1f}")
                  for p in found["peaks"]]
        text += "\n\n" + table(peaks)
    return text


def _info(arguments: argparse.Namespace) -> None:
    found = facts(arguments.measure)
    print(json.dumps(found, indent=2) if arguments.json else describe(found))


def _picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".html", ".svg"):
        raise argparse.ArgumentTypeError(f"was {text!r}, expected a name that ends in .html or "
                                         ".svg")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"was {text!r}, expected a file in a folder that exists")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"was {text!r}, which is a folder")
    return path


def _demo(arguments: argparse.Namespace) -> None:
    from attentile import _demo as demo

    rows = demo.compare()
    print(demo.describe(rows))
    arguments.out.write_text(demo.picture(rows, html=arguments.out.suffix.lower() == ".html"),
                             encoding="utf-8")
    print(f"\nPicture written to {arguments.out.resolve()}")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m attentile", description=attentile.__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"attentile {attentile.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | demo",
                                     parser_class=_Parser)
    info = commands.add_parser("info", help="this machine, this build, what can be used")
    info.add_argument("--json", action="store_true", help="the same for programs")
    info.add_argument("--measure", action="store_true",
                      help="also measure peak GFLOP/s; takes some seconds")
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="NumPy's standard attention beside flash2; < 20 s")
    demo.add_argument("--out", type=_picture_path, default=Path("attentile-demo.html"),
                      metavar="FILE.html|.svg", help="where the picture goes (%(default)s)")
    demo.set_defaults(run=_demo)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except OSError as error:
        print(f"python -m attentile {parsed.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
