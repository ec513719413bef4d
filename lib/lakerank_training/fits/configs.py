"""A run's config with fitted values, written beside its evaluation, and what is printed of the fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from textwrap import wrap
from typing import Any

import click

from lakerank.config import CalibrationConfig, Config, RoutedConfig
from lakerank.lake.storage import Storage, join
from lakerank_evaluation.job import Evaluated, folder
from lakerank_evaluation.report.terminal import WIDTH
from lakerank_training.fits.scales import PAIRS, ScaleFit, fit_scales
from lakerank_training.fits.thresholds import fit_thresholds


def fit(storage: Storage, result: Evaluated, config: Config, fit_labels: bool, fit_calibration: bool) -> dict[str, Any]:
    """Fit what is asked for, print it, and write the config with it; returns its part of a job's summary.

    Raises:
        EvaluationError: there is too little to fit to.
    """
    fits: dict[str, Any] = {}
    if fit_labels:
        fits["labels"] = _fit_labels(storage, result, config)
    if fit_calibration:
        fits["calibration"] = _fit_calibration(storage, result, config)
    return fits


def _fit_labels(storage: Storage, result: Evaluated, config: Config) -> dict[str, Any]:
    thresholds = fit_thresholds(result.evaluation.pairs)
    ranking = config.ranking.model_copy(update={"label_thresholds": thresholds.thresholds})
    fitted = {**thresholds.as_dict(), "config": _write(storage, result, config, {"ranking": ranking})}
    click.echo(fit_lines(fitted))
    return fitted


def _fit_calibration(storage: Storage, result: Evaluated, config: Config) -> dict[str, Any]:
    """The config is only written if it names two rerankers."""
    fits = fit_scales(result.evaluation.pairs)
    address = None
    if isinstance(config.model, RoutedConfig):
        address = _write(storage, result, config, {"model": _rescaled(config.model, fits)})
    fitted = {**{name: fit and asdict(fit) for name, fit in fits.items()}, "config": address}
    click.echo(_scale_lines(fitted))
    return fitted


def _rescaled(model: RoutedConfig, fits: Mapping[str, ScaleFit | None]) -> RoutedConfig:
    """The same with the fits of some rerankers applied after their present calibrations."""
    changed = {}
    for name, fit in fits.items():
        if fit is not None:
            before = getattr(model, name).calibration
            after = CalibrationConfig(scale=fit.scale * before.scale, bias=fit.scale * before.bias + fit.bias)
            changed[name] = getattr(model, name).model_copy(update={"calibration": after})
    return model.model_copy(update=changed)


def _write(storage: Storage, result: Evaluated, config: Config, fitted: dict[str, Any]) -> str:
    """Write fitted.yaml, the config with fitted sections; returns its address."""
    address = join(folder(result.evaluation.inputs.paths), "fitted.yaml")
    storage.replace(address, config.model_copy(update=fitted).to_yaml().encode())
    return address


def fit_lines(fitted: Mapping[str, Any]) -> str:
    """The summary of `Fit.as_dict` as text."""
    lines = [f"Labels fitted to {fitted['pairs']:,} judged pairs, for the {fitted['method']}:"]
    rows = (("the run's own", "current"), ("fitted", "fitted"), ("fitted, other half of the queries", "held_out"))
    for name, key in rows:
        if (agreement := fitted[key]) is not None:
            lines.append(f"  {name:<34} accuracy {agreement['accuracy']:.3f}  kappa {agreement['kappa']:+.3f}")
    for threshold, grade, at_least in zip(
        fitted["label_thresholds"], fitted["grades"][1:], fitted["fitted"]["at_least"], strict=True
    ):
        figures = f"precision {at_least['precision']:.3f}  recall {at_least['recall']:.3f}"
        lines.append(f"  relevance from {threshold:<10g} judged {grade} or above: {figures}")
    if fitted["unjudged_are_0"]:
        lines.append("  (the judgements name relevant documents alone: all others count as 0)")
    if fitted["warning"]:
        lines += wrap(f"WARNING: {fitted['warning']}.", WIDTH)
    return "\n".join([*lines, f"Config: {fitted['config']}"])


def _scale_lines(fitted: Mapping[str, Any]) -> str:
    """The summary of fitted calibrations as text."""
    lines = []
    for name, pairs in PAIRS.items():
        if (fit_of := fitted[name]) is None:
            lines.append(f"Calibration of {pairs}: none; some must be judged relevant, and some not")
            continue
        losses = "  ".join(f"{key} {loss:.4f}" for key, loss in fit_of["log_loss"].items() if loss is not None)
        counts = f"{fit_of['relevant']:,} of {fit_of['pairs']:,} {pairs} are relevant"
        scale = f"scale {fit_of['scale']:g}, bias {fit_of['bias']:g}"
        lines.append(f"Calibration of model.{name}: {scale} on this run's logits")
        lines.append(f"  {counts}; log loss: {losses}")
    return "\n".join([*lines, f"Config: {fitted['config']}"] if fitted["config"] else lines)
