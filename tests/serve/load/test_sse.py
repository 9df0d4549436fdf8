"""Events come out the same however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_trt.serve.load.sse import EventParser

pytestmark = pytest.mark.unit

ENDS = st.sampled_from(["\n", "\r", "\r\n"])
TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream's bytes, with comments and fields that do not matter, and the events in it."""
    out = "\ufeff" if draw(st.booleans()) else ""
    events = []
    end = "\n"
    for lines in draw(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=5)):
        for line in lines:
            end = draw(ENDS)
            out += draw(st.sampled_from(["", ": a comment" + end, f"event: x{end}", f"id{end}"]))
            out += (
                f"data:{draw(st.sampled_from([' ', '']))}" if not line.startswith(" ") else "data: "
            )
            out += line + end
        # A line that ends in CR must not be followed by one that is LF alone: that is one end.
        out += end
        events.append("\n".join(lines).encode())
    return out.encode(), events


@given(streams(), st.data())
def test_events_do_not_depend_on_where_the_bytes_are_cut(
    case: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    stream, events = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, found = EventParser(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:stop])
    assert found == events


@given(streams())
def test_events_come_out_byte_by_byte(case: tuple[bytes, list[bytes]]) -> None:
    stream, events = case
    parser = EventParser()
    assert [one for byte in stream for one in parser.feed(bytes([byte]))] == events


def test_an_event_comes_with_its_last_byte() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [b"a"]
    assert parser.feed(b"data: b\r\n\r") == [b"b"]
    assert parser.feed(b"\ndata: c\r\r") == [b"c"]


def test_an_event_that_is_cut_off_is_none() -> None:
    assert EventParser().feed(b"data: a\n\ndata: b") == [b"a"]
