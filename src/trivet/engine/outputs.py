"""From the arrays of a `StepResult` to what the messages carry."""

from __future__ import annotations

from collections.abc import Sequence as Listlike

import numpy as np

from trivet.engine.messages import PromptInfo, TokenLogprob
from trivet.engine.sequence import OpenRequest
from trivet.engine.step import StepResult


def sampled_logprob(result: StepResult, row: int, token_id: int, num_top: int) -> TokenLogprob:
    """Log probability of the token sampled in row `row`, with the `num_top` most likely."""
    return TokenLogprob(
        token_id=token_id,
        logprob=result.logprobs.item(row),
        rank=result.ranks.item(row),
        top_ids=result.top_ids[row, :num_top].tolist(),
        top_logprobs=result.top_logprobs[row, :num_top].tolist(),
    )


def take_scores(result: StepResult, scored: Listlike[tuple[OpenRequest, int]]) -> None:
    """Hands each request its part of the score rows: the log probabilities of its next prompt tokens."""
    row = 0
    for opened, count in scored:
        num_top = opened.message.sampling.prompt_logprobs or 0
        for _ in range(count):
            opened.scores.append(
                TokenLogprob(
                    token_id=opened.prompt.item(len(opened.scores)),
                    logprob=result.score_logprobs.item(row),
                    rank=result.score_ranks.item(row),
                    top_ids=result.score_top_ids[row, :num_top].tolist(),
                    top_logprobs=result.score_top_logprobs[row, :num_top].tolist(),
                )
            )
            row += 1


def take_logits(result: StepResult, wanted: Listlike[tuple[OpenRequest, int]]) -> None:
    """Writes each request's part of the logits rows where the client will read them: one copy of what may be large."""
    row, vocab_size = 0, result.logits.shape[1]
    for opened, count in wanted:
        if opened.logits is None:
            opened.logits = bytearray(4 * len(opened.prompt) * vocab_size)
        rows = np.frombuffer(opened.logits, np.float32).reshape(-1, vocab_size)
        rows[opened.num_logits : opened.num_logits + count] = result.logits[row : row + count]
        opened.num_logits += count
        row += count


def prompt_info(opened: OpenRequest) -> PromptInfo:
    """What was learned of a prompt that is computed; the logits are given up."""
    logits, opened.logits = opened.logits, None
    return PromptInfo(
        request_id=opened.message.request_id,
        num_cached_tokens=opened.leader.num_cached,
        logprobs=None if opened.message.sampling.prompt_logprobs is None else opened.scores,
        logits=logits,
    )
