"""Rope tables of the native core: against decimals of 60 digits, against NumPy, and the same bits everywhere."""

from __future__ import annotations

import hashlib
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trivet import _core

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
THETAS = (1e4, 5e5, 1e6)
WIDTHS = (2, 4, 6, 10, 34, 64, 80, 96, 128, 256)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")


def frequencies(head_dim: int, theta: float, scaling: str = "none", **numbers: float) -> F64:
    out = np.full(head_dim // 2, np.nan)
    settings = {"factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192.0}
    _core.rope_frequencies(head_dim, theta, scaling, **(settings | numbers), frequencies=out)
    return out


def table(of: F64, positions: int, part: str) -> F32:
    out = np.full((positions, len(of)), np.nan, np.float32)
    _core.rope_table(of, part, out)
    return out


def exact_sin(x: Decimal) -> Decimal:
    """By its series, after whole turns are taken off; right to 40 digits in a context of 60."""
    x = (x + PI) % (2 * PI) - PI
    term = total = x
    n = 1
    while abs(term) > Decimal("1e-45"):
        n += 2
        term = -term * x * x / (n * (n - 1))
        total += term
    return total


@pytest.mark.parametrize("theta", [1.0, *THETAS, 12345.678, 1e15])
@pytest.mark.parametrize("head_dim", WIDTHS)
def test_frequencies_are_the_nearest_doubles(head_dim: int, theta: float) -> None:
    with localcontext(prec=50):
        log = Decimal(theta).ln()
        want = [float((log * (-2 * i) / head_dim).exp()) for i in range(head_dim // 2)]
    assert frequencies(head_dim, theta).tolist() == want


def test_linear_scaling_divides() -> None:
    plain = frequencies(64, 1e4)
    assert frequencies(64, 1e4, "linear", factor=8.0).tolist() == (plain / 8).tolist()


@pytest.mark.parametrize(("factor", "low", "high", "original"), [(8.0, 1.0, 4.0, 8192.0), (32.0, 1.0, 4.0, 64.0)])
def test_llama3_scaling_slows_the_slow_pairs(factor: float, low: float, high: float, original: float) -> None:
    plain = frequencies(128, 5e5)
    turns = original * plain / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    got = frequencies(
        128, 5e5, "llama3", factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original
    )
    assert got.tolist() == (plain * (smooth + (1 - smooth) / factor)).tolist()
    assert got[0] == 1.0 and got[-1] == plain[-1] / factor and ((got < plain) & (got > plain / factor)).any()


def differ_off_boundaries(got: F32, want: F64) -> int:
    """How many entries differ from `want` rounded, though moving `want` by 1e-9 of itself rounds to one value."""
    low, high = (want * (1 - 1e-9)).astype(np.float32), (want * (1 + 1e-9)).astype(np.float32)
    wrong = (got != want.astype(np.float32)) & ((low == high) | (np.abs(got.astype(np.float64) - want) > 1e-7))
    return int(wrong.sum())


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("head_dim", WIDTHS)
def test_tables_are_numpys_but_for_roundings(head_dim: int, theta: float) -> None:
    of = frequencies(head_dim, theta)
    few = of[:: max(1, len(of) // 4)].copy()
    angles = np.arange(131072, dtype=np.float64)[:, None] * few
    for part, numpys in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        got = table(few, 131072, part)
        assert differ_off_boundaries(got, numpys) == 0
        assert (got != numpys.astype(np.float32)).mean() < 1e-4


@pytest.mark.parametrize("part", ["cos", "sin"])
def test_entries_are_the_nearest_float32_of_the_true_value(part: str) -> None:
    """At positions up to 2^24, and where the angle is next to a multiple of a quarter turn."""
    of = frequencies(128, 5e5)
    got = table(of[:1], 1 << 24, part)[:, 0]  # frequency 1: the angle is the position
    assert got[0] == (1 if part == "cos" else 0)
    rng = np.random.default_rng(1)
    near = np.rint(np.arange(1, 200) * np.pi / 2).astype(int)
    close = [11, 22, 355, 710, 103993, 104348, 208341, 312689, 833719, 1146408, 4272943, 5419351, 10838702]  # ~ k pi/2
    with localcontext(prec=60):
        shift = PI / 2 if part == "cos" else Decimal(0)
        for t in [*near.tolist(), *close, *rng.integers(1, 1 << 24, 300).tolist()]:
            want = exact_sin(Decimal(t) + shift)
            assert abs(Decimal(float(got[t])) - want) <= abs(want) * Decimal(2.0**-24) * Decimal("1.000001"), t


@pytest.mark.parametrize("part", ["cos", "sin"])
def test_angles_up_to_two_billion(part: str) -> None:
    scale = 1048575.9375  # times 2047 exactly representable
    got = table(np.array([scale]), 2048, part)
    with localcontext(prec=60):
        shift = PI / 2 if part == "cos" else Decimal(0)
        for t in range(2047, 0, -31):
            want = exact_sin(Decimal(t * scale) + shift)
            assert abs(Decimal(float(got[t, 0])) - want) <= abs(want) * Decimal(2.0**-24) * Decimal("1.000001"), t


def test_the_bits_are_those_of_every_other_machine() -> None:
    """A digest stored once: whoever gets another one would serve another fingerprint for the same checkpoint."""
    digest = hashlib.sha256()
    for of in (
        frequencies(64, 1e4),
        frequencies(128, 5e5, "llama3", factor=32.0),
        frequencies(80, 1e6, "linear", factor=4.0),
    ):
        digest.update(of.tobytes())
        for part in ("cos", "sin"):
            digest.update(table(of, 4096, part).tobytes())
    assert digest.hexdigest() == "c8c04253c8e42bc348f9d14f520bebdc8589579b26e45fd7d240d10d9bbaa34f"


def test_bindings_refuse_what_they_cannot_make() -> None:
    good: dict[str, Any] = {
        "head_dim": 64, "theta": 1e4, "scaling": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position": 8192.0, "frequencies": np.zeros(32),
    }  # fmt: skip
    _core.rope_frequencies(**good)
    for name, value, what in (
        ("head_dim", 63, "head_dim is 63"), ("head_dim", 0, "head_dim is 0"), ("theta", 0.5, r"theta is 0\.5"),
        ("theta", 1e16, "theta is 1"), ("theta", float("nan"), "theta is nan"),
        ("scaling", "yarn", "scaling is 'yarn'"),
        ("factor", 0.5, r"factor is 0\.5"), ("factor", float("inf"), "factor is inf"),
        ("low_freq_factor", 4.0, "low_freq_factor is 4"), ("low_freq_factor", float("nan"), "low_freq_factor is nan"),
        ("original_max_position", 0.0, "original_max_position is 0"),
        ("frequencies", np.zeros(31), "frequencies has 31 elements, expected 32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            _core.rope_frequencies(**(good | {name: value}))
    out = np.zeros((4, 2), np.float32)
    for of, part, what in (
        (np.ones(3), "cos", "table has 2 columns, expected 3"), (np.ones(2), "tan", "part is 'tan'"),
        (np.array([1.0, 2.0**29]), "cos", r"frequencies\[1\] is 5\.3.*less than 2\^31 / 4"),
        (np.array([-0.1, 1.0]), "sin", r"frequencies\[0\] is -0\.1"), (np.array([np.nan, 1.0]), "sin", "is nan"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            _core.rope_table(of, part, out)
    with pytest.raises(TypeError):
        _core.rope_table(np.ones(2, np.float32), "cos", out)
