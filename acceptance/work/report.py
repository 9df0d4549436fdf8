"""Report: the plots, of what report.json says so far."""

import importlib.util
import json
from pathlib import Path

from nemo_trt.progress import Progress

from .done import CannotHere, Done


def run(*, report_folder: str, progress: Progress) -> Done:
    """Draw into `report_folder`/plots."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CannotHere("matplotlib must be installed. Install: pip install 'nemo-trt[plots]'.")
    from nemo_trt.acceptance.plots import draw

    progress.phase("draw the plots")
    folder = Path(report_folder)
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Done(facts={"plots": draw(data, folder)})
