"""Every format by its name."""

from __future__ import annotations

from collections.abc import Callable

from lakerank.export.bulk import opensearch_documents, opensearch_lists
from lakerank.export.format import Format, Target
from lakerank.export.judgements import ltr_judgements, quepid_csv, svmrank
from lakerank.export.tables import flat_csv, golden_pairs, parquet
from lakerank.export.trec import trec_qrels, trec_run
from lakerank.export.vespa import vespa_documents, vespa_lists

FORMATS: dict[str, Callable[[Target], Format]] = {
    "trec-run": trec_run,
    "trec-qrels": trec_qrels,
    "quepid-csv": quepid_csv,
    "ltr-judgements": ltr_judgements,
    "svmrank": svmrank,
    "opensearch-lists": opensearch_lists,
    "opensearch-documents": opensearch_documents,
    "vespa-lists": vespa_lists,
    "vespa-documents": vespa_documents,
    "parquet": parquet,
    "csv": flat_csv,
    "golden-pairs": golden_pairs,
}
