"""Ways of training a tree, each against values worked out by hand or by definition."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from isogloss.config import Distill
from isogloss.data.chat import Encoded
from isogloss.distill import trainer as training
from isogloss.distill.rows import Row
from isogloss.distill.stage import _larger_b
from isogloss.distill.trainer import (
    Ordered,
    ResponseTrainer,
    Sample,
    Watch,
    Weights,
    drop_levels,
    train,
    training_arguments,
)
from isogloss.distill.treewise import Average, Shrinkage, held_out, prune, rows_below
from isogloss.tree.virtual import TreeEmbedding

CONTROL = TrainerControl()


def row(number, language, meaning):
    made = torch.Generator().manual_seed(number)
    ids = tuple(torch.randint(5, 250, (7,), generator=made).tolist())
    return Row(f"{number}/{language}", language, meaning, Encoded(ids[:4], ids[4:]), ids[:4], ids[:4])


ROWS = [
    row(number, code, number % 10)
    for number, code in enumerate(["sw"] * 10 + ["es"] * 10 + ["fr"] * 10 + ["en"] * 10)
]


def test_levels_are_dropped_as_they_are_drawn(five, monkeypatch):
    """At 0.4: below 0.2 the family goes too, from 0.4 on nothing; English has the root alone."""
    drawn = [0.0, 0.19, 0.2, 0.39, 0.4, 0.99, 0.1]
    monkeypatch.setattr(torch, "rand", lambda n: torch.tensor(drawn[:n], dtype=torch.float64))
    romance = five.path("es")[1].name
    codes = ["es", "sw", "es", "fr", "es", "sw", "en"]
    assert drop_levels(five, codes, 0.4) == ["root", "root", romance, romance, "es", "sw", "root"]
    assert [node.name for node in five.path(romance)] == ["root", romance]


def test_rows_without_their_leaf_do_not_train_it(tiny, five, student, tmp_path, monkeypatch):
    """With probability 1 no leaf moves, to the bit; with 0 the leaf of every row does."""
    moved = {}
    for probability in (0.0, 1.0):
        carrier = student(tiny(), five)
        before = {n.name: {k: v.clone() for k, v in carrier.node_parameters(n).items()} for n in five.nodes}
        folder = tmp_path / str(probability)
        folder.mkdir()
        arguments = training_arguments(
            folder / "work", steps=2, batch=4, accumulate=1, lr=1e-3, weight_decay=0.0, seed=0, bf16=False,
            save_every=9,
        )  # fmt: skip
        trainer = ResponseTrainer(
            model=carrier.model, carrier=carrier, args=arguments, weights=Weights(), pad_id=0,
            train_dataset=Ordered([Sample(r.student, r.language) for r in ROWS[:20]], range(6, 14)),
            level_dropout=probability,
        )  # fmt: skip
        train(trainer, Watch(folder / "curve.jsonl", "test", 1, lambda done, of: None), folder / "work")
        moved[probability] = {
            name
            for name, rows in before.items()
            if any(
                not torch.equal(v, rows[k]) for k, v in carrier.node_parameters(five.by_name[name]).items()
            )
        }
    on = {node.name for code in ("sw", "es") for node in five.path(code)}
    assert moved[0.0] == on
    assert {"root"} <= moved[1.0] <= on - {"sw", "es"}


def test_nodes_shrink_by_their_number_of_rows(tiny, five, student):
    """At rate 0.1 and weight 10, ten rows take a tenth and twenty a twentieth; the root keeps all."""
    carrier = student(tiny(), five)
    counts = rows_below(five.nodes, ROWS)
    romance = five.path("es")[1].name
    assert (counts["sw"], counts["es"], counts[romance], counts["root"]) == (10, 10, 20, 30)
    before = {n.name: {k: v.clone() for k, v in carrier.node_parameters(n).items()} for n in five.nodes}
    scheduler = SimpleNamespace(get_last_lr=lambda: [0.1])
    Shrinkage(carrier, 10.0, counts).on_step_end(None, None, CONTROL, lr_scheduler=scheduler)
    for name, factor in (("root", 1.0), ("sw", 0.9), ("es", 0.9), (romance, 0.95), ("ru", 0.0)):
        for key, rows in carrier.node_parameters(five.by_name[name]).items():
            torch.testing.assert_close(rows, before[name][key] * factor, rtol=1e-6, atol=1e-8)
    for key, rows in carrier.node_parameters(five.by_name["root"]).items():
        assert torch.equal(rows, before["root"][key])


def test_nodes_that_do_not_learn_do_not_shrink(tiny, five, student):
    """A language that joins leaves the others to the bit, shrinkage or not."""
    carrier = student(tiny(), five)
    carrier.learn_only([five.by_name["sw"]])
    before = {k: v.clone() for k, v in carrier.node_parameters(five.by_name["es"]).items()}
    scheduler = SimpleNamespace(get_last_lr=lambda: [0.1])
    counts = rows_below(five.nodes, ROWS)
    Shrinkage(carrier, 10.0, counts).on_step_end(None, None, CONTROL, lr_scheduler=scheduler)
    for key, rows in carrier.node_parameters(five.by_name["es"]).items():
        assert torch.equal(rows, before[key])


def test_the_last_half_of_four_steps_is_averaged_over_a_resume_too():
    """Weights 1, 2, 3 and 4 after the steps end as 3.5, also where a checkpoint lies between the last two."""

    def optimiser(value):
        p = torch.nn.Parameter(torch.tensor([value]))
        return p, torch.optim.AdamW([p], lr=0.0, weight_decay=0.0)

    def step(average, p, made, number):
        p.grad = torch.zeros_like(p)
        made.step()
        with torch.no_grad():
            p.fill_(float(number))
        state = SimpleNamespace(global_step=number, max_steps=4)
        average.on_step_end(None, state, CONTROL, optimizer=made)
        return state

    p, made = optimiser(0.0)
    for number in (1, 2, 3):
        step(Average(0.5), p, made, number)
    saved = copy.deepcopy(made.state_dict())
    again, resumed = optimiser(3.0)
    resumed.load_state_dict(saved)
    for weight, one in ((p, made), (again, resumed)):
        average = Average(0.5)
        state = step(average, weight, one, 4)
        average.on_train_end(None, state, CONTROL, optimizer=one)
        assert weight.item() == 3.5


def test_b_takes_a_larger_step_than_a(tiny, five, student):
    """Four times the rate, with the betas of the usual optimiser."""
    carrier = student(tiny(), five)
    made = _larger_b(carrier.model, Distill(lr=0.5, lr_b_ratio=4.0))
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    assert {rates[id(p)] for n, p in carrier.parameters().items() if "lora_A" in n} == {0.5}
    assert {rates[id(p)] for n, p in carrier.parameters().items() if "lora_B" in n} == {2.0}
    assert {(*g["betas"], g["weight_decay"]) for g in made.param_groups} == {(0.9, 0.98, 0.0)}


def test_meanings_are_held_out_in_every_language_at_once():
    """A fifth of ten meanings is two: six rows of three languages; English stays."""
    kept, held = held_out(ROWS, 0.2, seed=3)
    assert (len(kept), len(held)) == (34, 6)
    assert len({r.meaning for r in held}) == 2 and {r.language for r in held} == {"sw", "es", "fr"}
    assert {r.meaning for r in held}.isdisjoint(r.meaning for r in kept if r.language != "en")
    assert held_out(ROWS, 0.2, seed=3) == (kept, held) != held_out(ROWS, 0.2, seed=4)


@pytest.mark.parametrize("kind", ["lora", "embedding"])
def test_a_node_stays_where_it_lowers_the_held_out_cross_entropy(tiny, five, student, kind):
    """Leaves are judged first, each against its parent; what does not help is emptied."""
    model = tiny()
    carrier = student(model, five) if kind == "lora" else TreeEmbedding(model, five)

    def nats(name, code):
        chosen = [r for r in ROWS if r.language == code]
        total = 0.0
        for one in chosen:
            ids = torch.tensor([[*one.student.prompt, *one.student.response]])
            with torch.no_grad(), carrier.on([name]) as on:
                told = on(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            total -= sum(told[3 + n, token].item() for n, token in enumerate(one.student.response))
        return total / (3 * len(chosen))

    wanted = {code: (nats(code, code), nats(five.path(code)[1].name, code)) for code in ("sw", "fr", "es")}
    gains = prune(carrier, ROWS, pad_id=0, batch=4)
    assert [gain.node for gain in gains][:3] == ["sw", "fr", "es"]
    assert len(gains) == 5  # and two families; no row is Slavic
    for gain in gains[:3]:
        assert (gain.own, gain.without) == pytest.approx(wanted[gain.node], abs=1e-4)
    emptied = {node.name for node in five.nodes if carrier.is_clear(node)}
    assert emptied == {gain.node for gain in gains if gain.own >= gain.without}
    assert len(emptied) > 0


def test_level_dropout_is_off_by_default(five):
    """And then draws nothing from the generator that training depends on."""
    assert Distill().level_dropout == 0.0
    assert training.drop_levels(five, ["sw"], 0.0) == ["sw"]
