"""Likeness of the two sides of a pair, from states made by hand."""

import random
from contextlib import nullcontext

import pytest
import torch

from isogloss.data.examples import ParallelExample, Turn
from isogloss.evaluate.retrieval import Model
from isogloss.translate import likeness
from isogloss.translate.answers import Answer
from isogloss.translate.job import Job
from isogloss.translate.likeness import FEWEST, centred, foretold, grams, layers, margins, scorer, scores


def test_the_layers_of_a_model_with_eighteen():
    """5 to 9, as in Gemma 3 270M; a model with two layers has one below its middle."""
    assert list(layers(18)) == [5, 6, 7, 8, 9]
    assert list(layers(2)) == [1]


def test_true_pairs_score_above_shuffled_ones_whatever_the_languages_mean_and_scale():
    """The other side is the English one, scaled, shifted and noisy; a tenth of the pairs is mismatched."""
    torch.manual_seed(0)
    english = torch.randn(60, 16)
    other = 7 * english + 100 + torch.randn(60, 16)
    other[:6] = other[:6].roll(1, 0)
    texts = [""] * 60
    found = scores({3: english, 5: english}, {3: other, 5: other}, texts, texts)
    assert found[6:].min() > 0 > found[:6].max()


def test_a_rotation_is_learned_from_the_other_pairs():
    """The language's states are rotated, so that no pair is similar as it is."""
    torch.manual_seed(0)
    english = torch.randn(200, 8)
    other = english @ torch.linalg.qr(torch.randn(8, 8)).Q
    other[:20] = other[:20].roll(1, 0)
    texts = [""] * 200
    found = scores({1: english}, {1: other}, texts, texts)
    assert found[20:].quantile(0.03) > found[:20].max()


def test_words_that_go_together_are_learned_from_texts_alone():
    """The states are all equal; of 200 sentences with three words each, a tenth is mismatched."""
    chance = random.Random(0)
    pairs = [[chance.randrange(20) for _ in range(3)] for _ in range(200)]
    english = [f"the{a}the is{b}is of{c}of" for a, b, c in pairs]
    other = [f"na{c}na ya{a}ya ni{b}ni" for a, b, c in pairs]
    other[:20] = [*other[10:20], *other[:10]]
    nothing = torch.ones(200, 4)
    found = scores({1: nothing}, {1: nothing}, english, other)
    assert found[20:].quantile(0.03) > found[:20].max()


def test_margins_by_hand():
    """Cosines of 1 and -1: twice 1, minus the others' -1 on each side."""
    alike = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert margins(alike).tolist() == pytest.approx([4.0, 4.0])


def test_predictions_are_learned_from_the_other_pairs_only():
    """As if the regression were fitted again without each pair and without pairs that must not teach."""
    torch.manual_seed(1)
    given, wanted = (torch.randn(7, 5, dtype=torch.float64) for _ in range(2))
    teach = torch.tensor([True, True, False, True, True, True, True])
    found = foretold(wanted @ wanted.T, given @ given.T, teach)
    for n in range(7):
        rest = [m for m in range(7) if m != n and teach[m]]
        ridge = torch.linalg.solve(
            given[rest].T @ given[rest] + likeness.RIDGE * torch.eye(5, dtype=torch.float64),
            given[rest].T @ wanted[rest],
        )
        expected = torch.cosine_similarity((given[n] @ ridge)[None], wanted)
        assert found[n].tolist() == pytest.approx(expected.tolist())


def test_n_grams_of_a_single_text_do_not_count():
    """The same words in another order are nearly equal; texts without a common word have 0."""
    found = grams(["red car", "car red", "blue sky", "a very red house", "sky"])
    assert found[0, 1] > 0.5 > found[0, 3] > 0 and found[0, 2] == 0 and found[0, 0] == pytest.approx(1)
    assert grams(["abc", "xyz"]).tolist() == [[0, 0], [0, 0]]


def test_a_centred_kernel_is_that_of_centred_vectors():
    vectors = torch.randn(6, 3, dtype=torch.float64)
    moved = vectors - vectors.mean(0)
    assert torch.allclose(centred(vectors @ vectors.T), moved @ moved.T)


def test_too_few_pairs_filter_nothing(tiny, tokenizer):
    """The base model does not read them."""
    score = scorer(Model(tiny("qwen3", seed=5), tokenizer))
    few = ["a"] * (FEWEST - 1)
    assert score(few, few, "sw") == [float("inf")] * (FEWEST - 1)


SAID = {"sw": "Maktaba iko wapi?", "th": "ห้องสมุดอยู่ที่ไหน"}


class Fixed:
    name = "fixed"

    def identity(self, wanted):
        return []

    def run(self, wanted, keep, progress):
        for one in wanted:
            keep(one, Answer(SAID[one.code]))


@pytest.mark.parametrize(
    ("score", "compared", "says"),
    [
        (0.0, ["sw"], "It is also dropped if its two sides are too dissimilar for tiny (only in Swahili)."),
        (float("inf"), [], "No pair was compared by tiny: no language has a limit for it and enough pairs."),
    ],
)
def test_only_languages_with_a_limit_are_compared_and_the_card_names_them(tmp_path, score, compared, says):
    """Thai has no limit, so the base model does not read it; too few pairs are not compared."""
    asked = []

    def alike(english, texts, code):
        asked.append(code)
        return [score] * len(texts)

    example = ParallelExample("1", "t", {"en": Turn("Where is the library?")})
    job = Job([example], ["sw", "th"], Fixed(), tmp_path / "out.jsonl")
    done = job.run(lambda what: nullcontext(lambda done, of: None), alike, {"likeness": "tiny"})
    assert asked == ["sw"] and done.compared == compared and done.kept == {"sw": 1, "th": 1}
    assert says in (job.folder / "README.md").read_text("utf-8")


def test_pairs_that_are_too_dissimilar_are_not_translated_back(tmp_path):
    """A back-translation costs a request, and could not save them."""
    asked = []

    class Both(Fixed):
        def run(self, wanted, keep, progress):
            asked.extend(one.text for one in wanted if one.code == "en")
            for one in wanted:
                keep(one, Answer(SAID.get(one.code, "Where is the library?")))

    example = ParallelExample("1", "t", {"en": Turn("Where is the library?")})
    job = Job([example], ["sw", "th"], Both(), tmp_path / "out.jsonl", round_trip=30.0)
    alike = lambda english, texts, code: [-9.0] * len(texts)  # noqa: E731
    done = job.run(lambda what: nullcontext(lambda done, of: None), alike, {})
    assert asked == [SAID["th"]] and done.kept == {"sw": 0, "th": 1}
