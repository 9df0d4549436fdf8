"""Stop strings: what is shown does not depend on how the text is cut, and never shows a stop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_trt.engines.stop_strings import StopStrings

pytestmark = pytest.mark.unit

LETTERS = st.text("ab", max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3)


def whole(text: str, stops: list[str]) -> tuple[str, bool]:
    """The literal definition: read on until some stop string has just been completed."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(text=LETTERS, stops=STOPS, data=st.data())
def test_any_cutting_shows_what_the_definition_says(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    held, shown, rest = StopStrings(stops), "", text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        shown += held.push(rest[:length])
        rest = rest[length:]
    shown += held.flush()
    assert (shown, held.stopped) == whole(text, stops)
    if held.found is not None:
        assert held.found in stops and text.startswith(shown + held.found)


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop() -> None:
    stop = StopStrings(["\n\nUser:"])
    assert stop.push("Hello") == "Hello"
    assert stop.push(" you\n") == " you"
    assert stop.push("\nUs") == ""
    assert stop.push("ually") == "\n\nUsually"
    assert not stop.stopped


def test_nothing_follows_a_stop() -> None:
    stop = StopStrings(["END"])
    assert stop.push("a END b") == "a "
    assert (stop.stopped, stop.push("c"), stop.flush()) == (True, "", "")
