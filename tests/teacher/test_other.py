"""Another local model as teacher: token alignment by hand and on real tokenizers, and its scores."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from isogloss.adapters import generate
from isogloss.data.chat import Encoded, encode_response
from isogloss.model.decoder import head, last_hidden
from isogloss.model.load import model_folder
from isogloss.teacher import local
from isogloss.teacher.rows import Row

sys.path.insert(0, str(Path(__file__).parents[1]))
from real import qwen3_like

SENTENCES = {
    "en": "The meeting begins at nine o'clock tomorrow.",
    "es": "La reunión empieza mañana a las nueve.",
    "sw": "Mkutano unaanza kesho saa tatu asubuhi.",
    "ru": "Встреча начинается завтра в девять часов.",
    "hi": "बैठक कल सुबह नौ बजे शुरू होगी।",
    "th": "การประชุมเริ่มพรุ่งนี้เก้าโมงเช้า",
}


@pytest.fixture(scope="module")
def demo():
    return AutoTokenizer.from_pretrained(model_folder("demo"))


@pytest.fixture(scope="module")
def large():
    return qwen3_like()


# --- alignment


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs", "whole"),
    [
        (["ab", "c"], ["ab", "c"], [(0, 0), (1, 1)], True),
        (["ab", "c"], ["a", "bc"], [], True),
        (["ab", "c", "d"], ["a", "b", "c", "d"], [(1, 2), (2, 3)], True),
        (["a", "b", "cd"], ["ab", "cd"], [(2, 1)], True),
        (["ab", "c"], [" ab", "c"], [(1, 1)], True),  # a space before the first word: that token differs
        ([" ab", "c"], ["ab", "c"], [(1, 1)], True),
        ([" ab", "c"], [" ab", "c"], [(1, 1)], True),
        (["ab", "cd", "e"], ["ab", "cx", "e"], [(0, 0)], False),  # nothing after a difference
        (["ab", ""], ["ab", ""], [(0, 0)], True),
    ],
)
def test_tokens_of_the_same_bytes_are_aligned(ours, theirs, pairs, whole):
    """The same first and last byte of the same text, by hand."""
    encode = [[token.encode() for token in tokens] for tokens in (ours, theirs)]
    assert local.aligned(*encode) == (pairs, whole)


def test_bytes_of_real_vocabularies(demo, large):
    """The joined tokens of a text are its bytes, including letters split over tokens."""
    for tokenizer in (demo, large):
        table = local.token_bytes(tokenizer)
        for text in SENTENCES.values():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert b"".join(table[number] for number in ids) == text.encode()
    assert local.token_bytes(large)[large.convert_tokens_to_ids("<|im_end|>")] is None


def test_sentencepiece_bytes_by_hand():
    """A space is ▁, and a byte is spelled out."""
    assert local._piece("▁Paris") == b" Paris"
    assert local._piece("<0x0A>") == b"\n"
    assert local._letters("Ġpa") == b" pa"


def test_coverage_of_two_real_tokenizers(demo, large):
    """The share of the packaged tokenizer's tokens that Tekken splits alike, end of turn included."""
    translation = local.TokenMap(demo, large)
    assert not translation.same
    found = {}
    for code, text in SENTENCES.items():
        ids = encode_response(demo, text)
        theirs, pairs = translation.response(ids)
        assert pairs[-1] == (len(ids) - 1, len(theirs) - 1)
        for ours, its in pairs[:-1]:
            assert translation.student_bytes[ids[ours]] == translation.teacher_bytes[theirs[its]]
        found[code] = len(pairs) / len(ids)
    assert found == pytest.approx(COVERED, abs=0.005)


COVERED = {"en": 5 / 19, "es": 7 / 14, "sw": 6 / 11, "ru": 6 / 17, "hi": 8 / 14, "th": 4 / 9}


def test_a_tokenizer_is_covered_by_itself(demo):
    """Every token of every language, without a shortcut for equal tokenizers."""
    translation = local.TokenMap(demo, demo)
    assert translation.same
    for text in SENTENCES.values():
        ids = encode_response(demo, text)
        theirs, pairs = translation.response(ids)
        assert theirs == ids
        assert pairs == [(n, n) for n in range(len(ids))]


def test_mass_goes_to_the_same_bytes_and_the_rest_stays_in_the_bucket():
    """Teacher's tokens a, ab, b, xyz, end; the student has b, a, ab, end, so xyz has no counterpart."""
    translation = object.__new__(local.TokenMap)
    translation.student_bytes = [b"b", b"a", b"ab", None]
    translation.to = torch.tensor([1, 2, 0, local.NOWHERE, 3])
    p = torch.tensor([[0.1, 0.4, 0.2, 0.25, 0.05]])
    ids, logprobs = translation.carried(p.log(), 4)
    assert ids.tolist() == [[2, 0, 1, 3]]
    assert logprobs.exp().tolist()[0] == pytest.approx([0.4, 0.2, 0.1, 0.05])
    assert logprobs.exp().sum().item() == pytest.approx(0.75)


# --- scores


def row(number, prompt, response, language="sw"):
    made = torch.Generator().manual_seed(number)
    ids = [tuple(torch.randint(5, 250, (n,), generator=made).tolist()) for n in (3, prompt, 4)]
    return Row(f"{number}", language, number, Encoded(ids[0], response), ids[1], ids[2])


