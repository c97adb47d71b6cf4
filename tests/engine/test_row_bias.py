"""Bias, penalties and forbidden stops as one sparse list, against the plain formula."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.engine.row_bias import RowBias, allowed_mask, row_bias
from trivet.engine.sampling_params import SamplingParams

VOCAB = 40
ids = st.integers(0, VOCAB - 1)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    base=st.dictionaries(ids, st.floats(-100, 100, width=32), max_size=4),
    penalties=st.tuples(st.sampled_from([0.0, 1.5, -2.0]), st.sampled_from([0.0, 0.25])),
    stop_ids=st.frozensets(st.integers(0, VOCAB + 5), max_size=3),
    min_tokens=st.integers(0, 6),
    outputs=st.lists(ids, max_size=40),
)
def test_entries_are_those_of_the_formula(
    base: dict[int, float],
    penalties: tuple[float, float],
    stop_ids: frozenset[int],
    min_tokens: int,
    outputs: list[int],
) -> None:
    presence, frequency = penalties
    sampling = SamplingParams(
        logit_bias=base, presence_penalty=presence, frequency_penalty=frequency, min_tokens=min_tokens
    )
    outputs = [i for i in outputs if i not in stop_ids]
    bias = RowBias(sampling, stop_ids, VOCAB)
    for num_outputs in range(len(outputs) + 1):
        want = np.zeros(VOCAB)
        for i, value in base.items():
            want[i] += value
        for i in set(outputs[:num_outputs]):
            want[i] -= presence + frequency * outputs[:num_outputs].count(i)
        if num_outputs < min_tokens:
            want[[i for i in stop_ids if i < VOCAB]] = -np.inf
        got = np.zeros(VOCAB)
        got[bias.ids] = bias.values
        assert len(set(bias.ids.tolist())) == len(bias.ids)
        assert np.array_equal(got, want.astype(np.float32))
        if num_outputs < len(outputs):
            was_static, before = bias.is_static, bias.values.copy()
            bias.count(outputs[num_outputs])
            if was_static:
                assert np.array_equal(bias.values, before)


def test_a_plain_row_has_no_entries() -> None:
    assert row_bias(SamplingParams(), frozenset({1}), VOCAB) is None
    assert row_bias(SamplingParams(min_tokens=3), frozenset(), VOCAB) is None
    assert row_bias(SamplingParams(min_tokens=3), frozenset({1}), VOCAB) is not None


def test_the_mask_has_a_bit_for_each_allowed_token() -> None:
    mask = allowed_mask((0, 5, 31, 32, 39), VOCAB)
    assert mask.dtype == np.uint32 and mask.tolist() == [1 | 1 << 5 | 1 << 31, 1 | 1 << 7]
