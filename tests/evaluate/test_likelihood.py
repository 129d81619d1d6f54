"""The likeliest option, compared with scoring every whole answer on its own."""

import pytest
import torch

from isogloss.data.chat import encode
from isogloss.evaluate import likelihood
from isogloss.evaluate.likelihood import log_probabilities

INSTRUCTIONS = ("Is it so?", "A much longer question, about something else altogether: is it so?", "¿Sí?")
OPTIONS = (
    {"yes": "yes", "no": "no", "maybe": "perhaps so"},
    {"yes": "да", "no": "нет"},
    {"yes": "sí", "no": "no", "maybe": "quizás"},
)


def by_itself(model, tokenizer, instruction: str, wording: str) -> float:
    """Return ln p of the answer and its end of turn, from one row without cache or padding."""
    row = encode(tokenizer, instruction, wording)
    ids = torch.tensor([[*row.prompt, *row.response]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), -1)
    at = range(len(row.prompt) - 1, ids.shape[1] - 1)
    return sum(log_p[place, token].item() for place, token in zip(at, row.response, strict=True))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text", "mistral"])
def test_scores_equal_those_of_each_answer_alone(kind, tokenizer, tiny):
    model = tiny(kind)
    found = log_probabilities(model, tokenizer, INSTRUCTIONS, OPTIONS, batch=2)
    for one, instruction, options in zip(found, INSTRUCTIONS, OPTIONS, strict=True):
        assert list(one) == list(options)
        for key, wording in options.items():
            assert one[key] == pytest.approx(by_itself(model, tokenizer, instruction, wording), abs=2e-4)


def test_each_row_uses_its_own_path(tokenizer, aligned):
    """A mixed batch equals single rows; without languages the adapters are off."""
    adapters, model = aligned.adapters, aligned.adapters.model
    codes = ("sw", "ru", "ur")

    def ask(instructions, options, languages):
        return log_probabilities(
            model, tokenizer, instructions, options, languages=languages, adapters=adapters
        )

    mixed = ask(INSTRUCTIONS, OPTIONS, codes)
    for number, code in enumerate(codes):
        alone = ask(INSTRUCTIONS[number : number + 1], OPTIONS[number : number + 1], [code])[0]
        assert mixed[number] == pytest.approx(alone, abs=2e-4)
        other = ask(INSTRUCTIONS[number : number + 1], OPTIONS[number : number + 1], [codes[number - 1]])[0]
        assert mixed[number] != pytest.approx(other, abs=1e-2)
    plain = log_probabilities(model, tokenizer, INSTRUCTIONS, OPTIONS)
    expected = by_itself(model, tokenizer, INSTRUCTIONS[0], "yes")
    assert plain[0]["yes"] == pytest.approx(expected, abs=2e-4)


PREMISES = ("The market opens at dawn.", "It rained all of last week, and nobody went out.")
ABOUT = tuple(
    f"Take what follows as given. {premise} Is it so: {claim}?"
    for premise in PREMISES
    for claim in ("they slept", "bread is sold in the morning", "it was wet", "they slept")
)
ASKED = (*ABOUT, "Take what follows as given. No more.", "Take what")
EACH = [OPTIONS[0]] * len(ASKED)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "mistral", "gpt2"])
@pytest.mark.parametrize("batch", [64, 3])
@pytest.mark.parametrize("window", [4096, 64])
def test_sharing_a_prefix_changes_no_score(kind, batch, window, tokenizer, tiny):
    """Template and premise are computed once; a sliding window is as wide as for each prompt alone."""
    model = tiny(kind)
    if kind != "gpt2":
        model.config.sliding_window = window
    found = log_probabilities(model, tokenizer, ASKED, EACH, batch=batch)
    for one, instruction, options in zip(found, ASKED, EACH, strict=True):
        for key, wording in options.items():
            assert one[key] == pytest.approx(by_itself(model, tokenizer, instruction, wording), abs=3e-4)


