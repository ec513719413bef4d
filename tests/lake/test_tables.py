"""Tables of many kinds are read as the contract has them; what cannot be is named."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakerank.errors import SchemaError, StorageError
from lakerank.lake.blobs import BlobRef, fetch
from lakerank.lake.columns import decode_text, locate
from lakerank.lake.snapshot import TableFile, packed
from lakerank.lake.storage import Storage, join
from lakerank.lake.tables import (
    BATCH_BYTES,
    STREAM_BYTES,
    fragments,
    index_key,
    parquet_bytes,
    read_table_file,
    table_reader,
)
from lakerank.model.preprocess.pipeline import BoundedCache
from lakerank.schemas import CANDIDATES, DOCUMENTS, QRELS, QUERIES, RANKED


def written(storage: Storage, uri: str, table: pa.Table, row_group_rows: int = 100) -> str:
    storage.create(uri, parquet_bytes(table, row_group_rows))
    return uri


def read(storage: Storage, uri: str, expected: pa.Schema, **options: object) -> pa.Table:
    return pa.Table.from_batches([batch for _, _, batch in read_table_file(storage, uri, expected, **options)])  # type: ignore[arg-type]


def test_rows_come_with_their_place_in_file_order(storage: Storage, empty_folder: str) -> None:
    table = pa.table({"doc_id": [f"d{n}" for n in range(10)], "text": ["x"] * 10})
    uri = written(storage, join(empty_folder, "a.parquet"), table, row_group_rows=4)
    places = []
    for group, rows, batch in read_table_file(storage, uri, DOCUMENTS, batch_rows=3):
        places += [(group, row, ident) for row, ident in zip(rows, batch["doc_id"].to_pylist(), strict=True)]
    assert places == [(n // 4, n % 4, f"d{n}") for n in range(10)]


def test_chosen_row_groups_are_read_alone(storage: Storage, empty_folder: str) -> None:
    table = pa.table({"doc_id": [f"d{n}" for n in range(10)]})
    uri = written(storage, join(empty_folder, "a.parquet"), table, row_group_rows=4)
    result = [
        (group, rows[0], batch["doc_id"].to_pylist())
        for group, rows, batch in read_table_file(storage, uri, DOCUMENTS, row_groups=[2, 0])
    ]
    assert result == [(2, 0, ["d8", "d9"]), (0, 0, ["d0", "d1", "d2", "d3"])]


def test_batches_have_the_contract_s_types_and_text_as_bytes(storage: Storage, empty_folder: str) -> None:
    uri = written(storage, join(empty_folder, "a.parquet"), pa.table({"extra": [1], "text": ["é"], "doc_id": ["d"]}))
    table = read(storage, uri, DOCUMENTS)
    assert table.schema.names == DOCUMENTS.names
    assert table.schema.types == [*DOCUMENTS.types[:1], pa.binary(), *DOCUMENTS.types[2:]]
    assert table.to_pylist() == [dict.fromkeys(DOCUMENTS.names) | {"doc_id": "d", "text": "é".encode()}]


def test_columns_may_be_chosen_and_all_of_them_missing(storage: Storage, empty_folder: str) -> None:
    uri = written(
        storage, join(empty_folder, "a.parquet"), pa.table({"doc_id": ["a", "b", "c"], "text": ["x", None, "z"]})
    )
    assert read(storage, uri, DOCUMENTS, columns=["text", "doc_id"]).to_pydict() == {
        "text": [b"x", None, b"z"],
        "doc_id": ["a", "b", "c"],
    }
    assert read(storage, uri, DOCUMENTS, columns=["image"], batch_rows=2).to_pydict() == {"image": [None] * 3}


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_kind_of_string_is_read(storage: Storage, empty_folder: str, kind: pa.DataType) -> None:
    values = pa.array(["añ", None, "añ"])
    column = values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values.cast(kind)
    ids = values if column.type in (pa.binary(), pa.large_binary(), pa.binary_view()) else column
    table = pa.table({"doc_id": ids, "text": column, "content_hash": column})
    uri = written(storage, join(empty_folder, "a.parquet"), table)
    table = read(storage, uri, DOCUMENTS)
    assert table["doc_id"].to_pylist() == ["añ", None, "añ"]
    assert table["content_hash"].to_pylist() == ["añ", None, "añ"]
    assert table["text"].to_pylist() == ["añ".encode(), None, "añ".encode()]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float64(), pa.null()], ids=str)
def test_every_width_of_number_is_read(storage: Storage, empty_folder: str, kind: pa.DataType) -> None:
    ranks = [None, None] if kind == pa.null() else [7, None]
    table = pa.table(
        {
            "query_id": ["q", "q"],
            "doc_id": ["a", "b"],
            "first_stage_rank": pa.array(ranks, kind),
            "first_stage_score": pa.array([0.5, None], pa.float32()),
        }
    )
    uri = written(storage, join(empty_folder, "a.parquet"), table)
    rows = read(storage, uri, CANDIDATES)
    assert rows.schema.types == CANDIDATES.types
    assert rows["first_stage_rank"].to_pylist() == ranks
    assert rows["first_stage_score"].to_pylist() == [0.5, None]


@pytest.mark.parametrize("value", [2**40, 0.5, float("nan"), float("inf")])
def test_a_number_that_does_not_fit_is_named_with_its_row(storage: Storage, empty_folder: str, value: float) -> None:
    values = pa.array([1, None, 2, value, 3], pa.int64() if isinstance(value, int) else pa.float64())
    table = pa.table({"query_id": ["q"] * 5, "doc_id": list("abcde"), "relevance": values})
    uri = written(storage, join(empty_folder, "judged.parquet"), table)
    fault = f"column 'relevance' holds {value}, which does not fit int32 (row 3 of row group 0, counted from row 0)"
    with pytest.raises(SchemaError, match=rf"judged\.parquet: {re.escape(fault)}"):
        read(storage, uri, QRELS)


def test_the_rank_that_means_none_is_no_rank(storage: Storage, empty_folder: str) -> None:
    for rank, fits in ((2**31 - 2, True), (2**31 - 1, False)):
        table = pa.table({"query_id": ["q"], "doc_id": ["d"], "first_stage_rank": pa.array([rank], pa.int64())})
        uri = written(storage, join(empty_folder, f"{fits}.parquet"), table)
        if fits:
            assert read(storage, uri, CANDIDATES)["first_stage_rank"].to_pylist() == [rank]
        else:
            with pytest.raises(SchemaError, match=r"'first_stage_rank' holds 2147483647, .* the largest is 2147483646"):
                read(storage, uri, CANDIDATES)


def test_a_missing_column_is_named_with_what_was_found() -> None:
    result = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pytest.raises(SchemaError, match=r"lake/a\.parquet: no column 'doc_id', did you mean 'id'\? \(found: id, t"):
        locate(TableFile("lake/a.parquet"), result, DOCUMENTS)


def test_a_column_that_stands_twice_is_named() -> None:
    result = pa.schema([("doc_id", pa.string()), ("doc_id", pa.string())])
    with pytest.raises(SchemaError, match="2 columns are called 'doc_id'"):
        locate(TableFile("a.parquet"), result, DOCUMENTS)


@pytest.mark.parametrize(
    ("schema", "name", "kind"),
    [
        (DOCUMENTS, "doc_id", pa.float64()),
        (DOCUMENTS, "text", pa.list_(pa.string())),
        (DOCUMENTS, "image", pa.string()),
        (DOCUMENTS, "image", pa.struct([("bytes", pa.string()), ("path", pa.string())])),
        (CANDIDATES, "first_stage_rank", pa.string()),
        (CANDIDATES, "first_stage_score", pa.bool_()),
        (RANKED, "truncated", pa.int8()),
    ],
    ids=str,
)
def test_a_column_of_another_type_is_named(schema: pa.Schema, name: str, kind: pa.DataType) -> None:
    result = pa.schema([field.with_type(kind) if field.name == name else field for field in schema])
    with pytest.raises(SchemaError, match=f"a.parquet: column '{name}' should be .*found: "):
        locate(TableFile("a.parquet"), result, schema)


def test_columns_of_other_names_are_found_and_only_their_leaves_are_read(tmp_path: Path) -> None:
    page = pa.array([{"Bytes": b"one", "path": "a.png"}, None, {"Bytes": None, "path": "b.png"}])
    table = pa.table(
        {"SKU": [1, 2, 3], "TEXT": ["x", None, "z"], "page": page, "Image": page, "content.hash": ["h"] * 3}
    )
    pq.write_table(table, file := tmp_path / "a.parquet")
    mapped = {"doc_id": "sku", "content_hash": "content.hash"}
    images = [b"one", None, None]  # a row whose bytes are elsewhere has no image
    for columns in (mapped, mapped | {"image": "page.bytes"}, mapped | {"image": "PAGE"}):
        with Storage().open_parquet(str(file)) as parquet:
            reader = table_reader(Storage(), TableFile(str(file), columns=columns), parquet, DOCUMENTS)
            assert reader.located.columns[2] in ("Image.Bytes", "page.Bytes")
            (batch,) = reader.batches([0], 10)
        assert batch["image"].to_pylist() == images
        assert batch["doc_id"].to_pylist() == ["1", "2", "3"]
        assert batch["text"].to_pylist() == [b"x", None, b"z"]
        assert batch["content_hash"].to_pylist() == ["h"] * 3
    hidden = TableFile(str(file), columns=mapped | {"image": "", "TEXT": ""})
    (batch,) = (batch for *_, batch in read_table_file(Storage(), hidden, DOCUMENTS))
    assert batch["image"].null_count == batch["text"].null_count == 3


@pytest.mark.parametrize(
    ("columns", "mapped", "fault"),
    [
        (
            {"DOC_ID": ["a"], "Doc_id": ["b"]},
            {},
            "columns 'DOC_ID' and 'Doc_id' differ only by case: say which is 'doc_id'",
        ),
        ({"DOC_ID": ["a"], "doc_id": ["b"]}, {}, None),
        ({"doc_id": ["a"]}, {"doc_id": "sku"}, "no column 'sku', which is to be 'doc_id'"),
        ({"doc_id": ["a"], "page": [{"b": 1}]}, {"text": "page.a"}, "no column 'page.a', which is to be 'text'"),
        ({"doc_id": ["a"]}, {"text": "doc_id.x"}, "no column 'doc_id.x', which is to be 'text'"),
    ],
)
def test_a_name_that_is_unclear_or_not_there_is_an_error(
    tmp_path: Path, columns: dict[str, object], mapped: dict[str, str], fault: str | None
) -> None:
    pq.write_table(pa.table({"text": ["x"], **columns}), file := tmp_path / "a.parquet")
    storage = Storage(columns={str(file): mapped})
    if fault is None:
        assert read(storage, str(file), DOCUMENTS)["doc_id"].to_pylist() == ["b"]
    else:
        with pytest.raises(SchemaError, match=rf"a\.parquet: {re.escape(fault)}.*lake\.columns"):
            fragments(storage, str(file), DOCUMENTS)


def test_a_column_that_means_something_else_is_left_out_by_an_empty_name(tmp_path: Path) -> None:
    table = pa.table({"doc_id": ["a"], "text": ["x"], "content_hash": [17], "image": [[1.5]]})
    pq.write_table(table, file := tmp_path / "a.parquet")
    with pytest.raises(
        SchemaError, match=r"column 'image' should be binary .*; column 'content_hash' should be string"
    ):
        fragments(Storage(), str(file), DOCUMENTS)
    storage = Storage(columns={str(file): {"content_hash": "", "image": ""}})
    (fragment,) = fragments(storage, str(file), DOCUMENTS)
    (batch,) = (batch for *_, batch in read_table_file(storage, fragment.file, DOCUMENTS))
    assert batch.to_pydict() | {"images": None, "image_uri": None} == {
        "doc_id": ["a"], "text": [b"x"], "image": [None], "content_hash": [None], "images": None, "image_uri": None,
    }  # fmt: skip


def test_a_footer_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"doc_id": ["a"], "text": ["x"]}), file := tmp_path / "a.parquet")
    storage, moment = Storage(), file.stat().st_mtime_ns
    before = fragments(storage, str(file), DOCUMENTS)
    file.write_bytes(bytes(file.stat().st_size))  # zeros, under the same version
    os.utime(file, ns=(moment, moment))
    assert fragments(storage, str(file), DOCUMENTS) == before
    for other, asked in ((storage, QUERIES), (pickle.loads(pickle.dumps(storage)), DOCUMENTS)):  # noqa: S301
        with pytest.raises(StorageError):
            fragments(other, str(file), asked)
    pq.write_table(pa.table({"doc_id": ["a", "b"], "text": ["x", "y"]}), file)
    assert [fragment.rows for fragment in fragments(storage, str(file), DOCUMENTS)] == [2]


def test_deleted_rows_are_left_out_and_the_others_keep_their_places(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"doc_id": list("abcdefgh"), "text": ["x"] * 8}), file := tmp_path / "a.parquet", row_group_size=3
    )
    table = TableFile(str(file), deleted=packed(np.array([0, 4, 5, 7])))
    rows = [
        (group, int(row), doc_id)
        for group, numbers, batch in read_table_file(Storage(), table, DOCUMENTS, batch_rows=2)
        for row, doc_id in zip(numbers, batch["doc_id"].to_pylist(), strict=True)
    ]
    assert rows == [(0, 1, "b"), (0, 2, "c"), (1, 0, "d"), (2, 0, "g")]
    assert index_key(table) != index_key(TableFile(str(file)))


def test_values_of_metadata_go_before_those_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "text=path").mkdir()
    pq.write_table(pa.table({"doc_id": ["a"]}), file := tmp_path / "text=path/a.parquet")
    for values, text in (({}, b"path"), ({"text": "metadata"}, b"metadata"), ({"text": None}, None)):
        (batch,) = (batch for *_, batch in read_table_file(Storage(), TableFile(str(file), values=values), DOCUMENTS))
        assert batch["text"].to_pylist() == [text]
    (tmp_path / "Sku=7").mkdir()
    pq.write_table(pa.table({"text": ["x"]}), file := tmp_path / "Sku=7/a.parquet")
    storage = Storage(columns={str(file): {"doc_id": "sku"}})
    (fragment,) = fragments(storage, str(file), DOCUMENTS)
    assert [batch["doc_id"].to_pylist() for *_, batch in read_table_file(storage, fragment.file, DOCUMENTS)] == [["7"]]


@pytest.mark.parametrize("schema", [DOCUMENTS, QUERIES, CANDIDATES, QRELS, RANKED])
def test_a_table_exactly_as_the_contract_has_it_passes(schema: pa.Schema) -> None:
    locate(TableFile("a.parquet"), schema, schema)


def test_fragments_come_in_order_with_their_sizes(storage: Storage, empty_folder: str) -> None:
    for name, rows in (("part=2/a", 5), ("part=1/b", 3), ("part=1/a", 0)):
        ids = pa.array([f"{name}-{row}" for row in range(rows)], pa.string())
        table = pa.table({"doc_id": ids, "text": ids})
        written(storage, join(empty_folder, f"{name}.parquet"), table, row_group_rows=2)
    result = fragments(storage, empty_folder, DOCUMENTS)
    names = [fragment.file.uri.removeprefix(empty_folder + "/") for fragment in result]
    assert names == ["part=1/a.parquet", "part=1/b.parquet", "part=2/a.parquet"]
    assert [fragment.rows for fragment in result] == [0, 3, 5]
    assert [fragment.row_groups for fragment in result][1:] == [2, 3]
    assert list(read_table_file(storage, result[0].file.uri, DOCUMENTS)) == []


def test_one_faulty_file_among_many_is_named(storage: Storage, empty_folder: str) -> None:
    for number in range(4):
        written(
            storage,
            join(empty_folder, f"{number}.parquet"),
            pa.table({"doc_id" if number != 2 else "id": ["a"], "text": ["a"]}),
        )
    with pytest.raises(SchemaError, match=r"2\.parquet: no column 'doc_id'"):
        fragments(storage, empty_folder, DOCUMENTS)


NO_TEXT = [bytes(range(200, 216)), bytes(range(100, 116))]


def stored_as(kind: str, values: list[bytes | None]) -> pa.Array:
    """Values as a column of a type; those of strings are not checked, as a careless writer stores them."""
    raw = pa.array(values, pa.binary())
    if kind == "string":
        return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    if kind == "large":
        large = raw.cast(pa.large_binary())
        return pa.Array.from_buffers(pa.large_string(), len(large), large.buffers())
    coded = raw.dictionary_encode()
    return pa.DictionaryArray.from_arrays(coded.indices, stored_as("string", coded.dictionary.to_pylist()))


@pytest.mark.parametrize("kind", ["string", "large", "dictionary"])
@pytest.mark.parametrize("expected", [DOCUMENTS, QUERIES, CANDIDATES, QRELS], ids=lambda schema: schema.names[-1])
def test_an_id_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path, expected: pa.Schema, kind: str) -> None:
    for bad in (NO_TEXT[0], b"caf\xe9".ljust(16), b"\xed\xa0\x80".ljust(16)):  # the last: a surrogate
        ids = stored_as(kind, [NO_TEXT[1], None, NO_TEXT[1], bad, bad])
        columns: dict[str, object] = {name: ids if name.endswith("_id") else [1] * 5 for name in expected.names}
        columns |= {name: ["x"] * 5 for name in ("text", "content_hash", "instruction") if name in columns}
        columns |= {"image": [b"x"] * 5} if "image" in columns else {}
        columns |= {"images": [[b"x"]] * 5, "image_uri": ["x"] * 5} if "images" in columns else {}
        file = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), file, row_group_size=10)
        with pytest.raises(SchemaError, match=r"a\.parquet: column '\w+_id' holds b.*, which is not UTF-8; .*row 3 of"):
            read(Storage(), str(file), expected)


def test_text_that_is_not_utf8_is_read_as_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"doc_id": ["a", "é\0 b"], "text": stored_as("string", [b"a\xff", None])}), file)
    table = read(Storage(), str(file), DOCUMENTS)
    assert table["text"].to_pylist() == [b"a\xff", None]
    assert table["doc_id"].to_pylist() == ["a", "é\0 b"]


@pytest.mark.parametrize("expected", [DOCUMENTS, QUERIES], ids=["documents", "queries"])
@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (["Txt", "img"], "no column 'text', did you mean 'Txt'? and no column 'image', did you mean 'img'?"),
        (["body"], "no column 'text' and no column 'image' (found: "),
    ],
)
def test_a_table_without_content_is_refused(tmp_path: Path, expected: pa.Schema, columns: list[str], hint: str) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({expected.names[0]: ["a"], **{name: ["x"] for name in columns}}), file)
    with pytest.raises(SchemaError, match=rf"a\.parquet: {re.escape(hint)}"):
        fragments(Storage(), str(tmp_path), expected)


def test_columns_come_from_the_path_and_partitions_may_begin_with_an_underscore(
    storage: Storage, empty_folder: str
) -> None:
    for folder in ("query_id=q0", "query_id=a%3D2%20%C3%A9", "query_id=__HIVE_DEFAULT_PARTITION__", "_lang=de"):
        rows = {"doc_id": ["d"]} | ({"query_id": ["own"]} if folder == "_lang=de" else {})
        written(storage, join(empty_folder, folder, "first_stage_rank=7", "a.parquet"), pa.table(rows))
    files = [fragment.file for fragment in fragments(storage, empty_folder, CANDIDATES)]
    tables = [read(storage, file, CANDIDATES) for file in files]
    assert {table["query_id"][0].as_py() for table in tables} == {"q0", "a=2 é", None, "own"}
    assert [table["first_stage_rank"].to_pylist() for table in tables] == [[7]] * 4


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_value_that_stands_in_many_rows_is_read_in_small_batches(tmp_path: Path, cached: bool, nested: bool) -> None:
    """In the file it is there once, so that its size says nothing about the rows'."""
    image, rows = os.urandom(2**20), 160
    indices = pa.array([0] * rows, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array([image], pa.binary()))
    column = pa.StructArray.from_arrays([column], ["bytes"]) if nested else column
    table = pa.table({"doc_id": [str(n) for n in range(rows)], "image": column})
    for is_known in (True, False):  # whether Arrow's own schema in the file says so
        file = tmp_path / "a.parquet"
        pq.write_table(table, file, store_schema=is_known)
        assert file.stat().st_size < 2 * len(image)
        if cached:
            refs, cache = (
                [BlobRef(str(file), 0, row) for row in (0, 159)],
                BoundedCache[pa.Table](16 * 2**20, lambda group: group.nbytes),
            )
            assert [blob.image for blob in fetch(Storage(), refs, "doc_id", cache)] == [image] * 2
            assert cache.bytes == 0
        else:
            batches = [batch for *_, batch in read_table_file(Storage(), str(file), DOCUMENTS)]
            assert sum(batch.num_rows for batch in batches) == rows
            assert max(batch.nbytes for batch in batches) <= 1.1 * BATCH_BYTES


