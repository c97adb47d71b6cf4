"""Reading safetensors: what the reference library writes is read back, and each damage has a named error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trivet.errors import ModelFormatError
from trivet.formats.checkpoint import open_weights, source_identity, weight_files
from trivet.formats.safetensors import header_hash, open_safetensors


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = bytes(24)) -> Path:
    """A file with this header, given as JSON text or as what JSON is made of."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


GOOD = {"a": entry([2, 2], 0, 16), "b": entry([2], 16, 24)}


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    tensors = {
        "bf": torch.randn(3, 5).bfloat16(), "half": torch.randn(7).half(), "full": torch.randn(2, 3, 4),
        "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5),
    }  # fmt: skip
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    views = open_safetensors(tmp_path / "m.safetensors")
    assert set(views) == set(tensors)
    for name, tensor in tensors.items():
        assert views[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(views[name].to_float32(), tensor.float().numpy())
        assert not views[name].data.flags.writeable


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    header = {"pad": entry([3], 0, 3, "U8"), "x": entry([6], 3, 27)}
    views = open_safetensors(write(tmp_path / "m.safetensors", header, bytes(3) + values.tobytes()))
    np.testing.assert_array_equal(views["x"].to_float32(), values)


def test_header_hash_follows_the_header_alone(tmp_path: Path) -> None:
    one = header_hash(write(tmp_path / "1", GOOD, bytes(24)))
    assert one == header_hash(write(tmp_path / "2", GOOD, bytes(range(24))))
    assert one != header_hash(write(tmp_path / "3", {"a": entry([4], 0, 16), "b": entry([2], 16, 24)}))


DAMAGES: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{nonsense", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "not an object": ([1, 2], "not a JSON object"),
    "a key twice": (b'{"a": {}, "a": {}}', "key `a` twice"),
    "no description": ({"a": 3}, "tensor `a` .* has no description"),
    "unknown dtype": ({"a": entry([6], 0, 24, "F31")}, "tensor `a` .* dtype 'F31'"),
    "dtype of another type": ({"a": {**entry([6], 0, 24), "dtype": ["F32"]}}, "tensor `a` .* dtype"),
    "negative size": ({"a": entry([-6], 0, 24)}, r"tensor `a` .* shape \[-6\]"),
    "shape missing": ({"a": {"dtype": "F32", "data_offsets": [0, 24]}}, "tensor `a` .* shape None"),
    "boolean size": ({"a": entry([True], 0, 4)}, "tensor `a` .* shape"),
    "one offset": ({"a": {**entry([6], 0, 24), "data_offsets": [0]}}, "tensor `a` .* data_offsets"),
    "reversed offsets": ({"a": entry([6], 24, 0)}, "tensor `a` .* data_offsets"),
    "size is not shape times dtype": ({"a": entry([5], 0, 24)}, "tensor `a` .* takes 24 bytes, but F32 .* needs 20"),
    "overlap": ({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, "tensor `b` .* overlaps"),
    "gap": ({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, "tensor `b` .* gap of 8 bytes"),
    "begins late": ({"a": entry([4], 8, 24)}, "tensor `a` .* gap of 8 bytes"),
    "ends behind the file": ({"a": entry([8], 0, 32)}, "tensor `a` ends 8 bytes behind"),
    "more data than tensors": ({"a": entry([4], 0, 16)}, "8 bytes more than its header"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    header, message = DAMAGES[damage]
    path = write(tmp_path / "m.safetensors", header)
    with pytest.raises(ModelFormatError, match=message) as caught:
        open_safetensors(path)
    assert str(path) in caught.value.message


def test_cut_anywhere_is_a_named_error(tmp_path: Path) -> None:
    path = write(tmp_path / "whole", GOOD)
    whole = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError, match=r"cut\.safetensors"):
            open_safetensors(cut)
    cut.write_bytes(whole)
    assert set(open_safetensors(cut)) == {"a", "b"}


def test_absurd_header_length(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + bytes(100))
    with pytest.raises(ModelFormatError, match="is not a safetensors file"):
        open_safetensors(path)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"gone\.safetensors cannot be read"):
        open_safetensors(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_names_the_tensor(tmp_path: Path, value: float) -> None:
    save_file({"x.weight": torch.tensor([1.0, value]).bfloat16()}, tmp_path / "m.safetensors")
    with pytest.raises(ModelFormatError, match=r"`x\.weight` in .*m\.safetensors holds NaN or infinite"):
        open_safetensors(tmp_path / "m.safetensors")["x.weight"].to_float32()


def test_other_dtypes_are_refused_as_weights(tmp_path: Path) -> None:
    save_file({"q": torch.zeros(4, dtype=torch.int8)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelFormatError, match=r"tensor `q` .* is I8, but weights must be F32, F16 or BF16"):
        open_safetensors(tmp_path / "m.safetensors")["q"].to_float32()


def sharded(folder: Path) -> Path:
    write(folder / "one.safetensors", {"a": entry([2], 0, 8)}, bytes(8))
    write(folder / "two.safetensors", {"b": entry([2], 0, 8)}, bytes(8))
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_joined(tmp_path: Path) -> None:
    assert set(open_weights(sharded(tmp_path))) == {"a", "b"}
    assert [file.name for file in source_identity(tmp_path).files] == [
        "model.safetensors.index.json",
        "one.safetensors",
        "two.safetensors",
    ]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "two.safetensors").unlink()
    for call in (open_weights, source_identity):
        with pytest.raises(ModelFormatError, match=r"shard two\.safetensors is missing"):
            call(tmp_path)


def test_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    write(sharded(tmp_path) / "two.safetensors", {"c": entry([2], 0, 8)}, bytes(8))
    with pytest.raises(ModelFormatError, match=r"tensor `b` is missing from .*two\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [("{", "not valid JSON"), ("[]", "must hold a JSON object"), ("{}", "`weight_map`"),
     ('{"weight_map": {"a": 1}}', "`weight_map`"), ('{"weight_map": {"a": "../x"}}', "not a file beside it")],
)  # fmt: skip
def test_damaged_index(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelFormatError, match=message):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pytorch_model.bin", "pickle .*pytorch_model.bin"), ("pytorch_model-00001-of-00002.bin", "pickle"),
     ("model.pt", "pickle"), ("weights.pth", "pickle"), ("consolidated.00.pth", "pickle"),
     ("model.gguf", "GGUF"), ("notes.txt", "neither model.safetensors nor")],
)  # fmt: skip
def test_other_weights_are_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(ModelFormatError, match=message) as caught:
        weight_files(tmp_path)
    assert caught.value.hint
