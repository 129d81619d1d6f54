"""Rows and their schedule: the prompts of student and teacher, and how often each row is drawn."""

from collections import Counter
from dataclasses import replace

import pytest

from isogloss.adapters.tree import build_tree
from isogloss.data.draw import choose
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.parallel_text import Pair
from isogloss.data.sources import response_of
from isogloss.errors import ConfigError
from isogloss.teacher.prompts import NodeTexts
from isogloss.teacher.rows import TeacherView, build_rows, sentence_rows
from isogloss.train.order import row_order

TEXTS = NodeTexts("Root.", {"Indo-European/Italic/Romance": "Romance."}, {"es": "Español."})
EXAMPLES = [
    ParallelExample("a", "topic", {"en": Turn("Hi", "yes"), "es": Turn("Hola", "sí")}),
    ParallelExample("b", "topic", {"en": Turn("Cat", "no"), "sw": Turn("Paka", "hapana")}),
    ParallelExample("c", "topic", {"en": Turn("Dog", "one"), "es": Turn("Perro", "uno"), "sw": Turn("Mbwa")}),
    ParallelExample("d", "topic", {"en": Turn("Sun", "two"), "es": Turn("Sol", "dos")}),
]
ENGLISH = {"a": "yes", "b": "no", "c": "one", "d": "two"}


@pytest.fixture
def build(tokenizer):
    def made(
        amounts, responses="reference", limit=200, examples=EXAMPLES, english=ENGLISH, view=None, **more
    ):
        tree = build_tree(("es", "sw"), ranks={"root": 1, "family": 1, "language": 1})

        def lack(example, code):
            return response_of(example, code, english.get(example.id, ""), responses)[1]

        chosen = choose(examples, amounts, [1.0], lack)
        return build_rows(
            {code: [examples[n] for n in places] for code, places in chosen.items()},
            tokenizer,
            tree,
            TeacherView(**{"texts": TEXTS} | (view or {})),
            english=english,
            responses=responses,
            limit=limit,
            **more,
        )

    return made


def test_a_row_has_the_prompts_of_student_and_teacher(build, tokenizer):
    """Plain prompt, privileged prompt, plain English twin, and the response with its end of turn."""
    row = build({"es": 1})[0]
    assert (row.id, row.language, row.meaning) == ("a/es", "es", 0)
    assert tokenizer.decode(row.student.prompt) == "<|user|>Hola<|end|><|assistant|>"
    assert tokenizer.decode(row.student.response) == "sí<|end|>"
    assert tokenizer.decode(row.teacher_prompt) == (
        "<|system|>Root.\nRomance.\nEspañol.\nEnglish: Hi\n→ yes<|end|><|user|>Hola<|end|><|assistant|>"
    )
    assert tokenizer.decode(row.twin_prompt) == "<|user|>Hi<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("reads", "system"),
    [
        (("texts",), "<|system|>Root.\nRomance.\nEspañol.<|end|>"),
        (("twin", "answer"), "<|system|>English: Hi\n→ yes<|end|>"),
        (("texts", "twin"), "<|system|>Root.\nRomance.\nEspañol.\nEnglish: Hi<|end|>"),
        ((), ""),
    ],
)
def test_each_part_of_the_privileged_prompt_can_be_left_out(build, tokenizer, reads, system):
    """Without any of them, the teacher's prompt is the student's."""
    row = build({"es": 1}, view={"reads": reads})[0]
    assert tokenizer.decode(row.teacher_prompt) == f"{system}<|user|>Hola<|end|><|assistant|>"


def test_a_language_gets_its_first_examples(build):
    """An amount is an upper bound; an example without the language or its response does not count."""
    assert [row.id for row in build({"es": 2, "sw": 9})] == ["a/es", "c/es", "b/sw"]


def test_the_english_answers_can_be_the_responses(build, tokenizer):
    """With `teacher` every response is the English answer, so a turn needs no response of its own."""
    rows = build({"sw": 9}, "teacher")
    assert [(row.id, tokenizer.decode(row.student.response)) for row in rows] == [
        ("b/sw", "no<|end|>"),
        ("c/sw", "one<|end|>"),
    ]


def test_english_rows_have_the_same_prompt_for_both(build):
    """The root learns to answer English like the reference model."""
    for row in build({"en": 4}):
        assert row.teacher_prompt == row.student.prompt == row.twin_prompt


