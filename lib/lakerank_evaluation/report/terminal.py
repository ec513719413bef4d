"""An evaluation's summary for the terminal: a few queries before and after reranking, and figures by task."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import wrap

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakerank.cli.cells import fit, one_line
from lakerank_evaluation.analysis.averages import MODALITY, Slice, by_size
from lakerank_evaluation.evaluation import Evaluation
from lakerank_evaluation.examples import Example, ListedDocument
from lakerank_evaluation.metrics.bootstrap import LEVEL
from lakerank_evaluation.metrics.measures import PRIMARY, SECONDARY
from lakerank_evaluation.report.verdict import verdict

WIDTH = 100

#: Widest label of a document in a list, in terminal cells.
_LABEL = 26


def terminal_table(evaluation: Evaluation, examples: Sequence[Example]) -> str:
    """Plain text, no line wider than `WIDTH` cells (a wide character counts as two), ends with a newline."""
    figures = "\n".join([_figures(evaluation), *_intervals(evaluation.overall)])
    blocks = [*(_example(example) for example in examples), figures, *_position_bias(evaluation), *_verdict(evaluation)]
    return "\n".join(line.rstrip() for line in "\n\n".join(blocks).splitlines()) + "\n"


def _example(example: Example) -> str:
    before, after = example.first_stage, example.reranked
    figures = f"{PRIMARY} {after:.2f}" if before is None else f"{PRIMARY} {before:.2f} → {after:.2f}"
    title = fit(_query(example), 48)
    lists = [_list("before", example.before)] if example.before else []
    heading = fit(f"{title}  {one_line(', '.join(example.labels.values()))}", WIDTH - len(figures) - 2, pad=True)
    return "\n".join([f"{heading}  {figures}", *lists, _list("after", example.after)])


def _query(example: Example) -> str:
    """The query's text, followed by its name where that differs: in another language, perhaps."""
    query = example.query
    label = one_line(query.label)
    if query.image is not None:
        return f"[image] {label}"
    return f"{fit(label, 32)} ({one_line(query.name)})" if query.name and query.name != query.text else label


def _list(name: str, documents: Sequence[ListedDocument]) -> str:
    """The documents of a list on one line, relevant ones ticked, as many as fit."""
    line = f"  {name:<6} "
    for listed in documents:
        tick = "✓ " if listed.is_relevant else ""
        part = f"{listed.rank}. {tick}{fit(one_line(listed.content.name or listed.content.label), _LABEL)}"
        if cell_len(line) + cell_len(part) > WIDTH:
            break
        line += f"{part}   "
    return line if documents else f"{line}(nothing was ranked)"


def _verdict(evaluation: Evaluation) -> list[str]:
    """Whether reranking helps, and what is to be looked at, a block each."""
    result = verdict(evaluation)
    texts = [f"{result.outcome.sentence} {result.headline}", result.ceiling, *(f"- {text}" for text in result.advice)]
    if evaluation.overall.baseline is not None:
        gain = evaluation.overall.baseline_gain[PRIMARY]
        bounds = "" if gain.low is None else f" ({LEVEL:.0%} interval {gain.low:+.3f} to {gain.high:+.3f})"
        second = f"{SECONDARY} {evaluation.overall.baseline_gain[SECONDARY].mean:+.3f}"
        texts.insert(1, f"Against run {evaluation.baseline}: {PRIMARY} {gain.mean:+.3f}{bounds}, {second}.")
    return ["\n".join(line for text in texts for line in wrap(one_line(text), WIDTH))]


def _position_bias(evaluation: Evaluation) -> list[str]:
    """How other orders of the lister's input change its lists, a line an order."""
    if (bias := evaluation.inputs.position_bias) is None:
        return []
    unread = bias["sampled"] - bias["lists"]
    others = f"; nothing can be read of {unread:,} other{'s' * (unread > 1)} of the sample" if unread else ""
    lines = [f"Position bias of {bias['lists']:,} lists, {bias['judged']:,} of them judged{others}:"]
    for order in ("given", "reversed", "shuffled"):
        figures = ((name, value) for name, value in bias[order].items() if value is not None)
        lines.append(f"  {order:<9}" + "".join(f" {name} {value:.3f} " for name, value in figures))
    return ["\n".join(lines)]


def _figures(evaluation: Evaluation) -> str:
    dimension = "task" if any(part.dimension == "task" for part in evaluation.slices) else MODALITY
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("", no_wrap=True)
    columns, baseline = ("random", "first", "reranked"), evaluation.baseline
    name = f"run {baseline}" if baseline in ("queries", *columns, "change") else fit(baseline or "", 20)
    # A baseline run takes the place of the second measure, for which there is no room.
    beside = (f"{SECONDARY}:", *columns) if baseline is None else (name, "change")
    for header in ("queries", f"{PRIMARY}:", *columns, *beside):
        table.add_column(header, justify="right", no_wrap=True)
    for part in by_size(evaluation.slices, dimension):
        table.add_row(escape(fit(one_line(part.value), _LABEL - 8)), *_cells(part))
    table.add_row("all", *_cells(evaluation.overall))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _cells(part: Slice) -> list[str]:
    cells = [f"{part.queries:,}"]
    for measure in (PRIMARY, SECONDARY) if part.baseline is None else (PRIMARY,):
        first = f"{part.first_stage[measure]:.3f}" if part.first_stage else "–"
        cells += ["", f"{part.random[measure]:.3f}", first, f"{part.reranked[measure]:.3f}"]
    if part.baseline is not None:
        cells += [f"{part.baseline[PRIMARY]:.3f}", f"{part.baseline_gain[PRIMARY].mean:+.3f}"]
    return cells


def _intervals(overall: Slice) -> list[str]:
    """Bounds of the primary measure over all queries, on a line; none for few queries, or without a first stage."""
    if PRIMARY not in overall.gain or (gain := overall.gain[PRIMARY]).low is None or gain.high is None:
        return []
    (a, b), (c, d) = (bounds[PRIMARY] for bounds in (overall.first_intervals, overall.intervals))
    change = f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    return [
        f"{PRIMARY}, {100 * LEVEL:.0f} % intervals: first {a:.3f}–{b:.3f}, reranked {c:.3f}–{d:.3f}, change {change}"
    ]
