"""Checkpoint -> packed file -> map: what is in it, when it is made again, and what happens when something breaks."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import LLAMA3_ROPE, edit_json, make_checkpoint
from trivet.errors import CacheError, ConfigError, ModelFormatError
from trivet.formats import cache
from trivet.formats.checkpoint import open_weights
from trivet.formats.layout import LAYOUT_VERSION
from trivet.formats.packed import VersionMismatch
from trivet.formats.unpack import dequantize, part
from trivet.models.packing import PackedModel, load_packed, open_packed, pack_threads
from trivet.models.weights import interleave_panels

BOUNDS = {"bf16": 1 / 256, "i8": 1.001 / 254, "i4": 0.4}  # most error over the largest of the row; i4 clips to 7/11.5
RMS_BOUNDS = {"bf16": 0.003, "i8": 0.02, "i4": 0.13}  # of a whole tensor, over its own RMS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny", "llama", num_hidden_layers=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVET_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def expected(folder: Path, family: str, num_layers: int) -> dict[str, NDArray[np.float32]]:
    """Every packed tensor as the checkpoint's float32 values, by its name in the layout."""
    w = {name: view.to_float32() for name, view in open_weights(folder).items()}
    out = {"embed": w["model.embed_tokens.weight"], "final_norm": w["model.norm.weight"]}
    if "lm_head.weight" in w:
        out["head"] = w["lm_head.weight"]
    for i in range(num_layers):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        out[f"layers.{i}.attn_norm"] = w[f"model.layers.{i}.input_layernorm.weight"]
        out[f"layers.{i}.mlp_norm"] = w[f"model.layers.{i}.post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            suffix = "" if kind == "weight" else "_bias"
            if f"{attention}q_proj.{kind}" in w:
                out[f"layers.{i}.qkv{suffix}"] = np.concatenate([w[f"{attention}{p}_proj.{kind}"] for p in "qkv"])
                out[f"layers.{i}.o{suffix}"] = w[f"{attention}o_proj.{kind}"]
            if f"{mlp}gate_proj.{kind}" in w:
                gate, up = w[f"{mlp}gate_proj.{kind}"], w[f"{mlp}up_proj.{kind}"]
                pairs = zip(np.atleast_2d(gate.T), np.atleast_2d(up.T), strict=True)
                columns = [interleave_panels(*pair) for pair in pairs]
                out[f"layers.{i}.gate_up{suffix}"] = np.stack(columns, 1) if kind == "weight" else columns[0]
                out[f"layers.{i}.down{suffix}"] = w[f"{mlp}down_proj.{kind}"]
        if family == "qwen3":
            out[f"layers.{i}.q_norm"] = w[f"{attention}q_norm.weight"]
            out[f"layers.{i}.k_norm"] = w[f"{attention}k_norm.weight"]
    return out


AWKWARD: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"hidden_size": 90, "head_dim": 18, "intermediate_size": 101, "vocab_size": 301,
               "num_attention_heads": 5, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True,
               "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 6, "hidden_size": 24, "num_key_value_heads": 4,
               "shards": 3}),
    ("llama", {"hidden_size": 256, "intermediate_size": 33, "head_dim": 256, "num_attention_heads": 2,
               "num_key_value_heads": 2, "dtype": "float32"}),
    ("qwen3", {"tie_word_embeddings": True, "dtype": "float16"}),
    ("qwen3", {"hidden_size": 96, "head_dim": 34, "intermediate_size": 70, "attention_bias": True, "vocab_size": 17}),
]  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dialect", ["v4", "v5"])
@pytest.mark.parametrize(("family", "overrides"), AWKWARD)
def test_packed_tensors_hold_the_checkpoint(
    tmp_path: Path, family: Any, overrides: dict[str, Any], dialect: Any, precision: str
) -> None:
    folder = make_checkpoint(tmp_path / "m", family, dialect=dialect, **overrides)
    packed, _ = load_packed(folder, precision=precision)
    want = expected(folder, family, 2)
    tables = {f"rope_{part_}.{packed.spec.layers[0].head_dim}" for part_ in ("cos", "sin")}
    assert set(packed.tensors) == set(want) | tables
    for name, values in want.items():
        tensor = packed.tensors[name]
        got = dequantize(packed.buffer, tensor)
        assert got.shape == values.shape, name
        if tensor.kind == "f32":
            np.testing.assert_array_equal(got, values, err_msg=name)
        else:
            assert tensor.kind in {"bf16": ("bf16",), "int8": ("i8",), "int4": ("i8", "i4")}[precision]
            top = np.abs(values).max(axis=1, keepdims=True)
            assert (np.abs(got - values) <= BOUNDS[tensor.kind] * top + 1e-12).all(), name
            assert np.linalg.norm(got - values) <= RMS_BOUNDS[tensor.kind] * np.linalg.norm(values), name
            assert tensor.offset % 4096 == 0
            assert all(offset % 64 == 0 for offset, _ in tensor.parts.values())
    for name in ("embed", "head"):
        assert name not in packed.tensors or packed.tensors[name].kind == ("bf16" if precision == "bf16" else "i8")


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e6}, LLAMA3_ROPE,
                                  {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}])  # fmt: skip
