"""The server's log: one JSON object a request, level INFO, and what goes wrong."""

import logging
import sys

LOG = logging.getLogger("nemo_trt.serve")


def log_to_stderr() -> None:
    """Have this process write its log to stderr."""
    LOG.addHandler(logging.StreamHandler(sys.stderr))
    LOG.setLevel(logging.INFO)
