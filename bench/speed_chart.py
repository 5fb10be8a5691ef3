"""Draw bench/results/speed.json: how the mount compares with rclone, as speed.svg and speed.png.

Needs matplotlib, which scripts/bench installs apart from the project's environment.
"""

import json
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
BETTER, WORSE = "#1a7f5a", "#c4622d"  # readable on light and on dark
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#fffffe"
# What the SVG shows instead where the reader's theme is dark.
DARK = {INK: "#e6edf3", FAINT: "#3d444d", PAPER: "#0d1117", BETTER: "#3fb68b", WORSE: "#e8895a"}


def draw(rows: dict[str, dict[str, object]]) -> None:
    rcParams["svg.hashsalt"] = "speed"  # equal results, equal files
    names = [f"{row['what']}  [{name}]" for name, row in rows.items()]
    ratios = [float(str(row["ratio"])) for row in rows.values()]
    colors = [BETTER if ratio <= 1 else WORSE for ratio in ratios]
    height = 1.4 + 0.42 * len(rows)
    figure = Figure(figsize=(10.5, height), facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color=colors, height=0.62)
    axes.set_xscale("log")
    low, high = min(0.1, *ratios), max(10.0, *ratios)
    axes.set_xlim(low / 1.5, high * 3)
    beside = axes.get_yaxis_transform()
    for place, (row, ratio) in enumerate(zip(rows.values(), ratios, strict=True)):
        axes.text(1, place, f"{ratio:.2f}", transform=beside, va="center", ha="right", color=INK)
        targets = row["targets"]
        if isinstance(targets, dict) and "rclone" in targets:
            axes.plot([targets["rclone"]] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=2)
    axes.axvline(1, color=INK, linewidth=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.invert_yaxis()
    axes.tick_params(colors=INK, which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(
        "codeartsfs as a multiple of rclone: less is better, a short line is the target", color=INK
    )
    figure.savefig(RESULTS / "speed.png", dpi=110)
    figure.savefig(RESULTS / "speed.svg", metadata={"Date": None})


def follow_theme(path: Path) -> None:
    """Let an SVG change its colors with the reader's theme."""
    rules = "".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}\n'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n"
    text = path.read_text()
    path.write_text(text.replace(" <defs>", style + " <defs>", 1))


if __name__ == "__main__":
    draw(json.loads((RESULTS / "speed.json").read_text())["rows"])
    follow_theme(RESULTS / "speed.svg")