def test_translation_pairs_are_not_replayed_in_english(build):
    """Replay is what stage 1 was trained on; a translation pair is only used in the other language."""
    pair = ParallelExample("p", "to_english", {"en": Turn("Moon", "Moon"), "es": Turn("Luna", "Moon")})
    rows = build({"en": 2, "es": 1}, extra=[pair], english=ENGLISH | {"p": "Moon"})
    assert [row.id for row in rows] == ["a/en", "b/en", "a/es", "p/es"]


def test_an_english_view_only_uses_the_twin(build, tokenizer):
    """If the answer is the same in all languages, the teacher reads the twin whatever `reads` is."""
    (row,) = build({"es": 1}, "teacher", view={"twin_alone": True, "reads": ()})
    assert tokenizer.decode(row.teacher_prompt) == "<|user|>Hi<|end|><|assistant|>"


def test_a_teacher_that_scores_no_options_reads_the_twin_beside_the_instruction(build, tokenizer):
    """The model itself scores the options behind the twin alone; another one scores the response's tokens."""
    wordings = {"en": {"y": "yes", "n": "no"}, "es": {"y": "sí", "n": "nunca"}}
    closed = ParallelExample("s", "topic", {"en": Turn("Sun", "yes"), "es": Turn("Sol")}, wordings)
    given, view = {"examples": [closed], "english": {"s": "yes"}}, {"twin_alone": True, "reads": ("twin",)}
    (own,) = build({"es": 1}, "teacher", view=view, **given)
    assert len(own.options) == 2
    assert tokenizer.decode(own.teacher_prompt) == "<|user|>Sun<|end|><|assistant|>"
    (others,) = build({"es": 1}, "teacher", view=view | {"sets": False}, **given)
    assert others.options == ()
    assert tokenizer.decode(others.student.response) == "sí<|end|>"
    assert tokenizer.decode(others.teacher_prompt) == ("<|system|>Sun<|end|><|user|>Sol<|end|><|assistant|>")


def test_a_twin_over_the_limit_is_refused(build):
    long = ParallelExample("a", "topic", {"en": Turn("Hi " * 60, "yes"), "es": Turn("Hola", "sí")})
    with pytest.raises(
        ConfigError, match=r"^the English prompt of a/es has \d+ tokens and the limit is 40; "
    ):
        build({"es": 1}, limit=40, examples=[long])


@pytest.mark.parametrize(
    ("twin", "turn"),
    [
        (Turn("Moon", "three"), Turn("Mwezi", " ")),
        (Turn("Moon", "three"), Turn("\n", "tatu")),
        (Turn("Moon", ""), Turn("Mwezi", "tatu")),
        (Turn(" ", "three"), Turn("Mwezi", "tatu")),
    ],
)
def test_examples_that_are_blank_in_either_language_are_skipped(build, twin, turn):
    """The next usable example takes its place."""
    blank = ParallelExample("blank", "topic", {"en": twin, "sw": turn})
    rows = build({"sw": 1}, examples=[blank, *EXAMPLES], english=ENGLISH | {"blank": twin.response})
    assert [row.id for row in rows] == ["b/sw"]


def test_a_closed_answer_is_translated_by_its_options(build, tokenizer):
    """The model's "No." becomes Swahili's hapana; an answer that names no option is skipped."""
    options = {"en": {"1": "yes", "0": "no"}, "sw": {"1": "ndiyo", "0": "hapana"}}
    closed = [
        ParallelExample(id, "xnli", {"en": Turn(id, "yes"), "sw": Turn(f"s{id}")}, options) for id in "xyz"
    ]
    english = {"x": "Well.", "y": "No.", "z": "It is: yes"}
    rows = build({"sw": 9}, "teacher", examples=closed, english=english)
    assert [(row.id, tokenizer.decode(row.student.response)) for row in rows] == [
        ("y/sw", "hapana<|end|>"),
        ("z/sw", "ndiyo<|end|>"),
    ]


