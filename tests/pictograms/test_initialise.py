"""Muon for hidden matrices, AdamW for the rest, and what a network from scratch starts from."""

import torch
from torch import nn

from lakerank_pictograms.curriculum.config import ShapeConfig
from lakerank_pictograms.curriculum.initialise import initialise_network, train_tokenizer
from lakerank_pictograms.curriculum.recipe import muon


def test_muon_changes_hidden_matrices_alike_in_every_direction() -> None:
    torch.manual_seed(0)
    parameters = {
        "network.layers.0.weight": nn.Parameter(torch.zeros(24, 16)),
        "network.embed_tokens.weight": nn.Parameter(torch.zeros(24, 16)),
        "network.norm.weight": nn.Parameter(torch.zeros(16)),
    }
    optimizer = muon(parameters, weight_decay=0.0)
    steep = torch.linspace(1, 1e3, 16)
    for value in parameters.values():
        value.grad = torch.randn(value.shape) * steep
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    optimizer.zero_grad()
    spread = torch.linalg.svdvals(parameters["network.layers.0.weight"].detach())
    assert (spread > spread.max() / 2).sum() >= 14  # of 16; of the gradient, half
    embedded = parameters["network.embed_tokens.weight"].detach()
    torch.testing.assert_close(embedded.abs(), torch.full_like(embedded, 0.01))  # Adam's first step: the sign
    assert parameters["network.norm.weight"].detach().abs().min() > 0.009
    assert all(value.grad is None for value in parameters.values())


def test_lecun_keeps_the_size_of_what_a_matrix_reads() -> None:
    shape = ShapeConfig(vocabulary=512, hidden_size=64, heads=2, key_value_heads=1, vision_width=32, vision_heads=2)
    tokenizer = train_tokenizer(["red square"], shape.vocabulary)
    network = initialise_network(shape.model_copy(update={"initialization": "lecun"}), tokenizer, 0, tap=2)
    read = torch.randn(512, 512)
    for name in ("model.language_model.layers.1.mlp.down_proj", "model.visual.blocks.0.attn.qkv"):
        weight = network.get_submodule(name).weight.detach()
        assert 0.9 < float((read[:, : weight.shape[1]] @ weight.T).std()) < 1.1
    assert float(network.model.language_model.embed_tokens.weight.detach().std()) < 0.03


def test_local_layers_sum_up_what_is_near_and_the_tap_looks_for_what_is_alike() -> None:
    shape = ShapeConfig(vocabulary=512, hidden_size=64, heads=2, key_value_heads=1, vision_width=32, vision_heads=2)
    tokenizer = train_tokenizer(["red square"], shape.vocabulary)
    network = initialise_network(shape.model_copy(update={"initialization": "local"}), tokenizer, 0, tap=2)
    text = network.model.language_model
    tokens = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    entering = text(inputs_embeds=tokens, output_hidden_states=True, use_cache=False).hidden_states[2][0, -1]
    # what of a token arrives at the end is what it is: along its own direction, and more the nearer it is
    (gradient,) = torch.autograd.grad((entering * tokens.detach()[0]).sum(), tokens)
    felt = gradient[0].norm(dim=1)
    assert felt[-4:-1].min() > 3 * felt[:20].max()
    queries, keys = text.layers[2].self_attn.q_proj.weight, text.layers[2].self_attn.k_proj.weight
    assert torch.equal(queries, torch.cat([keys, keys]))
    assert not torch.equal(text.layers[3].self_attn.q_proj.weight[:32], text.layers[3].self_attn.k_proj.weight)
