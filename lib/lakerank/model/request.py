"""One rerank request in the hosted API's JSON to its JSON response, without Spark."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lakerank.errors import ConfigError, PairRejected
from lakerank.lake.images.web import MAX_IMAGE_BYTES, fetch, url_fault
from lakerank.ranking import relevance
from lakerank.records import (
    CandidateList,
    Document,
    DocumentGroup,
    ListReranker,
    Query,
    Reject,
    Reranker,
    ScoredPair,
)


class RequestItem(BaseModel):
    """A query or a document: text, an image (base64, a data: URI or a URL), or both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = None
    image: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _holds_something(self) -> RequestItem:
        if self.text is None and self.image is None:
            raise ValueError("neither text nor image")
        return self

    @field_validator("image")
    @classmethod
    def _decodable(cls, value: str | None) -> str | None:
        if value is not None and not _is_url(value):
            _decode(value)
        return value


class RerankRequest(BaseModel):
    """The hosted API's request. `model`: null for whichever is configured. `top_n`: results returned (null: all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    query: RequestItem
    documents: list[RequestItem] = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=1, strict=True)
    return_documents: bool = Field(default=False, strict=True)
    instruction: str | None = Field(default=None, validation_alias=AliasChoices("instruction", "instruct"))


def parse(request: Mapping[str, Any], model: str, allowed_hosts: Collection[str] = ()) -> RerankRequest:
    """Check a request, before any model is loaded, that `model` is to answer: its path, or the name of its folder.

    Raises ConfigError: all faults are listed.
    """
    try:
        parsed = RerankRequest.model_validate(request)
    except ValidationError as error:
        raise ConfigError([_described(fault) for fault in error.errors()]) from error
    faults = []
    if parsed.model is not None and parsed.model not in (model, PurePath(model).name):
        faults.append(f"model: {parsed.model!r} is not the configured model, {model!r}; name that, or leave it out")
    items = [(("query",), parsed.query), *((("documents", index), item) for index, item in enumerate(parsed.documents))]
    urls = [((*where, "image"), item.image) for where, item in items if item.image is not None and _is_url(item.image)]
    faults += [_fault(where, fault) for where, url in urls if (fault := url_fault(url, allowed_hosts))]
    if faults:
        raise ConfigError(faults)
    return parsed


def answer(
    request: RerankRequest, reranker: Reranker, model: str, logit_bias: float, allowed_hosts: Collection[str] = ()
) -> dict[str, Any]:
    """The response, under the name of the model that scores: results sorted by relevance, and tokens of whole pairs.

    Raises:
        ConfigError: an image cannot be fetched.
        PairRejected: a document cannot be scored; its id is its index.
    """
    query = Query("query", request.query.text, _image(request.query, allowed_hosts), request.instruction)
    items = enumerate(request.documents)
    documents = [Document(str(index), item.text, _image(item, allowed_hosts)) for index, item in items]
    if isinstance(reranker, ListReranker):
        results = reranker.score_lists([CandidateList(query, tuple(documents))])
    else:
        results = reranker.score_groups([DocumentGroup(document, (query,)) for document in documents])
    scored: list[ScoredPair] = []
    for result in results:
        if isinstance(result, Reject):
            raise PairRejected(result.query_id, result.doc_id, result.reason, result.detail)
        scored.append(result)
    scored.sort(key=lambda pair: (-pair.logit, int(pair.doc_id)))
    return {
        "model": model,
        "results": [_result(pair, request, logit_bias) for pair in scored[: request.top_n]],
        "usage": {"total_tokens": sum(pair.query_tokens + pair.document_tokens for pair in scored)},
    }


def _described(fault: Any) -> str:
    """One of pydantic's faults."""
    if fault["type"] != "extra_forbidden":
        return _fault(fault["loc"], fault["msg"])
    known = RerankRequest if len(fault["loc"]) == 1 else RequestItem
    return _fault(fault["loc"], f"no such field; there are {', '.join(known.model_fields)}")


def _fault(where: tuple[int | str, ...], message: str) -> str:
    """Where and what; never the value, which may be an image."""
    return f"{'.'.join(map(str, where)) or 'request'}: {message.removeprefix('Value error, ')}"


def _result(pair: ScoredPair, parsed: RerankRequest, logit_bias: float) -> dict[str, Any]:
    score = float(relevance(np.array([pair.logit], np.float32), logit_bias)[0])
    result: dict[str, Any] = {"index": int(pair.doc_id), "relevance_score": score}
    if parsed.return_documents:
        result["document"] = parsed.documents[int(pair.doc_id)].model_dump(exclude_none=True)
    return result


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


def _image(item: RequestItem, allowed_hosts: Collection[str]) -> bytes | None:
    if item.image is None:
        return None
    return fetch(item.image, allowed_hosts) if _is_url(item.image) else _decode(item.image)


def _decode(value: str) -> bytes:
    """Base64, bare or in a data: URI, to bytes."""
    body = value
    if value[:5].lower() == "data:":
        head, _, body = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data: URI must be base64")
    if len(body) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ValueError(f"over {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"neither base64, a data: URI nor a URL ({error})") from error
