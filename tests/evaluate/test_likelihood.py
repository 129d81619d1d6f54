"""The likeliest option, against reading every whole answer by itself."""

import pytest
import torch

from isogloss.data.chat import encode
from isogloss.evaluate.likelihood import log_probabilities

INSTRUCTIONS = ("Is it so?", "A much longer question, about something else altogether: is it so?", "¿Sí?")
OPTIONS = (
    {"yes": "yes", "no": "no", "maybe": "perhaps so"},
    {"yes": "да", "no": "нет"},
    {"yes": "sí", "no": "no", "maybe": "quizás"},
)


def by_itself(model, tokenizer, instruction: str, wording: str) -> float:
    """ln p of the answer and its end, one row, no cache, no padding."""
    row = encode(tokenizer, instruction, wording)
    ids = torch.tensor([[*row.prompt, *row.response]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), -1)
    at = range(len(row.prompt) - 1, ids.shape[1] - 1)
    return sum(log_p[place, token].item() for place, token in zip(at, row.response, strict=True))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text", "mistral"])
def test_equals_reading_each_answer_alone(kind, tokenizer, tiny):
    model = tiny(kind)
    found = log_probabilities(model, tokenizer, INSTRUCTIONS, OPTIONS, batch=2)
    for one, instruction, options in zip(found, INSTRUCTIONS, OPTIONS, strict=True):
        assert list(one) == list(options)
        for key, wording in options.items():
            assert one[key] == pytest.approx(by_itself(model, tokenizer, instruction, wording), abs=2e-4)


def test_each_row_reads_its_own_path(tokenizer, aligned):
    """Mixed in one batch as alone; without languages the carriers are off."""
    carrier, model = aligned.carrier, aligned.carrier.model
    codes = ("sw", "ru", "ur")

    def ask(instructions, options, languages):
        return log_probabilities(
            model, tokenizer, instructions, options, languages=languages, carrier=carrier
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
