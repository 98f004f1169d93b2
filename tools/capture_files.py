# SPDX-License-Identifier: Apache-2.0
"""Text in and safetensors files out, for capture_qkv.py.

The text is Debian's bible-kjv-text, unpacked in a temporary folder. The files are written with
a fixed header order, so that equal tensors are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from capture_proof import Capture, CaptureError

TENSOR_NAMES = ("q", "k", "v", "dout")
DECODER_PASSAGE = "gen1:1-exo40:38"
ENCODER_PASSAGES = ("gen1:1-gen12:20", "psa1:1-psa30:12")


@dataclass
class Texts:
    """What the models read."""

    source: str
    decoder: str
    encoder: tuple[str, str]


def run_command(command: list[str], folder: Path) -> str:
    """Run a command in a folder and return its stdout."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise CaptureError(f"{command[0]}: not found; give a text with --text FILE") from error
    except subprocess.CalledProcessError as error:
        raise CaptureError(f"{' '.join(command)}: {error.stderr.strip()}") from error
    return done.stdout


def fetch_passages(passages: list[str]) -> list[str]:
    """Unpack Debian's bible-kjv and bible-kjv-text in a temporary folder and read passages.

    The text package holds the text in the reader's own compressed form; the reader prints one
    verse per line, and the verse reference in front of each is dropped.
    """
    texts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_command(["apt-get", "download", "-q", "bible-kjv", "bible-kjv-text"], folder)
        for package in sorted(folder.glob("*.deb")):
            run_command(["dpkg", "-x", package.name, "unpacked"], folder)
        reader = folder / "unpacked/usr/bin/bible"
        library = str(folder / "unpacked/usr/lib")
        for passage in passages:
            verses = run_command([str(reader), "-f", "-p", library, passage], folder).splitlines()
            texts.append("\n".join(re.sub(r"^\S+ ", "", verse) for verse in verses if verse))
    return texts


def read_texts(path: Path | None) -> Texts:
    """Return the texts of a file, or those of the Debian package."""
    if path is None:
        decoder, first, second = fetch_passages([DECODER_PASSAGE, *ENCODER_PASSAGES])
        return Texts("King James Bible, from Genesis 1:1", decoder, (first, second))
    text = path.read_text(encoding="utf-8")
    return Texts(path.name, text, (text, text[len(text) // 2 :]))


def text_digest(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def serialize(capture: Capture) -> bytes:
    """Return the bytes of a safetensors file, with a fixed order in the header."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(capture.metadata.items()))}
    body = b""
    for name in TENSOR_NAMES:
        data = capture.tensors[name].numpy().astype("<f2").tobytes()
        shape = list(capture.tensors[name].shape)
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    partial_path = path.with_name(path.name + ".partial")
    partial_path.write_bytes(data)
    os.replace(partial_path, path)


def write_captures(captures: list[Capture], out: Path) -> None:
    """Write each capture, and the folder's SHA256SUMS; or the single capture to a named file."""
    if out.suffix == ".safetensors":
        if len(captures) != 1:
            raise CaptureError(f"out: names one file, but {len(captures)} would be written")
        write_atomically(out, serialize(captures[0]))
        print(f"{out}: {out.stat().st_size} bytes")
        return
    out.mkdir(parents=True, exist_ok=True)
    for capture in captures:
        write_atomically(out / capture.name, serialize(capture))
        print(f"{out / capture.name}: {(out / capture.name).stat().st_size} bytes")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(out.glob("*.safetensors"))
    ]
    write_atomically(out / "SHA256SUMS", "".join(lines).encode())


def read_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that this script wrote."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name in TENSOR_NAMES:
        begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float16)
        tensors[name] = flat.reshape(header[name]["shape"])
    return tensors


def check_captures(captures: list[Capture], folder: Path) -> bool:
    """Compare new captures with the files of a folder and its SHA256SUMS; say what differs."""
    sums_path = folder / "SHA256SUMS"
    if not sums_path.exists():
        raise CaptureError(f"{sums_path}: not found")
    lines = [line.split() for line in sums_path.read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    equal = True
    for capture in captures:
        path = folder / capture.name
        if not path.exists() or capture.name not in sums:
            raise CaptureError(f"{path}: not found, or not in SHA256SUMS")
        stored = path.read_bytes()
        if hashlib.sha256(stored).hexdigest() != sums[capture.name]:
            raise CaptureError(f"{path}: the file does not match SHA256SUMS")
        if stored == serialize(capture):
            print(f"{capture.name}: same bytes")
            continue
        equal = False
        print(f"{capture.name}: differs")
        for name, old in read_tensors(stored).items():
            new = capture.tensors[name]
            if new.shape != old.shape:
                print(f"  {name}: shape {tuple(new.shape)}, stored {tuple(old.shape)}")
                continue
            difference = (new.float() - old.float()).abs()
            count = int((difference > 0).sum())
            print(f"  {name}: {count} of {old.numel()} elements, largest {difference.max():.3g}")
    return equal
