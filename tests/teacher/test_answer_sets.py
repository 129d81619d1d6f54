"""Answer-set distillation: options packed into one row equal separate rows, in value and gradient."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from isogloss.data.chat import Encoded
from isogloss.losses.functional import answer_set_kl
from isogloss.losses.fused import Head, frozen_head, token_log_probs
from isogloss.model.branches import branched_hidden, branches_fit, layout, visible
from isogloss.model.decoder import head, last_hidden
from isogloss.teacher.rows import Row
from isogloss.teacher.signals import Signal, teacher_signals
from isogloss.train.batch import collate, informed, samples_of
from isogloss.train.objective import Weights, batch_losses

PROMPT, OPTIONS = (10, 11, 12, 13), ((20, 21, 1), (22, 1), (20, 23, 24, 1))
ENGLISH, TWINS = (30, 31, 32), ((40, 1), (41, 42, 1), (43, 1))


def row(number=0, language="sw", response=OPTIONS[1], options=OPTIONS, twins=TWINS):
    student, twin = Encoded((*PROMPT, 50 + number), response), (*ENGLISH, 60 + number)
    return Row(f"{number}", language, number, student, ENGLISH, twin, options, twins)


def apart(model, prompt, options):
    """Return each option's ln probability in float64, from its own forward pass through the whole model."""
    found = []
    for option in options:
        logits = model(input_ids=torch.tensor([[*prompt, *option]]), use_cache=False).logits[0].double()
        said = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(said.gather(1, torch.tensor(option)[:, None]).sum())
    return torch.stack(found)


def test_the_layout_of_a_row_with_two_branches():
    branch, place, starts = layout(4, [3, 2])
    assert branch == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert place == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert starts == [4, 7]


