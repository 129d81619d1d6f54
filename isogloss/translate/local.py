"""Translators that run on this machine: a seq2seq translation model, or a few-shot prompted base model.

Both translate line by line: seq2seq models are made for sentences, and the base model stops at the end of a
line. Empty lines are preserved.
Flow: texts → unique lines → batches by length → translated lines → texts.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, StopStringCriteria

from isogloss.adapters.generate import complete, stops
from isogloss.data.examples import ParallelExample
from isogloss.data.text import canonical
from isogloss.data.tokens import encode_text
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE, languages
from isogloss.model.base_files import named
from isogloss.model.fingerprint import file_hashes
from isogloss.model.load import load_model, load_tokenizer, model_folder, pick_dtype
from isogloss.model.prefix import Prefix, prefill
from isogloss.translate.answers import Answer, Spent, Translator, Wanted

TOGETHER: Final = 16
"""Texts per batch; answers are stored after each batch."""
LINES: Final = 64
"""Lines translated at once."""
SHOWN: Final = 8
"""Few-shot translations before each line."""


class Line(NamedTuple):
    """A line's translation, whether generation finished (not truncated), and prompt and generated tokens."""

    text: str
    ended: bool
    read: int
    written: int


class Local(Translator):
    """Base class of local translators.

    Args:
        model: A folder, or a model name on the Hub.
    """

    def __init__(self, model: str):
        self.model = model
        self.name = model
        folder = Path(model_folder(model))
        self._content = "-".join(file_hashes(folder).values()) if folder.is_dir() else model

    @abstractmethod
    def lines(self, texts: Sequence[str], code: str, source: str) -> list[Line]:
        """Translate lines from `source` into `code`, both isogloss codes."""

    def plan(self, wanted: Sequence[Wanted]) -> str:
        count = sum(len(_lines(one.text)) for one in wanted)
        return f"{count} lines on this machine; the remaining time is shown during translation"

    def run(
        self,
        wanted: Sequence[Wanted],
        keep: Callable[[Wanted, Answer], None],
        progress: Callable[[int, int], None],
    ) -> None:
        done = 0
        for code, source in dict.fromkeys((one.code, one.source) for one in wanted):
            own = sorted((one for one in wanted if one[1:] == (code, source)), key=lambda one: len(one.text))
            for start in range(0, len(own), TOGETHER):
                batch = own[start : start + TOGETHER]
                began = time.monotonic()
                lines = sorted(dict.fromkeys(line for one in batch for line in _lines(one.text)), key=len)
                made: dict[str, Line] = {}
                for first in range(0, len(lines), LINES):
                    some = lines[first : first + LINES]
                    made |= zip(some, self.lines(some, code, source), strict=True)
                read = sum(one.read for one in made.values())
                written = sum(one.written for one in made.values())
                spent = Spent(1, read, written, round(time.monotonic() - began, 3))
                for number, one in enumerate(batch):
                    keep(one, _answer(one.text, made, spent if number == 0 else Spent()))
                done += len(batch)
                progress(done, len(wanted))


class Seq2Seq(Local):
    """NLLB, M2M100, MADLAD, OPUS-MT, and other models with language tokens or a single target language.

    Args:
        codes: isogloss codes of the target languages.
        back: True if it will also translate back into English.

    Raises:
        ConfigError: The model cannot be loaded, or does not translate into one of the languages.
    """

    def __init__(self, model: str, codes: Sequence[str], *, back: bool = False):
        super().__init__(model)
        folder = model_folder(model)
        with named(model):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._targets = {code: self._token(code) for code in codes}
        if back:
            self._targets[SOURCE] = self._token(SOURCE)
            if self._targets[SOURCE][0] is None:
                raise ConfigError(
                    f"--round-trip: {model} does not translate into English; leave it out, or use a model "
                    "that translates both ways"
                )
        with named(model):
            self._net = AutoModelForSeq2SeqLM.from_pretrained(
                folder, dtype=pick_dtype("auto"), trust_remote_code=False
            ).eval()
        self._net.generation_config.forced_eos_token_id = None  # it would hide that a line was cut off
        self._net.to("cuda" if torch.cuda.is_available() else "cpu")

    def identity(self, wanted: Wanted) -> list[Any]:
        return ["seq2seq", self._content, self._targets[wanted.code][0]]

    @torch.no_grad()
    def lines(self, texts: Sequence[str], code: str, source: str) -> list[Line]:
        token, before = self._targets[code]
        if hasattr(self._tokenizer, "src_lang") and (own := self._token(source)[0]) is not None:
            self._tokenizer.src_lang = own.strip("_") if own.startswith("__") else own
        given = [f"{token} {text}" if token and before else text for text in texts]
        read = self._tokenizer(given, return_tensors="pt", padding=True)
        most = getattr(self._net.config, "max_position_embeddings", None) or math.inf
        lengths = read["attention_mask"].sum(1).tolist()
        if max(lengths) > most:  # left out, as cut off
            fit = [n for n, length in enumerate(lengths) if length <= most]
            done = iter(self.lines([texts[n] for n in fit], code, source) if fit else [])
            return [next(done) if length <= most else Line("", False, length, 0) for length in lengths]
        read = read.to(self._net.device)
        start = {} if before else {"forced_bos_token_id": self._tokenizer.convert_tokens_to_ids(token)}
        longest = int(min(2 * read["input_ids"].shape[1] + 32, most - 1))
        made = self._net.generate(
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            do_sample=False,
            num_beams=1,
            max_new_tokens=longest,
            **start,
        )
        ends = self._net.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        said = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        rows = zip(said, made.tolist(), read["attention_mask"].sum(1).tolist(), strict=True)
        pad = self._tokenizer.pad_token_id
        return [
            Line(text.strip(), not ends.isdisjoint(ids[1:]), seen, sum(one != pad for one in ids[1:]))
            for text, ids, seen in rows
        ]

    def _token(self, code: str) -> tuple[str | None, bool]:
        """Return a language's token, and True if it precedes the source text, not the translation.

        Returns None as the token of a model with one target language, and of English where it has none.

        Raises:
            ConfigError: The model does not translate into the language.
        """
        one, known = languages()[code], self._tokenizer.get_vocab()
        spellings = dict.fromkeys((*one.codes(), one.iso639_3))
        for shape, before in (("{}", False), ("__{}__", False), ("<2{}>", True), (">>{}<<", True)):
            for spelling in spellings:
                token = shape.format(spelling)
                # A bare code only counts if it includes the script: "it" is also a word.
                if token in known and (shape != "{}" or "_" in token):
                    return token, before
        if code == SOURCE:
            return None, True
        if any(name.startswith((">>", "<2", "__")) or name == "eng_Latn" for name in known):
            raise ConfigError(
                f"--model: {self.model} has no token for {code} ({one.name}); leave it out of --to"
            )
        own = self._tokenizer.init_kwargs.get("target_lang")
        if own not in one.codes():
            raise ConfigError(
                f"--model: {self.model} translates into {own or 'a single, unnamed language'}, not "
                f"{code}; use a model for {one.name}"
            )
        return None, True


