"""The console command `lakerank` and its subcommands; `job` holds what they share."""

from __future__ import annotations

import importlib

import click

from lakerank import __version__

#: Every job and what it does. The module of its name here has it, or that of _MODULES, imported when it is run.
JOBS = {
    "ingest": "files and folders into lake tables",
    "candidates": "documents and queries into first-stage candidates",
    "rerank": "plan, score, rank, audit and publish a run",
    "score": "answer one request of the hosted rerank API",
    "evaluate": "a run and relevance judgements into metrics and a report",
    "explain": "a run into the parts of documents that carried their scores",
    "export": "a published run in the format of an index or a tool",
    "train": "lake tables into a checkpoint or an adapter",
    "distill": "a run's scores into a cheaper reranker",
    "fetch": "a reranker of English texts, to score with",
    "clean": "list or delete what no kept run needs",
}

#: The same for people at a terminal; these have no file in jobs/.
FOR_PEOPLE = {
    "search": "from a folder and questions to ranked lists, in one",
    "init": "write lakerank.yaml for a folder and questions",
    "show": "the lists of a run, before and after reranking",
    "runs": "the runs of a lake",
}
COMMANDS = FOR_PEOPLE | JOBS

#: Other modules. The packages that evaluate and that make checkpoints are above this one.
_MODULES = {"init": "search", "clean": "runs", "evaluate": "lakerank_evaluation.cli"}
_MODULES |= dict.fromkeys(("train", "distill", "fetch"), "lakerank_training.cli")


class _Jobs(click.Group):
    """Subcommands whose modules are imported on use, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        path = module if "." in module else f"{__name__}.{module}"
        command: click.Command = getattr(importlib.import_module(path), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


#: For click's "Did you mean", which looks at names.
_NAMES = {name: click.Command(name) for name in COMMANDS}


@click.group(cls=_Jobs, commands=_NAMES, epilog="`lakerank COMMAND --help` has the options of a command.")
@click.version_option(__version__)
def main() -> None:
    """Precompute relevance over a document lake."""
