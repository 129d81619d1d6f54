"""Inference: mixed languages in a batch, language detection, streaming."""

from itertools import islice

import pytest

from isogloss.errors import RunError
from isogloss.inference import Aligned
from isogloss.model.decoder import by_length

TEXTS = [
    "Habari za asubuhi, rafiki yangu",
    "Доброе утро, мой дорогой друг",
    "صبح بخیر میرے پیارے دوست",
    "Good morning",
]


def test_a_mixed_batch_gives_the_answers_of_each_language_alone(aligned):
    """Any code of a language works; English uses the root, and every path gives a different answer."""
    mixed = aligned.generate(TEXTS, ["swh", "rus_Cyrl", "ur", "en"], max_new_tokens=8)
    alone = [
        aligned.generate([text], code, max_new_tokens=8)[0]
        for text, code in zip(TEXTS, ("sw", "ru", "ur", "en"), strict=True)
    ]
    assert mixed == alone
    answers = [aligned.generate(TEXTS[:1], code, max_new_tokens=8)[0] for code in ("sw", "ru", "ur", "en")]
    assert len({*answers, aligned.reference(TEXTS[:1], max_new_tokens=8)[0]}) == 5


def test_batches_keep_to_the_limits_of_rows_and_tokens():
    """Padding counts; a row over the limit gets a batch of its own."""
    encoded = [[0] * length for length in (2, 2, 3, 5, 20)]
    assert list(by_length(encoded, rows=2, tokens=9)) == [[0, 1], [2], [3], [4]]
    assert list(by_length(encoded, rows=4, tokens=12)) == [[0, 1, 2], [3], [4]]
    assert list(by_length([], rows=4, tokens=12)) == []


def test_the_language_is_detected_if_none_is_given(aligned):
    """Script and identifier choose among English and the taught languages; the default is English."""
    assert [aligned.language_of(text) for text in (*TEXTS, "12345")] == ["sw", "ru", "ur", "en", "en"]
    short = ("да", "ہاں", "Habari", "ok", "สวัสดีตอนเช้าครับ")  # Thai is not taught
    assert [aligned.language_of(text) for text in short] == ["ru", "ur", "sw", "en", "en"]
    named = aligned.generate(TEXTS, ["sw", "ru", "ur", "en"], max_new_tokens=4)
    assert aligned.generate(TEXTS, max_new_tokens=4) == named


def test_a_custom_detector_is_used(aligned):
    """It chooses among English and the taught languages."""
    asked = []

    def detector(text, candidates):
        asked.append((text, tuple(candidates)))
        return "ur"

    own = Aligned(aligned.run, detector)
    assert own.generate(["hi"], max_new_tokens=4) == aligned.generate(["hi"], "ur", max_new_tokens=4)
    assert asked == [("hi", ("en", "sw", "ru", "ur"))]


def test_a_streamed_answer_equals_the_whole_answer(aligned):
    """Afterwards the adapters are off; closing a stream early also frees the model for the next call."""
    pieces = list(aligned.stream(TEXTS[1], "ru", max_new_tokens=12))
    assert "".join(pieces).strip() == aligned.generate(TEXTS[1:2], "ru", max_new_tokens=12)[0]
    before = aligned.reference(TEXTS[:1], max_new_tokens=4)
    left = aligned.stream(TEXTS[1], "ru", max_new_tokens=400)
    list(islice(left, 1))
    left.close()
    assert aligned.reference(TEXTS[:1], max_new_tokens=4) == before


def test_a_single_string_is_refused(aligned):
    """Each of its characters would be answered."""
    for answer in (aligned.generate, aligned.reference):
        with pytest.raises(RunError, match=r"^texts is a single string; give a list of instructions$"):
            answer("Habari")


@pytest.mark.parametrize(
    ("languages", "says"),
    [
        (["sw"], "2 texts and 1 languages; give one language for each text"),
        ("sww", "'sww' is not a known language code; use one such as sw, swh_Latn or Swahili"),
    ],
)
def test_invalid_languages_are_refused(languages, says, aligned):
    with pytest.raises(RunError) as caught:
        aligned.generate(TEXTS[:2], languages)
    assert str(caught.value) == says
