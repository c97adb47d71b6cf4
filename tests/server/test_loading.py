"""`Loader`: the engine and the tokenizer side by side, and nothing left behind when either fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trivet.config import EngineConfig, ModelConfig, ServerConfig
from trivet.engine.child import ChildProcessClient
from trivet.engine.in_process import InProcessClient
from trivet.errors import ConfigError, InvalidRequest, ModelFormatError
from trivet.server.loading import Loader
from trivet.server.milestones import Milestones
from trivet.server.report import notes


def loader(path: Path | str, *, in_process: bool = False) -> Loader:
    config = EngineConfig(model=ModelConfig(path=str(path)), threads=1)
    return Loader(config, model_name="served", in_process=in_process, milestones=Milestones())


@pytest.mark.parametrize("in_process", [False, True])
def test_what_is_loaded(cache_dir: Path, in_process: bool) -> None:
    loaded = loader("demo-small", in_process=in_process)()
    try:
        assert isinstance(loaded.client, InProcessClient if in_process else ChildProcessClient)
        backend = loaded.backend
        assert backend.alive and backend.info.num_threads == 1
        assert backend.engine.defaults.model_name == "served"
        assert backend.template is None
        assert (backend.num_restarts(), backend.gave_up()) == (0, False)
    finally:
        loaded.client.close()


@pytest.fixture
def chatty(tmp_path: Path, demo_small_path: Path) -> Path:
    """demo-small with a chat template and sampling defaults."""
    folder = tmp_path / "chatty"
    shutil.copytree(demo_small_path, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"temperature": 0.25, "top_k": 7, "eos_token_id": [0, 5]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_template_and_defaults_come_along(cache_dir: Path, chatty: Path) -> None:
    loaded = loader(chatty)()
    try:
        assert loaded.backend.template is not None
        assert loaded.backend.template.render([{"role": "user", "content": "hi"}]) == "hi\n"
        defaults = loaded.backend.engine.defaults
        assert (defaults.temperature, defaults.top_k, defaults.eos_ids) == (0.25, 7, (0, 5))
    finally:
        loaded.client.close()


@pytest.mark.parametrize("in_process", [False, True])
def test_a_model_without_a_tokenizer(cache_dir: Path, chatty: Path, in_process: bool) -> None:
    (chatty / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match="no tokenizer"):
        loader(chatty, in_process=in_process)()
    assert psutil.Process().children() == []


def test_a_fault_of_the_tokenizer_does_not_wait_for_the_weights(
    cache_dir: Path, chatty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing may take minutes; the engine's process, which here would start in a minute, is ended at once."""
    (chatty / "tokenizer.json").write_text("{")
    slow = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(
        "trivet.engine.child.ChildProcessClient.__init__.__kwdefaults__", {"policy": None, "command": slow}
    )
    began = time.monotonic()
    with pytest.raises(ModelFormatError, match="cannot be read"):
        loader(chatty)()
    assert time.monotonic() - began < 30
    assert psutil.Process().children() == []


@pytest.mark.parametrize("in_process", [False, True])
def test_a_template_that_is_not_jinja_is_told_at_the_start(cache_dir: Path, chatty: Path, in_process: bool) -> None:
    settings = json.loads((chatty / "tokenizer_config.json").read_text())
    (chatty / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{% if %}"}))
    loaded = loader(chatty, in_process=in_process)()
    try:
        [note] = [note for note in notes(loaded.backend, ServerConfig()) if "chat template" in note]
        assert "is not valid: line 1" in note and "/v1/chat/completions answers 400" in note
        with pytest.raises(InvalidRequest, match="is not valid: line 1"):
            loaded.backend.encode_chat([{"role": "user", "content": "hi"}], {})
    finally:
        loaded.client.close()


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="neither a folder"):
        loader("/no/such/folder")()
    assert psutil.Process().children() == []


def test_milestones_count_from_the_beginning_of_the_process() -> None:
    code = (
        "from trivet.server.milestones import Milestones, process_age_s as age\n"
        "m = Milestones(); m.reach('now'); print(m.reached['now'], age())"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reached, age = map(float, done.stdout.split())
    assert 0 < reached <= age + 0.02, "the kernel counts in 10 ms"
    assert age <= time.monotonic() - began + 0.02