def test_extra_examples_are_added_to_the_amounts(build, tokenizer):
    """They keep their own response, whatever the English answers are."""
    pair = ParallelExample(
        "p", "to_english", {"en": Turn("To English: Hi", "Hi"), "es": Turn("Al inglés: Hola", "Hi")},
        own_response=True,
    )  # fmt: skip
    rows = build({"es": 1}, "teacher", extra=[pair], english=ENGLISH | {"p": "Hi"})
    assert [row.id for row in rows] == ["a/es", "p/es"]
    assert tokenizer.decode(rows[1].student.response) == "Hi<|end|>"


@pytest.mark.parametrize("twin", ["Hi", "Hi " * 60])
def test_translations_that_are_too_long_are_skipped_and_counted(build, twin):
    """In either language, or behind the node texts; the examples' own rows must fit."""
    pairs = [
        ParallelExample(
            id, "to_english", {"en": Turn(english, "Hi"), "es": Turn(text, "Hi")}, own_response=True
        )
        for id, english, text in (("p", "Hi", "Hola"), ("q", twin, "Hola " * (60 if twin == "Hi" else 1)))
    ]
    told: list[str] = []
    rows = build({"es": 1}, extra=pairs, english=ENGLISH | {"p": "Hi", "q": "Hi"}, limit=90, tell=told.append)
    assert [row.id for row in rows] == ["a/es", "p/es"]
    assert told == ["1 of 2 translations are skipped: over 90 tokens (distill.max_prompt_length)"]


def test_sentences_that_are_too_long_are_skipped_and_counted(tokenizer):
    pairs = {"es": [Pair("1", "Hi", "es", "Hola"), Pair("2", "Hi " * 9, "es", "Hola")]}
    told: list[str] = []
    assert [row.id for row in sentence_rows(pairs, tokenizer, 9, tell=told.append)] == ["1/es"]
    assert told == ["1 of 2 sentence pairs are skipped: over 9 tokens (distill.max_prompt_length)"]


def test_all_rows_that_are_too_long_are_counted(build):
    """The message names the first."""
    with pytest.raises(ConfigError, match=r"^the prompt of a/es has 7 .*row \(2 more rows fail\)$"):
        build({"es": 9}, limit=6)


def test_a_long_prompt_of_the_student_is_refused(build):
    """It is never truncated: <|user|>, four letters, <|end|> and <|assistant|> are seven tokens."""
    with pytest.raises(ConfigError) as caught:
        build({"es": 1}, limit=6)
    assert str(caught.value) == (
        "the prompt of a/es has 7 tokens and the limit is 6; raise distill.max_prompt_length or "
        "remove the row"
    )


def test_a_long_prompt_of_the_teacher_is_refused(build):
    """Its texts have one token per byte; two more enclose the system turn, and seven follow."""
    with pytest.raises(ConfigError) as caught:
        build({"es": 1}, limit=30)
    text = "Root.\nRomance.\nEspañol.\nEnglish: Hi\n→ yes"
    assert str(caught.value) == (
        f"the teacher's prompt for a/es has {len(text.encode()) + 9} tokens and the limit is 30; "
        "raise distill.max_prompt_length or shorten the node texts"
    )


def test_the_response_is_checked_in_each_task_of_a_language(build, tokenizer, monkeypatch):
    """The template greets after a system text that contains "one", as that of the second task does."""
    says = "('Well, ' if m['role'] == 'assistant' and 'one' in messages[0]['content'] else '')"
    monkeypatch.setattr(
        tokenizer,
        "chat_template",
        "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' + SAYS + m['content'] + '<|end|>' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}".replace(
            "SAYS", says
        ),
    )
    build({"es": 1})
    with pytest.raises(
        ConfigError, match=r"^the chat template writes the response of c/es after the teacher's"
    ):
        build({"es": 2}, examples=[EXAMPLES[0], replace(EXAMPLES[2], task="letter")])


def plan(languages, draws, **options):
    settings = {"balance": 1.0, "batch": 4, "seed": 0, "alike": [1] * len(languages)} | options
    return row_order(languages, draws, **settings)


def draws_of(languages, order):
    return Counter(languages[number] for number in order)


UNEVEN = ["es"] * 16 + ["sw"] * 4


