"""Refuses values that an option does not have, for callers that no type checker stops."""

from collections.abc import Sequence

from nemo_trt.errors import RequestError


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        RequestError: it names the option and its choices.
    """
    if value not in choices:
        raise RequestError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def require_range(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a number out of its range; None, which stands for a default, is taken.

    Raises:
        RequestError: it names the option and its range.
    """
    if value is None or (least <= value and (most is None or value <= most)):
        return
    allowed = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
    raise RequestError(f"{name} must be {allowed}, got {value}.")
