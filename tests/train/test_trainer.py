"""The trainer: which tokens have a loss, how a step is normalised, and how a killed run ends."""

import errno
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from several import LANGUAGES, Gradients, sample
from torch import nn
from transformers import AutoModelForCausalLM

from isogloss.adapters.tree import build_tree
from isogloss.data.chat import Encoded
from isogloss.errors import ConfigError, RunError
from isogloss.losses import functional, fused
from isogloss.losses.topk import TopK
from isogloss.model.decoder import capture, last_hidden, layers_of, mean_pool
from isogloss.teacher.signals import Signal
from isogloss.train.batch import Ordered, Sample, collate, twins_of
from isogloss.train.objective import Weights, batch_losses
from isogloss.train.trainer import (
    ResponseTrainer,
    Watch,
    processes,
    train,
    training_arguments,
)

SIZES = [(3, 2), (7, 1), (2, 9), (5, 4), (4, 4), (6, 3), (2, 1), (3, 6)]
DISTIL = Weights(ce=0.7, kl=1.3)


SAMPLES = [sample(number, *sizes) for number, sizes in enumerate(SIZES)]
PLAIN = [Sample(s.encoded) for s in SAMPLES]


class Bigrams(nn.Module):
    """A decoder whose logits at a position are the table's row for the token there."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table).log()
        self.layers = nn.ModuleList([nn.Identity()])
        self.config = SimpleNamespace(num_hidden_layers=1, vocab_size=len(table))
        self.config.get_text_config = lambda: self.config

    def forward(self, input_ids, attention_mask, use_cache):
        states = nn.functional.one_hot(input_ids, len(self.table)).float()
        return SimpleNamespace(last_hidden_state=self.layers[0](states))

    def get_decoder(self):
        return self

    def get_output_embeddings(self):
        return lambda states: states @ self.table


TABLE = [  # row: current token; column: probability of the next
    [0.25, 0.25, 0.25, 0.25],
    [0.10, 0.20, 0.30, 0.40],
    [0.125, 0.125, 0.25, 0.5],
    [0.25, 0.05, 0.60, 0.10],
]


def ce_of(*rows):
    batch = collate([Sample(Encoded(*row)) for row in rows], 0)
    return batch_losses(Bigrams(TABLE), batch, Weights())["ce"]


@pytest.mark.parametrize(
    ("prompt", "response", "nats"),
    [
        ((1, 2), (3, 0), 2.079442),  # -ln P(3|2) - ln P(0|3) = ln 2 + ln 4
        ((1,), (1,), 1.609438),  # -ln P(1|1) = ln 5
        ((3, 3, 3), (2, 2, 3), 2.590267),  # -ln .6 - ln .25 - ln .5
        ((2,), (0,), 2.079442),  # -ln P(0|2) = ln 8: the end of a response counts
    ],
)
def test_labels_are_shifted_once(prompt, response, nats):
    """A response token is predicted from the token before it; the first from the prompt's last."""
    assert ce_of((prompt, response)).item() == pytest.approx(nats, abs=1e-5)


def test_english_rows_only_have_the_replay_loss():
    """KL of (.25 .25 .25 .25) from (.1 .2 .3 .4) is 0.121776 nats; only the Swahili row has ce and kl."""
    model = Bigrams(TABLE)
    teacher = nn.functional.one_hot(torch.tensor([0]), 4).float()  # reads a 0 where the student reads a 1
    same = nn.functional.one_hot(torch.tensor([2]), 4).float()
    rows = [
        Sample(Encoded((1,), (3,)), "en", 0, Signal(teacher, torch.zeros(4))),
        Sample(Encoded((2,), (3,)), "sw", 1, Signal(same, torch.zeros(4))),
    ]
    parts = batch_losses(model, collate(rows, 0), Weights(kl=1.0))
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {"replay": 0.121776, "ce": 0.693147, "kl": 0.0}, abs=1e-5
    )


def test_without_a_divergence_english_rows_keep_their_replay_loss():
    """Only they have a teacher's signal then."""
    teacher = nn.functional.one_hot(torch.tensor([0]), 4).float()
    rows = [
        Sample(Encoded((2,), (3,)), "sw", 1, Signal(None, torch.zeros(4))),
        Sample(Encoded((1,), (3,)), "en", 0, Signal(teacher, torch.zeros(4))),
    ]
    parts = batch_losses(Bigrams(TABLE), collate(rows, 0), Weights())
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {"replay": 0.121776, "ce": 0.693147}, abs=1e-5
    )


