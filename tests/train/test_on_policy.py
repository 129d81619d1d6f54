"""On-policy steps: which, what is learned from, and that a resumed run draws the same."""

import json

import pytest
import torch

from isogloss.config import load_config
from isogloss.data.chat import Encoded
from isogloss.errors import ConfigError
from isogloss.model.cost import Stage
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import hidden_signals
from isogloss.train.batch import Ordered, collate, samples_of
from isogloss.train.objective import Weights, batch_losses
from isogloss.train.on_policy import OnPolicyTrainer, Policy, add_costs, is_on_policy, live_states
from isogloss.train.trainer import Watch, train, training_arguments

LANGUAGES = ("sw", "ru", "en", "es", "sw", "bg")


def ids(seed, length):
    made = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(5, 250, (length,), generator=made).tolist())


def rows():
    found = []
    for n, code in enumerate(LANGUAGES):
        prompt = ids(10 * n, 3 + n)
        privileged = prompt if code == "en" else ids(10 * n + 1, 9 - n)
        found.append(
            Row(
                f"{n}",
                code,
                n,
                Encoded(prompt, (*ids(10 * n + 2, 2 + n % 3), 1)),
                privileged,
                ids(10 * n + 3, 4),
            )
        )
    return found


def made(tiny, five, student, tokenizer, share=1.0, seed=0):
    carrier = student(tiny(), five)
    carrier.off()
    given = rows()
    samples = samples_of(given, hidden_signals(carrier.model, given, layer=1, pad_id=0))
    policy = Policy(carrier, tokenizer, given, samples, share=share, longest=6, seed=seed)
    return carrier, samples, policy


@pytest.mark.parametrize(
    ("share", "steps"),
    [
        (0.0, []),
        (1.0, list(range(10))),
        (0.5, [1, 3, 5, 7, 9]),
        (0.1, [9]),
        (0.3, [3, 6, 9]),
        (0.7, [1, 2, 4, 5, 7, 8, 9]),
    ],
)
def test_the_share_is_spread_evenly(share, steps):
    """⌊share · n⌋ of the first n steps."""
    assert [step for step in range(10) if is_on_policy(step, share)] == steps


def test_a_renewed_batch(tiny, five, student, tokenizer):
    """Other languages get the student's own responses, English keeps its; prompts, paths and twins stay."""
    _, samples, policy = made(tiny, five, student, tokenizer)
    before, counts = collate(samples, 0), {}
    after = policy.renewed(before, 3, 0, counts)
    assert after.languages == before.languages and torch.equal(after.meanings, before.meanings)
    old, new = split(before), split(after)
    assert [prompt for prompt, _ in new] == [prompt for prompt, _ in old]
    assert new[2] == old[2]
    for n in (0, 1, 3, 4, 5):
        response = new[n][1]
        assert 1 <= len(response) <= 6 and response != old[n][1]
        assert 1 not in response[:-1]  # nothing behind the end of turn
    generated = sum(len(new[n][1]) for n in (0, 1, 3, 4, 5))
    prompted = sum(len(rows()[n].student.prompt) for n in (0, 1, 3, 4, 5))
    read = sum(len(r.teacher_prompt) for r in rows()) + sum(len(response) for _, response in new)
    assert counts == {"generated": generated, "prompted": prompted, "read": read, "calls": 6}
    assert after.scored.all()


def split(batch):
    starts, ends = batch.prompt_mask.sum(1).tolist(), batch.mask.sum(1).tolist()
    return [
        (tuple(row[:a]), tuple(row[a:b])) for row, a, b in zip(batch.ids.tolist(), starts, ends, strict=True)
    ]


def test_the_live_teacher_reads_the_privileged_prompt_with_carriers_off(tiny, five, student, tokenizer):
    """Each row's states are those of the reference model alone, behind its own teacher prompt."""
    carrier, samples, policy = made(tiny, five, student, tokenizer)
    batch = policy.renewed(collate(samples, 0), 0, 0, {})
    at = 0
    for row, (_, response) in zip(rows(), split(batch), strict=True):
        text = torch.tensor([[*row.teacher_prompt, *response]])
        with torch.no_grad():
            alone = tiny().model(input_ids=text).last_hidden_state[0]
        expected = alone[len(row.teacher_prompt) - 1 : -1]
        torch.testing.assert_close(batch.teacher[at : at + len(response)], expected, atol=1e-4, rtol=1e-4)
        at += len(response)
    assert at == len(batch.teacher)
    assert carrier.layers().__next__()._disable_adapters


