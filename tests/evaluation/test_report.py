"""The page: escaped, self-contained, the same twice, and unmoved by bad images."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lakerank.errors import StorageError
from lakerank.lake.storage import Storage
from lakerank_evaluation.examples import PER_REASON, THUMBNAIL_SIDE, fetch_rejects, thumbnail
from lakerank_evaluation.inputs import find_inputs
from lakerank_evaluation.job import evaluate_run, folder
from lakerank_evaluation.report import html as report
from lakerank_evaluation.report.tables import query_table

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>document.title = 'owned'</script>"
ATTRIBUTE = '" onload="alert(1)'


class Page(HTMLParser):
    """Collects tags, what they refer to, and ids; `open` holds the tags not closed yet."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(lake) -> tuple[str, Page]:
    done = lake.evaluated()
    html = Path(done.report).read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    page.close()
    return html, page


@pytest.fixture
def hostile_lake(make_lake, encode):
    long_id = "x" * 200
    documents = [
        {"doc_id": long_id, "text": EVIL, "name": EVIL},
        {"doc_id": ATTRIBUTE, "image": encode(), "name": ATTRIBUTE},
        {"doc_id": "broken", "image": encode()[:40]},
        {"doc_id": "no-image", "image": b"GIF, honestly"},
        {"doc_id": "latin", "text": "ok"},
    ]
    ids = [document["doc_id"] for document in documents]
    return make_lake(
        documents=documents,
        queries=[{"query_id": EVIL, "text": EVIL, "language": ATTRIBUTE, "task": EVIL, "slice": "a&b"}],
        candidates=[(EVIL, doc, rank) for rank, doc in enumerate(ids, start=1)],
        qrels=[(EVIL, long_id, 1)],
        ranked={EVIL: ids[::-1]},
        rejected=[(EVIL, "gone", EVIL)],
        manifest={
            "scorer": EVIL,
            "published_at": EVIL,
            "published_anyway": {"by": EVIL, "reason": EVIL},
            "audit": [{"name": EVIL, "value": 0.5, "bound": 0.1, "passed": False, "detail": EVIL}],
        },
    )


def test_what_is_stored_is_escaped(hostile_lake):
    html, page = parsed(hostile_lake)
    assert page.tags.count("script") == 1, "the page's own"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert html.count("&lt;script&gt;document.title = &#39;owned&#39;&lt;/script&gt;") >= 8
    assert "x" * 200 in html
    assert page.open == []


def test_bad_images_are_named_and_not_shown(hostile_lake):
    html, page = parsed(hostile_lake)
    lists = html.count("<ol>")
    assert page.tags.count("img") == lists, "one good image in every list"
    assert html.count("image not shown") == 2 * lists


def test_nothing_is_fetched(small_lake):
    html, page = parsed(small_lake)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert references
    assert {value for value in references if not value.startswith(("data:", "#"))} == {"evaluation/queries.csv"}
    assert not {"link", "iframe", "object", "form"} & set(page.tags)
    assert not [value for name, value in page.attributes if name == "src" and not value.startswith("data:")]
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "ids are unique over all plots"


def test_tables_have_headers(small_lake):
    _, page = parsed(small_lake)
    scopes = [value for name, value in page.attributes if name == "scope"]
    assert page.tags.count("th") == len(scopes)


def test_the_same_run_gives_the_same_bytes(small_lake):
    first, _ = parsed(small_lake)
    Path(small_lake.paths.report).unlink()
    assert parsed(small_lake)[0] == first


def test_what_is_drawn_is_said_too(small_lake):
    _, page = parsed(small_lake)
    drawn = page.tags.count("svg")
    messages = [value for name, value in page.attributes if name == "aria-label"]
    assert page.attributes.count(("role", "img")) == 5, "ceiling, relevance, logits, gains, calibration"
    assert [value for name, value in page.attributes if name == "aria-hidden"].count("true") == drawn
    assert all(messages)
    assert all(value for name, value in page.attributes if name == "alt")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_the_page(theme):
    """At least 4.5 to 1, as WCAG 2.2 asks for (1.4.3)."""
    css = (Path(report.__file__).parent / "templates/report.css").read_text()
    colours = dict(
        re.findall(
            r"--([\w-]+): (#[0-9a-f]{6})", css.split("@media print")[0].split("prefers-color-scheme")[theme == "dark"]
        )
    )

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for ink, page in [(name, "page") for name in ("ink", "muted", "loss", "good")] + [
        ("ink", "good-tint"),
        ("muted", "good-tint"),
        ("good", "good-tint"),
        ("ink", "loss-tint"),
        ("loss", "loss-tint"),
    ]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[page])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {page}"


