"""Under what a measurement was made: it stands beside every number."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def conditions(*packages: str) -> dict[str, Any]:
    """Returns command, date, machine, load, allocator and the versions of packages that matter.

    The load is of the last minute: call it before the work.
    """
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load": os.getloadavg()[0],
        "allocator": Path(os.environ.get("LD_PRELOAD") or "libc").stem,
        "versions": {name: version(name) for name in packages},
    }
