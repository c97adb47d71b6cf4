"""`trivet run`: text from a prompt, streamed to stdout; without a prompt on a terminal, a chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivet.cli.usage import flags_checked
from trivet.config import CacheConfig, EngineConfig, ModelConfig, setting_help
from trivet.engine.sampling_params import SamplingParams
from trivet.errors import InvalidRequest, TrivetError
from trivet.server.milestones import process_age_s

if TYPE_CHECKING:
    from trivet.engine.answers import RequestOutput
    from trivet.engine.llm import LLM

CHAT_HELP = "Ctrl-C stops an answer, /clear forgets the conversation, Ctrl-D ends."
LINES_HELP = "has no chat template, so each line is completed as it stands, and nothing is remembered. Ctrl-D ends."


def command(  # noqa: PLR0917  # typer makes an argument of each
    model: Annotated[str, typer.Argument(help=setting_help(ModelConfig, "path"), show_default=False)],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-`: read it from stdin.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most this many; default: the rest of the context.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the most likely token; default: the model's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from this share of the probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most likely tokens; 0: all.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the prompt without the chat template.")] = False,
    precision: Annotated[str, typer.Option(help="auto, bf16, int8 or int4.")] = "auto",
    kv_precision: Annotated[str, typer.Option(help="Keys and values: bf16 or int8.")] = "bf16",
    group_size: Annotated[int, typer.Option(help=setting_help(ModelConfig, "group_size"))] = 32,
    max_context: Annotated[int | None, typer.Option(help=setting_help(ModelConfig, "max_context"))] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads; default: one a core.")] = None,
    generation_config: Annotated[str, typer.Option(help=setting_help(ModelConfig, "generation_config"))] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, when done.")] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Say on stderr how long each part took.")] = False,
) -> None:
    """Generate text from a prompt, or chat.

    Try:  trivet run demo "def read_json(path):" --max-tokens 64
    """
    with flags_checked():
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        settings = ModelConfig(
            path=model,
            precision=precision,  # type: ignore[arg-type]  # the config checks the word
            group_size=group_size,
            max_context=max_context,
            generation_config=generation_config,  # type: ignore[arg-type]
        )
        CacheConfig(dtype=kv_precision)  # type: ignore[arg-type]
        EngineConfig(threads=threads)
    is_chat = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if not is_chat and prompt in (None, "-"):
        prompt = sys.stdin.read()
    with flags_checked():
        if is_chat and as_json:
            raise InvalidRequest("`--json` needs a prompt", hint="give one, or pipe it in")
    imported_s = process_age_s()
    from trivet.engine.llm import LLM

    with LLM(
        settings.path,
        settings.precision,
        threads,
        kv_precision=kv_precision,  # type: ignore[arg-type]
        group_size=settings.group_size,
        max_context=settings.max_context,
        generation_config=settings.generation_config,
        max_num_seqs=1,
    ) as llm:
        ready_s = process_age_s()
        if not as_json:  # there they are a field
            for note in llm.info.notes:
                _say(f"note: {note}")
        if prompt is None:
            _talk(llm, params, raw=raw)
            return
        answer = Answer(llm, prompt if raw or not llm.has_chat_template else [_user(prompt)], params)
        for text in answer.texts():
            if not as_json:
                _write(text)
        if as_json:
            _write(json.dumps(_as_json(llm, answer.output), ensure_ascii=False) + "\n")
        elif sys.stdout.isatty():
            _write("\n")
        if timings:
            _print_timings(llm, answer, imported_s=imported_s, ready_s=ready_s)


@dataclass
class Answer:
    """One prompt, or conversation, and what the model says to it."""

    llm: LLM
    prompt: str | list[dict[str, str]]
    params: SamplingParams
    first_token_age_s: float = 0.0  # of this process, when the first token came

    def texts(self) -> Iterator[str]:
        """The text as it comes; `output` is there after the last."""
        from trivet.engine.answers import Delta

        for item in self.llm.iterate(self.prompt, self.params, rest="context"):
            if not isinstance(item, Delta):
                self.output: RequestOutput = item
                return
            if not self.first_token_age_s:
                self.first_token_age_s = process_age_s()
            yield item.text


def _talk(llm: LLM, params: SamplingParams, *, raw: bool) -> None:
    """Reads lines and answers each until the input ends."""
    chat = llm.has_chat_template and not raw
    _say(CHAT_HELP if chat else f"`{llm.info.model_path}` {LINES_HELP}")
    conversation: list[dict[str, str]] = []
    while (line := _read_line()) is not None:
        if line.strip() == "/clear":
            conversation.clear()
        elif line.strip():
            _reply(llm, line, conversation if chat else None, params)


def _read_line() -> str | None:
    """What was typed, None at the end of the input."""
    import readline  # noqa: F401  # gives `input` its line editing

    try:
        return input("> ")
    except EOFError:
        _say("")
        return None


def _reply(llm: LLM, line: str, conversation: list[dict[str, str]] | None, params: SamplingParams) -> None:
    """Answers one line. The conversation keeps what was said, also of an answer that was stopped."""
    messages = None if conversation is None else [*conversation, _user(line)]
    said = ""
    try:
        for text in Answer(llm, line if messages is None else messages, params).texts():
            said += text
            _write(text)
    except KeyboardInterrupt:
        _say("\n(stopped)")
    except TrivetError as error:
        _say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return
    _write("\n")
    if conversation is not None:
        conversation += [_user(line), {"role": "assistant", "content": said}]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _as_json(llm: LLM, output: RequestOutput) -> dict[str, Any]:
    """What `--json` prints."""
    [completion] = output.outputs
    info = llm.info
    return {
        "model": info.model_path,
        "prompt": output.prompt,
        "text": completion.text,
        "prompt_token_ids": output.prompt_token_ids,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "seed": output.seed,
        "fingerprint": output.fingerprint,
        "precision": info.precision,
        "kv_precision": info.kv_dtype,
        "isa": info.isa,
        "threads": info.num_threads,
        "notes": info.notes,
        "timings": {
            "queued_s": output.queued_s,
            "prefill_s": output.prefill_s,
            "decode_s": output.decode_s,
            "num_cached_tokens": output.num_cached_tokens,
        },
    }


def _print_timings(llm: LLM, answer: Answer, *, imported_s: float, ready_s: float) -> None:
    """Where the time went, on stderr."""
    output = answer.output
    num_prompt, num_output = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    rows = [("imports and command line", imported_s), ("loading", ready_s - imported_s)]
    rows += [(f"  {part}", seconds) for part, seconds in llm.start_timings_s.items()]
    rows += [
        ("tokenizer and first step", answer.first_token_age_s - ready_s),
        ("process start to first token", answer.first_token_age_s),
        (f"prefill of {num_prompt:,} tokens", output.prefill_s),
        (f"decode of {num_output:,} tokens", output.decode_s),
    ]
    for part, seconds in rows:
        _say(f"{part:32} {seconds * 1000:9.1f} ms")
    if num_output > 1 and output.decode_s > 0:
        _say(f"{'':32} {(num_output - 1) / output.decode_s:9.1f} tokens/s")