def test_a_branch_sees_the_prompt_and_itself():
    """One row of one prompt token, two branches of two and one token, and a padding token."""
    seen = visible(torch.tensor([[0, 1, 1, 2, -1]]))[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3_text", "qwen2", "granite"])
def test_each_answer_has_the_states_of_a_separate_row(tiny, kind):
    """Also with rows of different lengths in one batch."""
    model = tiny(kind)
    assert branches_fit(model)
    laid = [layout(len(p), [len(o) for o in OPTIONS]) for p in (PROMPT, PROMPT[:2])]
    texts = [[*p, *(t for o in OPTIONS for t in o)] for p in (PROMPT, PROMPT[:2])]
    width = max(map(len, texts))

    def filled(rows, fill):
        return torch.tensor([[*one, *[fill] * (width - len(one))] for one in rows])

    with torch.no_grad():
        hidden = branched_hidden(
            model, filled(texts, 0), filled([b for b, _, _ in laid], -1), filled([p for _, p, _ in laid], 0)
        )
        for number, prompt in enumerate((PROMPT, PROMPT[:2])):
            for start, option in zip(laid[number][2], OPTIONS, strict=True):
                ids = torch.tensor([[*prompt, *option]])
                alone = last_hidden(model, ids, torch.ones_like(ids))[0, len(prompt) :]
                torch.testing.assert_close(
                    hidden[number, start : start + len(option)], alone, rtol=1e-4, atol=1e-5
                )


def test_a_sliding_window_counts_position_ids_not_columns(tiny):
    """The prompt is longer than the window of 4; a late branch attends to the tokens it would alone."""
    model = tiny("mistral")
    model.config.sliding_window = 4
    prompt, options = tuple(range(10, 19)), OPTIONS
    branch, place, starts = layout(len(prompt), [len(o) for o in options])
    ids = torch.tensor([[*prompt, *(t for o in options for t in o)]])
    with torch.no_grad():
        hidden = branched_hidden(model, ids, torch.tensor([branch]), torch.tensor([place]))
        for start, option in zip(starts, options, strict=True):
            one = torch.tensor([[*prompt, *option]])
            alone = last_hidden(model, one, torch.ones_like(one))[0, len(prompt) :]
            torch.testing.assert_close(hidden[0, start : start + len(option)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bloom", "mpt", "gpt_neo"])
def test_branches_do_not_fit_where_attention_counts_columns(kind):
    """ALiBi and local layers either accept no mask over pairs or would be silently wrong."""
    sizes: dict[str, Any] = {"vocab_size": 269, "hidden_size": 24}
    if kind == "gpt_neo":
        local = [[["global", "local"], 1]]
        sizes |= {"attention_types": local, "window_size": 4, "num_layers": 2, "num_heads": 4}
    else:
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, initializer_range=0.2)
    assert not branches_fit(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def test_branches_do_not_fit_a_recurrent_layer(tiny):
    model = tiny()
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert not branches_fit(model)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_token_log_probabilities_equal_autograd_through_all_logits(tiny, size, cap):
    """Tokens have different weights, and some share a position, like a row's options; float64, to 1e-9."""
    model = tiny("gemma3_text", dtype=torch.float64)
    fixed = replace(frozen_head(model.requires_grad_(False)), cap=cap)
    torch.manual_seed(0)
    states = torch.randn(7, model.config.hidden_size, dtype=torch.float64)
    where = torch.tensor([0, 3, 3, 1, 2, 0, 6, 4, 3, 5])
    ids, weigh = torch.randint(0, 269, where.shape), torch.randn(len(where), dtype=torch.float64)
    found = []
    for fused in (True, False):
        one = states.clone().requires_grad_()
        if fused:
            said, _ = token_log_probs(model, one, ids, where, size=size, fixed=fixed)
        else:
            said = fixed.logits(one).log_softmax(-1)[where, ids]
        (said * weigh).sum().backward()
        found.append((said.detach(), one.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_gradients_of_sure_tokens_are_not_lost_in_bfloat16():
    """q is above 0.99: W_y and the mean differ by less than bfloat16 rounds either."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 50, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.data = torch.randn(50, 64).bfloat16()
    where, ids = torch.tensor([0, 1, 1]), torch.tensor([3, 7, 7])
    states, weigh = (0.18 * linear.weight[[3, 7]].float()).bfloat16(), torch.tensor([0.0123, 0.0071, 0.0049])
    ours, exact = states.clone().requires_grad_(), states.double().requires_grad_()
    said, _ = token_log_probs(linear, ours, ids, where, size=1, fixed=Head(linear))
    assert (said.exp() > 0.99).all()
    (said * weigh).sum().backward()
    wanted = (exact @ linear.weight.double().T).log_softmax(-1)[where, ids]
    (wanted * weigh).sum().backward()
    assert (ours.grad.double() - exact.grad).norm() < 0.02 * exact.grad.norm()


def test_the_divergence_over_answers_matches_values_worked_out_by_hand():
    """Teacher ½, ½ and student 0.9, 0.1: ½ ln(½/0.9) + ½ ln(½/0.1); the second row has a fifth of its mass
    elsewhere: - ln 0.8."""
    scores = torch.tensor([0.9, 0.1, 0.4, 0.4]).log()
    targets = torch.tensor([0.5, 0.5, 0.2, 0.2]).log() - 7  # the teacher's may be off by a constant
    expected = 0.510826 - math.log(0.8)
    assert answer_set_kl(scores, targets, [2, 2]).item() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_moves_mass_back_to_the_set():
    """The student ranks like the teacher, but nearly always says something else."""
    logits = torch.tensor([2.0, 1.0, 9.0], requires_grad=True)
    answer_set_kl(logits.log_softmax(0)[:2], torch.tensor([2.0, 1.0]), [2]).backward()
    assert logits.grad[2] > 0.99 and (logits.grad[:2] < 0).all()


def test_of_a_nearly_uniform_set_only_the_response_is_learned(tiny):
    """With two and three options: a nearly uniform target is uninformative, 0.9 is not."""
    assert [informed(torch.tensor(p).log()) for p in ((0.5, 0.5), (0.6, 0.4), (0.9, 0.1))] == [
        False,
        False,
        True,
    ]
    assert [informed(torch.tensor(p).log()) for p in ((0.5, 0.3, 0.2), (0.8, 0.1, 0.1))] == [False, True]
    (sample,) = samples_of([row()], [Signal(None, torch.zeros(24), options=torch.zeros(3))])
    assert sample.options == () and sample.encoded.response == OPTIONS[1]


def test_mismatched_sizes_are_refused():
    with pytest.raises(ValueError, match="3 scores and 3 targets for rows of"):
        answer_set_kl(torch.zeros(3), torch.zeros(3), [2])


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_the_target_is_the_models_own_score_of_the_english_options(tiny, kind):
    """Whole answers are scored after the English twin alone, and once per meaning."""
    model = tiny(kind)
    rows = [row(0), row(1), row(0, language="ur", options=((70, 1), (71, 1), (72, 1)), response=(71, 1))]
    signals = teacher_signals(model, rows, layer=2, pad_id=0)
    for one, signal in zip(rows, signals, strict=True):
        assert signal.teacher is None
        with torch.no_grad():
            expected = apart(model, one.twin_prompt, TWINS)
        torch.testing.assert_close(signal.options.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(signals[0].options, signals[2].options, rtol=0, atol=0)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_a_batch_equals_separate_rows(tiny, five, student, kind, alone):
    """Rows with answer sets, one whose response is no option, and one without a set."""
    model = tiny(kind)
    rows = [row(0), row(1, language="ru", response=OPTIONS[2]), row(2, language="es", options=(), twins=())]
    rows.append(row(3, language="fr", response=(99, 98, 1)))
    rows = rows[:2] if alone else rows
    signals = teacher_signals(model, rows, layer=2, pad_id=0)
    signals = [one if one.options is None else replace(one, options=3 * one.options) for one in signals]
    adapters = student(model, five)
    weights = Weights(ce=1.0, kl=1.0, layer=2)
    parts = batch_losses(adapters.model, collate(samples_of(rows, signals), 0), weights, adapters)
    (parts["options"] + parts["ce"] + parts.get("kl", 0.0)).backward()
    packed = {name: p.grad.clone() for name, p in adapters.parameters().items()}
    for p in adapters.parameters().values():
        p.grad = None
    total = nll = 0.0
    for one, signal in zip(rows, signals, strict=True):

        def said(answer, one=one):
            adapters.set_path([one.language])
            ids = torch.tensor([[*one.student.prompt, *answer]])
            logits = adapters.model(input_ids=ids, use_cache=False).logits[0]
            return logits[len(one.student.prompt) - 1 : -1].log_softmax(-1)

        def score(answer, said=said):
            return said(answer).gather(1, torch.tensor(answer)[:, None]).sum()

        loss = ce = -score(one.student.response)
        if one.options:
            log_q = torch.stack([score(option) for option in OPTIONS])
            log_p = signal.options.log_softmax(0)
            loss = loss + (divergence := (log_p.exp() * (log_p - log_q)).sum())
            total += divergence.item()
        else:
            log_q, log_p = said(one.student.response), head(model, signal.teacher).log_softmax(-1).detach()
            loss = loss + (log_p.exp() * (log_p - log_q)).sum()
        loss.backward()
        nll += ce.item()
    adapters.off()
    assert parts["options"].item() == pytest.approx(total, rel=1e-4)
    assert parts["ce"].item() == pytest.approx(nll, rel=1e-4)
    for name, p in adapters.parameters().items():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-3, atol=1e-5)