def test_rope_tables_are_those_of_transformers(tmp_path: Path, rope: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    folder = make_checkpoint(tmp_path / "m", "llama", rope_parameters=rope, num_hidden_layers=1)
    packed, _ = load_packed(folder, precision="bf16")
    positions = torch.arange(256)[None]
    cos, sin = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder))(torch.zeros(1, dtype=torch.float32), positions)
    for name, want in (("cos", cos), ("sin", sin)):
        tensor = packed.tensors[f"rope_{name}.16"]
        assert (tensor.n, tensor.k) == (256, 8)
        table = part(packed.buffer, tensor, "data", np.float32).reshape(256, 8)
        np.testing.assert_allclose(table, want[0, :, :8].numpy(), rtol=0, atol=256 * 2.0**-23)


def test_group_size_falls_back_and_says_so(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", hidden_size=192, intermediate_size=100, head_dim=32,
                             num_attention_heads=4, num_hidden_layers=3)  # fmt: skip
    packed, _ = load_packed(folder, precision="int4", group_size=128)
    kinds = {name: (t.kind, t.group) for name, t in packed.tensors.items() if name.startswith("layers.0") and t.k > 1}
    assert kinds == {"layers.0.qkv": ("i4", 64), "layers.0.o": ("i4", 128), "layers.0.gate_up": ("i4", 64),
                     "layers.0.down": ("i8", 0)}  # fmt: skip
    assert packed.notes == (
        "int8 instead of int4 for layers.0.down, layers.1.down, layers.2.down: no group size divides K = 100",
        "group size 64 instead of 128 for layers.0.qkv, layers.0.gate_up, layers.1.qkv and 3 more: K = 192",
    )


def test_second_start_maps_what_the_first_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, packed_now = load_packed(folder, precision="int8")
    assert packed_now and first.notes == ()
    assert not first.buffer.flags.writeable
    monkeypatch.setattr("trivet.models.packing.open_weights", None)  # a warm start reads no weight
    second, packed_now = load_packed(folder, precision="int8")
    assert not packed_now
    assert (second.digest, second.spec, second.tensors) == (first.digest, first.spec, first.tensors)
    np.testing.assert_array_equal(second.buffer, first.buffer)


def test_forms_are_kept_apart(folder: Path, own_cache: Path) -> None:
    forms = [("bf16", 32), ("int8", 32), ("int4", 32), ("int4", 64)]
    digests = {load_packed(folder, precision=p, group_size=g)[0].digest for p, g in forms}
    assert len(digests) == len(list(own_cache.glob("*.trivet"))) == 4
    assert not any(load_packed(folder, precision=p, group_size=g)[1] for p, g in forms)


def test_digest_is_of_the_contents_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere" / "other-name")
    first, second = load_packed(folder, precision="int4")[0], load_packed(elsewhere, precision="int4")[0]
    assert first.digest == second.digest and first.path != second.path
    edit_json(elsewhere / "config.json", rms_norm_eps=1e-5)
    assert load_packed(elsewhere, precision="int4")[0].digest != first.digest


