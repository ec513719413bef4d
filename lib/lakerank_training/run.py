"""A whole training run: the config is read here, and what is below takes records and plain values."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

import lakerank
from lakerank.errors import ConfigError
from lakerank.lake.storage import Storage
from lakerank.limits import Limits
from lakerank.model.preprocess.images import PatchShape
from lakerank_training.batches import Sampler
from lakerank_training.config import RECIPES, TablesConfig, TrainConfig
from lakerank_training.dataset import Dataset, DatasetTables, ImageStore, read_dataset
from lakerank_training.inputs import Augment, EncodedDataset, encode_dataset
from lakerank_training.losses import Objective, RankingObjective
from lakerank_training.model import PairNetwork, TrainableModel, adapt, load_model
from lakerank_training.step import (
    DistributedContext,
    MakeOptimizer,
    Schedule,
    Step,
    StepSettings,
    adamw,
    distributed_context,
)  # fmt: skip
from lakerank_training.trainer import (
    Cadence,
    RunIdentity,
    StateFolder,
    Trainer,
    TrainingResult,
    checkpoint_identity,
    dataset_identity,
    flat,
)  # fmt: skip
from lakerank_training.validate import HeldOutSlice, Validation, duplicate_queries

log = logging.getLogger(__name__)

#: Of a line of metrics.jsonl: what is no loss.
_NOT_PLOTTED = {"step", "stage", "norm", "rate", "seconds", "loss"}


class Recipe(Protocol):
    """The module of a config's `recipe`: how it differs from fine-tuning.

    `augment`: how the images of a step are changed. `initialise`: a model from scratch, its tokenizer trained on the
    dataset. `objective`: what stages minimise, around the objective of fine-tuning. `optimizer`: what changes the
    weights. `faults`: what the config asks for and the dataset or the network does not have.
    """

    def augment(self, config: TrainConfig) -> Augment | None: ...
    def initialise(self, config: TrainConfig, dataset: Dataset) -> TrainableModel: ...
    def objective(self, config: TrainConfig, ranking: RankingObjective, model: TrainableModel) -> Objective: ...
    def optimizer(self, config: TrainConfig) -> MakeOptimizer: ...
    def faults(self, config: TrainConfig, dataset: Dataset, network: PairNetwork) -> list[str]: ...


def run_training(config: TrainConfig) -> TrainingResult:
    """Train as configured and leave a checkpoint in `output/checkpoint`, or an adapter in `output/adapter`.

    Started by torchrun or Spark's TorchDistributor, it trains together with the other processes.

    Raises:
        ConfigError: the config asks for what the lake or the network does not have.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with distributed_context(config.device) as processes:
        return _run(config, processes)