@pytest.mark.parametrize("compliant", [True, False])
@pytest.mark.parametrize("structs", [False, True])
def test_a_value_in_many_lists_is_read_in_small_batches(tmp_path: Path, structs: bool, compliant: bool) -> None:
    image, rows = os.urandom(2**20), 160
    values: list[object] = [{"bytes": image, "path": "p"} if structs else image] * rows
    images = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), pa.array(values))
    file = tmp_path / "a.parquet"
    table = pa.table({"doc_id": [str(n) for n in range(rows)], "images": images})
    pq.write_table(table, file, use_compliant_nested_type=compliant)
    assert file.stat().st_size < 3 * len(image)
    batches = [batch for *_, batch in read_table_file(Storage(), str(file), DOCUMENTS)]
    assert sum(batch.num_rows for batch in batches) == rows
    assert max(batch.nbytes for batch in batches) <= 1.1 * BATCH_BYTES


def test_batches_stay_small_where_rows_are_large(tmp_path: Path) -> None:
    page = os.urandom(2**20)
    table = pa.table({"doc_id": [str(n) for n in range(140)], "image": [page[n:] + page[:n] for n in range(140)]})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression=None,
        use_dictionary=False,
        row_group_size=1000,
        write_batch_size=8,
        write_statistics=False,
    )
    storage, uri = Storage(), str(tmp_path / "a.parquet")
    storage.create(uri, bytes(sink.getvalue()))
    del table, sink
    before, rows, peak = pa.total_allocated_bytes(), 0, 0
    for _, (first, *_), batch in read_table_file(storage, uri, DOCUMENTS):
        assert first == rows
        assert batch.nbytes < 80 * 2**20
        assert batch["image"][0].as_py()[:16] == (page + page)[first : first + 16]
        rows += batch.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert rows == 140
    assert peak < STREAM_BYTES  # the row group was never held beside its batches


