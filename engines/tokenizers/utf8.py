"""One rule for text that UTF-8 cannot hold: it is refused, wherever it comes in.

JSON can escape half of a surrogate pair ("\\ud83d"), and file names that are no UTF-8 hold such
halves. No tokenizer has bytes for them.
"""

from nemo_trt.errors import RequestError


def require_utf8(text: str, name: str) -> None:
    """Refuse a text that holds half a surrogate pair.

    Raises:
        RequestError: it does; the message begins with `name`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} must be text that UTF-8 can hold, got half a surrogate pair at character "
            f"{error.start}."
        ) from error
