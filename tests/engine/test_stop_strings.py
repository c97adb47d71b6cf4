"""`StopStrings` against a plain search of the whole text, whatever pieces it comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trivet.engine.stop_strings import StopStrings

PIECES = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3)


def whole(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """The slow twin: reads on character by character and looks at everything so far."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            stop = max(met, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(PIECES, STOPS, st.booleans())
def test_however_it_is_cut_it_finds_what_a_search_of_the_whole_text_finds(pieces, stops, include):
    checker = StopStrings(stops, include=include)
    out = "".join(checker.add(piece) for piece in pieces)
    out += checker.finish()
    assert (out, checker.found) == whole("".join(pieces), stops, include=include)


@given(PIECES, STOPS)
def test_no_more_is_held_back_than_could_begin_a_stop_string(pieces, stops):
    checker = StopStrings(stops)
    out = "".join(checker.add(piece) for piece in pieces)
    if checker.found is None:
        held = "".join(pieces)[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_text_that_could_begin_a_stop_string_is_held_back():
    checker = StopStrings(["\n\nUser:"])
    assert checker.add("Hello\n") == "Hello"
    assert checker.add("\nUs") == ""
    assert checker.add("ually") == "\n\nUsually"
    assert checker.add("\n\nUser") == ""
    assert checker.add(": more") == ""
    assert checker.found == "\n\nUser:" and checker.add("more") == "" and checker.finish() == ""