def test_a_damaged_file_is_named(storage: Storage, empty_folder: str) -> None:
    data = bytearray(parquet_bytes(pa.table({"doc_id": [f"d{n}" for n in range(1000)]}), 1000))
    data[20:60] = b"\x00" * 40
    storage.create(uri := join(empty_folder, "a.parquet"), bytes(data))
    with pytest.raises(StorageError, match=r"a\.parquet: damaged"):
        read(storage, uri, DOCUMENTS)


def test_no_file_stays_open(tmp_path: Path) -> None:
    uri = written(Storage(), str(tmp_path / "a.parquet"), pa.table({"doc_id": ["a"]}))
    for streaming in (False, True):
        with Storage().open_parquet(uri, streaming) as parquet:
            assert uri in map(os.path.realpath, Path("/proc/self/fd").iterdir())
        assert uri not in map(os.path.realpath, Path("/proc/self/fd").iterdir())
        assert parquet.metadata.num_rows == 1


@given(st.none() | st.text(st.characters(exclude_categories=("Cs",))))
def test_text_is_decoded_as_it_was_encoded(text: str | None) -> None:
    assert decode_text(None if text is None else text.encode()) == text


@given(st.binary())
def test_decoding_either_gives_back_the_bytes_or_raises(raw: bytes) -> None:
    try:
        text = decode_text(raw)
    except UnicodeDecodeError:
        assert raw.decode("utf-8", "replace").encode() != raw
    else:
        assert text is not None
        assert text.encode() == raw


def test_same_rows_same_bytes_however_they_are_chunked() -> None:
    texts = [os.urandom(500).hex() for _ in range(3000)]  # more than a page
    whole = pa.table({"doc_id": [f"d{n}" for n in range(3000)], "text": texts})
    pieces = pa.concat_tables([whole.slice(0, 700), whole.slice(700, 1901), whole.slice(2601)])
    noted = whole.replace_schema_metadata({"pandas": "something"})
    expected = parquet_bytes(whole, 2900, {"b": "2", "a": "1"})
    assert parquet_bytes(pieces, 2900, {"a": "1", "b": "2"}) == expected
    assert parquet_bytes(noted, 2900, {"a": "1", "b": "2"}) == expected


def test_a_parquet_file_is_as_it_was_asked_for() -> None:
    whole = pa.table({"doc_id": [f"d{n}" for n in range(100)], "text": ["x", None] * 50})
    parquet = pq.ParquetFile(pa.BufferReader(parquet_bytes(whole, 30, {"b": "2", "a": "1"})))
    assert parquet.num_row_groups == 4
    assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"
    assert parquet.schema_arrow.metadata == {b"a": b"1", b"b": b"2"}
    assert parquet.read().equals(whole)