def _run(config: TrainConfig, processes: DistributedContext) -> TrainingResult:
    recipe = cast(Recipe, import_module(f"{RECIPES[config.recipe]}.recipe")) if config.recipe else None
    output = Path(config.output)
    inputs = read_inputs(config, recipe)
    step = _make_step(config, recipe, inputs, processes)
    validation = Validation(inputs.slices, config.evaluation.candidates, config.seed, config.bf16)
    if faults := _faults(config, recipe, step, validation):
        raise ConfigError(faults)
    trainer = Trainer(
        step,
        output,
        StateFolder(output / "state", identify_run(config, inputs)),
        Cadence(config.evaluation.every, config.checkpoint_every, config.evaluation.patience),
        validation,
        publish=lambda: inputs.model.save(output),
    )
    if processes.first:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    result = trainer.train()
    if processes.first:
        if config.lora.merge:
            inputs.model.merge(output)
        draw_progress(output / "metrics.jsonl", output / "progress.png")
        for name in ("adapter", "checkpoint"):
            if (output / name).is_dir():
                card = model_card(name, config, step, result)
                (output / name / "README.md").write_text(card, encoding="utf-8")
    processes.wait()
    return result


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run: a model, the encoded dataset, and held-out slices."""

    model: TrainableModel
    data: EncodedDataset
    slices: Mapping[str, HeldOutSlice]


def read_inputs(config: TrainConfig, recipe: Recipe | None = None) -> RunInputs:
    """Load the model and read the tables; `recipe`: of a config that starts from scratch."""
    storage = Storage(config.lake.storage, config.lake.columns.by_address(config.lake))
    model = load_model(config.start.path, config.start.revision) if config.start.path else None
    images = ImageStore(Limits(max_pixels=config.picture_side**2), model.patches if model else PatchShape())

    def read(tables: TablesConfig) -> Dataset:
        columns = {"topic": config.lake.topic, "kind": config.lake.kind}
        paths = columns | tables.model_dump(include={each.name for each in fields(DatasetTables)})
        # A network from scratch learns its words from all texts.
        return read_dataset(storage, DatasetTables(**paths), images, whole=config.start.path is None)

    dataset = read(config.lake)
    if model is None:
        if recipe is None:
            raise ValueError("fine-tuning starts from a checkpoint")
        model = recipe.initialise(config, dataset)
    if config.mode == "lora":
        adapter = adapt(model.network, config.lora, config.seed, config.start.path, config.start.revision)
        model = replace(model, adapter=adapter)
    limits = (config.max_document_tokens, config.max_query_tokens)

    def encode(dataset: Dataset) -> EncodedDataset:
        return encode_dataset(dataset, model.tokenizer, model.special, *limits)

    return RunInputs(model, encode(dataset), _slices(config, dataset, lambda tables: encode(read(tables))))


def _slices(
    config: TrainConfig, trained: Dataset, read: Callable[[TablesConfig], EncodedDataset]
) -> dict[str, HeldOutSlice]:
    tables: dict[tuple[str, str, str], EncodedDataset] = {}
    slices = {}
    for name, part in config.evaluation.slices.items():
        if part.addresses not in tables:
            tables[part.addresses] = read(part)
        data, trained_on = tables[part.addresses], part.addresses == config.lake.addresses
        duplicates = frozenset[int]() if trained_on else duplicate_queries(data.dataset, trained)
        if duplicates:
            log.warning(
                "slice %s: %d queries repeat the content of a query that is trained on: left out", name, len(duplicates)
            )
        kinds = (part.document_kinds, part.query_kinds)
        slices[name] = HeldOutSlice(data, *kinds, trained_on, part.same_topics, duplicates)
    return slices


def _make_step(config: TrainConfig, recipe: Recipe | None, inputs: RunInputs, processes: DistributedContext) -> Step:
    model, dataset, rates = inputs.model, inputs.data.dataset, config.optimizer
    log.info(
        "%d documents, %d queries, %d topics", len(dataset.documents.ids), len(dataset.queries.ids), len(dataset.topics)
    )
    augment = None if recipe is None else recipe.augment(config)
    network = PairNetwork(model.network.to(processes.device(config.device)), config.gradient_checkpointing, augment)
    ranking = RankingObjective(network, inputs.data, model.logit_bias)
    objective = ranking if recipe is None else recipe.objective(config, ranking, model)
    parameters = objective.parameters()
    make_optimizer = adamw if recipe is None else recipe.optimizer(config)
    return Step(
        settings=StepSettings(config.seed, rates.clip, rates.step_tokens, config.bf16),
        schedule=Schedule(config.stages, rates.learning_rate, rates.warmup_steps, rates.floor),
        objective=objective,
        data=inputs.data,
        samplers=[Sampler(dataset, stage, config.negatives) for stage in config.stages],
        parameters=parameters,
        optimizer=make_optimizer(parameters, rates.weight_decay),
        processes=processes,
    )


def _faults(config: TrainConfig, recipe: Recipe | None, step: Step, validation: Validation) -> list[str]:
    """Faults that would stop a run midway or inflate its figures."""
    dataset = step.data.dataset
    faults = recipe.faults(config, dataset, step.objective.network) if recipe else []
    for sampler in step.samplers:
        stage, needed, available = sampler.stage, sampler.stage.groups * sampler.stage.group_size, len(sampler.topics)
        if needed > available:
            kind = "topics" if dataset.has_topics else "queries"
            faults.append(f"stages: {stage.name}: a step needs {needed} different {kind}, the lake has {available}")
    scores = (score for candidates in dataset.candidates for score in candidates.values())
    if config.negatives.below is not None and any(score <= 0 for score in scores):
        faults.append(
            f"negatives.below: in {config.lake.candidates} some candidate has no first_stage_score above 0, of which a "
            "share could be taken; give every candidate one, or set negatives.below=null and use negatives.skip"
        )
    return faults + validation.faults(dataset)


def identify_run(config: TrainConfig, inputs: RunInputs) -> RunIdentity:
    """Name a run by its config and by what it reads."""
    settings, stages = config.lasting()
    named = flat(settings) | flat(dataset_identity(inputs.data.dataset), "lake.")
    for name, part in inputs.slices.items():
        named |= flat(dataset_identity(part.data.dataset), f"evaluation.slices.{name}.")
    if inputs.model.source is not None:
        named["start.path"] = checkpoint_identity(inputs.model.source)
    return RunIdentity(named, [(stage["steps"], stage) for stage in stages])


def model_card(name: str, config: TrainConfig, step: Step, result: TrainingResult) -> str:
    """`README.md` of the adapter or the checkpoint: what was trained on what, how, and with what result."""
    output, dataset = Path(config.output), step.data.dataset
    use = f"model.adapter: {output}/adapter" if name == "adapter" else f"model.path: {output}/checkpoint"
    base = f"base_model: {config.start.path}\nlibrary_name: peft\n" if name == "adapter" else ""
    early = " (stopped early; these are the best weights)" if result.stopped_early else ""
    figures = "None were measured: the config names no `evaluation.slices`."
    if result.figures:
        rows = "".join(f"\n| {part} | {figure:.3f} |" for part, figure in result.figures.items())
        figures = f"nDCG@10 over {config.evaluation.candidates} documents at the last evaluation:\n\n"
        figures += f"| slice and direction | nDCG@10 |\n|---|---|{rows}"
    return f"""---
{base}tags: [reranking, lakerank]
---
# A reranker {name} trained by lakerank {lakerank.__version__}

