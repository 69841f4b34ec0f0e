"""Under what a measurement was made: it stands beside every number."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import version
from typing import Any


def conditions(*packages: str) -> dict[str, Any]:
    """Returns command, date, machine, load and the versions of the packages that matter.

    The load is of the last minute: call it before the work.
    """
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
    }
