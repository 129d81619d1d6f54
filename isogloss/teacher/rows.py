"""Convert parallel examples to training rows: token IDs for student and teacher.

Needs the tokenizer and the tree's paths, but no model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from transformers import PreTrainedTokenizerBase

from isogloss.adapters.tree import Tree
from isogloss.data.chat import Encoded, encode, encode_prompt_with_text, encode_response
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.parallel_text import Pair
from isogloss.data.sources import response_of
from isogloss.data.tokens import encode_text
from isogloss.errors import ConfigError
from isogloss.languages import SOURCE
from isogloss.teacher.prompts import (
    NodeTexts,
    TooLongError,
    check_response,
    check_texts,
    privileged_text,
    teacher_prompt,
)


@dataclass(frozen=True)
class Row:
    """One response in one language, tokenised for student and teacher.

    Attributes:
        id: ID of the example, a slash and the language.
        meaning: Index of the English instruction; rows with the same index have the same meaning.
        student: Token IDs of the plain prompt and the response.
        teacher_prompt: Token IDs of what the teacher reads (see `TeacherPrompts.of`); the same response IDs
            are appended to it.
        twin_prompt: Token IDs of the English twin's plain prompt.
        options: For a closed task with answers in the row's language: the token IDs of each possible answer,
            end of turn included.
        twin_options: The same answers in English, in the same order.
        twin_mask: Marks the tokens of `twin_prompt` that belong to the instruction; empty if all do.
    """

    id: str
    language: str
    meaning: int
    student: Encoded
    teacher_prompt: tuple[int, ...]
    twin_prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...] = ()
    twin_options: tuple[tuple[int, ...], ...] = ()
    twin_mask: tuple[bool, ...] = ()

    @property
    def bare(self) -> bool:
        """True for a parallel-text sentence: it has no response and is only used by the hidden-state term."""
        return not self.student.response

    def answering(self, response: tuple[int, ...]) -> "Row":
        """Return the row with another response, given with its end of turn."""
        return replace(self, student=replace(self.student, response=response))

    @property
    def tokens(self) -> int:
        """Number of tokens in a batch: the prompt with its response, or with all its options."""
        answers = self.options or (self.student.response,)
        return len(self.student.prompt) + sum(map(len, answers))


@dataclass(frozen=True)
class TeacherView:
    """What the teacher reads before a response.

    Attributes:
        texts: The texts of the tree's nodes.
        twin_alone: Read only the English twin if the response has the same tokens as the English answer or,
            with `sets`, is one of a closed set in the language.
        sets: Whether the teacher can score the options of a closed set, as only the model itself can.
        reads: What precedes the instruction in the privileged prompt; if empty, the teacher reads the
            student's prompt.
        require_texts: Raise if a node on a language's path has no text.
        tokenizer: Tokenizer and template of the privileged prompts; defaults to the student's.
    """

    texts: NodeTexts
    twin_alone: bool = False
    sets: bool = True
    reads: Collection[str] = ("texts", "twin", "answer")
    require_texts: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None


def build_rows(
    examples: Mapping[str, Sequence[ParallelExample]],
    tokenizer: PreTrainedTokenizerBase,
    tree: Tree,
    view: TeacherView,
    *,
    english: Mapping[str, str],
    responses: str,
    limit: int,
    extra: Sequence[ParallelExample] = (),
    tell: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Build the rows of every language from the examples that it learns.

    Args:
        examples: Examples by language, each with a response there; those of English are replay.
        tokenizer: The student's tokenizer.
        view: What the teacher reads.
        english: English answer by example ID.
        responses: `reference` takes the data's response; `teacher` takes the English answer, in closed tasks
            worded in the language.
        limit: Maximum prompt length in tokens.
        extra: Further examples, used in every language that they have; those without a response, or with a
            prompt over the limit, are skipped.
        tell: Callback that receives a line with the number of those over the limit.

    Raises:
        ConfigError: A prompt is over the limit, a node has no text, or the template formats the response
            after the teacher's prompt differently from after the student's.
    """
    # Examples with the same English instruction have the same meaning, whatever their IDs.
    meanings: dict[str, int] = {}
    # Cached: all languages share a twin, and closed tasks repeat a few answers.
    said = cache(partial(encode_response, tokenizer))
    asked = cache(partial(encode_prompt_with_text, tokenizer))

    def read(instruction: str, response: str) -> Encoded:
        prompt, own = asked(instruction)
        return Encoded(prompt, said(response), own)

    prompts = TeacherPrompts(view, tokenizer, tree, english, limit)

    def row_of(example: ParallelExample, code: str, response: str) -> Row:
        name, turn, twin = f"{example.id}/{code}", example.turns[code], example.turns[SOURCE]
        student = read(turn.instruction, response)
        plain = student if code == SOURCE else read(twin.instruction, english[example.id])
        options, twin_options = (), ()
        if view.twin_alone and view.sets and code != SOURCE and student.response != plain.response:
            options, twin_options = _options(said, example, code, student.response)
        _check_prompts(name, student.prompt, plain.prompt, limit)
        shown = prompts.of(example, code, student, plain, response, closed=bool(options))
        meaning = meanings.setdefault(twin.instruction, len(meanings))
        twins = plain.prompt, options, twin_options, plain.instruction_mask
        return Row(name, code, meaning, student, shown, *twins)

    rows: list[Row] = []
    faults: list[str] = []
    skipped = of = 0
    for code, chosen in examples.items():
        # English replay only uses rows of stage 1, and the English of a pair is not one of them.
        more = [e for e in extra if code != SOURCE and code in e.turns]
        if view.require_texts and "texts" in view.reads and code != SOURCE:
            check_texts(view.texts, tree.path(code))
        for number, example in enumerate([*chosen, *more]):
            response, _ = response_of(example, code, english.get(example.id, ""), responses)
            if response is None:
                continue
            of += number >= len(chosen)
            try:
                rows.append(row_of(example, code, response))
            except ConfigError as error:
                if number >= len(chosen) and isinstance(error, TooLongError):
                    skipped += 1
                else:
                    faults.append(str(error))
    if faults:
        others = f" ({len(faults) - 1} more rows fail)" if len(faults) > 1 else ""
        raise ConfigError(faults[0] + others)
    if skipped:
        tell(_skipped("translations", skipped, of, limit))
    return rows