def test_padding_has_no_loss():
    """Rows of different lengths: the loss is the sum of each row's own."""
    rows = [((1, 2), (3, 0)), ((1,), (1,)), ((3, 3, 3), (2, 2, 3))]
    assert ce_of(*rows).item() == pytest.approx(2.079442 + 1.609438 + 2.590267, abs=1e-5)


def test_prompt_tokens_have_no_loss():
    """With bigrams, tokens before the prompt's last one change nothing; the losses are bit-identical."""
    first = ce_of(((1, 2), (3, 0)))
    for prompt in ((0, 2), (3, 2), (3, 1, 0, 2), (2,)):
        assert torch.equal(ce_of((prompt, (3, 0))), first)


def test_collation_matches_a_hand_written_table():
    """Right padding, and positions in the flattened batch of 2 · 4."""
    batch = collate([Sample(Encoded((1, 2), (3, 4)), "sw", 5), Sample(Encoded((6,), (7,)), "ur", 9)], 0)
    assert batch.ids.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.prompt_mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch.positions.tolist() == [1, 2, 4]
    assert batch.response.tolist() == [3, 4, 7]
    assert (batch.languages, batch.meanings.tolist()) == (["sw", "ur"], [5, 9])
    assert batch.teacher is None


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3_text"])
def test_cross_entropy_is_what_transformers_computes(tiny, kind):
    """Its own loss, with labels of -100 on prompt and padding, times the number of response tokens."""
    model, batch = tiny(kind), collate(PLAIN, 0)
    labels = batch.ids.masked_fill(batch.prompt_mask.bool() | (batch.mask == 0), -100)
    with torch.no_grad():
        theirs = model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        ours = batch_losses(model, batch, Weights())["ce"]
    assert len(batch.response) == 30
    assert ours.item() == pytest.approx(theirs.item() * 30, rel=1e-5)


@pytest.mark.parametrize(
    ("divergence", "loss"),
    [
        ("forward", functional.forward_kl),
        ("reverse", functional.reverse_kl),
        ("jensen_shannon", functional.jensen_shannon),
    ],
)
def test_the_divergence_is_between_matching_tokens(tiny, five, student, divergence, loss):
    """Token by token, each language on its own path: the sum of eight separate rows."""
    model = tiny()
    adapters = student(model, five)
    weights = Weights(kl=1.0, divergence=divergence, temperature=2.0)
    total = kept = 0.0
    with torch.no_grad():
        for one in SAMPLES:
            ids = torch.tensor([[*one.encoded.prompt, *one.encoded.response]])
            with adapters.on([one.language]) as on:
                said = on(input_ids=ids, use_cache=False).logits[0, len(one.encoded.prompt) - 1 : -1]
            teacher = one.signal.teacher @ model.get_output_embeddings().weight.T
            if one.language == "en":
                kept += functional.forward_kl(said, teacher).item()
            else:
                total += loss(said, teacher, temperature=2.0).item()
        parts = batch_losses(adapters.model, collate(SAMPLES, 0), weights, adapters)
    assert parts["kl"].item() == pytest.approx(total, rel=1e-4)
    assert parts["replay"].item() == pytest.approx(kept, rel=1e-4)


def test_chunks_of_tokens_give_the_same_losses_and_gradients(tiny, five, student, monkeypatch):
    """30 response tokens at once, and three at a time with a smaller last chunk."""
    found = []
    for logits in (fused.LOGITS, 3 * 269):
        monkeypatch.setattr(fused, "LOGITS", logits)
        adapters = student(tiny(), five)
        parts = batch_losses(adapters.model, collate(SAMPLES, 0), Weights(0.7, 1.3), adapters)
        (0.7 * parts["ce"] + 1.3 * parts["kl"] + 0.4 * parts["replay"]).backward()
        gradients = torch.cat([p.grad.flatten() for p in adapters.parameters().values()])
        found.append((torch.stack([parts[name] for name in ("ce", "kl", "replay")]), gradients))
    (whole, its_gradients), (chunked, their_gradients) = found
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(their_gradients, its_gradients, rtol=1e-4, atol=1e-4)


