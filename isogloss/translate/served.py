"""Translator that calls a chat model behind an OpenAI-compatible endpoint.

A request contains several texts, each between numbered tags. If the answer is truncated or does not have
every number exactly once, its translations cannot be assigned reliably: the batch is split in halves and
requested again, down to single texts, whose failure is stored with its reason.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from isogloss.config import Endpoint
from isogloss.data.text import canonical, is_unicode
from isogloss.endpoint import Client
from isogloss.errors import ConfigError
from isogloss.translate.answers import Answer, Spent, Wanted
from isogloss.translate.prompt import Messages, Prompt

CHARACTERS = 6000
"""Maximum characters of all texts in a request, so that the answer is not truncated."""
PER_TOKEN = 4
"""Approximate characters per token of English text; used only for the estimate."""


class Served:
    """Translator behind an endpoint.

    Args:
        settings: The endpoint and its request settings.
        prompt: The translation prompt.
        texts: Maximum number of texts per request.
    """

    def __init__(self, settings: Endpoint, prompt: Prompt, texts: int):
        self.settings, self.prompt, self.texts = settings, prompt, texts
        self.name = f"{settings.model} at {settings.url}"

    def identity(self, wanted: Wanted) -> list[Any]:
        messages = self._messages([wanted], "t")
        return [self.settings.url, self.settings.model, messages, dict(self.prompt.request)]

    def plan(self, wanted: Sequence[Wanted]) -> str:
        batches = list(self._batches(wanted))
        asked = [self._messages(batch, "t") for batch in batches]
        read = sum(sum(len(one["content"]) for one in messages) // PER_TOKEN for messages in asked)
        written = sum(len(one.text) for one in wanted) // PER_TOKEN
        pace = self.settings.rate
        least = f", at least {len(batches) / pace / 60:.0f} minutes" if pace else ""
        return (
            f"{len(batches)} requests; about {read} prompt tokens and {written} generated tokens, counted "
            f"as in English (often twice as many in other scripts){least}"
        )

    def run(
        self,
        wanted: Sequence[Wanted],
        keep: Callable[[Wanted, Answer], None],
        progress: Callable[[int, int], None],
    ) -> None:
        done: list[Wanted] = []  # appended to by several threads

        def kept(one: Wanted, answer: Answer) -> None:
            keep(one, answer)
            done.append(one)

        with Client(self.settings, "--url", "--key-env") as client:
            client.each(
                [partial(self._ask, client, batch, kept) for batch in self._batches(wanted)],
                lambda: progress(len(done), len(wanted)),
            )

    def _batches(self, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
        """Yield batches of consecutive texts in one language pair, so responses stay with instructions."""
        made: list[Wanted] = []
        size = 0
        for one in wanted:
            full = len(made) == self.texts or size + len(one.text) > CHARACTERS
            if made and (full or made[0][1:] != one[1:]):
                yield made
                made, size = [], 0
            made.append(one)
            size += len(one.text)
        if made:
            yield made

    def _ask(
        self,
        client: Client,
        batch: Sequence[Wanted],
        keep: Callable[[Wanted, Answer], None],
        before: Spent | None = None,
    ) -> None:
        """Translate a batch, splitting it if the answer is unusable; `before` is the cost of a failed try."""
        tag, texts = "t", [one.text for one in batch]
        while any(f"<{tag}" in text or f"</{tag}" in text for text in texts):
            tag += "t"  # until no text contains the tag
        body = {"model": self.settings.model, "messages": self._messages(batch, tag), **self.prompt.request}
        body = {name: value for name, value in body.items() if value is not None}
        began = time.monotonic()
        content, cut, spent = self._read(client.post("chat/completions", body))
        spent.seconds = round(time.monotonic() - began, 3)
        if before is not None:
            spent.add(before)
        found = translations(content, len(batch), tag)
        if found is not None and not cut:
            for number, (one, text) in enumerate(zip(batch, found, strict=True)):
                why = "" if is_unicode(text) else "half of a surrogate pair"
                keep(one, Answer(None if why else text, why, Spent() if number else spent))
        elif len(batch) == 1:
            why = "cut off" if cut else "no answer" if not content.strip() else "no translation in its tags"
            keep(batch[0], Answer(None, why, spent))
        else:
            middle = (len(batch) + 1) // 2
            self._ask(client, batch[:middle], keep, spent)
            self._ask(client, batch[middle:], keep)

    def _messages(self, batch: Sequence[Wanted], tag: str) -> Messages:
        return self.prompt.messages([one.text for one in batch], batch[0].code, tag, batch[0].source)

    def _read(self, said: Any) -> tuple[str, bool, Spent]:
        """Return the answer's text, whether it was truncated, and its cost.

        Raises:
            ConfigError: The response is not a chat completion.
        """
        try:
            choice = said["choices"][0]
            content = choice["message"]["content"]
        except (TypeError, LookupError):
            content = choice = None
        if not isinstance(choice, dict) or not isinstance(content, str | None):
            raise ConfigError(
                f"--url: {self.settings.url} returns no chat completion; give the URL up to and including "
                "/v1 of an endpoint that has /chat/completions"
            )
        usage = said.get("usage")
        read, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        return content or "", choice.get("finish_reason") == "length", Spent(1, read, written)


def translations(content: str, count: int, tag: str) -> list[str] | None:
    """Return the texts between tags 1 to `count`; None unless exactly these occur, once each and not empty.

    A leading `<think>` block is removed. For a single text, an answer without any tag is taken whole.
    """
    content = re.sub(r"\A\s*<think>.*?</think>", "", content, flags=re.DOTALL)
    opened = [int(number) for number in re.findall(rf"<{tag}(\d+)>", content)]
    if not opened and count == 1 and f"</{tag}" not in content:
        found = [content]
    elif sorted(opened) != list(range(1, count + 1)):
        return None
    else:
        matches = (re.search(rf"<{tag}{n}>(.*?)</{tag}{n}>", content, re.DOTALL) for n in range(1, count + 1))
        found = [match[1] if match else "" for match in matches]
    found = [(canonical(text) if is_unicode(text) else text).strip() for text in found]
    return found if all(found) else None


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0