def _check_prompts(name: str, prompt: Sequence[int], twin: Sequence[int], limit: int) -> None:
    """Check the length of a row's plain prompts.

    Raises:
        TooLongError: One is over the limit.
    """
    if (longest := max(len(prompt), len(twin))) > limit:
        whose = "prompt" if longest == len(prompt) else "English prompt"
        raise TooLongError(
            f"the {whose} of {name} has {longest} tokens and the limit is {limit}; "
            "raise distill.max_prompt_length or remove the row"
        )


def _skipped(what: str, count: int, of: int, limit: int) -> str:
    where = f"over {limit} tokens (distill.max_prompt_length)"
    return f"{count} of {of} {what} are skipped: {where}"


class TeacherPrompts:
    """Builds what the teacher reads, in its token IDs.

    Args:
        tokenizer: The student's tokenizer.
        english: English answer by example ID.
        limit: Maximum prompt length in tokens.
    """

    def __init__(
        self,
        view: TeacherView,
        tokenizer: PreTrainedTokenizerBase,
        tree: Tree,
        english: Mapping[str, str],
        limit: int,
    ):
        self.view, self.tokenizer, self.tree, self.english, self.limit = view, tokenizer, tree, english, limit
        self.texts = view.texts if "texts" in view.reads else NodeTexts(root="")
        self.checked: set[tuple[str, str]] = set()

    def of(
        self,
        example: ParallelExample,
        code: str,
        student: Encoded,
        twin: Encoded,
        response: str,
        *,
        closed: bool,
    ) -> tuple[int, ...]:
        """Return the token IDs of what the teacher reads before one response.

        - English replay: the student's prompt, as the target is the reference model's own distribution.
        - An answer of a closed set in the language (`closed`), or a response with the tokens of the English
          answer: the English twin, with `view.twin_alone`.
        - Any other: the privileged prompt.

        Args:
            student: The row's plain prompt and response.
            twin: The English twin's, in the student's token IDs.
            response: The response as text.

        Raises:
            ConfigError: The privileged prompt is over the limit, or the template formats the response after
                it differently from after the student's prompt.
        """
        if code == SOURCE:
            return student.prompt
        if closed:
            return twin.prompt
        if self.view.twin_alone and student.response == twin.response:
            if self.view.tokenizer is None:
                return twin.prompt
            asked, answer = example.turns[SOURCE].instruction, self.english[example.id]
            return encode(self.view.tokenizer, asked, answer).prompt
        return self._privileged(example, code, student.prompt, response)

    def _privileged(
        self, example: ParallelExample, code: str, student: tuple[int, ...], response: str
    ) -> tuple[int, ...]:
        instruction, name = example.turns[code].instruction, f"{example.id}/{code}"
        theirs, reads = self.view.tokenizer, self.view.reads
        if not reads:
            return student if theirs is None else encode(theirs, instruction, response).prompt
        twin = Turn(example.turns[SOURCE].instruction, self.english[example.id])
        system = privileged_text(
            self.texts,
            self.tree.path(code),
            example.task,
            twin if "twin" in reads else None,
            answer="answer" in reads,
        )
        prompt = teacher_prompt(theirs or self.tokenizer, system, instruction, limit=self.limit, row=name)
        # Apart from the twin, the system text depends only on language and task, so one check per pair of
        # these is enough. A teacher with its own template and tokenizer needs no check.
        if theirs is None and (code, example.task) not in self.checked:
            self.checked.add((code, example.task))
            check_response(self.tokenizer, system, instruction, response, row=name)
        return prompt


