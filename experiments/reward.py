"""The reward of the reinforcement-learning baselines: alignment itself, plus a dense part. Knows no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sacrebleu.metrics.chrf import CHRF

from isogloss.data.reading import normalise
from isogloss.evaluate.fidelity import in_language
from isogloss.languages import SOURCE

DENSE = 0.5
"""What a perfect chrF adds."""


@dataclass(frozen=True)
class Prompt:
    """What is asked in a language, and the response that means what the English response means."""

    text: str
    response: str
    language: str


class Reward:
    """1 for the meaning of the English answer, plus `DENSE`·chrF/100; 0 in another language.

    The same meaning is the wording of the response in that language, apart from what `normalise` takes away.
    Without the share for chrF a policy that is never right would learn nothing, and without the language it
    would drift to English. chrF is of the sentence, with sacrebleu's defaults (Popović 2015, W15-3049).
    """

    def __init__(self, prompts: Sequence[Prompt], english: Sequence[str]):
        """
        Args:
            prompts: All that is trained on; their responses are wordings whose language is known.
            english: English responses.
        """
        known: dict[str, set[str]] = {SOURCE: {normalise(text) for text in english}}
        for prompt in prompts:
            # What is answered in English by every language is a translation into English.
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
