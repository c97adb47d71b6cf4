"""Finds out, with a few requests of two tokens, what a server takes; the answer is the dialect it is asked in.

Fields beyond OpenAI's make a measurement exact: `ignore_eos` gives answers of the wished length, and usage in every
event says how many tokens each carries. A server that refuses them is asked without, and that is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from trivet.errors import TargetError
from trivet.measure.answers import StreamReader, message_of_body
from trivet.measure.bodies import BodyMaker
from trivet.measure.messages import Dialect, Setup, Turn
from trivet.measure.outcomes import Exchange, Outcome
from trivet.measure.pieces import Form, pieces_from_server, pieces_from_tokenizer, tokenizer_folder
from trivet.measure.plan import Plan, check_fits, plan
from trivet.measure.target import ServedModel, Target, ask, choose_model, connected, served_models
from trivet.measure.workload import Workload

PROBE_LEN = 16
PATHS = {"completions": "completions", "chat": "chat/completions"}
USAGE = {"stream_options": {"include_usage": True}}
USAGE_ALWAYS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
WITHOUT = {
    "ignore_eos": "the server refuses `ignore_eos`: answers may end before the wished length",
    "usage": "the server refuses `stream_options`: an event with text counts as one token",
    "token_ids": "the server refuses `return_token_ids`: chats go on with made-up answers of the same length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a user says of a target."""

    endpoint: Literal["completions", "chat"] = "completions"
    model: str | None = None
    tokenizer: Path | None = None
    extra: dict[str, Any] | None = None  # fields of the body, as given
    timeout_s: float = 300.0
    many_turns: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A target that answers, and how to ask it."""

    target: Target
    model: ServedModel
    dialect: Dialect
    notes: tuple[str, ...]
    timeout_s: float
    tokenizer: Path | None  # its folder; None: the server told its ids

    def plan(self, workload: Workload, seed: int) -> Plan:
        """The jobs for this target, whose own tokens are taken off."""
        return plan(workload, seed, overhead=self.dialect.overhead, turn_overhead=self.dialect.turn_overhead)

    def check_fits(self, planned: Plan) -> None:
        """Raises ConfigError if a request of the plan cannot be asked of this target."""
        check_fits(planned, self.model.max_len, self.model.name, takes_texts=self.dialect.form == "text")

    def setup(self, number: int) -> Setup:
        """What the workers are told; the target is `number` to them."""
        head = self.target.head(PATHS[self.dialect.endpoint])
        return Setup(number, self.target.address, head, self.timeout_s, self.dialect)


def probe(target: Target, asked: Asked) -> Probed:
    """Asks the server. TargetError: it cannot be reached, does not serve the model, or refuses the plainest request."""
    target = connected(target)
    model = choose_model(target, served_models(target), asked.model)
    folder = tokenizer_folder(asked.tokenizer, target, model)
    form: Form = "text" if asked.endpoint == "chat" else "ids"
    pieces = _pieces(folder, form, target, model)
    fields, missing = _accepted_fields(target, model, asked, form, pieces)
    if fields is None and form == "ids" and folder is not None:
        form, pieces = "text", _pieces(folder, "text", target, model)
        fields, missing = _accepted_fields(target, model, asked, form, pieces)
        missing.append("the server refuses prompts of token ids: they are sent as text")
    if fields is None:
        raise TargetError(f"{target.url} refuses the plainest request: {missing[0]}")
    dialect = _dialect(model, asked, form, pieces, fields)
    overhead = _prompt_tokens(target, dialect, 1) - PROBE_LEN
    per_turn = _prompt_tokens(target, dialect, 3) - 3 * PROBE_LEN - overhead if asked.many_turns else 0
    dialect = msgspec.structs.replace(
        dialect, overhead=max(overhead, 0), turn_overhead=per_turn if dialect.form == "text" else 0
    )
    return Probed(
        target=target, model=model, dialect=dialect, notes=tuple(missing), timeout_s=asked.timeout_s, tokenizer=folder
    )


def _pieces(folder: Path | None, form: Form, target: Target, model: ServedModel) -> list[bytes]:
    if folder is None:
        if form == "ids":
            return pieces_from_server(target, model)
        raise TargetError(
            "texts of exact token counts need the server's tokenizer",
            hint="give the folder that holds its tokenizer.json with `--tokenizer`",
        )
    from trivet.models.tokenizer import Tokenizer

    return pieces_from_tokenizer(Tokenizer.from_folder(folder), form)


def _accepted_fields(
    target: Target, model: ServedModel, asked: Asked, form: Form, pieces: list[bytes]
) -> tuple[dict[str, Any] | None, list[str]]:
    """(fields that the server takes, what it means that others are missing); (None, [reason]) if it takes none."""
    wanted: list[tuple[str, dict[str, Any]]] = [("ignore_eos", {"ignore_eos": True}), ("usage", USAGE_ALWAYS)]
    if asked.many_turns and form == "ids":
        wanted.append(("token_ids", {"return_token_ids": True}))

    def refused(fields: dict[str, Any]) -> str | None:
        return _refusal(target, _dialect(model, asked, form, pieces, fields))

    everything = {name: value for _, field in wanted for name, value in field.items()}
    if refused(everything) is None:
        return everything, []
    if (reason := refused({})) is not None:
        return None, [reason]
    fields: dict[str, Any] = {}
    missing = []
    for name, field in wanted:
        for option in (field, USAGE) if name == "usage" else (field,):
            if refused({**fields, **option}) is None:
                fields |= option
                break
        else:
            missing.append(WITHOUT[name])
    return fields, missing


def _dialect(model: ServedModel, asked: Asked, form: Form, pieces: list[bytes], fields: dict[str, Any]) -> Dialect:
    options = {"model": model.name, "stream": True, "temperature": 0, **fields, **(asked.extra or {})}
    return Dialect(asked.endpoint, form, pieces, msgspec.json.encode(options)[1:-1])


def _post(target: Target, dialect: Dialect, num_parts: int) -> tuple[int, bytes, Exchange]:
    """A request of `num_parts` messages of PROBE_LEN tokens each: status, body, and what its stream says."""
    maker = BodyMaker(dialect, 0)
    # keys far from those of any run, so that nothing of a run is cached beforehand
    parts = [maker.prompt(Turn(2, [(-(1 << 50) - i, PROBE_LEN)])) for i in range(num_parts)]
    status, raw = ask(target, "POST", PATHS[dialect.endpoint], msgspec.Raw(maker.body(parts, 2)))
    exchange = Exchange(0, 0.0, b"")
    if status == 200:
        reader = StreamReader(exchange)
        reader.feed(raw)
        reader.end_of_read(1.0)
        reader.end(clean=True)
    return status, raw, exchange


def _refusal(target: Target, dialect: Dialect) -> str | None:
    """Why the server does not take such requests; None: it does. TargetError for what no other field would mend."""
    status, raw, exchange = _post(target, dialect, 1)
    if status == 200:
        if exchange.outcome is Outcome.malformed:
            raise TargetError(f"{target.url} answers with something else than a stream of events: {exchange.message}")
        return exchange.message if exchange.outcome is Outcome.error_event else None
    reason = f"{status}: {message_of_body(raw)}"
    if status in (400, 422):
        return reason
    raise TargetError(f"{target.url}/{PATHS[dialect.endpoint]} answers {reason}")


def _prompt_tokens(target: Target, dialect: Dialect, num_parts: int) -> int:
    """What the server's usage says; without one, what was sent."""
    status, raw, exchange = _post(target, dialect, num_parts)
    if status != 200:
        raise TargetError(f"{target.url}/{PATHS[dialect.endpoint]} answers {status}: {message_of_body(raw)}")
    return exchange.prompt_tokens if exchange.prompt_tokens >= 0 else num_parts * PROBE_LEN
