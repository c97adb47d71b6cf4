"""Where a model is: a bundled name, a local folder, or a hub id that is downloaded once.

A local folder never causes a network call; neither does a hub id whose files are all here already.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from trivet.errors import ConfigError, ModelFormatError
from trivet.formats.checkpoint import weight_files

log = logging.getLogger("trivet.models")
BUNDLED = ("demo", "demo-small")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
]
UNWANTED = ["*/*", "consolidated*"]  # other forms of the same weights


def _bundled_folder() -> Path:
    return Path(__file__).parent.parent / "bundled"


def bundled_name(path: str) -> str | None:
    """The name of the bundled model that `path` means, by name or by folder; None for another model."""
    if path in BUNDLED:
        return path
    folder = Path(path).expanduser().resolve()
    return folder.name if folder.name in BUNDLED and folder.parent == _bundled_folder().resolve() else None


def find_model(path: str) -> tuple[Path, str]:
    """The model's folder and its short name; a hub id is downloaded if need be.

    ConfigError if it is no model that can be found, ModelFormatError for a file of a form that Trivet cannot read.
    """
    if path in BUNDLED:
        folder = _bundled_folder() / path
        if not folder.is_dir():
            raise ConfigError(f"the bundled model `{path}` is not part of this installation: {folder} is missing")
        return folder, path
    local = Path(path).expanduser()
    if path and local.is_dir():
        return local, local.resolve().name
    if local.suffix == ".gguf":
        raise ModelFormatError(
            f"{path} is a GGUF file, which Trivet cannot read yet",
            hint="give the folder of the original model: config.json and safetensors weights",
        )
    if path and local.exists():
        raise ModelFormatError(f"{path} is a file, but a model is a folder", hint=f"try `{local.parent}`")
    if HUB_ID.fullmatch(path):
        return _from_hub(path), path.rpartition("/")[2]
    raise ConfigError(
        f"`model.path` is {path!r}, which is neither a folder, nor {' or '.join(BUNDLED)}, nor a hub id",
        hint="a hub id looks like Qwen/Qwen3-0.6B",
    )


def _from_hub(repo_id: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot(local_files_only: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=local_files_only
            )
        )

    try:
        folder = snapshot(local_files_only=True)
        if _is_complete(folder):
            return folder
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        pass
    log.info("downloading %s", repo_id)
    try:
        return snapshot(local_files_only=False)
    except errors.GatedRepoError:
        raise ConfigError(
            f"{repo_id} asks for its licence to be accepted on the hub first",
            hint="accept it on the model's page, then set HF_TOKEN or run `hf auth login`",
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ConfigError(
            f"{repo_id} is neither a folder here nor a model on the hub",
            hint="check the spelling; a private model needs HF_TOKEN",
        ) from None
    except Exception as error:  # network errors of several libraries
        raise ConfigError(
            f"{repo_id} is no folder here, and the hub cannot be reached: {error}",
            hint="check the network, or give a local folder",
        ) from None


def _is_complete(folder: Path) -> bool:
    """Whether an earlier download got all that is needed."""
    needed = all((folder / name).exists() for name in ("config.json", "tokenizer.json"))
    try:
        return needed and all(file.exists() for file in weight_files(folder))
    except ModelFormatError:
        return False
