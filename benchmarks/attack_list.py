"""What hostile clients send to a server, for `attacks.py`: each attack returns how it was met."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
_USER = [{"role": "user", "content": "x"}]
_FLOAT = b"8.988465674311579e307,"
_BEGUN_S = 0.2
"""After which a request is under way."""
_BODY = 2**21 - 1024  # room for the rest of a body that is within the limit


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to hurt a server.

    Attributes:
        run: takes the server's address; returns answers by status and code, "closed" where the
            server closed the connection, and "open" where it bears it.
        body_bytes: of one request; 0: what counts is not its body.
        requests: that are sent at once.
        met: outcomes of a server that holds.
        compiled: whether memory goes to a grammar, which has a bound of its own.
    """

    name: str
    run: Callable[[str], Awaitable[Counter[str]]]
    met: frozenset[str]
    body_bytes: int = 0
    requests: int = 1
    compiled: bool = False


def attacks(seconds: float, silent: int, size: float) -> list[Attack]:
    """All attacks.

    Args:
        seconds: that those last which only wait.
        silent: connections that say nothing.
        size: scale of bodies; 1 is what the server lets in.
    """
    whole = int(_BODY * size)
    wide = {"type": "object", "properties": {f"p{at}": {} for at in range(int(3000 * size))}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": wide}}
    lark = "start: " + " | ".join(f'"{at}"' for at in range(whole // 24))
    rules = _lark_rules(int(60_000 * size))
    prediction = {"type": "content", "content": "ab c" * (whole // 4)}
    words = "ab c" * (whole // 4)
    return [
        Attack(
            name=f"{silent} silent connections",
            run=lambda url: _silent(url, silent, seconds),
            met=frozenset({"health 200", "answer 200", "closed", "open"}),
        ),
        Attack(
            name="header without end",
            run=lambda url: _endless_header(url, 32 * _BODY),
            met=frozenset({"closed"}),
        ),
        _bodies("{} in a list", CHAT, b'{"messages": [' + b"{}," * (whole // 3) + b"{}]}"),
        _bodies("{} in a list, at the limit", CHAT, b'{"messages": [' + b"{}," * 16_000 + b"{}]}"),
        _bodies(
            "texts that are no tokens",
            COMPLETIONS,
            b'{"prompt": [' + b'"",' * int(32_000 * size) + b"1]}",
        ),
        _bodies("tokens", COMPLETIONS, b'{"prompt": [' + b"300," * int(140_000 * size) + b"1]}"),
        _bodies("floats", COMPLETIONS, b'{"prompt": [' + _FLOAT * (whole // 22) + b"1]}"),
        _bodies("5,000 messages", CHAT, _json(messages=_USER * int(5000 * size), max_tokens=1)),
        _bodies("text of escapes", CHAT, b'{"messages": "' + rb"\u0041" * (whole // 6) + b'"}'),
        _bodies(
            "ASCII and one emoji",
            CHAT,
            b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"a" * whole + "🙂".encode()),
        ),
        _bodies("a name of 2 MB", CHAT, b'{"' + b"x" * whole + b'": 1, "messages": []}'),
        _bodies("message of 2 MB", CHAT, _json(messages=[{"role": "user", "content": words}])),
        _bodies(
            "schema of 3,000 properties, n=8",
            CHAT,
            _ask(response_format=schema, n=8),
            compiled=True,
        ),
        _bodies("grammar of 1 MB", CHAT, _ask(response_format=_grammar(lark)), compiled=True),
        _bodies("grammar of 60 KB", CHAT, _ask(response_format=_grammar(rules)), compiled=True),
        _bodies("predictions of 2 MB", CHAT, _ask(prediction=prediction), 4),
        _bodies("/tokenize of 2 MB", TOKENIZE, _json(prompt=words), 6),
        _bodies(
            "/tokenize of 1.9 MB, one word", TOKENIZE, _json(prompt="a" * (whole * 9 // 10)), 6
        ),
        Attack(
            name="n=32, and one answer",
            run=lambda url: _many_answers(url, int(64 * size)),
            met=frozenset({"200", "the one answer is first"}),
        ),
        Attack(
            name="8 endless grammars whose clients leave",
            run=lambda url: _abandoned_grammars(url, 8),
            met=frozenset({"left", "answer 200"}),
        ),
        Attack(
            name="100 slow bodies",
            run=lambda url: _slow_bodies(url, 100, seconds),
            met=frozenset({"closed", "open"}),
        ),
        Attack(
            name="16 slow readers",
            run=lambda url: _slow_readers(url, 16, seconds, int(500 * size)),
            met=frozenset({"closed", "open"}),
        ),
    ]


def _bodies(name: str, path: str, body: bytes, times: int = 1, *, compiled: bool = False) -> Attack:
    async def run(url: str) -> Counter[str]:
        return Counter(await asyncio.gather(*(post(url, path, body) for _ in range(times))))

    return Attack(
        name=name if times == 1 else f"{times} x {name}",
        run=run,
        met=frozenset({"200", "400 context_length_exceeded", "400 body_too_complex", "400"}),
        body_bytes=len(body),
        requests=times,
        compiled=compiled,
    )


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _ask(**fields: Any) -> bytes:
    return _json(messages=_USER, **{"max_tokens": 16, **fields})


def _grammar(text: str) -> dict[str, str]:
    return {"type": "grammar", "grammar": text}


def _lark_rules(size: int) -> str:
    """Rules that all may be empty and begin with one another."""
    rules, at = ["start: r0"], 0
    while sum(map(len, rules)) < size:
        rules.append(f'r{at}: r{at + 1}? r{at + 1}? "a"?')
        at += 1
    return "\n".join([*rules, f'r{at}: "b"'])


async def post(url: str, path: str, body: bytes) -> str:
    """Send a body and read the whole answer: its status, and the error's code if it has one."""
    reader, writer = await _connected(url)
    try:
        writer.write(_head(path, len(body)) + body)
        answer = b""
        with suppress(OSError):
            await writer.drain()
        with suppress(OSError):  # an answer may come before a body has been taken whole
            answer = await reader.read()
        return _status(answer)
    finally:
        writer.close()


async def get(url: str, path: str) -> str:
    """The status of a path."""
    reader, writer = await _connected(url)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        return _status(await reader.read())
    finally:
        writer.close()


def _status(answer: bytes) -> str:
    if not answer:
        return "closed"
    head, _, text = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode()
    with suppress(ValueError, KeyError, TypeError):
        if code := json.loads(text)["error"]["code"]:
            return f"{status} {code}"
    return status


def _head(path: str, length: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


async def _connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(url)
    return await asyncio.open_connection(where.hostname, where.port)


async def _silent(url: str, count: int, seconds: float) -> Counter[str]:
    held = [await _connected(url) for _ in range(count)]
    await asyncio.sleep(seconds / 2)
    found = Counter([f"health {await get(url, '/health')}"])
    found[f"answer {await post(url, COMPLETIONS, _json(prompt='x', max_tokens=1))}"] += 1
    await asyncio.sleep(seconds / 2)
    return found + _closed(held)


def _closed(held: Iterable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> Counter[str]:
    """How many were closed by the server; then all are."""
    found: Counter[str] = Counter()
    for reader, writer in held:
        gone = reader.at_eof() or reader.exception() is not None
        found["closed" if gone else "open"] += 1
        writer.close()
    return found


async def _many_answers(url: str, length: int) -> Counter[str]:
    """Ask for 32 answers and for one of the same length: whose answer is there first."""
    ask = {"max_tokens": length, "ignore_eos": True}
    many = asyncio.create_task(post(url, CHAT, _ask(n=32, **ask)))
    one = asyncio.create_task(post(url, CHAT, _ask(**ask)))
    done, _ = await asyncio.wait({many, one}, return_when=asyncio.FIRST_COMPLETED)
    first = "the one answer is first" if one in done else "the one answer waits for 32"
    return Counter([first, await many, await one])


async def _abandoned_grammars(url: str, count: int) -> Counter[str]:
    """Leave while a grammar that takes minutes is compiled, then ask for one that takes none."""
    endless = {"type": "integer", "multipleOf": 9_999_991}
    body = _json(prompt="x", max_tokens=1, guided_json=endless)
    found: Counter[str] = Counter()
    for _ in range(count):
        _, writer = await _connected(url)
        writer.write(_head(COMPLETIONS, len(body)) + body)
        await asyncio.sleep(_BEGUN_S)
        writer.close()
        found["left"] += 1
    easy = _json(prompt="x", max_tokens=1, guided_json={"type": "null"})
    found[f"answer {await post(url, COMPLETIONS, easy)}"] += 1
    return found


async def _endless_header(url: str, size: int) -> Counter[str]:
    """Send more than the sockets between can hold: who takes all of it has no limit."""
    _, writer = await _connected(url)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")
        for _ in range(size // 65536):
            writer.write(b"x" * 65536)
            await writer.drain()
    except OSError:
        return Counter(["closed"])
    finally:
        writer.close()
    return Counter(["taken whole"])


async def _slow_bodies(url: str, count: int, seconds: float) -> Counter[str]:
    held = [await _connected(url) for _ in range(count)]
    for _, writer in held:
        writer.write(_head(CHAT, _BODY))
    for _ in range(max(1, int(seconds / 0.1))):
        for _, writer in held:
            writer.write(b"x")
        await asyncio.sleep(0.1)
    return _closed(held)


async def _slow_readers(url: str, count: int, seconds: float, tokens: int) -> Counter[str]:
    """Ask for streams of much text, and read nothing."""
    held = [await _connected(url) for _ in range(count)]
    body = _json(prompt="x", max_tokens=tokens, stream=True, logprobs=5, ignore_eos=True)
    for _, writer in held:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(_head(COMPLETIONS, len(body)) + body)
    await asyncio.sleep(seconds)
    return _closed(held)
