"""One rerank request in the hosted API's JSON to its JSON response, without Spark."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lakerank.errors import ConfigError, PairRejected
from lakerank.model.downloads import MAX_IMAGE_BYTES, fetch, url_fault
from lakerank.records import Document, DocumentGroup, Query, Reject, Reranker, ScoredPair


class BiasedReranker(Reranker, Protocol):
    """A reranker whose relevance is sigmoid(logit - logit_bias)."""

    logit_bias: float


class Item(BaseModel):
    """A query or a document: text, an image (base64, a data: URI or a URL), or both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = None
    image: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _holds_something(self) -> Item:
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
    """The hosted API's request. `top_n`: results returned (null: all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    query: Item
    documents: list[Item] = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False


def answer(
    request: Mapping[str, Any], reranker: BiasedReranker, *, allowed_hosts: Collection[str] = ()
) -> dict[str, Any]:
    """The response: results sorted by relevance, and the tokens that whole pairs hold.

    Args:
        allowed_hosts: hosts that images may be fetched from; a URL of any other is refused.

    Raises:
        ConfigError: the request is wrong; all faults are listed.
        PairRejected: a document cannot be scored; its index stands for its id.
    """
    parsed = parse(request, allowed_hosts)
    query = Query(query_id="query", text=parsed.query.text, image=_image(parsed.query, allowed_hosts))
    groups = [
        DocumentGroup(Document(str(index), item.text, _image(item, allowed_hosts)), (query,))
        for index, item in enumerate(parsed.documents)
    ]
    scored: list[ScoredPair] = []
    for result in reranker.score_groups(groups):
        if isinstance(result, Reject):
            raise PairRejected(result.query_id, result.doc_id, result.reason, result.detail)
        scored.append(result)
    scored.sort(key=lambda pair: (-pair.logit, int(pair.doc_id)))
    return {
        "model": parsed.model,
        "results": [_result(pair, parsed, reranker.logit_bias) for pair in scored[: parsed.top_n]],
        "usage": {"total_tokens": sum(pair.query_tokens + pair.document_tokens for pair in scored)},
    }


def parse(request: Mapping[str, Any], allowed_hosts: Collection[str] = ()) -> RerankRequest:
    """Check a request.

    Raises:
        ConfigError: it holds faults; all of them are listed.
    """
    try:
        parsed = RerankRequest.model_validate(request)
    except ValidationError as error:
        raise ConfigError([_fault(fault["loc"], fault["msg"]) for fault in error.errors()]) from error
    items = [(("query",), parsed.query), *((("documents", index), item) for index, item in enumerate(parsed.documents))]
    faults = []
    for where, item in items:
        if item.image is not None and _is_url(item.image) and (fault := url_fault(item.image, allowed_hosts)):
            faults.append(_fault((*where, "image"), fault))
    if faults:
        raise ConfigError(faults)
    return parsed


def _fault(where: tuple[int | str, ...], message: str) -> str:
    """Where and what; never the value, which may be an image."""
    return f"{'.'.join(map(str, where)) or 'request'}: {message.removeprefix('Value error, ')}"


def _result(pair: ScoredPair, parsed: RerankRequest, logit_bias: float) -> dict[str, Any]:
    shifted = np.float32(pair.logit) - np.float32(logit_bias)
    result: dict[str, Any] = {
        "index": int(pair.doc_id),
        "relevance_score": float(np.float32(1) / (np.float32(1) + np.exp(-shifted))),
    }
    if parsed.return_documents:
        result["document"] = parsed.documents[int(pair.doc_id)].model_dump(exclude_none=True)
    return result


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


def _image(item: Item, allowed_hosts: Collection[str]) -> bytes | None:
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
