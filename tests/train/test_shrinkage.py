"""Ways of training a tree, each against values worked out by hand or by definition."""

from types import SimpleNamespace

import torch
from transformers import TrainerControl

from isogloss.config import Distill
from isogloss.data.chat import Encoded
from isogloss.teacher.rows import Row
from isogloss.train import objective as training
from isogloss.train.batch import Ordered, Sample
from isogloss.train.objective import Weights, drop_levels
from isogloss.train.shrinkage import Shrinkage, rows_below
from isogloss.train.stage2 import _larger_b
from isogloss.train.trainer import ResponseTrainer, Watch, train, training_arguments

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
            folder / "work",
            steps=2,
            batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=1e-3,
            weight_decay=0.0,
            seed=0,
            bf16=False,
            save_every=9,
        )
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


def test_b_takes_a_larger_step_than_a(tiny, five, student):
    """Four times the rate, with the betas of the usual optimiser."""
    carrier = student(tiny(), five)
    made = _larger_b(carrier.model, Distill(learning_rate=0.5, loraplus_lr_ratio=4.0))
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    assert {rates[id(p)] for n, p in carrier.parameters().items() if "lora_A" in n} == {0.5}
    assert {rates[id(p)] for n, p in carrier.parameters().items() if "lora_B" in n} == {2.0}
    assert {(*g["betas"], g["weight_decay"]) for g in made.param_groups} == {(0.9, 0.98, 0.0)}


def test_level_dropout_is_off_by_default(five):
    """And then draws nothing from the generator that training depends on."""
    assert Distill().level_dropout == 0.0
    assert training.drop_levels(five, ["sw"], 0.0) == ["sw"]
