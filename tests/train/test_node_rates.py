"""A node's step size by its share of the rows, compared with AdamW with one learning rate per node."""

import pytest
import torch

from isogloss.adapters.tree import build_tree
from isogloss.train.node_rates import NodeRates, node_rates


def test_rates_are_square_roots_of_shares(five):
    """In `five`, ru and bg are Slavic, es and fr Romance, and sw is alone; English uses the root."""
    rates = node_rates(five, ["ru"] * 4 + ["bg"] * 5 + ["es"] * 4 + ["sw"] * 1 + ["en"] * 2)
    found = {node.name: rates[list(node.rows)] for node in five.nodes}
    assert found["root"].tolist() == [1.0] * five.by_name["root"].rank
    assert found["ru"].tolist() == pytest.approx([0.5] * five.by_name["ru"].rank)
    slavic = five.path("ru")[1]
    assert found[slavic.name].tolist() == pytest.approx([0.75] * slavic.rank)
    assert found["sw"].tolist() == pytest.approx([0.25] * five.by_name["sw"].rank)
    assert found["fr"].tolist() == [0.0] * five.by_name["fr"].rank


def test_steps_equal_those_of_a_learning_rate_per_node(tiny, five, student):
    """Five steps of AdamW; in the reference, each node's rows are separate parameters."""
    adapters = student(tiny(), five)
    rates = node_rates(five, ["ru", "ru", "bg", "es", "sw", "en"])
    adam = {"betas": (0.9, 0.98), "weight_decay": 0.0}
    own = {
        (name, node.name): adapters.rows_of(name, p.detach(), node.rows).clone().requires_grad_()
        for name, p in adapters.parameters().items()
        for node in five.nodes
    }
    reference = torch.optim.AdamW(
        [
            {"params": [p], "lr": 0.01 * float(rates[five.by_name[node].start])}
            for (_, node), p in own.items()
        ],
        **adam,
    )
    optimizer = torch.optim.AdamW(adapters.parameters().values(), lr=0.01, **adam)
    NodeRates(adapters, rates).attach(optimizer)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        for name, p in adapters.parameters().items():
            p.grad = torch.randn(p.shape, generator=draw)
            for node in five.nodes:
                own[name, node.name].grad = adapters.rows_of(name, p.grad, node.rows)
        optimizer.step()
        reference.step()
    for (name, node), p in own.items():
        found = adapters.rows_of(name, adapters.parameters()[name].detach(), five.by_name[node].rows)
        torch.testing.assert_close(found, p.detach(), rtol=1e-5, atol=1e-6)


def test_the_node_with_most_rows_keeps_its_steps():
    """The root, if it has all the rank; the largest language's node, if the root has none."""
    ranks = {"root": 1, "family": 0, "language": 1}
    shared = build_tree(["es", "fr"], families="shared", ranks=ranks)
    assert node_rates(shared, ["es", "fr", "en"]).tolist() == [1.0, 1.0]
    flat = build_tree(["es", "fr"], families="flat", ranks=ranks)
    assert node_rates(flat, ["es"] * 4 + ["fr"] * 1).tolist() == [1.0, 1.0, 0.5, 0.5]