def test_changes_of_the_checkpoint_are_seen(folder: Path) -> None:
    first, _ = load_packed(folder, precision="int8")
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    again, packed_now = load_packed(folder, precision="int8")
    assert packed_now and again.digest == first.digest and "packed again: the checkpoint has changed" in again.notes
    make_checkpoint(folder, "llama", num_hidden_layers=1, seed=7)
    assert load_packed(folder, precision="int8")[0].digest != first.digest
    edit_json(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    packed, packed_now = load_packed(folder, precision="int8")
    assert packed_now and packed.spec.rope.theta == 5e5


def with_version(path: Path, version: int) -> None:
    content = bytearray(path.read_bytes())
    content[8:12] = version.to_bytes(4, "little")
    path.write_bytes(content)


def test_older_layout_is_packed_again(folder: Path) -> None:
    packed, _ = load_packed(folder, precision="int8")
    with_version(packed.path, LAYOUT_VERSION - 1)
    again, packed_now = load_packed(folder, precision="int8")
    assert packed_now
    assert again.notes[-1].startswith(f"packed again: its packed file had layout version {LAYOUT_VERSION - 1}, this")


def test_newer_layout_is_refused_naming_both(folder: Path) -> None:
    packed, _ = load_packed(folder, precision="int8")
    with_version(packed.path, LAYOUT_VERSION + 1)
    with pytest.raises(VersionMismatch, match=f"version {LAYOUT_VERSION + 1}, .* {LAYOUT_VERSION}$") as caught:
        load_packed(folder, precision="int8")
    assert "trivet cache clear" in str(caught.value.hint)
    assert packed.path.exists()


def test_cut_packed_file_is_packed_again(folder: Path) -> None:
    packed, _ = load_packed(folder, precision="int8")
    whole = packed.path.read_bytes()
    header_end = 24 + int.from_bytes(whole[16:24], "little")
    lengths = [*range(0, 25), *range(25, header_end, 97), header_end, 4096, len(whole) // 2, len(whole) - 1]
    for length in lengths:
        packed.path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError, match="damaged"):
            open_packed(packed.path)
    again, packed_now = load_packed(folder, precision="int8")
    assert packed_now and "is damaged" in again.notes[-1]
    assert again.path.read_bytes()[4096:] == whole[4096:]


def edit_header(path: Path, edit: Any) -> None:
    """Changes the JSON header in place, padded with blanks to its old length."""
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[16:24], "little")
    header = json.loads(whole[24 : 24 + length])
    edit(header)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    assert len(encoded) <= length + 100 <= 4096 * 2
    whole[16:24] = len(encoded).to_bytes(8, "little")
    whole[24 : 24 + len(encoded)] = encoded
    path.write_bytes(whole)


def test_damaged_header_is_named(folder: Path) -> None:
    packed, _ = load_packed(folder, precision="int4")
    whole = packed.path.read_bytes()

    def tensor(key: str, value: Any) -> Any:
        return lambda header: header["tensors"]["layers.0.qkv"].update({key: value})

    for edit, message in [
        (tensor("offset", 0), "tensor `layers.0.qkv`"),
        (tensor("offset", 4100), "tensor `layers.0.qkv`"),
        (tensor("n", 10**6), "tensor `layers.0.qkv`"),
        (tensor("k", 0), "tensor `layers.0.qkv`"),
        (tensor("group", 48), "tensor `layers.0.qkv`"),
        (tensor("kind", "i5"), "header cannot be read"),
        (tensor("parts", {}), "tensor `layers.0.qkv`"),
        (lambda header: header.update(nbytes=1), "its header says 1"),
        (lambda header: header.update(tensors=3), "header cannot be read"),
        (lambda header: header.update(spec={"dim": "wide"}), "spec cannot be read"),
        (lambda header: header["tensors"].pop("layers.0.qkv"), "tensors that its spec does not"),
    ]:
        packed.path.write_bytes(whole)
        edit_header(packed.path, edit)
        with pytest.raises(ModelFormatError, match=message):
            open_packed(packed.path)
    packed.path.write_bytes(whole[:26] + b"\xff" + whole[27:])
    with pytest.raises(ModelFormatError, match="header cannot be read"):
        open_packed(packed.path)
    for garbage in (b"GARBAGE!", b"\x93NUMPY\x01\x00"):
        packed.path.write_bytes(garbage + whole[8:])
        with pytest.raises(ModelFormatError, match="does not begin with TRIVETPK"):
            open_packed(packed.path)
    with pytest.raises(ModelFormatError, match="cannot be read"):
        open_packed(packed.path.parent / "gone.trivet")


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight",
                                  "model.norm.weight", "lm_head.weight"])  # fmt: skip
def test_nan_names_the_tensor_and_leaves_nothing(folder: Path, own_cache: Path, name: str, precision: str) -> None:
    view = open_weights(folder)[name]
    start = (folder / "model.safetensors").read_bytes().find(view.data.tobytes())
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(start + view.data.size - 2)
        file.write(b"\xc0\x7f")
    with pytest.raises(ModelFormatError, match=f"tensor `{name}` in .* holds NaN or infinite"):
        load_packed(folder, precision=precision)
    assert list(own_cache.iterdir()) == []