def test_shared_prefixes_are_computed_once(tokenizer, tiny, monkeypatch):
    """With one token per byte: the template's words and each premise once, and the claims with an option."""
    model, read = tiny(), []
    inner = likelihood._read
    monkeypatch.setattr(
        likelihood,
        "_read",
        lambda model, ids, mask, past: read.append(ids.shape) or inner(model, ids, mask, past),
    )
    log_probabilities(model, tokenizer, ABOUT, [{"yes": "y", "no": "no"}] * len(ABOUT), batch=4)
    lead = len("U") + len("Take what follows as given. ")
    tail = len("?") + 2  # the question mark, the end of turn and the assistant's token
    rest = len("bread is sold in the morning") + tail
    heads = [len(premise) + len(" Is it so: ") for premise in PREMISES]
    # The first option is computed with the rest of the prompt, the other after it.
    units = [shape for head in heads for shape in ((1, head), (4, rest + 1), (4, 2))]
    assert read == [(1, lead), *units]


def test_a_shared_prefix_uses_the_path_of_its_language(tokenizer, tiny, five, student):
    """One call has two languages, each on its own path."""
    adapters = student(tiny(), five)
    codes = ["sw" if number % 2 else "ru" for number in range(len(ASKED))]
    found = log_probabilities(adapters.model, tokenizer, ASKED, EACH, languages=codes, adapters=adapters)
    for number, code in enumerate(codes):
        with adapters.on([code]) as model:
            told = by_itself(model, tokenizer, ASKED[number], "yes")
        assert found[number]["yes"] == pytest.approx(told, abs=3e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2"])
def test_the_attention_implementation_is_restored(kind, tokenizer, tiny, monkeypatch):
    """Scoring uses SDPA, except with logit capping, which SDPA would leave out."""
    model, seen = tiny(kind), []
    model.set_attn_implementation("eager")
    inner = likelihood._read
    monkeypatch.setattr(
        likelihood,
        "_read",
        lambda *given: seen.append(model.config._attn_implementation) or inner(*given),
    )
    found = log_probabilities(model, tokenizer, INSTRUCTIONS, OPTIONS)
    assert set(seen) == {"eager" if kind == "gemma2" else "sdpa"}
    assert model.config._attn_implementation == "eager"
    for one, instruction, options in zip(found, INSTRUCTIONS, OPTIONS, strict=True):
        for key, wording in options.items():
            assert one[key] == pytest.approx(by_itself(model, tokenizer, instruction, wording), abs=2e-4)


@pytest.mark.parametrize("kind", ["mamba", "qwen3_next", "falcon_h1", "lfm2"])
def test_recurrent_states_are_never_cut(kind, tokenizer, tiny):
    """Every score is that of the whole answer alone, though prompts share a prefix."""
    model = tiny(kind)
    found = log_probabilities(model, tokenizer, ASKED[-3:], OPTIONS, batch=2)
    for one, instruction, options in zip(found, ASKED[-3:], OPTIONS, strict=True):
        assert list(one) == list(options)
        for key, wording in options.items():
            assert one[key] == pytest.approx(by_itself(model, tokenizer, instruction, wording), abs=3e-4)


def test_recurrent_models_use_the_path_of_each_language(tokenizer, tiny, five, student):
    """Both kinds of layers have adapters."""
    adapters = student(tiny("lfm2"), five)
    found = log_probabilities(
        adapters.model, tokenizer, INSTRUCTIONS[:2], OPTIONS[:2], languages=["sw", "ru"], adapters=adapters
    )
    for one, instruction, code in zip(found, INSTRUCTIONS, ("sw", "ru"), strict=False):
        with adapters.on([code]) as on:
            told = by_itself(on, tokenizer, instruction, OPTIONS[code == "ru"]["no"])
        assert one["no"] == pytest.approx(told, abs=3e-4)
