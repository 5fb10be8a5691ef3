"""Draw bench/results/soak.json: what the daemon used and how long work took, as soak.svg and .png.

Needs matplotlib, which scripts/bench installs apart from the project's environment.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from speed_chart import BETTER, FAINT, INK, PAPER, RESULTS, WORSE, follow_theme


def draw(content: dict[str, Any]) -> None:
    rcParams["svg.hashsalt"] = "soak"  # equal results, equal files
    samples, begin = content["samples"], content["samples"][0][0]
    minutes = [(sample[0] - begin) / 60 for sample in samples]
    figure = Figure(figsize=(10.5, 7), facecolor=PAPER, layout="constrained")
    memory, descriptors, work = figure.subplots(3, sharex=True)
    memory.plot(minutes, [sample[1] for sample in samples], color=BETTER)
    memory.set_ylabel("MiB resident", color=INK)
    descriptors.plot(minutes, [sample[2] for sample in samples], color=BETTER)
    descriptors.set_ylabel("descriptors", color=INK)
    for failed, color in ((False, BETTER), (True, WORSE)):
        chosen = [each for each in content["done"] if bool(each[3]) == failed]
        at = [(begun - begin) / 60 for begun, *_ in chosen]
        work.scatter(
            at, [each[2] for each in chosen], s=3, color=color, linewidths=0, rasterized=True
        )
    work.set_yscale("log")
    work.set_ylabel("seconds of one operation", color=INK)
    work.set_xlabel("minutes; grey: faults, red: an error was shown", color=INK)
    for axes in (memory, descriptors, work):
        axes.set_facecolor(PAPER)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, which="both", length=0)
        if axes is not work:
            axes.set_ylim(bottom=0)
        for on, off, _ in content["faults"]:
            axes.axvspan((on - begin) / 60, (off - begin) / 60, color=FAINT, linewidth=0, zorder=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.suptitle("a mount at work, under faults that come and go", color=INK)
    figure.savefig(RESULTS / "soak.png", dpi=110)
    figure.savefig(RESULTS / "soak.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads((RESULTS / "soak.json").read_text()))
    follow_theme(Path(RESULTS / "soak.svg"))