def test_float32_beyond_bf16_is_named(tmp_path: Path, own_cache: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", dtype="float32", num_hidden_layers=1)
    view = open_weights(folder)["lm_head.weight"]
    start = (folder / "model.safetensors").read_bytes().find(view.data.tobytes())
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(start)
        file.write(np.float32(3.4028235e38).tobytes())
    with pytest.raises(ModelFormatError, match=r"`lm_head.weight` in .* too large for bf16"):
        load_packed(folder, precision="bf16")
    assert list(own_cache.iterdir()) == []
    load_packed(folder, precision="int8")


Usage = namedtuple("Usage", "total used free")


def test_room_is_checked_first(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 0))
    with pytest.raises(CacheError, match=r"packing tiny needs 0\.00 GiB, but .*cache has 0\.00 GiB free") as caught:
        load_packed(folder, precision="int8")
    assert "TRIVET_CACHE_DIR" in str(caught.value.hint)
    assert list(own_cache.iterdir()) == []


def test_disk_that_fills_up_is_a_cache_error(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match="No space left on device"):
        load_packed(folder, precision="int8")
    assert list(own_cache.iterdir()) == []


def test_a_disk_that_fails_behind_the_packing_is_a_cache_error(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr("trivet.formats.packed._SYNC_BYTES", 1)
    with pytest.raises(CacheError, match="Input/output error"):
        load_packed(folder, precision="int8")
    assert list(own_cache.iterdir()) == []


def test_leftovers_of_an_interruption_are_removed(folder: Path, own_cache: Path) -> None:
    name = cache.file_name(folder, "int8", 32).removesuffix(".trivet")
    own_cache.mkdir()
    for left in (f"{name}.partial", f"{name}.lock", "other-model-int8.partial"):
        (own_cache / left).write_bytes(b"cut")
    packed, packed_now = load_packed(folder, precision="int8")
    assert packed_now
    assert [path.name for path in own_cache.iterdir()] == [packed.path.name]


def _load(folder: str, cache_dir: str, results: Any) -> None:
    os.environ["TRIVET_CACHE_DIR"] = cache_dir
    packed, packed_now = load_packed(Path(folder), precision="int4")
    results.put((packed.digest, packed_now))


def test_two_processes_pack_once(tmp_path: Path, own_cache: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", hidden_size=512, intermediate_size=2048, vocab_size=4096)
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    workers = [context.Process(target=_load, args=(str(folder), str(own_cache), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert len({digest for digest, _ in outcomes}) == 1
    assert sum(packed_now for _, packed_now in outcomes) == 1
    assert len(list(own_cache.iterdir())) == 1


def test_size_limit_evicts_the_least_recently_used(folder: Path, own_cache: Path) -> None:
    def sizes() -> dict[str, int]:
        return {entry.precision: entry.nbytes for entry in cache.entries(own_cache)}

    for age, precision in enumerate(("bf16", "int8")):
        packed, _ = load_packed(folder, precision=precision)
        os.utime(packed.path, (1000 + age, 1000 + age))
    load_packed(folder, precision="bf16")  # used again: int8 is the older one now
    cache.write_settings(own_cache, cache.CacheSettings(limit_bytes=sizes()["bf16"] + sizes()["int8"]))
    load_packed(folder, precision="int4")
    assert set(sizes()) == {"bf16", "int4"}
    cache.write_settings(own_cache, cache.CacheSettings(limit_bytes=1))
    kept, _ = load_packed(folder, precision="int8")
    assert set(sizes()) == {"int8"} and kept.path.exists()  # what was asked for stays


def test_a_running_server_keeps_its_map(folder: Path, own_cache: Path) -> None:
    packed, _ = load_packed(folder, precision="int8")
    before: PackedModel = packed
    total = int(before.buffer.astype(np.int64).sum())
    assert len(cache.clear(own_cache)) == 1
    assert int(before.buffer.astype(np.int64).sum()) == total


def test_pack_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_THREADS", "3")
    assert pack_threads() == 3
    monkeypatch.setenv("TRIVET_THREADS", "many")
    with pytest.raises(ConfigError, match="`TRIVET_THREADS` is 'many'"):
        pack_threads()
    monkeypatch.delenv("TRIVET_THREADS")
    assert pack_threads() >= 1


def test_progress_reaches_the_end(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_packed(folder, precision="int8", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1
