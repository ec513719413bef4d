"""Operations counted from a shape against those that torch counts while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from lakerank.model.engine.counters import count_flops
from lakerank.model.jina_m0.config import read_settings
from lakerank.model.jina_m0.weights import load_network


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_counts_are_those_of_the_network(tiny_checkpoint: Path) -> None:
    network = load_network(tiny_checkpoint, read_settings(tiny_checkpoint, "float32"))
    network.set_attn_implementation("eager")
    flops = count_flops(network.config)
    decoder, size = network.model.language_model, 50

    def whole() -> None:
        decoder(inputs_embeds=torch.zeros(1, size, 64), position_ids=torch.zeros(3, 1, size, dtype=torch.long))

    layer = size * (flops.token_kv + flops.token_rest) + size * size * flops.seen  # plain attention computes all of it
    assert counted(whole) == flops.layers * layer
    patches = 64
    grid = torch.tensor([[1, 8, 8]])
    assert counted(lambda: network.model.visual(torch.zeros(patches, 1176), grid_thw=grid)) == flops.vision(patches)


def test_a_pair_costs_what_its_halves_do(tiny_checkpoint: Path) -> None:
    flops = count_flops(load_network(tiny_checkpoint, read_settings(tiny_checkpoint, "float32")).config)
    document, query = 700, 20
    both = document + query
    layer = both * (flops.token_kv + flops.token_rest) + both * (both + 1) / 2 * flops.seen
    last = both * flops.token_kv + flops.token_rest + both * flops.seen
    whole = (flops.layers - 1) * layer + last + flops.head
    assert flops.prefix(document) + flops.suffix(query, document) == whole
