"""One self-contained HTML page about a run: curves, pictures before and after, table, configuration."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from agents.run_directory import (
    EVALUATION,
    PICTURE,
    REPORT,
    RunError,
    read_config_values,
    read_evaluation,
    read_history,
)

_CURVES = (
    ("reward", "reward"),
    ("kl", "KL to the pretrained model, nats a picture"),
    ("kl_to_rollout", "KL to the policy that drew the pictures, nats a picture"),
    ("clip_fraction", "share of ratios clipped"),
    ("ratio_deviation", "largest |ratio - 1| before the first update"),
    ("grad_norm", "gradient norm"),
    ("value_loss", "error of the value function"),
    ("loss", "loss"),
)
_NAMES = {
    "reward": "reward (trained on)",
    "reader": "reader: all attributes right",
    "reader_fraction": "reader: share of attributes right",
    "quality": "quality",
    "diversity": "diversity",
    "kl": "KL to the pretrained model, nats a picture",
}
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}img{max-width:100%}
table{border-collapse:collapse}td,th{padding:.3rem .9rem .3rem 0;text-align:left;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}small,figcaption{color:#666}figure{margin:0}
pre{background:#f6f6f6;padding:1rem;overflow:auto}
"""


def write_report(out: Path) -> Path:
    """Write the run's `report.html`; the evaluation is in it if there is one.

    Raises:
        RunError: `out` holds no run, or one without a finished iteration.
    """
    config = read_config_values(out)
    history = read_history(out)
    if not history:
        raise RunError(f"{out} has no finished iteration to report; train it with --resume")
    evaluation = read_evaluation(out) if (out / EVALUATION).is_file() else None
    path = out / REPORT
    partial = path.with_suffix(".partial")
    partial.write_text(_page(config, history, evaluation, out / PICTURE), encoding="utf-8")
    partial.replace(path)
    return path


def _page(config: dict[str, Any], history: list[dict[str, Any]], evaluation: Any, picture: Path) -> str:
    agent, prompts = config["agent"].upper(), ", ".join(config["prompts"])
    seconds = sum(record["seconds"] for record in history)
    parts = [
        f"<h1>{html.escape(agent)}: {html.escape(prompts)}</h1>",
        f"<p>{len(history)} iterations of {config['pictures']} pictures in {seconds / 60:.1f} minutes, trained on "
        f"<b>{html.escape(config['reward'])}</b>.</p>",
    ]
    if evaluation is None:
        parts.append("<p><small>Not evaluated yet: diffusion-gym evaluate.</small></p>")
    else:
        parts.append("<h2>Before and after, from the same noise</h2>")
        if picture.is_file():
            parts.append(
                f'<figure><img alt="pictures before and after training" src="{_data(picture.read_bytes())}">'
                "<figcaption>Above: the pretrained model. Below: the trained one.</figcaption></figure>"
            )
        parts += ["<h2>Measured</h2>", _table(evaluation)]
    parts += ["<h2>Training</h2>", f'<img alt="training curves" src="{_data(_curves(history))}">']
    parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(json.dumps(config, indent=2))}</pre>"]
    body = "\n".join(parts)
    title = html.escape(f"{agent} · {prompts}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(evaluation: dict[str, Any]) -> str:
    rows = []
    for name in evaluation["after"]:
        before, after = evaluation["before"].get(name), evaluation["after"][name]
        cells = "".join(f'<td class="n">{_interval(values)}</td>' for values in (before, after))
        rows.append(f"<tr><td>{html.escape(_NAMES.get(name, name))}</td>{cells}</tr>")
    head = '<tr><th></th><th class="n">before</th><th class="n">after</th></tr>'
    note = (
        f"<p><small>Means and 95% intervals over {evaluation['pictures']} pictures a model, seeds from "
        f"{evaluation['seed']}, {evaluation['steps']} steps. The reader and the quality judge were "
        "not trained on unless they are named in the reward.</small></p>"
    )
    return f"<table>{head}{''.join(rows)}</table>{note}"


def _interval(values: dict[str, float] | None) -> str:
    if values is None:
        return ""
    return f"{values['mean']:.3f} <small>[{values['low']:.3f}, {values['high']:.3f}]</small>"


def _curves(history: list[dict[str, Any]]) -> bytes:
    """The curves as PNG."""
    from matplotlib.figure import Figure

    found = [(key, title) for key, title in _CURVES if any(key in record for record in history)]
    rows = (len(found) + 1) // 2
    figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    for place, (key, title) in enumerate(found, 1):
        axes = figure.add_subplot(rows, 2, place)
        points = [(record["iteration"], record[key]) for record in history if key in record]
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, marker="o", markersize=3, color="#2a6f97")
        if key == "reward":
            spread = [record["reward_std"] for record in history if key in record]
            low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, alpha=0.15, color="#2a6f97", linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration", fontsize=9)
        axes.grid(alpha=0.25)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
