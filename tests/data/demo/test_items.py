"""The demo's instruction set: reproducible, split by meaning, and answerable."""

import itertools
import random
import re
from collections import Counter
from importlib.resources import files

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from isogloss.data.demo.grammar import LANGUAGES, Event, events, phrases
from isogloss.data.demo.items import TASKS, demo_items
from isogloss.data.demo.pairs import infer, vary
from isogloss.data.demo.split import events_of, split_of
from isogloss.data.reading import read_answer
from isogloss.evaluate.items import Item
from isogloss.evaluate.suites.demo import load
from tools import base_text
from tools.exercises import EXPLAINED, exercise
from tools.train_base import BLOCK, IGNORED, Packed

TEST_SENTENCES = {
    phrases("en").event(event, sentence) for event in events_of("test") for sentence in ("full", "fronted")
}


def test_every_event_is_in_one_split_whoever_did_it():
    """The split depends on action, place and time, not on the person or on negation."""
    for event in events()[::97]:
        for person, denied in itertools.product(("maria", "omar"), (False, True)):
            assert split_of(Event(person, event.action, event.place, event.time, denied)) == split_of(event)


def test_splits_have_the_documented_sizes():
    """About 86, 7 and 6 % of all meanings."""
    assert Counter(split_of(event) for event in events()) == {"train": 29_892, "dev": 2_544, "test": 2_124}


@pytest.mark.parametrize("draw", ["english", "parallel"])
def test_no_training_item_contains_a_test_sentence(draw):
    """No whole statement of the test split occurs in training, whatever the task."""
    text = "\n".join(
        item.example.turns["en"].instruction for item in demo_items("train", 3_000, ["en"], draw=draw)
    )
    assert not [sentence for sentence in TEST_SENTENCES if sentence in text]


REAL = base_text.Real((dict.fromkeys(LANGUAGES, "Hello."),), dict.fromkeys(LANGUAGES, (0,)))


def test_the_base_model_is_trained_on_no_test_sentence():
    """Its documents contain training meanings only."""
    rng = random.Random(0)
    solved = itertools.islice(base_text.exercises(rng), 3_000)
    texts = [*itertools.islice(base_text.prose(REAL, rng), 3_000)]
    texts.extend("".join(segment.text for segment in document) for document in solved)
    text = "\n".join(texts)
    assert len(text) > 600_000
    assert not [sentence for sentence in TEST_SENTENCES if sentence in text]


def test_a_block_holds_whole_documents_and_is_reproducible():
    """Step n does not depend on earlier steps, and no document is cut in two."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files("isogloss.data.demo") / "base")
    step = Packed(REAL, tokenizer, rows=8, seed=1).step(7)
    again = Packed(REAL, tokenizer, rows=8, seed=1).step(7)
    assert torch.equal(step.ids, again.ids) and torch.equal(step.at, again.at)
    end, pad = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>"])
    rng = random.Random("1/7")
    texts = list(itertools.islice(base_text.prose(REAL, rng), 32 * 20))
    read = {tuple(one) for one in tokenizer(texts, add_special_tokens=False)["input_ids"]}
    for row in step.ids[:2].tolist():
        text = row[: row.index(pad)] if pad in row else row
        assert text[-1] == end and len(text) > 180
        documents = [tuple(g) for last, g in itertools.groupby(text, lambda t: t == end) if not last]
        assert set(documents) <= read


def test_only_the_answers_of_exercises_are_learnt():
    """The token after each position in `at` is the one beside it in `answers`; prose is learnt whole."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files("isogloss.data.demo") / "base")
    step = Packed(REAL, tokenizer, rows=8, seed=2).step(0)
    flat, known = step.ids.flatten(), step.answers != IGNORED
    assert torch.equal(flat[step.at[known] + 1], step.answers[known])
    assert (step.at[known] >= 2 * BLOCK).all()  # six of eight rows hold exercises
    assert 20 < known.sum() < 500
    assert set(step.counts[known].tolist()) == {1.0, torch.tensor(EXPLAINED).item()}
    assert not step.counts[~known].any()
    followed = step.prose != IGNORED
    assert torch.equal(step.prose[followed], step.ids[:2, 1:][followed])


