"""The results table for a terminal, and the same figures as a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdc.report.metrics import OURS, Metric, best, label, mean, metrics_of, tokens
from bdc.report.sources import finite
from bdc.report.verdict import verdicts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


_NARROWEST = 10  # columns that names of systems are folded to


def print_results(evaluation: dict[str, Any], console: Console) -> None:
    """Print systems x metrics with 95 % intervals, then a plain sentence per metric.

    Args:
        evaluation: the content of evaluation.json.
        console: where it is too narrow for all figures, intervals go below their means; else costs are left out, too; else
            each system is a list.
    """
    from rich.text import Text

    unbounded = console.options.update(max_width=10_000)
    longest = max((len(printable(label(system))) for system in evaluation["systems"]), default=0)
    room = console.width + max(0, longest - _NARROWEST)
    tables = (_table(evaluation, beside, costs) for beside, costs in ((True, True), (False, True), (False, False)))
    fitting = (table for table in tables if console.measure(table, options=unbounded).maximum <= room)
    console.print(next(fitting, None) or _lists(evaluation))
    for sentence in verdicts(evaluation):
        console.print(Text(printable(sentence)))


def _title(evaluation: dict[str, Any]) -> str:
    problems = len(evaluation.get("problems") or ())
    return f"{problems} problem{'' if problems == 1 else 's'} held out, 95 % bootstrap intervals"


def _lists(evaluation: dict[str, Any]) -> Text:
    from rich.text import Text

    lines = [_title(evaluation)]
    for system in evaluation["systems"]:
        lines.append(f"\n{printable(label(system))}")
        for metric in metrics_of(evaluation):
            lines.append(
                f"  {metric.label} {metric.format(mean(system, metric))} {metric.interval(system.get(metric.key))}"
            )
    return Text("\n".join(lines) + "\n")


def _table(evaluation: dict[str, Any], beside: bool, costs: bool) -> Table:
    """With intervals ``beside`` their means or below them, with ``costs`` or without."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=_title(evaluation),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("system", overflow="fold", min_width=_NARROWEST)
    metrics = metrics_of(evaluation)
    for metric in metrics:
        table.add_column(Text(f"{metric.label}\n{metric.better} wins"), justify="right", no_wrap=True)
    if costs:
        table.add_column("tokens", justify="right", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
    leaders = {metric.key: [system["name"] for system in best(evaluation["systems"], metric)] for metric in metrics}
    for system in evaluation["systems"]:
        ours = system["name"] == OURS
        cells = [_cell(system, metric, system["name"] in leaders[metric.key], beside) for metric in metrics]
        spent = [f"{tokens(system):,}", f"{system.get('seconds') or 0.0:,.1f}"] if costs else []
        name = Text(printable(label(system)), style="bold" if ours else "")
        table.add_row(name, *cells, *spent)
    return table


def results_json(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures of :func:`print_results` as a JSON-able dictionary, systems by name."""
    systems, metrics = evaluation["systems"], metrics_of(evaluation)
    summary = {
        "problems": len(evaluation.get("problems") or ()),
        "seed": evaluation.get("seed"),
        "device": evaluation.get("device"),
        "systems": {
            system["name"]: {
                "label": label(system),
                **{metric.key: system.get(metric.key) for metric in metrics},
                "tokens": tokens(system),
                "seconds": system.get("seconds"),
            }
            for system in systems
        },
        "best": {metric.key: [system["name"] for system in best(systems, metric)] for metric in metrics},
        "differences": list(evaluation.get("differences") or ()),
        "verdicts": verdicts(evaluation),
    }
    return dict(finite(summary))


def printable(text: str) -> str:
    """The text with control characters, which could steer the terminal, made visible."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _cell(system: dict[str, Any], metric: Metric, leads: bool, beside: bool) -> Text:
    from rich.text import Text

    value = Text(metric.format(mean(system, metric)), style="bold" if leads else "")
    interval = metric.interval(system.get(metric.key))
    return value.append(f"{' ' if beside else chr(10)}{interval}", style="dim") if interval else value