Started from {config.start.path or config.start.FROM_SCRATCH}; \
{sum(value.numel() for value in step.parameters.values()):,} parameters trained in mode `{config.mode}`, \
{result.steps} steps{early}.
Use it with `{use}`. Its licence is that of what it started from and of the data.

## Data

{len(dataset.documents.ids):,} documents ({int((dataset.documents.images >= 0).sum()):,} with an image), \
{len(dataset.queries.ids):,} queries, {sum(map(len, dataset.grades)):,} judgements above 0. \
Images under {config.picture_side}² pixels.

## Figures

{figures}

## Config

```yaml
{config.to_yaml().rstrip()}
```
"""


def draw_progress(metrics: Path, image: Path) -> None:
    """Draw `metrics.jsonl` as a PNG: losses by step, and held-out nDCG@10 below. Without matplotlib there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no %s: it takes matplotlib (pip install 'lakerank[report]')", image.name)
        return
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record]
    evaluations = [{"step": record["step"], **record["ndcg@10"]} for record in records if record.get("ndcg@10")]
    figure = Figure(figsize=(8, 6 if evaluations else 3.5), layout="constrained")
    axes = figure.subplots(2 if evaluations else 1, 1, squeeze=False, sharex=True)[:, 0]
    window = max(1, len(steps) // 100)
    _plot(axes[0], steps, window)
    axes[0].set_ylabel(f"loss (mean of {window} steps)" if window > 1 else "loss")
    if evaluations:
        _plot(axes[1], evaluations)
        axes[1].set(ylabel="nDCG@10", ylim=(0, 1))
    axes[-1].set_xlabel("step")
    figure.savefig(image, dpi=120)


def _plot(axes: Any, records: Sequence[Mapping[str, Any]], window: int = 1) -> None:
    """A line for each quantity, the mean over a window of steps."""
    for name in sorted({name for record in records for name in record} - _NOT_PLOTTED):
        steps, values = np.array([(record["step"], record[name]) for record in records if name in record]).T
        width = min(window, len(values))
        means = np.convolve(values, np.full(width, 1 / width), "valid")
        axes.plot(steps[width - 1 :], means, marker="" if window > 1 else ".", linewidth=1, label=name)
    axes.legend(fontsize="small")