def test_the_hidden_state_term_pools_the_prompt_alone(tiny, five, student):
    """The student's states on its path, pooled over its prompt and standardised by the twins' statistics."""
    adapters = student(tiny(), five)
    pooled = []
    with torch.no_grad():
        for one in SAMPLES:
            with adapters.on([one.language]) as on:
                ids = torch.tensor([one.encoded.prompt])
                pooled.append(on(input_ids=ids, output_hidden_states=True).hidden_states[2][0].mean(0))
        twins = torch.stack([s.signal.twin for s in SAMPLES])
        mean, spread = twins.mean(0), twins.std(0, correction=0)
        torch.testing.assert_close(twins_of(SAMPLES).vectors, (twins - mean) / spread, rtol=1e-4, atol=1e-4)
        both = ((torch.stack(pooled) - mean) / spread, (twins - mean) / spread)
        expected = functional.similarity(*both, torch.arange(8), temperature=0.5)
        weights = Weights(similarity=1.0, layer=2, similarity_temperature=0.5)
        found = batch_losses(adapters.model, collate(SAMPLES, 0), weights, adapters, twins_of(SAMPLES))
    assert found["similarity"].item() == pytest.approx(expected.item(), rel=1e-4)


BARE = [
    Sample(Encoded(s.encoded.prompt, ()), s.language, s.meaning, Signal(None, s.signal.twin)) for s in SAMPLES
]


def test_bare_sentences_are_standardised_by_their_own_twins(tiny, five, student):
    """Also in one batch with instructions: each kind of row has its own mean."""
    adapters = student(tiny(), five)
    bare = [
        Sample(s.encoded, s.language, 8 + s.meaning, Signal(None, 3 * s.signal.twin.flip(0) + 1))
        for s in BARE
    ]
    mixed = [*SAMPLES, *bare]
    with torch.no_grad():
        twins = twins_of(mixed)
        apart = twins_of(SAMPLES).vectors, twins_of([replace(s, meaning=s.meaning - 8) for s in bare]).vectors
        torch.testing.assert_close(twins.vectors, torch.cat(apart))
        pooled = torch.stack([s.signal.twin for s in mixed])
        torch.testing.assert_close(twins.standardise(pooled, [s.bare for s in mixed]), twins.vectors)
        weights = Weights(similarity=1.0, layer=2, similarity_temperature=0.5)
        found = batch_losses(adapters.model, collate(mixed, 0), weights, adapters, twins)["similarity"]
        rows = []
        for one in mixed:
            with adapters.on([one.language]) as on:
                states = on(input_ids=torch.tensor([one.encoded.prompt]), output_hidden_states=True)
            rows.append(states.hidden_states[2][0].mean(0))
        scaled = twins.standardise(torch.stack(rows), [False] * 8 + [True] * 8)
        wanted = functional.similarity(scaled, twins.vectors, torch.arange(16), temperature=0.5)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_too_few_twins_are_compared_as_they_are():
    """Seven are too few to estimate a spread."""
    twins = twins_of(SAMPLES[:7])
    assert torch.equal(twins.vectors, torch.stack([s.signal.twin for s in SAMPLES[:7]]).float())


def test_a_step_of_bare_sentences_only_uses_the_hidden_state_term(tiny, five, student, tmp_path):
    """Without response tokens the loss is the mean over rows, and nothing is divided by 0."""
    adapters = student(tiny(), five)
    weights = Weights(ce=1.0, kl=1.0, similarity=0.5, layer=2)
    with torch.no_grad():
        parts = batch_losses(adapters.model, collate(BARE, 0), weights, adapters, twins_of(BARE))
    found = run(tmp_path / "run", adapters.model, BARE, adapters=adapters, weights=weights, steps=1)
    hidden = parts["similarity"].item() / 8
    assert found.curve == [
        pytest.approx(
            {"stage": "test", "step": 1, "loss": 0.5 * hidden, "ce": 0.0, "similarity": hidden}, abs=1e-5
        )
    ]


