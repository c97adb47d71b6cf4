"""Where a model is found: bundled, a folder (without any network call), the hub, or one clear error."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import Hub, serve

from checkpoints import make_checkpoint
from trivet.config import ModelConfig
from trivet.errors import ConfigError, ModelFormatError
from trivet.models.load import load_model
from trivet.models.source import find_model


def test_bundled_models_are_package_data(demo_path: Path, demo_small_path: Path) -> None:
    assert find_model("demo") == (demo_path, "demo")
    assert find_model("demo-small") == (demo_small_path, "demo-small")


def test_bundled_model_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivet.models.source.__file__", str(tmp_path / "models" / "source.py"))
    with pytest.raises(ConfigError, match="the bundled model `demo` is not part of this installation"):
        find_model("demo")


def test_local_folder_makes_no_network_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "org" / "name", "llama")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network call")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    model = load_model(ModelConfig(path=str(folder)))
    assert model.tokenizer.encode("12") and model.chat_template is not None and model.eos_ids
    monkeypatch.chdir(tmp_path)
    assert find_model("org/name") == (Path("org/name"), "name")  # looks like a hub id, but is here
    assert "huggingface_hub" not in sys.modules or model.name == "name"


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [("nothing", ConfigError, "'nothing', which is neither a folder, nor demo or demo-small, nor a hub id"),
     ("/no/such/folder", ConfigError, "'/no/such/folder', which is neither"),
     ("a/b/c", ConfigError, "'a/b/c', which is neither"),
     ("", ConfigError, "'', which is neither"),
     ("some/model.gguf", ModelFormatError, "GGUF file, which Trivet cannot read yet")],
)  # fmt: skip
def test_names_that_are_nothing(path: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_model(path)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="is a file, but a model is a folder"):
        find_model(str(tmp_path / "model.safetensors"))


def find(name: str, hub: Hub | str, home: Path) -> str:
    """What `find_model` says in a process of its own: the client reads its settings when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.url, "HF_HOME": str(home),
                    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}  # fmt: skip
    program = (
        "import sys\nfrom trivet.models.source import find_model\nfrom trivet.errors import TrivetError\n"
        "try:\n    print(find_model(sys.argv[1])[0])\n"
        "except TrivetError as error:\n    print(type(error).__name__, error, '|', error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, name], env=environment, capture_output=True, text=True,
                          timeout=120, check=True)  # fmt: skip
    return done.stdout.strip()


def test_hub_id_is_downloaded_once(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source", "llama", shards=2, template_file=True)
    for unwanted in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "model.gguf"):
        (folder / unwanted).write_bytes(b"x" * 100)
    with serve(folder) as hub:
        found = Path(find("org/tiny", hub, tmp_path / "hf"))
        wanted = {file.name for file in folder.iterdir()} - {
            "pytorch_model.bin",
            "consolidated.safetensors",
            "README.md",
            "model.gguf",
        }
        assert hub.fetched() == wanted == {file.name for file in found.iterdir()}
        hub.requests.clear()
        assert Path(find("org/tiny", hub, tmp_path / "hf")) == found
        assert hub.requests == []
    assert (found / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (tmp_path / "hf") in found.parents
    assert load_model(ModelConfig(path=str(found))).spec.vocab_size == 320


def test_incomplete_download_is_completed(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source", "llama", shards=2)
    with serve(folder) as hub:
        found = Path(find("org/tiny", hub, tmp_path / "hf"))
        shard = found / "model-00002-of-00002.safetensors"
        shard.resolve().unlink()
        shard.unlink()
        hub.requests.clear()
        assert Path(find("org/tiny", hub, tmp_path / "hf")) == found
        assert hub.fetched() == {shard.name} and shard.exists()


def test_a_download_that_lacks_the_tokenizer_is_completed(tmp_path: Path) -> None:
    with serve(make_checkpoint(tmp_path / "source", "llama")) as hub:
        found = Path(find("org/tiny", hub, tmp_path / "hf"))
        tokenizer = found / "tokenizer.json"
        tokenizer.resolve().unlink()
        tokenizer.unlink()
        hub.requests.clear()
        assert Path(find("org/tiny", hub, tmp_path / "hf")) == found
        assert hub.fetched() == {"tokenizer.json"} and tokenizer.exists()


def test_hub_errors_are_named(tmp_path: Path) -> None:
    with serve(tmp_path) as hub:
        assert find("org/none", hub, tmp_path / "hf").startswith(
            "ConfigError org/none is neither a folder here nor a model on the hub | check the spelling"
        )
        assert find("org/gated", hub, tmp_path / "hf").startswith(
            "ConfigError org/gated asks for its licence to be accepted on the hub first | accept it"
        )
    assert find("org/tiny", hub, tmp_path / "hf").startswith(
        "ConfigError org/tiny is no folder here, and the hub cannot be reached"
    )
