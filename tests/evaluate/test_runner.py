"""How one side is measured: pooled states, layers, statistics, mastered tasks and fidelity."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from isogloss.adapters.generate import Answer
from isogloss.config import Evaluate
from isogloss.data.examples import Turn
from isogloss.evaluate import retrieval, runner
from isogloss.evaluate.items import Item, SuiteData
from isogloss.evaluate.metrics import retrieve
from isogloss.model.standardise import standardised, statistics_of

SETTINGS = Evaluate(max_new_tokens=3, batch_size=8)


def quiet(done, of):
    """Ignore progress."""


def suite(items=(), sentences=0, for_layer=0, name="demo"):
    """Return a suite in two languages with different sentences."""
    texts = {code: tuple(f"{code} {n} {'x' * (n % 5)}" for n in range(sentences)) for code in ("en", "sw")}
    few = {code: tuple(f"{code} {n} {'y' * (n % 7)}" for n in range(for_layer)) for code in ("en", "sw")}
    return SuiteData(name, "1", "dev", tuple(items), texts if sentences else {}, few)


@pytest.fixture(scope="module")
def with_bos(tokenizer):
    """Return the test tokenizer with one control token before every text and another after it."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        bos_token="<|system|>",
        chat_template=tokenizer.chat_template,
    )
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A <|end|>", special_tokens=[("<|system|>", 2), ("<|end|>", 1)]
    )
    return made


def test_pooling_leaves_out_the_special_tokens_around_the_text(with_bos, tiny):
    """The mean of the text's own states, computed with the other tokens present, for one padded batch."""
    model, texts = tiny("llama"), ["Habari", "A longer sentence", "ok"]
    found = retrieval.embed(retrieval.Model(model, with_bos), texts, "sw", [1, 2], 8)
    for number, text in enumerate(texts):
        ids = torch.tensor([with_bos(text)["input_ids"]])
        assert ids[0, 0] == 2 and ids[0, -1] == 1
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        for layer in (1, 2):
            assert torch.allclose(found[layer][number], states[layer][0, 1:-1].mean(0), atol=1e-5)