def test_bare_sentences_only_run_up_to_the_terms_layer(tiny, five, student):
    """Loss and gradients equal those of a full forward pass, and no layer above is run."""
    adapters, twins = student(tiny(), five), twins_of(BARE)
    weights, batch = Weights(similarity=1.0, layer=2, similarity_temperature=0.5), collate(BARE, 0)
    run = []
    for number, layer in enumerate(layers_of(adapters.model), 1):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    batch_losses(adapters.model, batch, weights, adapters, twins)["similarity"].backward()
    assert run == [1, 2]
    found = {name: p.grad.clone() for name, p in adapters.parameters().items() if p.grad is not None}
    adapters.model.zero_grad()
    adapters.set_path(batch.languages)
    with capture(adapters.model, 2) as states:
        last_hidden(adapters.model, batch.ids, batch.mask)
    pooled = twins.standardise(mean_pool(states[0], batch.instruction_mask), batch.bare)
    functional.similarity(pooled, twins.vectors, batch.meanings, temperature=0.5).backward()
    wanted = {name: p.grad for name, p in adapters.parameters().items() if p.grad is not None}
    assert found.keys() == wanted.keys() and any(grad.any() for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad)


def test_the_hidden_state_terms_weight_decays_linearly():
    """From its full value to 0 at `similarity_decay` of the steps, then 0; a decay of 0 keeps it."""
    fading = Weights(ce=0.5, similarity=2.0, similarity_decay=0.5)
    assert [fading.at(done).similarity for done in (0.0, 0.25, 0.5, 0.75)] == [2.0, 1.0, 0.0, 0.0]
    assert fading.at(0.75).ce == 0.5
    assert Weights(similarity=2.0).at(0.75).similarity == 2.0


def test_rows_of_one_example_share_its_twin(tiny, five, student):
    """Two equal rows alone in a batch cost nothing as one example, and something as two examples."""
    adapters = student(tiny(), five)

    def hidden(example, signal):
        first = SAMPLES[0]
        pair = [first, Sample(first.encoded, first.language, example, signal)]
        weights = Weights(similarity=1.0, layer=2)
        twins = twins_of(pair)
        return batch_losses(adapters.model, collate(pair, 0), weights, adapters, twins)["similarity"].item()

    assert hidden(SAMPLES[0].meaning, SAMPLES[0].signal) == pytest.approx(0.0, abs=1e-6)
    assert hidden(1, SAMPLES[3].signal) > 0.01


def run(
    folder,
    model,
    samples,
    *,
    batch=8,
    accumulate=1,
    adapters=None,
    steps=3,
    weights=None,
    stop=None,
    say=print,
    rate=1e-4,
):
    """Train for some steps without gradient clipping; `stop` is the step at which the run is killed."""
    folder.mkdir(exist_ok=True)
    arguments = training_arguments(
        folder / "work",
        steps=steps,
        batch_size=batch * accumulate,
        gradient_accumulation_steps=accumulate,
        learning_rate=rate,
        weight_decay=0.0,
        seed=0,
        bf16=False,
        save_every=3,
    )
    arguments.max_grad_norm = 0.0
    order = [(number * 5 + number // 8) % 8 for number in range(steps * batch * accumulate)]
    trainer = ResponseTrainer(
        model=model, adapters=adapters, args=arguments, train_dataset=Ordered(samples, order),
        weights=weights or Weights(), pad_id=0,
    )  # fmt: skip
    kept = Gradients()
    trainer.add_callback(kept)

    def progress(done, of):
        if done == stop:
            raise KeyboardInterrupt

    train(trainer, Watch(folder / "curve.jsonl", "test", 1, progress), folder / "work", say)
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return SimpleNamespace(gradients=kept.steps, counts=trainer.counts, curve=curve)


def assert_same_training(one, many, first, second):
    for ours, theirs in zip(one.gradients, many.gradients, strict=True):
        for name, gradient in ours.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=2e-4, atol=1e-6)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for name in ("tokens", "responses"):
        assert one.counts[name] == many.counts[name]
    for a, b in zip(one.curve, many.curve, strict=True):
        assert a == pytest.approx(b, abs=2e-5)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 8), (2, 4)])
def test_accumulation_does_not_change_stage_1(tiny, tmp_path, batch, accumulate):
    """Responses have 1 to 9 tokens: a step is normalised by all its tokens, it is no mean of means."""
    whole, parts = tiny(), tiny()
    one = run(tmp_path / "one", whole, PLAIN, steps=2)
    many = run(tmp_path / "many", parts, PLAIN, batch=batch, accumulate=accumulate, steps=2)
    assert_same_training(one, many, whole.parameters(), parts.parameters())
    assert (one.counts["tokens"], one.counts["responses"]) == (2 * 62, 2 * 30)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 8), (2, 4)])
