"""Prometheus's text format of several replicas as one."""

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (\S+)")


def merged(texts: Mapping[str, str]) -> str:
    """One exposition with a label `replica` on every sample.

    Args:
        texts: by name of a replica, what `Metrics.text` gives there.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif found := _SAMPLE.fullmatch(line):
                name, labels, value = found.groups()
                every = f'{labels},replica="{replica}"' if labels else f'replica="{replica}"'
                samples.setdefault(family, []).append(f"{name}{{{every}}} {value}")
    lines = (line for family in heads for line in (*heads[family], *samples.get(family, ())))
    return "".join(f"{line}\n" for line in lines)
