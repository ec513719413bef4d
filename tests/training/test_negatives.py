"""Hard negatives come from the first stage, and what looks like an unjudged positive is not used against its query."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lakerank.errors import ConfigError, SchemaError
from lakerank.lake.storage import Storage
from lakerank.limits import Limits
from lakerank_training.batches import NegativeRule, Sampler, TrainingStage
from lakerank_training.config import load_train_config
from lakerank_training.dataset import Dataset, DatasetTables, ImageStore, read_dataset
from lakerank_training.losses import margin_mse
from lakerank_training.run import run_training

#: First-stage scores of the candidates of "red.en"; red.picture, red.text and pink.text are judged relevant.
SCORES = {"red.text": 10.0, "green.text": 9.8, "blue.text": 6.0, "pink.text": 5.0, "black.text": 4.0, "teal.text": 1.0}


@pytest.fixture
def candidates(plain_lake: dict[str, str], tmp_path: Path) -> str:
    """Scores for one query, ranks alone for the others."""
    ranked = sorted(SCORES, key=lambda doc_id: -SCORES[doc_id])
    rows = [("red.en", doc_id, SCORES[doc_id], None) for doc_id in SCORES]
    rows += [("green.en", doc_id, None, place) for place, doc_id in enumerate(reversed(ranked), 1)]
    rows += [("green.en", "elsewhere", None, 9)]
    columns = list(zip(*rows, strict=True))
    table = {
        "query_id": columns[0],
        "doc_id": columns[1],
        "first_stage_score": pa.array(columns[2], pa.float64()),
        "first_stage_rank": pa.array(columns[3], pa.int32()),
    }
    path = str(tmp_path / "candidates.parquet")
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def dataset(plain_lake: dict[str, str], candidates: str) -> Dataset:
    return read(DatasetTables(**plain_lake, candidates=candidates))


def read(paths: DatasetTables) -> Dataset:
    return read_dataset(Storage(), paths, ImageStore(Limits(max_pixels=84**2)))


def names(dataset: Dataset, rows: list[int]) -> list[str]:
    return [dataset.documents.ids[row] for row in rows]


def test_what_is_relevant_or_out_of_the_window_is_no_negative(dataset: Dataset) -> None:
    red, green = (dataset.queries.ids.index(query) for query in ("red.en", "green.en"))
    assert names(dataset, NegativeRule().negatives(dataset, red)) == [
        "green.text",
        "blue.text",
        "black.text",
        "teal.text",
    ]
    assert names(dataset, NegativeRule(skip=2, depth=5).negatives(dataset, red)) == ["blue.text", "black.text"]
    assert names(dataset, NegativeRule(below=0.95).negatives(dataset, red)) == ["blue.text", "black.text", "teal.text"]
    assert names(dataset, NegativeRule(depth=2).negatives(dataset, green)) == ["teal.text", "black.text"]  # by rank


def test_a_batch_holds_each_query_s_negatives_and_leaves_suspects_unused(dataset: Dataset) -> None:
    stage = TrainingStage("pairs", steps=1, groups=2, group_size=3, hard_negatives=2)
    sampler = Sampler(dataset, stage, NegativeRule(below=0.95))
    red, suspect = dataset.queries.ids.index("red.en"), dataset.documents.ids.index("green.text")
    met = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        batch = sampler.draw(random, sampler.draw_topics(random))
        assert batch.shape == (9, 3)
        for group in range(2):
            for place in range(3):
                query = int(batch.queries[group * 3 + place])
                start = group * 9 + 3 + place * 2
                if query == red:
                    own = names(dataset, batch.documents[start : start + 2].tolist())
                    assert set(own) <= {"blue.text", "black.text", "teal.text"}
                    met += 1
        where = np.argwhere((batch.documents == suspect)[:, None] & (batch.queries == red)[None])
        assert not any(batch.known[d, q] for d, q in where)
    assert met > 5


def test_candidates_of_another_lake_are_refused(plain_lake: dict[str, str], tmp_path: Path) -> None:
    strange = {"query_id": ["q"], "doc_id": ["d"], "first_stage_rank": pa.array([1], pa.int32())}
    pq.write_table(pa.table(strange), tmp_path / "strange.parquet")
    with pytest.raises(SchemaError, match="is it of another lake"):
        read(DatasetTables(**plain_lake, candidates=str(tmp_path / "strange.parquet")))


def test_a_teacher_s_differences_are_followed_where_it_was_asked() -> None:
    teacher = torch.tensor([[1.0, 5.0], [3.0, torch.nan], [9.0, 2.0]])
    known = torch.tensor([[True, True], [True, True], [False, True]])
    assert float(margin_mse(torch.tensor([[0.0, 4.0], [2.0, 77.0], [-8.0, 1.0]]), teacher, known)) == 0
    scores = torch.zeros(3, 2, requires_grad=True)
    loss = margin_mse(scores, teacher, known)
    assert float(loss.detach()) == pytest.approx((2 * 2**2 + 2 * 3**2) / 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad[1, 1] == scores.grad[2, 0] == 0
    assert scores.grad[0, 0] > 0 > scores.grad[1, 0]


def test_a_run_learns_from_candidates_and_a_teacher(
    training_config: Callable[..., Path], plain_lake: dict[str, str], candidates: str, tmp_path: Path
) -> None:
    judged = pq.read_table(plain_lake["qrels"])
    teacher = judged.set_column(2, "logit", judged["relevance"].cast(pa.float32()))
    pq.write_table(teacher, tmp_path / "teacher.parquet")
    stage = {"name": "pairs", "steps": 2, "groups": 2, "group_size": 3, "hard_negatives": 1, "distillation_weight": 1}
    tables = plain_lake | {"candidates": candidates, "teacher": str(tmp_path / "teacher.parquet")}
    path = training_config(lake=tables, stages=[stage], evaluation={"every": 9})
    assert run_training(load_train_config(path)).steps == 2
    assert '"distillation"' in (tmp_path / "out" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("change", [None, 0.0, -3.0])
def test_a_share_of_a_score_needs_scores_above_0(
    training_config: Callable[..., Path],
    plain_lake: dict[str, str],
    candidates: str,
    tmp_path: Path,
    change: float | None,
) -> None:
    """Minus the rank, or a score of 0 or less: 95 % of it is more than all of it, or no less."""
    scored = pq.read_table(candidates).slice(0, len(SCORES))
    scores = [*scored["first_stage_score"].to_pylist()[1:], change]
    ranks = pa.array(range(1, len(SCORES) + 1), pa.int32())
    shown = scored.set_column(2, "first_stage_score", pa.array(scores, pa.float64()))
    pq.write_table(shown.set_column(3, "first_stage_rank", ranks), tmp_path / "shown.parquet")
    stage = {"name": "pairs", "steps": 1, "groups": 2, "group_size": 3, "hard_negatives": 1}
    tables = plain_lake | {"candidates": str(tmp_path / "shown.parquet")}
    path = training_config(lake=tables, stages=[stage], evaluation={"every": 9}, negatives={"below": 0.95})
    with pytest.raises(ConfigError, match=r"negatives\.below: .* no first_stage_score above 0"):
        run_training(load_train_config(path))
    pq.write_table(scored, tmp_path / "shown.parquet")
    assert run_training(load_train_config(path)).steps == 1