def test_again_replaces_everything(small_lake):
    first, _ = parsed(small_lake)
    home = Path(folder(small_lake.paths))
    (home / "gap-of-an-earlier-run.png").write_bytes(b"old")
    (home / "queries/part-00007.parquet").write_bytes(b"old")
    (home / "fitted.yaml").write_text("kept")
    assert parsed(small_lake)[0] == first
    assert not (home / "gap-of-an-earlier-run.png").exists()
    assert [path.name for path in (home / "queries").iterdir()] == ["part-00000.parquet"]
    assert (home / "fitted.yaml").exists()


def test_numbers_and_plots_lie_beside_the_page(small_lake):
    done = small_lake.evaluated()
    home = Path(folder(small_lake.paths))
    rows = list(csv.DictReader(io.StringIO((home / "slices.csv").read_text())))
    overall = {row["measure"]: row for row in rows if row["dimension"] == "all"}
    assert float(overall["nDCG@10"]["reranked"]) == done.evaluation.overall.reranked["nDCG@10"]
    by_query = pq.read_table(home / "queries/part-00000.parquet").to_pylist()
    assert [row["query_id"] for row in by_query] == ["q1", "q2", "q3"]
    rows = list(csv.DictReader(io.StringIO((home / "queries.csv").read_text())))
    names = ("query_id", "text", "labels", "relevant", "relevant_candidates", "first_relevant_before", "first_relevant")
    assert [[row[name] for name in names] for row in rows] == [
        ["q2", "qui", "text→text · fr", "1", "1", "1", ""],
        ["q3", "", "image→mixed", "1", "1", "2", "2"],
        ["q1", "wer", "text→text · de", "2", "2", "2", "1"],
    ]
    assert [row["reranked:Recall@10"] for row in by_query] == [1.0, 0.0, 1.0]
    for path in home.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size[0] > 300
    assert len(list(home.glob("*.png"))) == 4


def test_no_cell_of_a_csv_is_a_formula(make_lake):
    formula = "=HYPERLINK(1)"
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}],
        queries=[{"query_id": name, "text": "x", "task": task} for name, task in (("q", formula), ("r", "b"))],
        candidates=[("q", "a", 1), ("r", "a", 1)],
        qrels=[("q", "a", 1), ("r", "a", 1)],
        ranked={"q": ["a"], "r": ["a"]},
    )
    lake.evaluated()
    result = (Path(folder(lake.paths)) / "slices.csv").read_text()
    assert f"task,'{formula}," in result
    assert f",{formula}" not in result


def test_another_run_stands_beside_this_one(small_lake):
    small_lake.add_run("r0", {"q1": ["b", "a", "d"], "q3": ["c", "b"]})
    done = small_lake.evaluated(baseline="r0")
    overall = done.evaluation.overall
    assert overall.baseline["RR@10"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert overall.baseline_gain["RR@10"].mean == pytest.approx((1 / 2 + 0 - 1 / 2) / 3)
    assert done.summary()["against"]["run_id"] == "r0"
    html = Path(done.report).read_text()
    assert "Run r0 has" in html
    assert 'href="evaluation-against-r0/queries.csv"' in html
    with pytest.raises(StorageError):
        small_lake.evaluated(baseline="never")


def test_a_comparison_leaves_the_report_of_the_run_alone(small_lake):
    small_lake.add_run("r0", {"q1": ["b", "a", "d"]})
    plain = small_lake.evaluated()
    home = Path(small_lake.paths.folder)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    compared = small_lake.evaluated("r0")
    assert {path: path.read_bytes() for path in before} == before
    assert Path(compared.report).name == "report-against-r0.html"
    assert Path(compared.figures).name == "evaluation-against-r0.json"
    assert plain.report != compared.report
    own = home / "evaluation.json"
    own.unlink()
    small_lake.add_run("r9", {"q1": ["b", "a", "d"]})
    for baseline in ("r0", "r9"):
        small_lake.evaluated(baseline)
        assert json.loads(own.read_text())["against"] == baseline, "that of a run that is only compared"
    small_lake.evaluated()
    assert own.read_bytes() == before[own]


def test_the_page_says_what_was_evaluated(small_lake, runner):
    done = evaluate_run(runner, Storage(), find_inputs(Storage(), small_lake.tables, small_lake.paths, None, [EVIL]))
    html = Path(done.report).read_text()
    assert EVIL not in html
    assert '<td colspan="2">&lt;script&gt;document.title' in html, "the model"
    for table, rows in (("documents", 4), ("queries", 4), ("candidates", 7), ("qrels", 5)):
        address = getattr(small_lake.tables, table)
        assert f'<th scope="row">{table}</th><td class="n">{rows}</td><td>{address}</td>' in html
    assert "2 candidates a query (median; 1 to 3)" in html


def test_of_many_queries_the_largest_changes_are_in_the_table(small_lake):
    evaluation = small_lake.evaluation()
    table = query_table(evaluation, lambda query_ids: {"q1": "wer"}, most=2)
    assert table["query_id"].to_pylist() == ["q2", "q1"]
    assert table["text"].to_pylist() == ["", "wer"]


def test_small_slices_are_folded(make_lake):
    queries = [{"query_id": f"q{n}", "text": "x", "language": "de" if n < 10 else f"l{n}"} for n in range(12)]
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}],
        queries=queries,
        candidates=[(query["query_id"], "a", 1) for query in queries],
        qrels=[(query["query_id"], "a", 1) for query in queries],
        ranked={query["query_id"]: ["a"] for query in queries},
    )
    html, page = parsed(lake)
    assert page.open == []
    plain, _, folded = html.partition("2 with fewer than 10 queries")
    assert '<th scope="row">de</th>' in plain
    assert '<th scope="row">l10</th>' not in plain
    assert '<th scope="row">l10</th>' in folded


