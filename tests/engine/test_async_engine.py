"""`AsyncEngine` and `BlockingEngine` on the fake engine."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest
from fake_engine import BUG, REFUSED, SLOW, FakeAssembled, FakeText, continuation

from trivet.engine.async_engine import AsyncEngine
from trivet.engine.blocking import BlockingEngine
from trivet.engine.defaults import SamplingDefaults, make_request
from trivet.engine.in_process import InProcessClient
from trivet.engine.output_builder import OutputBuilder
from trivet.engine.router import EventRouter
from trivet.engine.sampling_params import SamplingParams
from trivet.errors import ContextTooLong, EngineDied, Overloaded, TrivetError

DEFAULTS = SamplingDefaults(max_context=4096)
EIGHT = SamplingParams(max_tokens=8, seed=7)
ENDLESS = SamplingParams(max_tokens=4000, seed=7)
TEXT = "".join(map(chr, continuation(7, 0, 8)))


@pytest.fixture
def assembled():
    return FakeAssembled()


@pytest.fixture
def client(assembled):
    client = InProcessClient(assembled)
    yield client
    client.close()


@pytest.fixture
def engine(client):
    return AsyncEngine(client, FakeText(), DEFAULTS)


def ids(prompt: str | int) -> list[int]:
    return [prompt] if isinstance(prompt, int) else [ord(c) for c in prompt]


async def until_idle(assembled: FakeAssembled) -> None:
    deadline = time.monotonic() + 5
    while assembled.engines[-1].running:
        assert time.monotonic() < deadline, "the engine still runs"
        await asyncio.sleep(0.005)


def test_deltas_add_up_to_the_whole_text(engine):
    async def main():
        async with await engine.submit(ids(SLOW), EIGHT, prompt="hi") as stream:
            assert stream.seed == 7 and stream.request.sampling.temperature == 1.0 and engine.num_open == 1
            deltas = [delta async for delta in stream]
        assert "".join(d.text for d in deltas) == TEXT and deltas[-1].finish_reason == "length"
        out = stream.result()
        assert (out.outputs[0].text, out.prompt, out.fingerprint) == (TEXT, "hi", "fp_fake")
        assert engine.num_open == 0
        assert (await engine.complete(ids("hi"), EIGHT)).outputs[0].text == TEXT
        assert "".join([d.text async for d in engine.generate(ids("hi"), EIGHT)]) == TEXT

    asyncio.run(main())


def test_it_can_serve_one_event_loop_after_another(engine):
    for _ in range(2):
        assert asyncio.run(engine.complete(ids("hi"), EIGHT)).outputs[0].text == TEXT


def test_many_streams_at_once_each_get_their_own(engine):
    async def main():
        outs = await asyncio.gather(
            *(engine.complete(ids("x"), SamplingParams(max_tokens=20, seed=i, n=2)) for i in range(50))
        )
        for i, out in enumerate(outs):
            assert [o.token_ids for o in out.outputs] == [continuation(i, k, 20) for k in (0, 1)]

    asyncio.run(main())


def test_refusals_are_raised_before_the_first_delta(engine):
    async def main():
        with pytest.raises(Overloaded) as caught:
            await engine.submit(ids(REFUSED), EIGHT)
        assert caught.value.retry_after_s == 7.0
        with pytest.raises(ContextTooLong):
            await engine.submit([1] * 5000, EIGHT)
        assert engine.num_open == 0

    asyncio.run(main())


def test_an_id_in_use_is_refused_and_its_stream_goes_on(engine):
    async def main():
        async with await engine.submit(ids(SLOW), EIGHT, request_id="a") as stream:
            with pytest.raises(ValueError, match="'a' is still running"):
                await engine.submit(ids("hi"), EIGHT, request_id="a")
            assert "".join([d.text async for d in stream]) == TEXT
        assert (await engine.complete(ids("hi"), EIGHT, request_id="a")).request_id == "a"

    asyncio.run(main())


def test_an_engine_failure_is_raised_while_iterating(engine, caplog):
    async def main():
        stream = await engine.submit(ids(BUG), EIGHT)
        with pytest.raises(EngineDied, match="ZeroDivisionError"):
            await anext(stream)

    asyncio.run(main())


def test_cancelling_the_task_cancels_the_request(engine, assembled):
    async def main():
        task = asyncio.create_task(engine.complete(ids(SLOW), ENDLESS))
        while not assembled.engines[0].running:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(assembled)
        assert engine.num_open == 0

    asyncio.run(main())


def test_leaving_the_loop_or_dropping_the_stream_cancels_the_request(engine, assembled):
    async def main():
        async for _ in engine.generate(ids(SLOW), ENDLESS):
            break
        gc.collect()
        await asyncio.sleep(0)  # the event loop closes the abandoned generator
        await until_idle(assembled)
        stream = await engine.submit(ids(SLOW), ENDLESS)
        await anext(stream)
        del stream
        await until_idle(assembled)
        assert engine.num_open == 0

    asyncio.run(main())


def test_a_stop_string_ends_the_request_in_the_engine(engine, assembled):
    said = "".join(map(chr, continuation(7, 0, 12)))
    stop = said[4:7]

    async def main():
        out = await engine.complete(ids(SLOW), SamplingParams(max_tokens=100, seed=7, stop=(stop,)))
        assert (out.outputs[0].text, out.outputs[0].stop_reason) == (said[: said.index(stop)], stop)
        assert out.outputs[0].timings is not None
        await until_idle(assembled)

    asyncio.run(main())


def test_of_n_sequences_a_stop_string_ends_only_its_own(engine, assembled):
    said = ["".join(map(chr, continuation(7, i, 12))) for i in range(3)]
    stop = said[1][2:6]
    assert stop not in said[0] + "|" + said[2]

    async def main():
        out = await engine.complete(ids(SLOW), SamplingParams(max_tokens=12, n=3, seed=7, stop=(stop,)))
        assert [o.text for o in out.outputs] == [said[0], said[1][:2], said[2]]
        await until_idle(assembled)

    asyncio.run(main())


def test_one_step_is_one_hop_into_the_event_loop(engine, assembled):
    async def main():
        loop = asyncio.get_running_loop()
        hops = 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counting(*args):
            nonlocal hops
            hops += 1
            return call_soon_threadsafe(*args)

        loop.call_soon_threadsafe = counting
        streams = [await engine.submit(ids(SLOW), SamplingParams(max_tokens=5, seed=i)) for i in range(8)]
        hops, steps = 0, assembled.engines[0].num_steps
        for stream in streams:
            async for _ in stream:
                pass
        assert hops <= assembled.engines[0].num_steps - steps + 2

    asyncio.run(main())


def test_text_that_cannot_be_decoded_fails_only_its_request(client):
    class Text(FakeText):
        def detokenizer(self, *, skip_special_tokens=True):
            if not skip_special_tokens:
                return super().detokenizer(skip_special_tokens=True)
            return None

    engine = AsyncEngine(client, Text(), DEFAULTS)

    async def main():
        bad = engine.complete(ids("x"), EIGHT)
        good = engine.complete(ids("x"), SamplingParams(max_tokens=8, seed=7, skip_special_tokens=False))
        bad, good = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(bad, TrivetError) and "could not be decoded" in str(bad)
        assert good.outputs[0].text == TEXT

    asyncio.run(main())


# --- BlockingEngine ------------------------------------------------------------------------------------------


def builders(*prompts: str | int, **kw: object) -> list[OutputBuilder]:
    params = SamplingParams(**{"max_tokens": 8, "seed": 7, **kw})
    return [
        OutputBuilder(make_request(f"{i}-{time.monotonic_ns()}", ids(p), params, DEFAULTS), FakeText())
        for i, p in enumerate(prompts)
    ]


def test_blocking_a_long_list_is_fed_in_portions(client, assembled):
    blocking = BlockingEngine(EventRouter(client), max_open_seqs=4)
    most = 0
    work = builders(*["x"] * 30, n=2)
    for _ in blocking.run(work):
        most = max(most, len(client._loop._open))
    assert most <= 2 and all(b.finished for b in work)
    assert {b.result().outputs[1].text for b in work} == {"".join(map(chr, continuation(7, 1, 8)))}


def test_blocking_a_request_larger_than_the_window_runs_alone(client):
    blocking = BlockingEngine(EventRouter(client), max_open_seqs=4)
    work = builders("x", "y", n=9)
    list(blocking.run(work))
    assert all(b.finished for b in work)


def test_blocking_a_failure_is_raised_and_the_rest_cancelled(client, assembled):
    blocking = BlockingEngine(EventRouter(client), max_open_seqs=8)
    with pytest.raises(Overloaded):
        list(blocking.run(builders(SLOW, REFUSED, max_tokens=4000)))
    asyncio.run(until_idle(assembled))


def test_blocking_an_interrupted_run_cancels_everything(client, assembled):
    run = BlockingEngine(EventRouter(client), max_open_seqs=8).run(builders(SLOW, SLOW, max_tokens=4000))
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    asyncio.run(until_idle(assembled))


def test_blocking_calls_from_several_threads_do_not_mix(client):
    blocking = BlockingEngine(EventRouter(client), max_open_seqs=8)
    works = [builders(*"abc", seed=seed) for seed in range(4)]
    threads = [threading.Thread(target=lambda work=work: list(blocking.run(work))) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for seed, work in enumerate(works):
        assert [b.result().outputs[0].token_ids for b in work] == [continuation(seed, 0, 8)] * 3