def test_accumulation_does_not_change_stage_2(tiny, five, student, tmp_path, batch, accumulate):
    """The same for cross-entropy and divergence, on six paths."""
    whole, parts = student(tiny(), five), student(tiny(), five)
    one = run(tmp_path / "one", whole.model, SAMPLES, adapters=whole, weights=DISTIL, steps=2)
    many = run(
        tmp_path / "many", parts.model, SAMPLES, adapters=parts, weights=DISTIL, steps=2,
        batch=batch, accumulate=accumulate,
    )  # fmt: skip
    assert_same_training(one, many, whole.parameters().values(), parts.parameters().values())


def test_a_batch_that_processes_cannot_share_equally_is_refused(tmp_path, monkeypatch):
    """Seven rows per step and two processes."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ConfigError) as caught:
        training_arguments(
            tmp_path,
            steps=1,
            batch_size=7,
            gradient_accumulation_steps=1,
            learning_rate=1e-3,
            weight_decay=0.0,
            seed=0,
            bf16=False,
            save_every=9,
        )
    assert str(caught.value) == (
        "batch_size (7) must be divisible by processes × gradient_accumulation_steps (2 × 1)"
    )


def test_a_steps_gradient_is_that_of_the_mean_over_its_tokens(tiny, tmp_path):
    """Including its scale: compared with transformers' own mean loss over the whole batch."""
    model, reference = tiny(), tiny()
    found = run(tmp_path / "run", model, PLAIN, batch=2, accumulate=4, steps=1)
    batch = collate(PLAIN, 0)
    labels = batch.ids.masked_fill(batch.prompt_mask.bool() | (batch.mask == 0), -100)
    loss = reference(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    loss.backward()
    for name, p in reference.named_parameters():
        torch.testing.assert_close(found.gradients[0][name], p.grad, rtol=2e-4, atol=1e-6)
    assert found.curve[0]["ce"] == pytest.approx(loss.item(), abs=2e-5)


def test_the_hidden_state_term_is_a_mean_over_rows(tiny, five, student, tmp_path):
    """Negatives come from the micro-batch, the normalisation from the whole step."""
    weights = Weights(ce=1.0, kl=0.5, similarity=0.3, layer=2)
    adapters = student(tiny(), five)
    order = [(number * 5 + number // 8) % 8 for number in range(8)]
    halves = [collate([SAMPLES[n] for n in half], 0) for half in (order[:4], order[4:])]
    with torch.no_grad():
        parts = [batch_losses(adapters.model, half, weights, adapters, twins_of(SAMPLES)) for half in halves]
    names = ("ce", "kl", "replay", "similarity")
    expected = {name: sum(part[name].item() for part in parts if name in part) for name in names}
    found = run(
        tmp_path / "run", adapters.model, SAMPLES, adapters=adapters, weights=weights, batch=4, accumulate=2,
        steps=1,
    )  # fmt: skip
    ce, kl, replay = (expected[name] / 30 for name in names[:3])
    hidden = expected["similarity"] / 8
    assert found.curve == [
        pytest.approx(
            {"stage": "test", "step": 1, "loss": ce + 0.5 * kl + replay + 0.3 * hidden, "ce": ce, "kl": kl,
             "replay": replay, "similarity": hidden}, abs=1e-4,
        )
    ]  # fmt: skip


def curve_of(folder):
    return (folder / "curve.jsonl").read_text()


def test_a_killed_stage_1_ends_with_the_same_weights(tiny, tmp_path):
    """Killed at step 5 of 8, resumed from the checkpoint of step 3: bit-identical to an unbroken run."""
    whole, broken, resumed = tiny(), tiny(), tiny(seed=9)
    expected = run(tmp_path / "whole", whole, PLAIN, batch=2, accumulate=2, steps=8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", broken, PLAIN, batch=2, accumulate=2, steps=8, stop=5)
    found = run(tmp_path / "broken", resumed, PLAIN, batch=2, accumulate=2, steps=8)
    assert len(found.gradients) == 5
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert found.counts == expected.counts
    assert curve_of(tmp_path / "broken") == curve_of(tmp_path / "whole")


def test_a_killed_stage_2_ends_with_the_same_adapters(tiny, five, student, tmp_path):
    """PEFT writes and reads the adapters' checkpoint; the base stays bit-identical to the reference model."""
    tiny().save_pretrained(tmp_path / "tuned")

    def made(seed):
        return student(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"), five, seed=seed)

    whole, broken, resumed = made(1), made(1), made(2)
    options = {"batch": 2, "accumulate": 2, "steps": 8}
    options["weights"] = Weights(ce=0.7, kl=1.3, similarity=0.3, layer=2)
    expected = run(tmp_path / "whole", whole.model, SAMPLES, adapters=whole, **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", broken.model, SAMPLES, adapters=broken, stop=5, **options)
    found = run(tmp_path / "broken", resumed.model, SAMPLES, adapters=resumed, **options)
    assert len(found.gradients) == 5
    for name, p in whole.parameters().items():
        assert torch.equal(p, resumed.parameters()[name])
    assert found.counts == expected.counts
    assert curve_of(tmp_path / "broken") == curve_of(tmp_path / "whole")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").state_dict()
    for name, p in resumed.model.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(p, reference[name.replace(".base_layer", "")])


def test_a_stopped_stage_2_with_other_settings_restarts(tiny, five, student, tmp_path):
    """Another rate, teacher prompt, twin, node, rank split or scale repeats all four steps with a warning."""
    options = {"batch": 2, "steps": 4, "weights": DISTIL}
    first = student(tiny(), five)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", first.model, SAMPLES, adapters=first, stop=4, **options)
    read_otherwise = [replace(SAMPLES[0], teacher_prompt=(5, 6)), *SAMPLES[1:]]
    grown = build_tree((*LANGUAGES[:5], "ur"), ranks={"root": 2, "family": 1, "language": 2})
    split = build_tree(five.languages, ranks={"root": 7, "family": 1, "language": 1})
    assert split.rank == five.rank and split.nodes != five.nodes  # the same shapes
    for name, samples, tree, more, steps in (
        ("same", SAMPLES, five, {}, 1),
        ("rate", SAMPLES, five, {"rate": 2e-4}, 4),
        ("prompt", read_otherwise, five, {}, 4),
        ("twin", [replace(SAMPLES[0], twin_prompt=(5, 6)), *SAMPLES[1:]], five, {}, 4),
        ("node", SAMPLES, grown, {}, 4),
        ("split", SAMPLES, split, {}, 4),
        ("scale", SAMPLES, five, {}, 4),
    ):
        shutil.copytree(tmp_path / "broken", tmp_path / name)
        adapters, said = student(tiny(), tree), []
        if name == "scale":
            for layer in adapters.layers():
                layer.scaling["default"] *= 2
        found = run(
            tmp_path / name, adapters.model, samples, adapters=adapters, say=said.append, **options, **more
        )
        assert (name, len(found.gradients)) == (name, steps)
        anew = "Warning: the checkpoints are from other rows or settings; training restarts"
        assert said == ([] if name == "same" else [anew])
        assert [line["step"] for line in found.curve] == [1, 2, 3, 4]


def test_an_incomplete_checkpoint_is_ignored(tiny, tmp_path):
    """A folder without the file that is written last does not count."""
    whole, resumed = tiny(), tiny(seed=9)
    run(tmp_path / "whole", whole, PLAIN, batch=2, steps=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", tiny(), PLAIN, batch=2, steps=4, stop=4)
    torn = tmp_path / "broken" / "work" / "checkpoint-4"
    torn.mkdir()
    (torn / "counts.json").write_text("{}")
    found = run(tmp_path / "broken", resumed, PLAIN, batch=2, steps=4)
    assert len(found.gradients) == 1
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def empty(checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(b"")


def flip(checkpoint):
    """Flip the bits of a byte in the middle of the optimiser's moments."""
    content = bytearray((checkpoint / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (checkpoint / "optimizer.pt").write_bytes(content)


def cut(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def wipe(checkpoint):
    """Replace the last weights by zeros; header and length stay valid."""
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64] + bytes(64))


def lose(checkpoint):
    (checkpoint / "scheduler.pt").unlink()


def blank(checkpoint):
    (checkpoint / "counts.json").write_bytes(b"")


@pytest.mark.parametrize("damage", [empty, flip, cut, wipe, lose, blank])
def test_a_damaged_checkpoint_is_reported_and_an_earlier_one_used(tiny, tmp_path, damage):
    """The last of two is damaged, then both: the weights are those of an unbroken run each time."""
    whole = tiny()
    run(tmp_path / "whole", whole, PLAIN, batch=2, steps=8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", tiny(), PLAIN, batch=2, steps=8, stop=7)
    for damaged, steps in ((["checkpoint-6"], 5), (["checkpoint-6", "checkpoint-3"], 8)):
        folder, said = tmp_path / f"{steps} left", []
        shutil.copytree(tmp_path / "broken", folder)
        for name in damaged:
            damage(folder / "work" / name)
        resumed = tiny(seed=9 if steps == 5 else 0)
        assert len(run(folder, resumed, PLAIN, batch=2, steps=8, say=said.append).gradients) == steps
        assert len(said) == len(damaged)
        for name, line in zip(damaged, said, strict=True):
            assert line.startswith(f"Warning: {folder}/work/{name}")
            assert line.endswith("; training resumes from an earlier checkpoint or restarts")
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_checkpoint_on_a_full_disk_names_its_folder(tiny, tmp_path, monkeypatch):
    """torch reports a wrong position, safetensors and the system a full disk; other errors are unchanged."""
    position = "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, type_, says in (
        (RuntimeError(position), RunError, "work: a checkpoint could not be written; "),
        (full, OSError, "No space left on device"),
        (RuntimeError("CUDA error"), RuntimeError, "CUDA error"),
    ):
        monkeypatch.setattr(torch, "save", Mock(side_effect=error))
        with pytest.raises(type_) as caught:
            run(tmp_path / "run", tiny(), PLAIN, batch=2, steps=4)
        assert says in str(caught.value)
        if type_ is OSError:
            assert caught.value.filename == str(tmp_path / "run" / "work")


def test_training_stops_at_a_loss_that_is_not_finite(tmp_path):
    """One line names the step and what to change; nothing is written for it."""
    watch = Watch(curve := tmp_path / "curves.jsonl", "distill", 1, lambda done, of: None)
    watch.trainer = SimpleNamespace(settle=lambda: {"loss": float("nan"), "ce": 1.0})
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, max_steps=9)
    with pytest.raises(RunError) as caught:
        watch.on_step_end(SimpleNamespace(report_to=[]), state, None)
    assert str(caught.value) == (
        "loss is nan at step 3 of 9; try a lower distill.learning_rate, or dtype: float32"
    )
    assert not curve.exists()


def test_damaged_lines_of_a_curve_are_removed(tmp_path):
    """NUL bytes after a power cut, half a line after a kill; complete lines of other stages stay."""
    curve = tmp_path / "curves.jsonl"
    curve.write_text('{"stage": "tune", "step": 9, "loss": 1.0}\n\0\0\n{"stage": "test", "st')
    Watch(curve, "test", 1, lambda done, of: None).on_train_begin(
        None, SimpleNamespace(is_world_process_zero=True, global_step=3), None
    )
    assert curve.read_text() == '{"stage": "tune", "step": 9, "loss": 1.0}\n'


def test_positions_that_another_teacher_does_not_cover_only_have_cross_entropy(tiny):
    """Divergence on two of three tokens, cross-entropy on all, each equal to its own computation."""
    model = tiny("qwen3").requires_grad_(False)
    encoded = Encoded((5, 6, 7), (40, 41, 1))
    top = TopK(torch.tensor([[40, 9], [1, 3]], dtype=torch.int32), torch.tensor([[-0.5, -2.0], [-1.0, -1.5]]))
    covered = torch.tensor([True, False, True])
    sample = Sample(encoded, "sw", 0, Signal(top, torch.zeros(24), covered))
    with torch.no_grad():
        parts = batch_losses(model, collate([sample], 0), Weights(1.0, 1.0))
        logits = model(torch.tensor([[5, 6, 7, 40, 41, 1]])).logits[0, 2:5]
    own = functional.cross_entropy(logits, torch.tensor([40, 41, 1]))
    assert parts["ce"].item() == pytest.approx(own.item(), abs=1e-4)
    assert parts["kl"].item() == pytest.approx(functional.forward_kl(logits[[0, 2]], top).item(), abs=1e-4)


def test_one_process_does_not_drive_two_gpus():
    """torch would copy the model to both, and their paths and counts would diverge."""
    with pytest.raises(ConfigError) as caught:
        ResponseTrainer(model=nn.Linear(1, 1), weights=DISTIL, pad_id=0, args=SimpleNamespace(n_gpu=2))
    assert str(caught.value) == "one process uses one GPU; start one per GPU with `accelerate launch`"
