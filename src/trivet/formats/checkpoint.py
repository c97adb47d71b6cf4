"""The weights of a folder in Hugging Face layout: which files hold them, and all tensors by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from trivet.errors import ModelFormatError
from trivet.formats.safetensors import TensorView, header_hash, open_safetensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*", "*.ckpt", "pytorch_model.bin.index.json")


class FileIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a warm start compares of one file: no weights are read for it."""

    name: str
    size: int
    mtime_ns: int
    inode: int
    header_sha256: str  # of the safetensors header; of the whole file for a JSON file


class SourceIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a warm start compares of a checkpoint."""

    path: str  # of the folder, resolved
    files: tuple[FileIdentity, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; ModelFormatError names the file and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights; ModelFormatError when there are none, or only pickles or GGUF."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]
    for pattern in PICKLES:
        for found in sorted(folder.glob(pattern)):
            raise ModelFormatError(
                f"{folder} holds its weights as a pickle ({found.name}), which can run code when it is read",
                hint="get the safetensors version, or convert it: AutoModelForCausalLM.from_pretrained(...)"
                ".save_pretrained(folder) of transformers writes safetensors",
            )
    if any(folder.glob("*.gguf")):
        raise ModelFormatError(f"{folder} holds GGUF weights, which Trivet cannot read yet", hint=NEEDS_SAFETENSORS)
    raise ModelFormatError(f"{folder} holds neither {SINGLE} nor {INDEX}", hint=NEEDS_SAFETENSORS)


NEEDS_SAFETENSORS = "Trivet reads a folder in Hugging Face layout: config.json and safetensors weights"


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelFormatError(f"`weight_map` in {index} must say which file holds each tensor")
    for name, file in weight_map.items():
        if Path(file).name != file or file in ("", ".", ".."):
            raise ModelFormatError(f"{index} places tensor `{name}` in {file!r}, which is not a file beside it")
    return weight_map


def open_weights(folder: Path) -> dict[str, TensorView]:
    """All tensors by name, memory-mapped; ModelFormatError names a missing shard or a tensor not in its shard."""
    files = weight_files(folder)
    if files == [folder / SINGLE]:
        return open_safetensors(files[0])
    index = folder / INDEX
    shards = {}
    for file in files:
        if not file.exists():
            raise ModelFormatError(
                f"shard {file.name} is missing from {folder}, but {INDEX} names it",
                hint="the download was interrupted: fetch the model again",
            )
        shards[file.name] = open_safetensors(file)
    tensors = {}
    for name, file_name in _weight_map(index).items():
        if name not in shards[file_name]:
            raise ModelFormatError(f"tensor `{name}` is missing from {folder / file_name}, but {INDEX} places it there")
        tensors[name] = shards[file_name][name]
    return tensors


def source_identity(folder: Path) -> SourceIdentity:
    """The identity of config and weights as they are now; ModelFormatError if one is missing or cut in its header."""

    def identity(path: Path, sha256: str) -> FileIdentity:
        stat = path.stat()
        return FileIdentity(
            name=path.name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino, header_sha256=sha256
        )

    files = []
    for name in ("config.json", INDEX):
        path = folder / name
        if path.exists():
            files.append(identity(path, hashlib.sha256(path.read_bytes()).hexdigest()))
    for path in weight_files(folder):
        if not path.exists():
            open_weights(folder)  # names the missing shard
        files.append(identity(path, header_hash(path)))
    return SourceIdentity(path=str(folder.resolve()), files=tuple(files))