def test_an_exercise_is_solved_in_every_language_it_names():
    """The label is the same in both languages; phrases that explain a difference have a lower weight."""
    rng = random.Random(5)
    for _ in range(40):
        segments = exercise(["en", "sw"], rng, autonyms=base_text.AUTONYMS, kind="paraphrase", explained=1.0)
        assert all((s.counts == EXPLAINED) == s.text.startswith("(") for s in segments)
        answers = "".join(s.text if s.counts else "\n" for s in segments).strip().split("\n\n")
        english, swahili = answers[: len(answers) // 2], answers[len(answers) // 2 :]
        words = {"same": "sawa", "different": "tofauti"}
        for one, other in zip(english, swahili, strict=True):
            assert words[one.rsplit(") ")[-1]] == other.rsplit(") ")[-1]
            assert ("(" in one) == ("(" in other) == (not one.endswith("same"))


def test_a_match_names_the_number_of_the_equivalent_statement():
    """Among similar statements, the answer is the number of the one with the probe's words."""
    rng = random.Random(2)
    for _ in range(40):
        first, *rest = exercise(["en"], rng, autonyms=base_text.AUTONYMS, kind="match")
        listed = re.findall(r"(\d)\. ([^.]+\.)", first.text)
        probe = first.text.split(listed[-1][1], 1)[1]
        spoken = {event_words(text): number for number, text in listed}
        assert rest[0].text.strip() == spoken[event_words(probe)]


def event_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def test_items_do_not_depend_on_the_requested_languages():
    """Item n is the same with two languages as with fifteen."""
    few, all_ = demo_items("dev", 30, ["en", "sw"]), demo_items("dev", 30, LANGUAGES)
    assert [item.example.turns["sw"] for item in few] == [item.example.turns["sw"] for item in all_]


def test_the_first_48_items_cover_every_task():
    """A low-resource language sees every task in its 48 items, in more than 15 phrasings."""
    items = demo_items("train", 48, ["en", "sw"], draw="parallel")
    assert Counter(item.example.task for item in items).keys() == set(TASKS)
    openings = {item.example.turns["en"].instruction.split("{")[0][:12] for item in items}
    assert len(openings) > 15


def test_a_reference_response_means_the_gold_answer_in_every_language():
    """Each item's own response is read as its gold answer, so no two options are confused."""
    suite = load(None, "dev", LANGUAGES[1:], 70, 10)
    for item in suite.items:
        for code, turn in item.turns.items():
            assert isinstance(item, Item) and turn.response
            meaning = read_answer(item, code, turn.response)
            assert meaning == (item.gold if item.options else "=reference"), (code, turn)


def test_a_short_hypothesis_never_follows_from_a_denial():
    """That somebody did not do it on Monday leaves open whether they ever did."""
    rng = random.Random(0)
    denied = Event("maria", "buy_bread", "market", "monday", denied=True)
    for verdict in ("entailment", "contradiction"):
        for _ in range(50):
            _, (_, sentence) = infer(denied, verdict, rng)
            assert sentence in ("full", "fronted")


def test_two_wordings_differ_in_meaning_only_when_they_should():
    """`vary` returns one event twice, or two different ones of the same split."""
    rng = random.Random(0)
    for event in events_of("test")[::50]:
        (one, _), (other, _) = vary(event, True, rng)
        assert one == other
        (one, _), (other, _) = vary(event, False, rng)
        assert one != other and split_of(other) == split_of(one)


def test_retrieval_sentences_are_parallel_and_distinct():
    """Every language has a sentence for each meaning, and none twice."""
    suite = load(None, "test", ["sw", "zh"], 1, 100)
    assert {code: len(set(texts)) for code, texts in suite.sentences.items()} == {
        "en": 100,
        "sw": 100,
        "zh": 100,
    }
    assert not set(suite.sentences["en"]) & set(suite.layer_sentences["en"])


def test_the_drill_only_asks_for_people():
    """The answer is the person whose statement is asked about; some drills name each statement's person."""
    rng, noted = random.Random(4), 0
    people = {entry["text"] for entry in phrases("en").entries["people"].values()}
    for _ in range(60):
        segments = exercise(["en"], rng, autonyms=base_text.AUTONYMS, kind="who")
        answers = [segment.text.strip() for segment in segments if segment.counts]
        assert set(answers) <= people
        text = "".join(segment.text for segment in segments)
        deeds = re.findall(r"Who ([^?]*)\?", text)
        told = answers[-len(deeds) :]
        assert all(f"{person} {deed}." in text for person, deed in zip(told, deeds, strict=True))
        noted += len(answers) > len(deeds)
    assert 20 < noted < 50