def test_every_row_is_drawn_on_its_own_path(tiny, five, student, tokenizer):
    """The greedy part of it: a mixed batch gives each language what it gives alone."""
    from isogloss.adapters.generate import complete

    carrier, _, _ = made(tiny, five, student, tokenizer)
    chosen = [row for row in rows() if row.language != "en"]
    options = {"carrier": carrier, "max_new_tokens": 6}
    together = complete(
        carrier.model,
        tokenizer,
        [r.student.prompt for r in chosen],
        languages=[r.language for r in chosen],
        **options,
    )
    for n, row in enumerate(chosen):
        alone = complete(carrier.model, tokenizer, [row.student.prompt], languages=[row.language], **options)
        width = alone.shape[1]
        assert together[n, :width].tolist() == alone[0].tolist()


def test_what_is_drawn_depends_on_seed_step_and_place_alone(tiny, five, student, tokenizer):
    """Equal twice; other for another step, place or seed; the generator outside is not touched."""
    _, samples, policy = made(tiny, five, student, tokenizer)
    batch = collate(samples, 0)
    state = torch.get_rng_state()
    first = policy.renewed(batch, 3, 0, {})
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(policy.renewed(batch, 3, 0, {}).ids, first.ids)
    _, samples, reseeded = made(tiny, five, student, tokenizer, seed=1)
    for one in (
        policy.renewed(batch, 4, 0, {}),
        policy.renewed(batch, 3, 1, {}),
        reseeded.renewed(batch, 3, 0, {}),
    ):
        assert split(one) != split(first)


def test_live_states_are_those_of_the_signals(tiny):
    """Read live or beforehand: the same states, and the model's mode is left as it was."""
    model, given = tiny(), rows()
    model.train()
    live = live_states(model, [r.teacher_prompt for r in given], [r.student.response for r in given], 0)
    assert model.training
    for states, signal in zip(live, hidden_signals(model, given, layer=1, pad_id=0), strict=True):
        torch.testing.assert_close(states, signal.teacher, atol=1e-5, rtol=1e-5)


# --- training

STEPS, BATCH = 6, 4
ORDER = [n % 6 for n in range(STEPS * BATCH)]


class Killed(Exception):  # noqa: N818
    pass


def trained(
    tiny, five, student, tokenizer, folder, *,
    share, die_at=None, accumulate=1, kl=1.0, order=ORDER, say=print,
):  # fmt: skip
    carrier, samples, policy = made(tiny, five, student, tokenizer, share)
    trainer = OnPolicyTrainer(
        policy=policy, model=carrier.model, carrier=carrier, weights=Weights(1.0, kl, 1.0, layer=1), pad_id=0,
        train_dataset=Ordered(samples, order),
        args=training_arguments(
            folder / "work", steps=STEPS, batch_size=BATCH, gradient_accumulation_steps=accumulate,
            learning_rate=3e-3,
            weight_decay=0.0, seed=0, bf16=False, save_every=2,
        ),
    )  # fmt: skip

    def progress(done, of):
        if done == die_at:
            raise Killed

    train(trainer, Watch(folder / "curve.jsonl", "distill", 1, progress), folder / "work", say)
    return {name: p.detach().clone() for name, p in carrier.parameters().items()}, trainer