class Shown(Local):
    """Any causal model, prompted with a few translations.

    Args:
        examples: Source of the few-shot translations: one-line instructions of medium length.
        codes: isogloss codes of the target languages.

    Raises:
        ConfigError: A language has too few examples, or the model cannot be loaded.
    """

    def __init__(self, model: str, examples: Sequence[ParallelExample], codes: Sequence[str]):
        super().__init__(model)
        self._heads = {
            way: _head(examples, *way) for code in codes for way in ((code, SOURCE), (SOURCE, code))
        }
        self._tokenizer = load_tokenizer(model)
        self._net = load_model(model, pick_dtype("auto"))
        self._read = cache(self._prefix)

    def _prefix(self, code: str, source: str) -> Prefix | None:
        """Return the key-value cache of the few-shot translations, computed once."""
        return prefill(self._net, encode_text(self._tokenizer, self._heads[code, source])[0])

    def identity(self, wanted: Wanted) -> list[Any]:
        return ["shown", self._content, self._heads[wanted.code, wanted.source]]

    def lines(self, texts: Sequence[str], code: str, source: str) -> list[Line]:
        head = self._heads[code, source]
        prompts = [encode_text(self._tokenizer, head + _shown(text, "", source, code))[0] for text in texts]
        longest = 3 * max(len(encode_text(self._tokenizer, text)[0]) for text in texts) + 16
        line_ends: Any = StopStringCriteria(self._tokenizer, ["\n"])
        prefix = self._read(code, source)
        # The end of the few-shot part may tokenize differently when a text follows it.
        if prefix and any(prompt[: len(prefix.ids)] != prefix.ids for prompt in prompts):
            prefix = None
        start = len(prefix.ids) if prefix else 0
        made = complete(
            self._net,
            self._tokenizer,
            [prompt[start:] for prompt in prompts],
            max_new_tokens=longest,
            stopped=lambda ids: line_ends(ids, None).tolist(),
            prefix=prefix,
        )
        ends = set(stops(self._net, self._tokenizer))
        said = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        found = []
        for text, ids, prompt in zip(said, made.tolist(), prompts, strict=True):
            line, newline, _ = text.lstrip(" ").partition("\n")
            ended = bool(newline) or not ends.isdisjoint(ids)
            found.append(Line(line.strip(), ended, len(prompt), len(ids)))
        return found


def is_seq2seq(model: str) -> bool:
    """Return True if a model has an encoder and a decoder.

    Raises:
        ConfigError: Its config cannot be loaded.
    """
    folder = model_folder(model)
    with named(model):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return bool(getattr(config, "is_encoder_decoder", False))


def _shown(text: str, translation: str, source: str, code: str) -> str:
    table = languages()
    return f"{table[source].name}: {text}\n{table[code].name}: {translation}".rstrip(" ")


def _head(examples: Sequence[ParallelExample], code: str, source: str) -> str:
    """Return the few-shot part of the prompt; both directions use the same translations."""
    other = source if code == SOURCE else code
    pairs = dict.fromkeys(
        (e.turns[SOURCE].instruction.strip(), e.turns[other].instruction.strip())
        for e in examples
        if SOURCE in e.turns and other in e.turns
    )
    found = sorted((pair for pair in pairs if "\n" not in "".join(pair)), key=lambda pair: len(pair[0]))
    if len(found) < SHOWN:
        raise ConfigError(
            f"--examples: {len(found)} one-line instructions have {other}; give at least {SHOWN}"
        )
    # From the middle: the shortest are single words, the longest fill the prompt.
    start = (len(found) - SHOWN) // 2
    shown = [pair if source == SOURCE else pair[::-1] for pair in found[start : start + SHOWN]]
    return "".join(_shown(asked, said, source, code) + "\n\n" for asked, said in shown)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _answer(text: str, made: Mapping[str, Line], spent: Spent) -> Answer:
    said = []
    for line in text.split("\n"):
        one = made[line.strip()] if line.strip() else Line("", True, 0, 0)
        if not one.ended:
            return Answer(None, "cut off", spent)
        indentation = line[: len(line) - len(line.lstrip())]  # of lists and code
        said.append(indentation + one.text)
    said = canonical("\n".join(said)).strip()
    return Answer(said, "", spent) if said else Answer(None, "no answer", spent)
