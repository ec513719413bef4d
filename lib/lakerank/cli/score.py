"""`lakerank score`: one request of the hosted rerank API, answered without Spark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

import click

from lakerank.cli import resolve
from lakerank.cli.job import Job
from lakerank.config import Config
from lakerank.errors import ConfigError


@click.command(cls=Job, config="optional")
@click.argument("request_file", metavar="REQUEST.json", type=click.File(encoding="utf-8"))
@click.option("--allow-host", multiple=True, metavar="HOST", help="Fetch images from this host; others are refused.")
def score(given: resolve.CommandLine, request_file: IO[str], allow_host: Sequence[str]) -> dict[str, Any]:
    """Answer one rerank request in the hosted API's JSON, without Spark.

    The request has query and documents (texts, or objects with text or image), top_n, return_documents, instruction for
    models that take one, and model: the configured one, or none. An image is base64, a data URI, or a URL of an allowed
    host. The last line of standard output is the response: the model that scored, results with index and
    relevance_score, best first, and usage.total_tokens; or an object with error and message. REQUEST.json may be - for
    standard input.
    """

    return _answer(given.config, parse_request(request_file, request_file.name), allow_host)


def parse_request(file: IO[str], name: str) -> dict[str, Any]:
    """The JSON object in a file, which messages call `name`. Raises ConfigError: it is none."""
    try:
        request = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{name}: not JSON: {error}"]) from error
    if not isinstance(request, dict):
        raise ConfigError([f"{name}: expected a JSON object with query and documents"])
    return request


def _answer(config: Config, request: dict[str, Any], allowed_hosts: Sequence[str]) -> dict[str, Any]:
    from lakerank.model.request import answer, parse

    if len(config.rerankers) > 1:
        raise ConfigError(["model: a request is answered by one reranker, or by one for texts and one for images"])
    model = config.rerankers[0]
    name, spec = resolve.model_name(model), resolve.model_spec(model)
    parsed = parse(request, name, allowed_hosts)
    scorer = spec.identify(limits := resolve.limits(config.scoring))
    if (parsed.instruction or "").strip() and not scorer.allows_instructions:
        raise ConfigError([f"instruction: {name!r} takes none; leave it out"])
    reranker = spec.load(config.device, limits, resolve.runtime_options(config.scoring), scorer)
    return answer(parsed, reranker, name, reranker.logit_bias, allowed_hosts)
