"""Own translations: what is asked, what counts as back unchanged, and whose lack is filled."""

import pytest

from isogloss.config import load_config
from isogloss.cost import Stage
from isogloss.data.chat import Encoded, encode_prompt
from isogloss.data.examples import ParallelExample, Turn
from isogloss.distill import round_trip
from isogloss.generate import complete

ENGLISH = Turn("Is it so?\nSay yes or no.", "yes")


def example(name, **own):
    return ParallelExample(name, "asking", {"en": ENGLISH} | own)


@pytest.mark.parametrize(
    ("turn", "responses", "text"),
    [
        (ENGLISH, True, "Is it so?\nSay yes or no.\n\nyes"),
        (ENGLISH, False, "Is it so?\nSay yes or no."),
        (Turn("A.\n\nB."), False, "A.\n\nB."),
        (Turn("A.\n\nB.", "b\nc"), True, "A.\n\nB.\n\nb\nc"),
    ],
)
def test_a_text_is_taken_apart_as_it_was_put_together(turn, responses, text):
    """Blank lines in an instruction do no harm."""
    assert round_trip.whole(turn, responses) == text
    assert round_trip.apart(text, responses) == (turn if responses else Turn(turn.instruction))


def test_what_cannot_be_taken_apart_is_left_out():
    """A response that is missing or holds a blank line; an answer that lacks a part."""
    assert round_trip.whole(Turn("A."), True) is None
    assert round_trip.whole(Turn("A.", "b\n\nc"), True) is None
    assert round_trip.apart("no blank line", True) is None
    assert round_trip.apart("only an instruction\n\n", True) is None
    assert round_trip.apart("", False) is None


def test_every_turn_is_a_translation_either_way(tokenizer):
    """On its language's path; a language that an example lacks, and a prompt over the limit, are left out."""
    examples = [
        example("a", sw=Turn("Je, ni hivyo?", "ndiyo"), es=Turn("¿Es así?", "sí")),
        example("b", sw=Turn("Je? " * 50, "hapana")),
    ]
    rows = round_trip.translation_rows(examples, ["sw", "bg"], tokenizer, responses=True, limit=200)
    assert [(row.id, row.language, row.meaning) for row in rows] == [
        ("a/sw/to sw", "sw", 0), ("a/sw/to en", "sw", 0), ("b/sw/to sw", "sw", 1),
    ]  # fmt: skip
    there, back = rows[:2]
    assert there.student.prompt == encode_prompt(tokenizer, "Swahili:\n\nIs it so?\nSay yes or no.\n\nyes")
    assert tokenizer.decode(there.student.response) == "Je, ni hivyo?\n\nndiyo<|end|>"
    assert back.student.prompt == encode_prompt(tokenizer, "English:\n\nJe, ni hivyo?\n\nndiyo")
    assert tokenizer.decode(back.student.response) == "Is it so?\nSay yes or no.\n\nyes<|end|>"
    assert {row.twin_prompt for row in rows} == {encode_prompt(tokenizer, ENGLISH.instruction)}


def test_only_what_greedy_decoding_would_write_is_back_unchanged(tiny, five, student, tokenizer):
    """Rows of different lengths and languages; one token changed, or one left out, is a change."""
    carrier = student(tiny(), five)
    codes = ["sw", "ru", "es", "sw"]
    prompts = [tuple(range(10 + n, 16 + 3 * n)) for n in range(4)]
    said = []
    for prompt, code in zip(prompts, codes, strict=True):
        made = complete(
            carrier.model, tokenizer, [prompt], languages=[code], carrier=carrier, max_new_tokens=5
        )
        said.append(tuple(made[0].tolist()))
    rows = [Encoded(p, r) for p, r in zip(prompts, said, strict=True)]
    assert round_trip._exact(carrier, codes, rows, 0) == [True] * 4
    wrong = [*rows[:3], Encoded(prompts[3], (*said[3][:2], (said[3][2] + 1) % 250, *said[3][3:]))]
    assert round_trip._exact(carrier, codes, wrong, 0) == [True, True, True, False]
    assert (
        round_trip._exact(carrier, ["ru", *codes[1:]], rows, 0) != [True] * 4
    )  # another path, another answer


def test_a_lack_is_filled_with_what_comes_back_unchanged(tiny, five, student, tokenizer, monkeypatch):
    """Each language takes other English items; no more are kept than are wanted; the cost is counted."""
    carrier = student(tiny(), five)
    pool = [
        ParallelExample(str(n), "asking", {"en": Turn(f"Ask {n}", f"say {n}")}) for n in range(8)
    ]  # fmt: skip
    asked = []

    def canned(model, tokenizer, instructions, *, languages, **options):
        asked.extend(zip(languages, instructions, strict=True))
        return [f"own {n}\n\nyes" for n in range(len(instructions))]

    monkeypatch.setattr(round_trip, "answers", canned)
    unchanged = [True, False, True, True, True, True, True]
    monkeypatch.setattr(round_trip, "_exact", lambda carrier, codes, rows, filler: unchanged)
    cost = Stage("translate")
    made = round_trip.translated(
        carrier, tokenizer, pool, {"sw": 2, "ru": 3}, tries=1.5, responses=True, longest=9, cost=cost
    )
    assert [text for _, text in asked[:3]] == [f"Swahili:\n\nAsk {n}\n\nsay {n}" for n in range(3)]
    assert [text for _, text in asked[3:]] == [f"Russian:\n\nAsk {n}\n\nsay {n}" for n in range(3, 7)]
    assert [(e.id, e.task, e.turns["en"].instruction) for e in made] == [
        ("0~sw", "asking", "Ask 0"), ("2~sw", "asking", "Ask 2"),
        ("3~ru", "asking", "Ask 3"), ("4~ru", "asking", "Ask 4"), ("5~ru", "asking", "Ask 5"),
    ]  # fmt: skip
    assert made[0].turns["sw"] == Turn("own 0", "yes") and set(made[0].turns) == {"en", "sw"}
    assert cost.tokens_generated == 7 * len("own 0\n\nyes")
    assert cost.flops > 0 and cost.tokens_forwarded > cost.tokens_generated


def test_learning_to_translate_is_cross_entropy_alone():
    """Whatever stage 2 itself is set to."""
    settings = load_config(None, ["distill.kl=1.0", "distill.on_policy=0.5", "distill.fill_epochs=3"]).distill
    found = round_trip.translator(settings)
    assert (found.ce, found.kl, found.hidden, found.retain, found.on_policy, found.prune) == (
        1,
        0,
        0,
        0,
        0,
        0,
    )
    assert found.epochs == 3 and found.lr == settings.lr
