"""The benchmark's table and figure."""

import csv
from pathlib import Path
from typing import Any

Row = tuple[str, str, float | None, float | None, float | None, float | None]
"""Part, measure, value, low, high (95%), bar (at most)."""


def rows(found: dict[str, Any]) -> list[Row]:
    """A line a number that has a bar or belongs beside one."""
    lines: list[Row] = []

    def ratio(part: str, measure: str, interval: dict[str, float], bar: float | None = None) -> None:
        lines.append((part, measure, interval["mean"], interval["low"], interval["high"], bar))

    def number(part: str, measure: str, value: float | None, bar: float | None = None) -> None:
        lines.append((part, measure, value, None, None, bar))

    if "overhead" in found:
        for one in found["overhead"]["iterations"]:
            name = one["reward"]
            ratio("overhead", f"iteration / bare UNet, {name}", one["over_bare"])
            ratio("overhead", f"without decode and reward, {name}", one["over_bare_without_decode_and_reward"], 1.05)
            number("overhead", f"share of decode, {name}", one["share_of_decode"])
            number("overhead", f"share of reward, {name}", one["share_of_reward"])
        ratio("overhead", "DPOK with KL / without", found["overhead"]["dpok_kl"]["ratio"], 1.3)
    if "trl" in found:
        for case, one in found["trl"]["same_work"].items():
            ratio("trl", f"same work, ours / TRL, {case}", one["ours_over_peer"], 0.95)
        same = found["trl"]["same_reward"]["summary"]
        number("trl", "same reward, ours / TRL, median", same["median_time_ratio"], 1 / 3)
        number("trl", "same reward, ours / TRL, worst", same["worst_time_ratio"])
        number("trl", "pairs that reach the level", same["reached"])
        number("trl", "KL there, ours, nats a picture", same["our_mean_kl"], same["peer_mean_kl"])
    for name, points in found.get("scaling", {}).items():
        for point in points:
            bar = 1.05 if name == "pictures" and point is points[-1] else None
            number("scaling", f"ms a picture and step, {name} {point['value']}", 1000 * point["a_picture_and_step"])
            ratio("scaling", f"a picture, {name} {point['value']} / {points[0]['value']}", point["over_first"], bar)
    if "memory" in found:
        memory = found["memory"]
        number("memory", "growth of the peak, MiB", memory["growth_mib"], memory["growth_of_stored_mib"])
    return lines


def write_csv(found: dict[str, Any], path: Path) -> None:
    """Write the table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "measure", "value", "low", "high", "at_most"])
        for part, measure, *values in rows(found):
            writer.writerow([part, measure, *("" if value is None else f"{value:.4f}" for value in values)])


def plot(found: dict[str, Any], path: Path) -> None:
    """Ratios with their bars, the curves against TRL, and how cost grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    _plot_ratios(axes[0], found)
    _plot_curves(axes[1], found)
    for axis, (name, points) in zip(axes[2:], found.get("scaling", {}).items(), strict=False):
        values = [point["value"] for point in points]
        axis.plot(values, [1000 * point["a_picture_and_step"] for point in points], "o-")
        axis.set(xscale="log", xlabel=name.replace("_", " "), ylim=(0, None))
        axis.set_xticks(values, [str(value) for value in values], minor=False)
        axis.minorticks_off()
        axis.set_title("CPU ms a picture and step")
    figure.savefig(path, dpi=110)


def _plot_ratios(axis: Any, found: dict[str, Any]) -> None:
    shown = [row for row in rows(found) if row[3] is not None and row[0] != "scaling"]
    for i, (_, _, value, low, high, bar) in enumerate(shown):
        assert value is not None
        assert low is not None
        assert high is not None
        axis.errorbar(value, i, xerr=[[value - low], [high - value]], fmt="o", color="C0", capsize=3)
        if bar is not None:
            axis.plot([bar, bar], [i - 0.35, i + 0.35], color="C3")
    axis.set_yticks(range(len(shown)), [row[1] for row in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_title("ratios of CPU time (red: at most)")


def _plot_curves(axis: Any, found: dict[str, Any]) -> None:
    for pair in found.get("trl", {}).get("same_reward", {}).get("pairs", []):
        for side, colour in (("ours", "C0"), ("peer", "C1")):
            points = pair["curves"][side]
            axis.plot([p["seconds"] for p in points], [p["reward"] for p in points], color=colour, alpha=0.6)
    axis.set_title("evaluated reward: ours (blue), TRL (orange)")
    axis.set_xlabel("CPU seconds")
