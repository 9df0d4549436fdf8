"""Reads server-sent events from bytes, however these are cut.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""


class EventParser:
    """Gives the data of each event; other fields and comments are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the data of the events that are complete now."""
        if not data:
            return []
        if self._after_cr:
            data = data.removeprefix(b"\n")  # CR LF was cut in two
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b""
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self._rest = lines.pop()
        self._after_cr = bool(lines) and not self._rest and lines[-1].endswith(b"\r")
        found = []
        for line in lines:
            line = line.rstrip(b"\r\n")
            if not self._begun:
                self._begun = True
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data = []
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
        return found
