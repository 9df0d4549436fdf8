"""What validation.json says of a bundle or an engine, if it is of that very one."""

import json
from pathlib import Path

from .manifest import VALIDATION_FILE

PASS = "pass"


def read_verdict(folder: Path, *, bundle_id: str, engine_id: str | None = None) -> str:
    """The verdict in a bundle's or an engine's folder.

    Args:
        folder: of the bundle, or of one of its engines.
        bundle_id: of the bundle as it is now.
        engine_id: of the engine's plans as they are now.

    Returns:
        "pass", "fail", or why there is none: "none yet: ...", "stale: ..." or "unreadable: ...".
    """
    file = folder / VALIDATION_FILE
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        found = report["bundle_id"], report["engine"].get("engine_id"), report["verdict"]
    except FileNotFoundError:
        return "none yet: run nemo-trt validate"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable: {VALIDATION_FILE}: {error!r}"
    if found[0] != bundle_id:
        return "stale: it is of another bundle"
    if found[1] != engine_id:
        return "stale: it is of other plans"
    return PASS if found[2] == PASS else "fail"
