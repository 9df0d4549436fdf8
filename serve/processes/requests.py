"""Requests over a channel: a front end packs them, the engine's process reads them."""

from collections.abc import Callable, Mapping
from typing import Any

from nemo_trt.engines.generation import Constraint
from nemo_trt.errors import RequestError, StateError
from nemo_trt.serve.drafts import DraftSource
from nemo_trt.serve.grammars import Grammar
from nemo_trt.serve.request import Request
from nemo_trt.serve.scoring import PromptScores
from nemo_trt.serve.tools import ToolConstraint

from . import wire


class GrammarSource:
    """A grammar that the engine's process runs: here it is its source alone."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fresh(self) -> "GrammarSource":
        """Its state is begun elsewhere, once for each answer."""
        return self

    @property
    def finished(self) -> bool:
        """Not known here."""
        raise self._not_here()

    def allowed(self) -> None:
        """Not known here."""
        raise self._not_here()

    def accept(self, token_id: int) -> None:
        """Not known here."""
        raise self._not_here()

    def _not_here(self) -> StateError:
        return StateError("Cannot follow a grammar in a front end; the engine's process does.")


class RemoteDrafts(DraftSource):
    """Tokens to draft from, which the engine's process indexes."""

    def __init__(self, tokens: Any) -> None:
        self.tokens = tokens


class RemoteScores(PromptScores):
    """Sends scores on as they come, in the engine's thread."""

    def __init__(self, top: int, key: int, send: Callable[[Any], None]) -> None:
        super().__init__(top)
        self._key, self._send = key, send

    def push(self, logits: Any, following: Any) -> None:
        """See `PromptScores`."""
        super().push(logits, following)
        self._send(["scores", self._key, wire.packed_scores(self.scores)])
        self.scores.clear()


def packed_request(request: Request, arrival: float) -> dict[str, Any]:
    """A request as `RequestReader` takes it.

    Args:
        arrival: in seconds of `time.perf_counter`, which is one clock for all processes.

    Raises:
        RequestError: its constraint cannot leave this process.
    """
    drafts = request.drafts
    return {
        "arrival": arrival,
        "prompt": wire.packed_tokens(request.prompt),
        "params": wire.packed_params(request.params),
        "deadline": request.deadline,
        "speculate": request.speculate,
        "constraint": _packed_constraint(request.constraint),
        "drafts": None if drafts is None else wire.packed_tokens(drafts.tokens),
        "scores": None if request.scores is None else request.scores.top,
        "score_only": request.score_only,
        "group": None if request.group is None else id(request.group),
    }


class RequestReader:
    """Reads one front end's requests. Answers of one prompt, which come behind each other, share
    its tokens and what they are drafted from.

    Args:
        send: sends a message to the front end.
    """

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._prompt: tuple[bytes, list[int]] = b"", []
        self._drafts: tuple[bytes, DraftSource] = b"", DraftSource([])

    def request(
        self,
        group_of: object,
        key: int,
        packed: Mapping[str, Any],
        grammars: Mapping[str, Grammar] | None,
    ) -> Request:
        """The request that a front end packed.

        Args:
            group_of: distinguishes groups of this front end from others'.
            grammars: compiled, by their `sources`.
        """
        if packed["prompt"] != self._prompt[0]:
            self._prompt = packed["prompt"], wire.tokens_from(packed["prompt"])
        drafted = packed["prompt"] if packed["drafts"] is None else packed["drafts"]
        if packed["speculate"] and drafted != self._drafts[0]:
            self._drafts = drafted, DraftSource(wire.tokens_from(drafted))
        top, group = packed["scores"], packed["group"]
        return Request(
            prompt=self._prompt[1],
            params=wire.params_from(packed["params"]),
            deadline=packed["deadline"],
            speculate=packed["speculate"],
            constraint=_constraint(packed["constraint"], grammars or {}),
            drafts=self._drafts[1] if packed["speculate"] else None,
            scores=None if top is None else RemoteScores(top, key, self._send),
            score_only=packed["score_only"],
            group=None if group is None else (group_of, group),
        )

    @staticmethod
    def sources(packed: Any) -> list[str]:
        """The grammars of a constraint."""
        if isinstance(packed, str):
            return [packed]
        return [source for source in (packed["calls"], packed["text"]) if source is not None]


def _packed_constraint(constraint: Constraint | None) -> Any:
    match constraint:
        case None:
            return None
        case GrammarSource():
            return constraint.source
        case ToolConstraint():
            return {
                "trigger": constraint.trigger,
                "vocab_size": constraint.vocab_size,
                "choice": constraint.choice,
                "calls": _packed_constraint(constraint.calls),
                "text": _packed_constraint(constraint.text),
            }
        case _:
            raise RequestError(
                "A constraint must be a grammar to leave its process, got "
                f"{type(constraint).__name__}. Use an engine of this process."
            )


def _constraint(packed: Any, grammars: Mapping[str, Grammar]) -> Constraint | None:
    if packed is None:
        return None
    if isinstance(packed, str):
        return grammars[packed].fresh()
    return ToolConstraint(
        packed["trigger"],
        packed["vocab_size"],
        choice=packed["choice"],
        calls=grammars[packed["calls"]].fresh(),
        text=_constraint(packed["text"], grammars),
    )