@pytest.mark.parametrize(
    ("balance", "draws", "counts"),
    [
        (1.0, 20, {"es": 16, "sw": 4}),  # 16 : 4
        (2.0, 24, {"es": 16, "sw": 8}),  # √16 : √4 = 4 : 2
        (4.0, 24, {"es": 14, "sw": 10}),  # 2 : √2, so 24 · 0.5858 = 14.06
        (1e9, 24, {"es": 12, "sw": 12}),  # 1 : 1
    ],
)
def test_languages_are_balanced_by_the_formula(balance, draws, counts):
    """n^(1/balance): proportional to the data at 1, uniform at infinity."""
    assert draws_of(UNEVEN, plan(UNEVEN, draws, balance=balance)) == counts


@pytest.mark.parametrize("draws", [20, 40, 60])
@pytest.mark.parametrize("balance", [1.0, 2.0])
def test_every_row_is_drawn_before_any_is_repeated(draws, balance):
    """The numbers of draws of a language's rows differ by at most one."""
    order = Counter(plan(UNEVEN, draws, balance=balance))
    for rows in (range(16), range(16, 20)):
        readings = [order[row] for row in rows]
        assert max(readings) - min(readings) <= 1


def test_each_row_is_drawn_once_per_epoch():
    """The balance is proportional to the data."""
    assert sorted(plan(UNEVEN, 20)) == list(range(20))


def test_a_fixed_share_is_kept_whatever_the_rows():
    """A tenth of 40 draws is English, though it has as many rows as Spanish; the rest is balanced."""
    languages = ["en"] * 16 + UNEVEN
    order = plan(languages, 40, balance=2.0, fixed={"en": 0.1})
    assert draws_of(languages, order) == {"en": 4, "es": 24, "sw": 12}


def test_a_fixed_share_of_a_language_without_rows_is_given_to_the_others():
    assert draws_of(UNEVEN, plan(UNEVEN, 20, fixed={"en": 0.5})) == {"es": 16, "sw": 4}


def test_the_same_seed_gives_the_same_order():
    """Another seed gives another order."""
    assert plan(UNEVEN, 20, seed=7) == plan(UNEVEN, 20, seed=7)
    assert plan(UNEVEN, 20, seed=7) != plan(UNEVEN, 20, seed=8)


@pytest.mark.parametrize(("draws", "rows"), [(20, 20), (23, 20), (19, 16), (4, 4), (3, 4), (1, 4)])
def test_batches_are_whole(draws, rows):
    """The number of draws is rounded down to whole batches, at least one."""
    assert len(plan(UNEVEN, draws)) == rows


def test_rows_of_similar_length_share_a_batch():
    """A window of eight batches is sorted by length, and its batches are shuffled."""
    lengths = list(range(32))
    order = plan(["sw"] * 32, 32, alike=lengths)
    batches = [order[i : i + 4] for i in range(0, 32, 4)]
    assert all(batch == list(range(batch[0], batch[0] + 4)) for batch in batches)
    assert sorted(batch[0] for batch in batches) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert [batch[0] for batch in batches] != [0, 4, 8, 12, 16, 20, 24, 28]


def test_every_row_is_drawn_before_any_is_repeated_with_rounded_shares():
    """The shares are not whole numbers of draws."""
    languages = ["a"] * 7 + ["b"] * 5 + ["c"] * 9 + ["d"]
    for seed in range(20):
        order = Counter(plan(languages, 52, balance=2.0, batch=8, seed=seed))
        for code in "abcd":
            readings = [order[row] for row, spoken in enumerate(languages) if spoken == code]
            assert max(readings) - min(readings) <= 1


def test_fewer_draws_than_languages_still_make_a_batch():
    """Five languages and a batch of two."""
    assert len(plan(["a", "b", "c", "d", "e"], 2, batch=2)) == 2


def test_bare_sentences_are_drawn_before_their_term_has_faded():
    """As often as without the limit, but none after seven tenths, apart from a window of batches."""
    rows, early = 400, range(0, 400, 4)
    given = {"balance": 1.0, "batch": 2, "alike": [(n in early, 0) for n in range(rows)], "seed": 0}
    plain = row_order(["sw"] * rows, rows, **given)
    order = row_order(["sw"] * rows, rows, **given, early=early, within=0.7)
    assert sorted(order) == sorted(plain) == list(range(rows))
    assert max(place for place, n in enumerate(order) if n in early) < 0.7 * rows + 16
    assert max(place for place, n in enumerate(plain) if n in early) > 0.9 * rows
