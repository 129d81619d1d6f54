"""Official metrics: values worked out by hand, and the packages that the official scripts call."""

import random
import warnings

import pytest

from isogloss.evaluate import official

UPOS = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT",
        "SCONJ", "SYM", "VERB", "X", "_")  # fmt: skip
IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG", "B-MISC")


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], {("PER", 0, 1), ("LOC", 3, 3)}),
        (["I-PER", "I-PER", "O", "I-LOC"], {("PER", 0, 1), ("LOC", 3, 3)}),  # the same in IOB1
        (["B-PER", "B-PER"], {("PER", 0, 0), ("PER", 1, 1)}),
        (["NOUN", "NOUN", "DET"], {("OUN", 0, 1), ("ET", 2, 2)}),  # equal neighbours are one span
        (["SYM", "SYM"], {("YM", 0, 0), ("YM", 1, 1)}),  # but not after an S
    ],
)
def test_spans_are_read_as_seqeval_reads_them(tags, found):
    """The prefix is the first character, the type is the rest."""
    assert official.spans([tags]) == found


def test_pos_scores_differ_from_each_other():
    """Four of five tokens are right, and two of three predicted spans (NOUN NOUN, VERB, NOUN NOUN)."""
    gold = [["DET", "NOUN", "VERB", "NOUN", "NOUN"]]
    predicted = [["NOUN", "NOUN", "VERB", "NOUN", "NOUN"]]
    assert official.token_accuracy(gold, predicted) == pytest.approx(0.8)
    assert official.span_precision(gold, predicted) == pytest.approx(2 / 3)
    # Gold spans DET, NOUN, VERB, NOUN NOUN: 2 of 3 predicted are among these 4, so F1 is 4/7.
    assert official.span_f1(gold, predicted) == pytest.approx(4 / 7)


@pytest.mark.parametrize("tags", [UPOS, IOB])
def test_span_scores_are_seqevals(tags):
    """On random tag sequences of unequal length, sentence borders included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("seqeval.metrics")
        rng = random.Random(3)
        for _ in range(30):
            gold = [[rng.choice(tags) for _ in range(rng.randint(1, 9))] for _ in range(6)]
            predicted = [[t if rng.random() < 0.7 else rng.choice(tags) for t in row] for row in gold]
            assert official.span_f1(gold, predicted) == pytest.approx(metrics.f1_score(gold, predicted))
            wanted = metrics.precision_score(gold, predicted)
            assert official.span_precision(gold, predicted) == pytest.approx(wanted)


def test_unequal_tag_counts_are_refused():
    """Nothing is padded silently."""
    with pytest.raises(ValueError, match="sentence 1 has 1 tags for 2 tokens; tag every token once"):
        official.span_f1([["O", "O"]], [["O"]])
    with pytest.raises(ValueError, match="1 predictions for 2 gold rows; there must be one for each"):
        official.accuracy(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("language", "gold", "given", "f1", "match"),
    [
        ("en", "The Eiffel Tower", "eiffel tower!", 1.0, True),
        ("en", "the cat sat", "a cat ran", 0.5, False),  # cat sat, cat ran: 1 of 2 both ways
        ("es", "los perros", "perros", 1.0, True),
        ("de", "die alte Stadt", "der alten Stadt", 0.5, False),
        ("vi", "những con mèo", "con mèo", 1.0, True),
        ("ar", "الكتاب", "كتاب", 1.0, True),
        ("ar", "سالم", "سم", 0.0, False),  # AL inside a word is dropped too, which leaves two tokens
        ("hi", "राम का घर", "राम का", 0.8, False),  # 2 shared of 3 and 2
        ("zh", "北京大学", "北京", 2 / 3, False),  # characters: 2 shared of 4 and 2
        ("zh", "Apple 公司", "apple公司。", 1.0, True),
        ("en", "12", "", 0.0, False),
    ],
)
def test_mlqa_answers_are_normalised_by_language(language, gold, given, f1, match):
    """Lower case, no punctuation, no articles of that language; Chinese by character."""
    assert official.answer_f1([gold], given, language) == pytest.approx(f1)
    assert official.answer_match([gold], given, language) is match


def test_the_best_matching_gold_answer_counts():
    """The second of two gold answers is matched completely."""
    assert official.answer_f1(["red", "dark red"], "dark red", "en") == 1.0


def test_ndcg_groups_neighbours_and_drops_single_rows():
    """a: 3 before 1 is right, so 1. b is alone. c: relevances 0 2 are ranked wrongly, 1/log2(3)."""
    queries, gold, predicted = ["a", "a", "b", "c", "c"], [3, 1, 4, 0, 2], [9, 1, 0, 2, 1]
    assert official.ndcg(queries, gold, predicted) == pytest.approx((1 + 0.6309298) / 2)
    # The same query again, not adjacent, is another group, of one row: dropped.
    assert official.ndcg([*queries, "a"], [*gold, 4], [*predicted, 0]) == pytest.approx((1 + 0.6309298) / 2)


def test_ndcg_averages_ties_and_counts_irrelevant_groups():
    """Ties of 2 and 0 get gain 1 each: (1 + 0.63093) / 2 = 0.815465; nothing relevant: 0."""
    assert official.ndcg(["a", "a"], [2, 0], [1, 1]) == pytest.approx(0.815465, abs=1e-6)
    assert official.ndcg(["a", "a"], [0, 0], [1, 2]) == 0.0
    with pytest.raises(ValueError, match="no query has two adjacent rows"):
        official.ndcg(["a", "b"], [1, 2], [1, 2])


def test_ndcg_is_scikit_learns():
    """On random relevances with many ties."""
    reference = pytest.importorskip("sklearn.metrics").ndcg_score
    rng = random.Random(5)
    for _ in range(20):
        size = rng.randint(2, 9)
        gold = [rng.randint(0, 4) for _ in range(size)]
        predicted = [rng.randint(0, 4) for _ in range(size)]
        assert official.ndcg(["q"] * size, gold, predicted) == pytest.approx(reference([gold], [predicted]))


def test_bleu_is_lower_cased_and_divided_by_a_hundred():
    """A match in another case is 1; four of five words: (4/5 · 3/4 · 2/3 · 1/2)^¼ = 0.668740."""
    assert official.bleu(["Who won the cup ?"], ["who WON the cup ?"]) == pytest.approx(1.0)
    assert official.bleu(["a b c d e"], ["a b c d f"]) == pytest.approx(0.668740, abs=1e-6)
    with pytest.raises(ValueError, match="2 predictions for 1 gold rows"):
        official.bleu(["a"], ["a", "b"])