def test_scores_with_the_same_tokenizer_are_the_models_own(tiny, tokenizer):
    """Rows of different lengths, in order: the likeliest tokens of the full distribution at each position."""
    teacher = tiny("llama", seed=3)
    rows = [
        row(n, 4 + 3 * n % 7, encode_response(tokenizer, text)) for n, text in enumerate(["ab", "ünd", "xyz"])
    ]
    found = local.score(teacher, rows, local.TokenMap(tokenizer, tokenizer), 5, batch=2)
    for one, scored in zip(rows, found, strict=True):
        ids = torch.tensor([[*one.teacher_prompt, *one.student.response]])
        with torch.no_grad():
            logits = head(teacher, last_hidden(teacher, ids, torch.ones_like(ids))[0])
        full = logits[len(one.teacher_prompt) - 1 : -1].log_softmax(-1)
        best = full[:, : len(tokenizer)].topk(5)
        assert torch.equal(scored.ids, best.indices)
        torch.testing.assert_close(scored.logprobs, best.values, atol=1e-4, rtol=1e-4)
        assert scored.covered.tolist() == [True] * len(one.student.response)


def test_scores_of_a_half_precision_teacher_are_not_rounded(tiny, tokenizer):
    """Rounded to bfloat16, logits near 4 would be wrong by up to 0.008."""
    teacher = tiny("llama", seed=3).to(torch.bfloat16)
    one = row(1, 6, encode_response(tokenizer, "ab"))
    (scored,) = local.score(teacher, [one], local.TokenMap(tokenizer, tokenizer), 5)
    ids = torch.tensor([[*one.teacher_prompt, *one.student.response]])
    with torch.no_grad():
        states = last_hidden(teacher, ids, torch.ones_like(ids))[0].double()
        weight = teacher.get_output_embeddings().weight.double()
    full = (states @ weight.T)[len(one.teacher_prompt) - 1 : -1].log_softmax(-1)
    expected = full.gather(-1, scored.ids)
    torch.testing.assert_close(scored.logprobs.double(), expected, atol=5e-4, rtol=0)


def test_scores_with_another_tokenizer_are_those_of_the_covered_positions(tiny, tokenizer, demo):
    """Compared with the mass of each byte string, summed one token at a time."""
    teacher = tiny("qwen3", seed=2)  # 269 byte tokens; the student has the demo's tokenizer
    translation = local.TokenMap(demo, tokenizer)
    response = encode_response(demo, "no 7, a b!")
    one = row(1, 6, response)
    (scored,) = local.score(teacher, [one], translation, 4)
    theirs, pairs = translation.response(response)
    assert 2 <= len(pairs) == int(scored.covered.sum()) <= len(response)
    assert scored.covered.nonzero().flatten().tolist() == [ours for ours, _ in pairs]
    ids = torch.tensor([[*one.teacher_prompt, *theirs]])
    with torch.no_grad():
        full = head(teacher, last_hidden(teacher, ids, torch.ones_like(ids))[0]).softmax(-1)
    for (_, its), kept, logprobs in zip(pairs, scored.ids, scored.logprobs, strict=True):
        p = full[len(one.teacher_prompt) - 1 + its]
        for number, value in zip(kept.tolist(), logprobs.tolist(), strict=True):
            same = [
                n
                for n, text in enumerate(translation.teacher_bytes)
                if text is not None and text == translation.student_bytes[number]
            ]
            if number == translation.ends[0]:
                same = [translation.ends[1]]
            assert value == pytest.approx(p[same].sum().log().item(), abs=1e-3)


def test_answers_become_responses_in_the_students_ids(tiny, tokenizer, monkeypatch):
    """An empty or truncated answer keeps the data's response; English rows are not sent."""
    end = 1
    said = [[*encode_response(tokenizer, "kitabu"), 7, 7], [end, 0, 0], [9, 9, 9]]
    asked = []

    def complete(model, its, prompts, **how):
        asked.extend(prompts)
        width = max(map(len, said))
        return torch.tensor([[*ids, *[0] * (width - len(ids))][:width] for ids in said])

    monkeypatch.setattr(generate, "complete", complete)
    monkeypatch.setattr(generate, "stops", lambda model, its: [end])
    rows = [row(n, 3 + n, (50 + n, end)) for n in range(3)] + [row(9, 3, (60, end), "en")]
    found = local.written(tiny(), rows, tokenizer, tokenizer, max_new_tokens=8)
    assert [r.student.response for r in found] == [
        encode_response(tokenizer, "kitabu"), (51, end), (52, end), (60, end)
    ]  # fmt: skip
    assert asked == [r.teacher_prompt for r in rows[:3]]
    assert [r.student.prompt for r in found] == [r.student.prompt for r in rows]


def test_an_answer_keeps_the_instruction_mask(tiny, tokenizer, monkeypatch):
    """The hidden-state term pools those tokens."""
    monkeypatch.setattr(local, "ended", lambda *given, **how: [(0, "kitabu")])
    one = Row("0", "sw", 0, Encoded((5, 6), (50, 1), (False, True)), (7, 8), (5,))
    (found,) = local.written(tiny(), [one], tokenizer, tokenizer, max_new_tokens=8)
    assert found.student == Encoded((5, 6), encode_response(tokenizer, "kitabu"), (False, True))