def sentence_rows(
    pairs: Mapping[str, Sequence[Pair]],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    first: int = 0,
    tell: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Build rows without a response from parallel sentences; repeated pairs stay, long sentences are skipped.

    Args:
        tokenizer: The student's tokenizer.
        limit: Maximum sentence length in tokens, in either language.
        first: Index of the first meaning.
        tell: Callback that receives a line with the number of skipped pairs.
    """
    read = cache(partial(encode_text, tokenizer))
    meanings: dict[str, int] = {}
    rows = []
    for code, those in pairs.items():
        for pair in those:
            (own, asked), (twin, twin_mask) = read(pair.text), read(pair.english)
            if max(len(own), len(twin)) <= limit:
                meaning = meanings.setdefault(pair.english, first + len(meanings))
                sentence = Encoded(own, (), asked)
                rows.append(Row(f"{pair.id}/{code}", code, meaning, sentence, (), twin, twin_mask=twin_mask))
    of = sum(map(len, pairs.values()))
    if len(rows) < of:
        tell(_skipped("sentence pairs", of - len(rows), of, limit))
    return rows


Answers = tuple[tuple[int, ...], ...]


def _options(
    said: Callable[[str], tuple[int, ...]], example: ParallelExample, code: str, response: tuple[int, ...]
) -> tuple[Answers, Answers]:
    """Return all answers of a closed task, in a language and in English, in the same order.

    Both are empty for an open task, for options that are not distinct or not the same in both languages, and
    for a response that is not one of the options (as in data that words its labels differently).
    """
    ours, theirs = ((example.options or {}).get(one, {}) for one in (code, SOURCE))
    if not ours or ours.keys() != theirs.keys():
        return (), ()
    options = tuple(said(ours[meaning]) for meaning in theirs)
    if response not in options or len(set(options)) < len(options):
        return (), ()
    return options, tuple(said(wording) for wording in theirs.values())
