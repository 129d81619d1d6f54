"""A finished run that answers: languages mixed in one batch, detected where nobody names them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from isogloss.adapters.generate import answers, complete
from isogloss.data.chat import encode_prompt
from isogloss.data.text import canonical
from isogloss.errors import RunError
from isogloss.evaluate.fidelity import Detector, guess
from isogloss.languages import SOURCE, UnknownLanguageError, resolve
from isogloss.pipeline.folder import Run

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

    def __init__(self, run: Run, detector: Detector = guess):
        self.run, self.detector = run, detector
        self.model = run.reference_model()
        self.adapters = run.student(self.model, trained=True)
        self._turn = Lock()  # the path is state of the model

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that were taught."""
        return self.run.taught

    def language_of(self, text: str) -> str:
        """The detector's choice among English and the taught languages; English where it has none.

        The package's own has none for texts without letters or in a script of no taught language, nor for
        those of under 6 letters in the script of English.
        """
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
            DataError: A text holds half of a surrogate pair.
        """
        texts = [canonical(text, "the instruction") for text in texts]
        codes = self._codes(texts, languages)
        with self._turn:
            return answers(
                self.model,
                self.run.tokenizer,
                texts,
                languages=codes,
                adapters=self.adapters,
                batch=batch,
                max_new_tokens=max_new_tokens,
            )

    def reference(self, texts: Sequence[str], *, max_new_tokens: int = LONGEST) -> list[str]:
        """Greedy answers of the reference model, adapters off."""
        texts = [canonical(text, "the instruction") for text in texts]
        with self._turn:
            return answers(self.model, self.run.tokenizer, texts, max_new_tokens=max_new_tokens)

    def stream(
        self, text: str, language: str | None = None, *, max_new_tokens: int = LONGEST
    ) -> Iterator[str]:
        """The answer of `generate` to one instruction in pieces, as they come; may be left before its end.

        Raises:
            RunError: No language has the code.
        """
        text = canonical(text, "the instruction")
        codes, prompt = self._codes([text], language), encode_prompt(self.run.tokenizer, text)
        return self._stream(prompt, codes, max_new_tokens)

    def _stream(self, prompt: Sequence[int], codes: list[str], max_new_tokens: int) -> Iterator[str]:
        tokenizer, left = self.run.tokenizer, Event()
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as speaker:
            spoken = speaker.submit(
                self.complete,
                [prompt],
                codes,
                max_new_tokens,
                streamer=streamer,
                stopped=lambda _: left.is_set(),
            )
            spoken.add_done_callback(lambda _: streamer.end())  # a failure must not leave anybody waiting
            try:
                yield from streamer
            finally:
                left.set()
            spoken.result()

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        codes: Sequence[str] | None,
        max_new_tokens: int,
        *,
        streamer: BaseStreamer | None = None,
        stopped: Callable[[int], bool] = lambda row: False,
    ) -> Int[Tensor, "prompts tokens"]:
        """New tokens of one batch of prompts; without codes the reference model answers.

        Args:
            streamer: Hears the prompts' ids, then each step's tokens.
            stopped: Whether nobody waits for a row any more.
        """

        def criterion(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return torch.tensor([stopped(row) for row in range(len(ids))], device=ids.device)

        with self._turn:
            return complete(
                self.model,
                self.run.tokenizer,
                prompts,
                languages=codes,
                adapters=None if codes is None else self.adapters,
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                stopping_criteria=[criterion],
            )

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


class Asker:
    """One instruction, answered by the reference model in English, zero-shot, and by the aligned model.

    Keeps the model of a run in memory and answers in one language.

    Raises:
        RunError: The run is not trained, or no language has the code.
    """

    def __init__(self, run: Run, language: str):
        try:
            self.language = resolve(language)
        except UnknownLanguageError as error:
            raise RunError(str(error)) from None
        self.aligned = Aligned(run)

    @property
    def note(self) -> str:
        """What stands in for a language that was not taught; empty for one that was."""
        path = self.aligned.run.tree.path(self.language.code)
        if path[-1].level == "language" or self.language.code == SOURCE:
            return ""
        holds = [node for node in path if node.rank]
        if not holds:
            return (
                f"{self.language.name} was not taught and this tree shares nothing: the answer is zero-shot."
            )
        node = holds[-1]
        through = "the root" if node.level == "root" else f"its family, {node.name.replace('/', ' / ')}"
        return f"{self.language.name} was not taught; it answers through {through}."

    def answers(self, text: str, twin: str | None = None) -> dict[str, str]:
        """Answers by the name of who gives them.

        Args:
            text: The instruction in the asker's language.
            twin: The same in English, where there is one: the reference model answers it.
        """
        plain = self.aligned.reference([text] if twin is None else [text, twin])
        aligned = self.aligned.generate([text], self.language.code)
        english = {} if twin is None else {"reference, English": plain[1]}
        return {**english, "zero-shot": plain[0], "aligned": aligned[0]}