def test_rejects_have_a_few_examples_of_each_reason(make_lake):
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}],
        queries=[{"query_id": "q", "text": "why me"}],
        candidates=[("q", "a", 1)],
        qrels=[("q", "a", 1)],
        ranked={"q": ["a"]},
        rejected=[("q", f"gone-{n}", "missing_document") for n in range(9)] + [("q", "big", "image_too_large")],
    )
    rejects = fetch_rejects(Storage(), find_inputs(Storage(), lake.tables, lake.paths))
    assert [reject["reason"] for reject in rejects] == ["image_too_large"] + ["missing_document"] * PER_REASON
    assert {reject["query"] for reject in rejects} == {"why me"}


def test_the_audit_is_on_the_page(hostile_lake):
    html, _ = parsed(hostile_lake)
    assert "at most 0.1" in html
    assert "✗ failed" in html


def test_figures_and_work_are_on_the_page(small_lake):
    html, _ = parsed(small_lake)
    assert "Reranking raises nDCG@10" in html or "Reranking lowers nDCG@10" in html
    assert "75.0% (4.0× fewer)" in html
    timed = re.search(r"Score stage<.*>2 s<.*Pairs a second<.*>2<", html)
    assert timed, "pairs of the attempt that was timed, not of the run"
    assert "out of memory" in html
    assert "✓ relevant" in html
    assert "Published 2026-01-05 10:11 UTC" in html


def test_a_run_without_a_first_stage_or_a_manifest_has_a_page_too(make_lake):
    lake = make_lake(
        documents=[{"doc_id": "a", "text": "x"}],
        queries=[{"query_id": "q", "text": "x"}],
        candidates=[("q", "a", None)],
        qrels=[("q", "a", 1)],
        ranked={"q": ["a"]},
    )
    html, page = parsed(lake)
    assert "nDCG@10 is 1.000 over 1 judged query" in html
    assert "First stage</h3>" not in html
    assert page.open == []


def test_thumbnails_are_small_and_encoded_anew(encode):
    for kind, mode in [
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("JPEG", "L"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "CMYK"),
    ]:
        uri = thumbnail(encode((300, 100), kind, mode) if mode != "RGBA" else encode((300, 100), kind, "RGB"))
        data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 3)


@pytest.mark.parametrize("image", [b"", b"\x89PNG\r\n\x1a\n", b"not an image"])
def test_a_bad_image_has_no_thumbnail(image):
    assert thumbnail(image) is None


def test_an_image_over_the_limit_is_not_decoded(encode):
    assert thumbnail(encode((8000, 6000), "PNG", "1")) is None


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_in_silence(hostile_lake, tmp_path, width):
    """No stored script runs, nothing is complained of, no request leaves the page."""
    done = hostile_lake.evaluated()
    net_log, home = tmp_path / "net.json", tmp_path / "browser"
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--no-first-run", f"--user-data-dir={home}", f"--window-size={width},2000",
         "--enable-logging=stderr", f"--log-net-log={net_log}", "--dump-dom", Path(done.report).as_uri()],
        capture_output=True, text=True, timeout=120, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "<title>r1 · lakerank</title>" in shown.stdout, "a stored script would have set the title"
    assert "x" * 200 in shown.stdout
    assert ">1 of 1</output>" in shown.stdout, "the page's own script has run"
    assert "CONSOLE" not in shown.stderr
    events = json.loads(net_log.read_text())["events"]
    requests = [event["params"] for event in events if {"url", "initiator"} <= event.get("params", {}).keys()]
    # What has no origin the browser asks for by itself, whatever it shows.
    assert [request["url"] for request in requests if request["initiator"] != "not an origin"] == []
    assert requests, "the log tells who asks"
