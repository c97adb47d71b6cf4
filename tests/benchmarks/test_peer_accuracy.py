"""The emulated recipes keep what their formats promise, and the accuracy script tells forms apart on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.peers import accuracy, recipes

from trivet.formats.checkpoint import open_weights

WEIGHTS = np.random.default_rng(5).standard_normal((6, 512)).astype(np.float32)


def tops(group: int) -> np.ndarray:
    """The largest value without sign of each weight's block."""
    groups = np.abs(recipes.blocks(WEIGHTS, group)).max(-1, keepdims=True)
    return np.broadcast_to(groups, (6, 512 // group, group)).reshape(WEIGHTS.shape)


@pytest.mark.parametrize(
    ("recipe", "group", "codes"),
    [
        (recipes.q8_0, 32, 127),
        (recipes.q4_0, 32, 8),
        (recipes.int4_sym_g128, 128, 8),
        (recipes.int4_sym_b32, 32, 8),
        (recipes.int8_by_channel, 512, 127),
    ],
)
def test_errors_are_within_half_a_step(recipe: accuracy.Recipe, group: int, codes: int) -> None:
    step = tops(group) / codes
    error = np.abs(recipe(WEIGHTS) - WEIGHTS)
    # the one code that is missing on a side may cost a whole step; the step itself is rounded (fp16, bf16)
    inside = np.abs(WEIGHTS) <= (codes - 1.5) * step
    assert np.all(error[inside] <= (0.5 + codes * 2**-9) * step[inside])
    assert np.all(error <= (1.0 + codes * 2**-9) * step)
    assert not np.array_equal(recipe(WEIGHTS), WEIGHTS)


def test_the_asymmetric_recipe_covers_its_range() -> None:
    shifted = WEIGHTS + 3  # the range is widened to hold 0
    step = np.maximum(shifted.max(-1, keepdims=True), 0) - np.minimum(shifted.min(-1, keepdims=True), 0)
    assert np.all(np.abs(recipes.int8_asymmetric(shifted) - shifted) <= step / 255 * 1.01)


def test_six_bits_err_less_than_four_and_more_than_eight() -> None:
    errors = [np.square(recipe(WEIGHTS) - WEIGHTS).mean() for recipe in (recipes.q8_0, recipes.q6_k, recipes.q4_0)]
    assert errors == sorted(errors) and errors[2] > 8 * errors[1] > 16 * errors[0]
    odd = WEIGHTS[:, :96]
    assert np.array_equal(recipes.q6_k(odd), recipes.q8_0(odd)), "as llama-quantize falls back"


@pytest.mark.parametrize("recipe", [recipes.q8_0, recipes.q4_0, recipes.q6_k, recipes.int4_sym_g128,
                                    recipes.int8_asymmetric, recipes.int8_by_channel])  # fmt: skip
def test_zeros_stay_zeros(recipe: accuracy.Recipe) -> None:
    assert not recipe(np.zeros((2, 512), np.float32)).any()


def test_divergence_of_known_distributions() -> None:
    basis, other = np.log(np.float32([[0.5, 0.5], [0.9, 0.1]])), np.log(np.float32([[0.25, 0.75], [0.9, 0.1]]))
    kl, same = accuracy.divergence(basis, other)
    assert kl == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0], abs=1e-6)
    assert list(same) == [False, True]


def test_a_class_is_what_the_limits_say() -> None:
    eight = {"bits": 8, "value": 0.003, "top1": 0.975}
    assert accuracy.is_in_class(eight, 0.1) and not accuracy.is_in_class({**eight, "top1": 0.97}, 0.1)
    assert accuracy.is_in_class({"bits": 4, "value": 0.1}, 0.1) and not accuracy.is_in_class(
        {"bits": 4, "value": 0.2}, 0.1
    )


def test_a_written_checkpoint_has_the_recipe_s_weights(tmp_path: Path) -> None:
    make_checkpoint("tiny", tmp_path / "tiny")
    form = accuracy.Form(name="x", bits=4, body=lambda w: w * 0, head=recipes.exact)
    accuracy.write_checkpoint(tmp_path / "tiny", tmp_path / "out", form)
    before, after = open_weights(tmp_path / "tiny"), open_weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, view in after.items():
        expected = before[name].to_float32()
        assert np.array_equal(view.to_float32(), expected * 0 if accuracy.is_linear(name, view.shape) else expected)


def test_the_script_measures_every_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [form for form in accuracy.FORMS if form.name in ("llama.cpp Q8_0", "llama.cpp Q4_0", "trivet int8")]
    monkeypatch.setattr(accuracy, "FORMS", few)
    monkeypatch.setattr(sys, "argv", ["accuracy", "--model", "demo-small", "--tokens", "1024"])
    accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "in_class" in lines[0]
    records = accuracy.measure("demo-small", 1024)
    kl = {record["form"]: record["value"] for record in records}
    assert 0 < kl["llama.cpp Q8_0"] < kl["llama.cpp Q4_0"] < 1