def test_progress_counts_all_sentences(tokenizer, tiny):
    """60 × 2 texts to choose the layer, and 20 that are reported."""
    told = []
    retrieval.retriever(
        retrieval.Model(tiny(), tokenizer),
        retrieval.Model(tiny(), tokenizer),
        suite(sentences=20, for_layer=60),
        SETTINGS,
        lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (140, 140) and len(told) > 10


def test_statistics_are_the_subjects_own_and_from_unreported_sentences(tokenizer, tiny):
    """English comes from the reference model, including its statistics."""
    subject, reference = (retrieval.Model(tiny(seed=seed), tokenizer) for seed in (1, 0))
    data = suite(sentences=20, for_layer=60)
    found = retrieval.retriever(subject, reference, data, SETTINGS, quiet)
    assert found.kind == "standardised" and found.sentences == 60
    layer = found.layer
    for code, model in (("en", reference), ("sw", subject)):
        vectors = retrieval.embed(model, data.layer_sentences[code], code, [layer], 8)[layer]
        assert torch.allclose(found.statistics[code].mean, statistics_of(vectors).mean, atol=1e-5)
        assert torch.allclose(found.statistics[code].scale, statistics_of(vectors).scale, atol=1e-5)
    english = retrieval.embed(reference, data.sentences["en"], "en", [layer], 8)[layer]
    assert torch.allclose(found.english[layer], english, atol=1e-5)


def test_standardised_and_raw_retrieval_are_each_reported_at_their_best_layer(tokenizer, tiny):
    """Best by the same measure on the sentences that are not reported."""
    subject = retrieval.Model(tiny(seed=3), tokenizer)
    data = suite(sentences=20, for_layer=60)
    found = retrieval.retriever(subject, subject, data, SETTINGS, quiet)
    layers = [1, 2, 3]
    english, other = (retrieval.embed(subject, data.layer_sentences[c], c, layers, 8) for c in ("en", "sw"))
    raw = [retrieve(english[n], other[n]).accuracy for n in layers]
    scaled = [
        retrieve(*(standardised(side[n], statistics_of(side[n])) for side in (english, other))).accuracy
        for n in layers
    ]
    assert found.raw_layer == layers[raw.index(max(raw))]
    assert found.layer == layers[scaled.index(max(scaled))]


def test_too_few_sentences_give_no_statistics(tokenizer, tiny):
    """Retrieval is then the plain cosine at one layer, and its kind says so."""
    subject = retrieval.Model(tiny(), tokenizer)
    data = suite(sentences=12, for_layer=49)
    found = retrieval.retriever(subject, subject, data, SETTINGS, quiet)
    assert (found.kind, found.statistics) == ("raw", None) and found.layer == found.raw_layer
    side = runner.evaluate_side(subject, data, ["sw"], [], found, SETTINGS, 0, quiet)
    assert side.hits["retrieval"] == side.hits["retrieval_raw"]


def test_the_layer_after_training_is_chosen_with_the_scored_english(tokenizer, tiny, student, five):
    """English comes from the reference model: the adapters are never set to English's path."""
    model = tiny()
    adapters = student(model, five)
    asked, set_path = [], adapters.set_path
    adapters.set_path = lambda codes: (asked.extend(codes), set_path(codes))[1]
    aligned, plain = retrieval.Model(model, tokenizer, adapters), retrieval.Model(model, tokenizer)
    data = suite(sentences=12, for_layer=60)
    found = retrieval.retriever(aligned, plain, data, SETTINGS, quiet)
    runner.evaluate_side(aligned, data, ["sw"], [], found, SETTINGS, 0, quiet)
    assert set(asked) == {"sw"}
    raw = [
        retrieve(
            retrieval.embed(plain, data.layer_sentences["en"], "en", [n], 8)[n],
            retrieval.embed(aligned, data.layer_sentences["sw"], "sw", [n], 8)[n],
        ).accuracy
        for n in (1, 2, 3)
    ]
    assert found.raw_layer == 1 + raw.index(max(raw))


def closed(id, gold="yes", labels=None, **more):
    """Return a yes-no question in English and Swahili."""
    labels = labels or {"en": {"yes": "yes", "no": "no"}, "sw": {"yes": "ndiyo", "no": "hapana"}}
    turns = {code: Turn(f"{code} {id}?", labels[code][gold]) for code in labels}
    return Item(id, "ask", turns, labels, gold, **more)


def test_an_answer_to_an_unreadable_gold_is_wrong():
    """Even if it is the same symbol."""
    item = Item("1", "x", {"en": Turn("Reply with a thumbs up", "👍")})
    data = suite([item], name="parallel")
    assert runner.english_right(data, ["..."]) == [False]
    assert runner.english_right(data, ["👍"]) == [False]


def test_mastery_counts_meanings_and_unreadable_answers_by_their_wording():
    """Yes, "Yes.", no and two different unreadable ones: the commonest is yes, with two of five."""
    items = [closed(str(n)) for n in range(5)]
    found = runner.mastery_by_task(suite(items), ["yes", "Yes.", "no", "what", "who"], {"ask": [True, False]})
    assert found["ask"].plain() == {
        "items": 5, "accuracy": 0.4, "commonest": 0.4, "rephrased": 0.5, "mastered": False,
    }  # fmt: skip


def test_right_open_answers_are_not_one_answer():
    """Each has the words of its own reference, so the task does not count as unbalanced."""
    items = [Item(str(n), "x", {"en": Turn("?", f"answer {n}")}) for n in range(4)]
    found = runner.mastery_by_task(suite(items), [f"answer {n}" for n in range(4)], {})
    assert (found["x"].accuracy, found["x"].commonest, found["x"].mastered) == (1.0, 0.25, True)


@pytest.fixture
def answers(monkeypatch):
    """Replace every model by answers looked up by instruction."""
    texts = {}

    def answer(*_, instructions, **__):
        return [Answer(texts[i], ended=not texts[i].endswith("…")) for i in instructions]

    monkeypatch.setattr(runner, "whole_answers", answer)
    return texts


@pytest.fixture(scope="module")
def subject(tokenizer, tiny):
    """Return any model."""
    return retrieval.Model(tiny(), tokenizer)


def side_of(subject, items):
    """Evaluate a side where English answers yes to everything."""
    english = ["yes"] * len(items)
    return runner.evaluate_side(subject, suite(items), ["sw"], english, None, SETTINGS, 0, quiet)


def test_fidelity_is_not_judged_if_labels_are_english_in_every_language(subject, answers):
    """Neither for a right label nor for a long Swahili sentence, as in MASSIVE."""
    labels = {code: {"yes": "alarm set", "no": "alarm query"} for code in ("en", "sw")}
    items = [closed(str(n), labels=labels, answer_language={"en": "en", "sw": "en"}) for n in range(2)]
    answers.update({"sw 0?": "alarm set", "sw 1?": "Mtumiaji anataka kuweka kengele ya kesho asubuhi"})
    side = side_of(subject, items)
    assert "fidelity" not in side.scores and side.hits["fidelity"] == {"sw": [None, None]}
    assert [row["in_language"] for row in side.predictions] == [None, None]
    assert side.scores["accuracy"]["mean"] == 0.5


def test_fidelity_counts_only_answers_that_can_be_judged(subject, answers):
    """A label is in its language, an English one is not; a short unknown word is not counted."""
    answers.update({"sw 0?": "ndiyo", "sw 1?": "sure", "sw 2?": "yes"})
    side = side_of(subject, [closed(str(n)) for n in range(3)])
    assert side.hits["fidelity"] == {"sw": [True, None, False]}
    assert side.scores["fidelity"]["languages"]["sw"]["value"] == 0.5
    assert side.by_task["fidelity"] == {"ask": {"sw": {"0": 1.0, "2": 0.0}}}


@pytest.mark.parametrize(("judged", "n"), [(1, None), (4, None), (5, 5)])
def test_fidelity_needs_a_tenth_of_the_answers_judged(subject, answers, judged, n):
    """Of 47 answers, five must be judged; the others are words too short to tell."""
    answers.update({f"sw {k}?": "ndiyo" if k < judged else "sure" for k in range(47)})
    side = side_of(subject, [closed(str(k)) for k in range(47)])
    told = side.scores.get("fidelity", {"languages": {"sw": {"n": None}}})["languages"]["sw"]
    assert told["n"] == n
    assert side.hits["fidelity"] == {"sw": [True] * (n or 0) + [None] * (47 - (n or 0))}
    hits = {"sw": {str(k): 1.0 for k in range(n)}} if n else {}
    assert side.by_task["fidelity"] == {"ask": hits}


def test_consistency_is_also_corrected_for_chance(subject, answers):
    """English says yes to everything: agreement of ¾ is that of chance, so κ is 0."""
    answers.update({"sw 0?": "ndiyo", "sw 1?": "ndiyo", "sw 2?": "ndiyo", "sw 3?": "hapana"})
    side = side_of(subject, [closed(str(n)) for n in range(4)])
    assert side.scores["consistency"]["mean"] == 0.75
    assert side.scores["consistency_kappa"] == {"mean": 0.0, "languages": {"sw": {"value": 0.0}}}
    assert side.tasks == {"ask": {"sw": 0.75}} and side.kappa == {"ask": {"sw": 0.0}}


def test_the_share_of_truncated_answers_is_counted_by_language(subject, answers):
    """One of four here; answers chosen by likelihood are not counted."""
    answers.update({f"sw {n}?": "ndiyo" for n in range(3)} | {"sw 3?": "ndiyo, kwa sababu …"})
    side = side_of(subject, [closed(str(n)) for n in range(4)])
    assert side.cut == {"sw": 0.25}
    assert [row["cut"] for row in side.predictions] == [False, False, False, True]
    assert runner.cut_shares(["sw", "sw", "ur"], [None, True, None]) == {"sw": 1.0}


def test_the_noise_floor_is_the_models_agreement_with_itself_on_another_wording(subject, answers):
    """Two of three items have other wordings; one of them is answered differently."""
    items = [closed("0", paraphrases=("first?",)), closed("1", paraphrases=("second?",)), closed("2")]
    answers.update({"first?": "Yes", "second?": "no"})
    found = runner.rephrased_answers(subject, suite(items), ["yes", "yes", "yes"], SETTINGS, quiet)
    assert found == {"ask": [True, False]}


def test_without_other_wordings_the_model_is_not_asked(subject, answers):
    """The fixture has no answer for the instruction itself."""
    assert runner.rephrased_answers(subject, suite([closed("0")]), ["yes"], SETTINGS, quiet) == {}


def test_a_task_with_a_slash_in_its_name_keeps_its_fidelity():
    """Of the other task, only one of twenty answers is judged, so that one is removed."""
    values = {"es": [True] * 4 + [True] + [None] * 19}
    tasks = {"es": ["confusion/okapi"] * 4 + ["confusion/dolly"] * 20}
    by_task = {
        "confusion/okapi": {"es": {str(n): 1.0 for n in range(4)}},
        "confusion/dolly": {"es": {"4": 1.0}},
    }
    runner._leave_out_thin(values, tasks, by_task)
    assert values == {"es": [True] * 4 + [None] * 20}
    assert by_task == {"confusion/okapi": {"es": {str(n): 1.0 for n in range(4)}}, "confusion/dolly": {}}