def test_a_killed_run_ends_with_the_same_carriers_and_counts(tiny, five, student, tokenizer, tmp_path):
    """Killed between two checkpoints, in the middle of on-policy steps."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, first = trained(tiny, five, student, tokenizer, tmp_path / "whole", share=0.5)
    with pytest.raises(Killed):
        trained(tiny, five, student, tokenizer, tmp_path / "killed", share=0.5, die_at=3)
    again, second = trained(tiny, five, student, tokenizer, tmp_path / "killed", share=0.5)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert first.counts == second.counts
    assert first.counts["calls"] == 3 * BATCH  # steps 1, 3 and 5
    assert (tmp_path / "whole/curve.jsonl").read_text() == (tmp_path / "killed/curve.jsonl").read_text()


def test_training_on_other_rows_begins_anew(tiny, five, student, tokenizer, tmp_path):
    """Whose data have changed meanwhile gets what those data give, and is told; half of either is neither."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    other, heard = list(reversed(ORDER)), []
    given: dict = {"share": 0.0, "say": heard.append}
    whole, first = trained(tiny, five, student, tokenizer, tmp_path / "whole", order=other, **given)
    with pytest.raises(Killed):
        trained(tiny, five, student, tokenizer, tmp_path / "killed", die_at=5, **given)
    assert not heard
    again, second = trained(tiny, five, student, tokenizer, tmp_path / "killed", order=other, **given)
    assert heard == ["Warning: what is learned from has changed since training was stopped; it begins anew"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert first.counts == second.counts
    assert (tmp_path / "whole/curve.jsonl").read_text() == (tmp_path / "killed/curve.jsonl").read_text()


def test_without_a_share_nothing_is_drawn(tiny, five, student, tokenizer, tmp_path):
    """The trainer is then the plain one, to the bit in its counts."""
    _, trainer = trained(tiny, five, student, tokenizer, tmp_path, share=0.0)
    assert set(trainer.counts) == {"tokens", "responses", "flops"}


def test_cross_entropy_has_no_part_in_an_on_policy_step(tiny, five, student, tokenizer, tmp_path):
    """The first step's loss is the divergence on what was drawn, that on English, and the hidden term."""
    trained(tiny, five, student, tokenizer, tmp_path, share=1.0)
    line = json.loads((tmp_path / "curve.jsonl").read_text().split("\n")[0])
    carrier, samples, policy = made(tiny, five, student, tokenizer)
    batch = policy.renewed(collate([samples[n] for n in ORDER[:BATCH]], 0), 0, 0, {})
    from isogloss.train.batch import twins_of

    with torch.no_grad():
        parts = batch_losses(
            carrier.model, batch, Weights(1.0, 1.0, 1.0, layer=1), carrier, twins_of(samples)
        )
    tokens = len(batch.response)
    assert line["ce"] == 0.0
    assert line["kl"] == pytest.approx(parts["kl"].item() / tokens, abs=1e-4)
    assert line["retain"] == pytest.approx(parts["retain"].item() / tokens, abs=1e-4)
    assert line["hidden"] == pytest.approx(parts["hidden"].item() / BATCH, abs=1e-4)
    assert line["loss"] == pytest.approx(line["kl"] + line["retain"] + line["hidden"], abs=1e-4)


def test_the_ledger_counts_what_was_drawn_and_read():
    """Tokens by hand; the trainer's meter counts operations."""
    cost = Stage("distill")
    add_costs(cost, {"generated": 30, "prompted": 70, "read": 200, "calls": 12, "tokens": 9})
    assert (cost.tokens_generated, cost.tokens_forwarded, cost.teacher_calls) == (30, 300, 12)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["distill.on_policy=0.5"], "distill.kl_weight must be above 0 where on_policy is"),
        (
            [
                "distill.on_policy=0.5",
                "distill.kl_weight=1",
                "distill.teacher={type: model, path: x, level: sequence}",
            ],
            "distill.on_policy must be 0 where teacher.type is model; only self is live",
        ),
        (
            ["distill.teacher={type: server, url: 'http://127.0.0.1:1/v1', model: m}"],
            "distill.kl_weight must be above 0 where the teacher is a server that scores tokens",
        ),
        (["distill.on_policy=1.5"], "distill.on_policy is 1.5; it must be a number between 0 and 1"),
        (["distill.teacher={type: oracle}"], "it must be self, model or server"),
        (["distill.teacher={type: server, model: m}"], "distill.teacher.url is missing"),
    ],
)
def test_what_cannot_stand_together_is_refused(overrides, says):
    """One line, with what would be right."""
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    assert says in str(error.value) and "\n" not in str(error.value)
