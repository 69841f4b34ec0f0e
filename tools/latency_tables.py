"""Shows what `bench_latency.py` measured: tables in the terminal, and a plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show(result: dict[str, Any]) -> None:
    """Prints a table for each case."""
    console = Console(width=120)
    console.print(f"{result['parameters']:,} parameters, {result['weights']}", highlight=False)
    cases = result["cases"].values()
    # Of the same run alone: a machine is not the same an hour later.
    teachers = {
        found["run"]: found["timings"]["GR00T: whole"]
        for found in cases
        if "GR00T: whole" in found["timings"]
    }
    for case, found in result["cases"].items():
        timings, slowest = found["timings"], teachers.get(found["run"])
        table = Table(title=f"{case}: side x colors x demonstrations", title_justify="left")
        for heading in ("who", "p50 ms", "p95", "p99", "runs", "ceiling", "GR00T is"):
            table.add_column(heading, justify="left" if heading == "who" else "right", no_wrap=True)
        for name, each in timings.items():
            share = each["flops_per_second"] / result["ceilings"].get(each["compute"], math.inf)
            table.add_row(
                name,
                *(f"{each[p]:,.{2 if each[p] < 10 else 1}f}" for p in ("p50", "p95", "p99")),
                str(each["runs"]),
                f"{share:.0%}" if share else "",
                f"{slowest['p50'] / each['p50']:,.1f} x" if slowest else "",
            )
        console.print(table)
        memory = found["device_bytes"] / 1e6
        console.print(f"JAX needs {memory:,.0f} MB, weights included, as XLA plans\n")
    for name, each in result.get("feature", {}).items():
        console.print(f"{name}: {each['p50']:,.2f} ms ({each['runs']} runs)", highlight=False)
    for name, each in result.get("cold", {}).items():
        console.print(
            f"first answer, {name}: {each['seconds']:.1f} s, {each['peak_host_mib']:,.0f} MiB, "
            f"on the device {each.get('peak_device_mib', 0):,.0f}",
            highlight=False,
        )
    for name, each in result.get("curves", {}).items():
        useful = (
            f"; more than {each['largest_useful']} save nothing" if "largest_useful" in each else ""
        )
        console.print(
            f"time grows with {name} to the power of {each['exponent']}{useful}", highlight=False
        )


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws the cases, log scale; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    cases = result["cases"]
    names = list(dict.fromkeys(name for each in cases.values() for name in each["timings"]))
    figure, axes = pyplot.subplots(figsize=(11, 0.42 * len(names) + 1.5), layout="constrained")
    for case, found in cases.items():
        places = [names.index(name) for name in found["timings"]]
        axes.plot([each["p50"] for each in found["timings"].values()], places, "o", label=case)
    axes.axvline(10, color="0.6", linestyle="--")
    axes.set(xscale="log", xlabel="milliseconds, median (dashed: 10)", yticks=range(len(names)))
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(title="side x colors x demonstrations")
    axes.set_title(f"{result['device']}, {result['compute']}, {result['parameters']:,} parameters")
    figure.savefig(path, dpi=110)
