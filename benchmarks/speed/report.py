"""The benchmark's table and figure."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.intervals import Interval


class Row(NamedTuple):
    """A number of the table.

    Attributes:
        part: of the benchmark.
        measure: what it is.
        value: None where nothing reached it.
        low: of the 95% interval; None without one.
        high: of the 95% interval.
        at_most: the bar, if it has one.
    """

    part: str
    measure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    at_most: float | None = None


def rows(found: dict[str, Any]) -> list[Row]:
    """The table of what was found."""
    lines: list[Row] = []
    for one in found.get("overhead", {}).get("iterations", []):
        name, rest = one["reward"], one["over_bare_without_decode_and_reward"]
        lines += [
            _ratio("overhead", f"iteration / bare UNet, {name}", one["over_bare"], 1.05),
            _ratio("overhead", f"iteration without decode and reward / bare UNet, {name}", rest),
            Row("overhead", f"share of decode, {name}", one["share_of_decode"]),
            Row("overhead", f"share of reward, {name}", one["share_of_reward"]),
        ]
    if "overhead" in found:
        for fraction, cost in found["overhead"]["dpok_kl"].items():
            most = 1.3 if float(fraction) == 1 else 1.15
            lines.append(_ratio("overhead", f"DPOK with KL on {fraction} / without", cost["ratio"], most))
    for name, one in found.get("options", {}).items():
        if name != "default":
            lines.append(_ratio("options", f"iteration / default, {name}", one["over_default"]))
    if "trl" in found:
        lines += _trl_rows(found["trl"])
    for name, points in found.get("scaling", {}).items():
        for point in points:
            value = point["value"]
            bar = 1.05 if name == "pictures" and point is points[-1] else None
            against = f"a picture, {name} {value} / {points[0]['value']}"
            lines += [
                Row("scaling", f"ms a picture and step, {name} {value}", 1000 * point["a_picture_and_step"]),
                _ratio("scaling", against, point["over_first"], bar),
            ]
    if "memory" in found:
        allocated, resident, stored = (
            found["memory"][f"growth_of_{name}_mib"] for name in ("allocated", "resident", "stored")
        )
        lines += [
            Row("memory", "growth of the peak, allocated, MiB", allocated, at_most=stored),
            Row("memory", "growth of the peak, resident, MiB", resident, at_most=stored),
        ]
    return lines


def _trl_rows(found: dict[str, Any]) -> list[Row]:
    same = found["same_reward"]["summary"]
    return [
        *(
            _ratio("trl", f"same work, ours / TRL, {case}", one["ours_over_peer"], 0.95)
            for case, one in found["same_work"].items()
        ),
        Row("trl", "same reward, ours / TRL, median", same["median_time_ratio"], at_most=1 / 3),
        Row("trl", "same reward for the first time, ours / TRL, median", same["median_first_time_ratio"]),
        Row("trl", "same reward, ours / TRL's whole run, median", same["median_share_of_run"]),
        Row("trl", "same reward, ours / TRL, worst", same["worst_time_ratio"]),
        Row("trl", f"pairs that reach the level, of {same['of']}", same["reached"]),
        Row("trl", "KL there, ours, nats a picture", same["our_mean_kl"], at_most=same["peer_mean_kl"]),
    ]


def _ratio(part: str, measure: str, interval: Interval, bar: float | None = None) -> Row:
    return Row(part, measure, interval["mean"], interval["low"], interval["high"], bar)


def write_csv(found: dict[str, Any], path: Path) -> None:
    """Write the table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for part, measure, *values in rows(found):
            writer.writerow([part, measure, *("" if value is None else f"{value:.4f}" for value in values)])


def plot(found: dict[str, Any], path: Path) -> None:
    """Ratios with their bars, the curves against TRL, and how cost grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 8), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    _plot_ratios(axes[0], found)
    _plot_curves(axes[1], found)
    for axis, (name, points) in zip(axes[2:], found.get("scaling", {}).items(), strict=False):
        values = [point["value"] for point in points]
        costs = [1000 * point["a_picture_and_step"] for point in points]
        axis.plot(values, costs, "o-")
        axis.set(xscale="log", ylim=(0, 1.1 * max(costs)), xlabel=name.replace("_", " "))
        axis.set_title("CPU ms a picture and step")
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
    figure.savefig(path, dpi=110)


def _plot_ratios(axis: Any, found: dict[str, Any]) -> None:
    shown = [row for row in rows(found) if row.low is not None and row.part != "scaling"]
    for i, row in enumerate(shown):
        axis.plot([row.low, row.high], [i, i], color="C0")
        axis.plot(row.value, i, "o", color="C0")
        if row.at_most is not None:
            axis.plot([row.at_most] * 2, [i - 0.35, i + 0.35], color="C3")
    axis.set_yticks(range(len(shown)), [row.measure for row in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_title("ratios of CPU time (red: at most)")


def _plot_curves(axis: Any, found: dict[str, Any]) -> None:
    for pair in found.get("trl", {}).get("same_reward", {}).get("pairs", []):
        for side, colour in (("ours", "C0"), ("peer", "C1")):
            points = pair["curves"][side]
            axis.plot([p["seconds"] for p in points], [p["reward"] for p in points], color=colour, alpha=0.6)
    axis.set(title="evaluated reward: ours blue, TRL orange", xlabel="CPU seconds")
