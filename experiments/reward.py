"""Reward of the reinforcement-learning baselines: alignment itself plus a dense part. Involves no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sacrebleu.metrics.chrf import CHRF

from isogloss.data.reading import normalise
from isogloss.evaluate.fidelity import in_language
from isogloss.languages import SOURCE

DENSE = 0.5
"""Weight of chrF: a perfect score adds this much."""


@dataclass(frozen=True)
class Prompt:
    """An instruction in a language, and the response with the meaning of the English response."""

    text: str
    response: str
    language: str


class Reward:
    """Reward 1 for the right answer, plus `DENSE`·chrF/100; 0 for an answer in the wrong language.

    An answer is right if it equals the response after `normalise`. Without the chrF part, a policy that is
    never right would learn nothing; without the language check, it would drift to English. Sentence chrF
    with sacrebleu's defaults (Popović 2015, W15-3049).
    """

    def __init__(self, prompts: Sequence[Prompt], english: Sequence[str]):
        """
        Args:
            prompts: All training prompts; their responses are wordings of known language.
            english: English responses.
        """
        known: dict[str, set[str]] = {SOURCE: {normalise(text) for text in english}}
        for prompt in prompts:
            # If the response is an English one, the task is translation into English.
            if normalise(prompt.response) not in known[SOURCE]:
                known.setdefault(prompt.language, set()).add(normalise(prompt.response))
        self.known: Mapping[str, set[str]] = known
        self.chrf = CHRF()

    def __call__(self, answer: str, prompt: Prompt) -> float:
        given, wanted = normalise(answer), normalise(prompt.response)
        if not given:
            return 0.0
        if given == wanted:
            return 1.0 + DENSE
        target = SOURCE if wanted in self.known[SOURCE] else prompt.language
        owners = {code: (given,) for code, wordings in self.known.items() if given in wordings}
        if in_language(given, target, candidates=self.known.keys(), known=owners) is False:
            return 0.0
        return DENSE * self.chrf.sentence_score(given, [wanted]).score / 100
