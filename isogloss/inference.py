"""A finished run that answers: languages mixed in one batch, detected where nobody names them."""

from collections.abc import Iterator, Sequence
from threading import Event, Lock, Thread
from typing import Any

import torch
from transformers import StoppingCriteriaList, TextIteratorStreamer

from isogloss.data.chat import encode_prompt
from isogloss.errors import RunError
from isogloss.evaluate.fidelity import Detector, detect
from isogloss.generate import answers, stops
from isogloss.languages import SOURCE, UnknownLanguageError, resolve
from isogloss.pipeline import Run

LONGEST = 64
"""Tokens of an answer, at most, where the caller does not say."""


class Aligned:
    """A run's model in memory; safe to call from several threads, which take turns.

    Args:
        run: A run that has been distilled.
        detector: Which of some languages a text is in, or None; asked where no language is named.

    Raises:
        RunError: The run is not trained.
    """

    def __init__(self, run: Run, detector: Detector = detect):
        self.run, self.detector = run, detector
        self.model = run.reference_model()
        self.carrier = run.student(self.model, trained=True)
        self._turn = Lock()  # the path is state of the model

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that were taught."""
        return self.run.taught

    def language_of(self, text: str) -> str:
        """The detector's choice among English and the taught languages; English where it has none."""
        return self.detector(text, (SOURCE, *self.languages)) or SOURCE

    def generate(
        self,
        texts: Sequence[str],
        languages: str | Sequence[str] | None = None,
        *,
        max_new_tokens: int = LONGEST,
        batch: int = 64,
    ) -> list[str]:
        """Greedy answers, one per instruction, in their order.

        Args:
            texts: Instructions, in any mixture of languages.
            languages: One for all or one per text, by any of its codes; detected if not given. English reads
                the root; a language without a leaf reads its family, or the root.
            max_new_tokens: Longest answer.
            batch: Prompts per forward.

        Raises:
            RunError: No language has a code, or there is not one language per text.
        """
        codes = self._codes(texts, languages)
        with self._turn:
            return answers(
                self.model, self.run.tokenizer, texts, languages=codes, carrier=self.carrier,
                batch=batch, max_new_tokens=max_new_tokens,
            )  # fmt: skip

    def reference(self, texts: Sequence[str], *, max_new_tokens: int = LONGEST) -> list[str]:
        """Greedy answers of the reference model, carriers off."""
        with self._turn:
            return answers(self.model, self.run.tokenizer, texts, max_new_tokens=max_new_tokens)

    def stream(
        self, text: str, language: str | None = None, *, max_new_tokens: int = LONGEST
    ) -> Iterator[str]:
        """The answer of `generate` to one instruction in pieces, as they come; may be left before its end.

        Raises:
            RunError: No language has the code.
        """
        (code,) = self._codes([text], language)
        return self._stream(text, code, max_new_tokens)

    def _stream(self, text: str, code: str, max_new_tokens: int) -> Iterator[str]:
        tokenizer, left = self.run.tokenizer, Event()
        ids = torch.tensor([encode_prompt(tokenizer, text)], device=next(self.model.parameters()).device)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        failed: list[Exception] = []

        def speak() -> None:
            try:
                self.model.generate(  # type: ignore[operator]
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=stops(self.model, tokenizer),
                    pad_token_id=tokenizer.pad_token_id,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_Left(left)]),
                )
            except Exception as error:
                failed.append(error)
                streamer.end()

        with self._turn, self.carrier.on([code]):
            speaker = Thread(target=speak)
            speaker.start()
            try:
                yield from streamer
            finally:
                left.set()
                speaker.join()
        if failed:
            raise failed[0]

    def _codes(self, texts: Sequence[str], languages: str | Sequence[str] | None) -> list[str]:
        if languages is None:
            return [self.language_of(text) for text in texts]
        given = [languages] * len(texts) if isinstance(languages, str) else list(languages)
        if len(given) != len(texts):
            raise RunError(f"{len(texts)} texts and {len(given)} languages; give one language for each text")
        try:
            return [resolve(one).code for one in given]
        except UnknownLanguageError as error:
            raise RunError(str(error)) from None


class _Left:
    """Stops a generation that nobody listens to any more."""

    def __init__(self, left: Event):
        self.left = left

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.left.is_set(), device=input_ids.device)
