"""The reward: meaning, language, and a dense part."""

import pytest
from sacrebleu.metrics.chrf import CHRF

from experiments.reward import Prompt, Reward

SPANISH = Prompt("¿Dónde compró pan Anna?", "en el mercado", "es")
INTO_ENGLISH = Prompt("Traduce al inglés: Anna compró pan.", "Anna bought bread.", "es")
TURKISH = Prompt("Doğru mu?", "evet", "tr")
REWARD = Reward([SPANISH, INTO_ENGLISH, TURKISH], ["at the market", "Anna bought bread.", "yes"])


@pytest.mark.parametrize(
    ("prompt", "answer", "reward"),
    [
        (SPANISH, "en el mercado", 1.5),
        (SPANISH, "  «En el mercado.» ", 1.5),  # quotes, case and a full stop change no meaning
        (SPANISH, "at the market", 0.0),  # the right meaning in another language
        (SPANISH, "evet", 0.0),  # a wording that is known to be Turkish
        (SPANISH, "", 0.0),
        (SPANISH, "?!", 0.0),
        (INTO_ENGLISH, "anna bought bread", 1.5),  # English is requested
        (TURKISH, "Evet", 1.5),
        (TURKISH, "yes", 0.0),
    ],
)
def test_meaning_and_language(prompt, answer, reward):
    assert REWARD(answer, prompt) == reward


def test_nearly_right_answers_get_a_partial_reward():
    """Half of sacreBLEU's chrF; more if more is right."""
    near = REWARD("en el mercado grande", SPANISH)
    expected = 0.5 * CHRF().sentence_score("en el mercado grande", ["en el mercado"]).score / 100
    assert near == pytest.approx(expected)
    assert 0 < REWARD("en la playa", SPANISH) < near < 0.5
