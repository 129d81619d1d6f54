"""Inference with a finished run: mixed languages in one batch, detected where they are not given."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from isogloss.adapters.generate import answers, complete, stops
from isogloss.data.chat import encode_prompt
from isogloss.data.text import canonical
from isogloss.errors import RunError
from isogloss.evaluate.fidelity import Detector, guess
from isogloss.languages import SOURCE, Language, UnknownLanguageError, resolve
from isogloss.pipeline.folder import Run

LONGEST = 64
"""Default limit of new tokens per answer."""


class Aligned:
    """A run's model with its adapters; thread-safe, with calls running one at a time.

    Args:
        run: A distilled run.
        detector: Returns which of the given languages a text is in, or None; used when no language is given.

    Raises:
        RunError: The run is not trained.
    """

    def __init__(self, run: Run, detector: Detector = guess):
        self.run, self.detector = run, detector
        self.model = run.reference_model(measured=False)
        self.adapters = run.student(self.model, trained=True)
        self._turn = Lock()  # the active adapter path is state of the model

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the taught languages, as of the adapters in memory."""
        return self.adapters.tree.languages

    def language_of(self, text: str) -> str:
        """Detect the language of a text among English and the taught languages; default to English.

        The built-in detector returns none for a text without letters, in a script of no taught language, or
        with fewer than 6 letters in the script of English.
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
        """Answer each instruction by greedy decoding, in order.

        Args:
            texts: Instructions, in any mixture of languages.
            languages: One language code for all texts or one per text; detected if not given. English uses
                the root's adapter; a language without a leaf uses its family's, or the root's.
            max_new_tokens: Limit of new tokens per answer.
            batch: Prompts per forward pass.

        Raises:
            RunError: A language code is unknown, there is not one language per text, or `texts` is a string.
            DataError: A text contains an unpaired surrogate.
        """
        texts = _instructions(texts)
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
        """Answer by greedy decoding with the reference model, adapters off."""
        texts = _instructions(texts)
        with self._turn:
            return answers(self.model, self.run.tokenizer, texts, max_new_tokens=max_new_tokens)

    def stream(
        self, text: str, language: str | None = None, *, max_new_tokens: int = LONGEST
    ) -> Iterator[str]:
        """Stream the answer to one instruction as it is decoded; closing the iterator stops generation.

        `generate` also normalises its answers (NFC) and strips them.

        Raises:
            RunError: The language code is unknown.
        """
        text = canonical(text, "the instruction")
        codes, prompt = self._codes([text], language), encode_prompt(self.run.tokenizer, text)
        return self._stream(prompt, codes, max_new_tokens)

    def _stream(self, prompt: Sequence[int], codes: list[str], max_new_tokens: int) -> Iterator[str]:
        tokenizer, left = self.run.tokenizer, Event()
        ends = set(stops(self.model, tokenizer))
        streamer = _UpToEnd(ends, tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as speaker:
            spoken = speaker.submit(
                self.complete,
                [prompt],
                codes,
                max_new_tokens,
                streamer=streamer,
                stopped=lambda _: left.is_set(),
            )
            spoken.add_done_callback(lambda _: streamer.end())  # unblocks the reader if generation fails
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
        """Generate token IDs for one batch of prompts; without codes, with the reference model.

        Args:
            prompts: Token IDs of each prompt.
            codes: Language of each prompt, or None for the reference model.
            max_new_tokens: Limit of new tokens.
            streamer: Receives the prompts' token IDs, then the tokens of each step.
            stopped: Returns True for a row whose generation should stop.
        """
        with self._turn:
            return complete(
                self.model,
                self.run.tokenizer,
                prompts,
                languages=codes,
                adapters=None if codes is None else self.adapters,
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                stopped=lambda made: [stopped(row) for row in range(len(made))],
            )

    def _codes(self, texts: Sequence[str], languages: str | Sequence[str] | None) -> list[str]:
        if languages is None:
            return [self.language_of(text) for text in texts]
        given = [languages] * len(texts) if isinstance(languages, str) else list(languages)
        if len(given) != len(texts):
            raise RunError(f"{len(texts)} texts and {len(given)} languages; give one language for each text")
        return [_language(one).code for one in given]


class _UpToEnd(TextIteratorStreamer):
    """Streamer of one answer without its end, which need not be a special token."""

    def __init__(self, ends: set[int], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ends = ends

    def put(self, value: Tensor) -> None:
        if value.ndim > 1 or value.item() not in self.ends:
            super().put(value)


def _language(code: str) -> Language:
    try:
        return resolve(code)
    except UnknownLanguageError as error:
        raise RunError(str(error)) from None


def _instructions(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise RunError("texts is a single string; give a list of instructions")
    return [canonical(text, "the instruction") for text in texts]


class Asker:
    """Compares answers to one instruction: reference model in English, zero-shot, and aligned model.

    Keeps the model of a run in memory and answers in one language.

    Raises:
        RunError: The run is not trained, or the language code is unknown.
    """

    def __init__(self, run: Run, language: str):
        self.language = _language(language)
        self.aligned = Aligned(run)

    @property
    def note(self) -> str:
        """Explain which adapter answers for a language that was not taught; empty for one that was."""
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
        """Return the answers, keyed by the model and setting that gave them.

        Args:
            text: The instruction in the asker's language.
            twin: Its English version, if there is one; answered by the reference model.
        """
        plain = self.aligned.reference([text] if twin is None else [text, twin])
        aligned = self.aligned.generate([text], self.language.code)
        english = {} if twin is None else {"reference, English": plain[1]}
        return {**english, "zero-shot": plain[0], "aligned": aligned[0]}
