"""From parallel examples to training rows, as student and teacher read them.

Knows the tokenizer and the tree's paths, no model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from transformers import PreTrainedTokenizerBase

from isogloss.adapters.tree import Tree
from isogloss.data.chat import Encoded, encode, encode_prompt_with_text, encode_response, encode_text
from isogloss.data.draw import choose
from isogloss.data.examples import ParallelExample, Turn
from isogloss.data.parallel_text import Pair
from isogloss.data.sources import left_out, nothing_in, response_of
from isogloss.errors import ConfigError, DataError
from isogloss.languages import SOURCE
from isogloss.teacher.prompts import NodeTexts, check_response, check_texts, privileged_text, teacher_prompt


@dataclass(frozen=True)
class Row:
    """One response in one language, as student and teacher read it.

    Attributes:
        meaning: Rows of one number mean the same: they come of one English instruction.
        student: Plain prompt and response ids.
        teacher_prompt: Privileged prompt ids; the same response ids are appended to it.
        twin_prompt: Plain prompt ids of the English twin.
        twin_mask: Which of them are the instruction itself; empty: all count.
        options: Of a closed task whose answers are words of the row's language: ids of each possible answer,
            end of turn included.
        twin_options: The same answers in English, in the same order.
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
        """Whether it is a sentence of parallel text, which nobody answers: the hidden-state term reads it."""
        return not self.student.response

    @property
    def tokens(self) -> int:
        """What a batch holds of it: prompt and response, or all answers that it may have."""
        answers = self.options or (self.student.response,)
        return len(self.student.prompt) + sum(map(len, answers))


def build_rows(
    examples: Sequence[ParallelExample],
    amounts: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    tree: Tree,
    texts: NodeTexts,
    *,
    english: Mapping[str, str],
    responses: str,
    limit: int,
    view: str = "prompt",
    reads: Collection[str] = ("texts", "twin", "answer"),
    require_texts: bool = False,
    teacher: PreTrainedTokenizerBase | None = None,
    weights: Sequence[float] = (1.0,),
    same: bool = True,
    extra: Sequence[ParallelExample] = (),
) -> list[Row]:
    """The first `amounts[code]` usable examples of every language, English read through the root.

    English rows want what the reference model itself answers: their teacher reads the plain prompt.

    Args:
        examples: In the order in which they are drawn.
        english: The English answer of each example by id, which the teacher reads; an example without one is
            left out.
        responses: `reference` scores the data's response, `teacher` the English answer, which in a closed
            task is said in the language.
        limit: Longest prompt in tokens.
        view: `english` has the teacher read the English twin alone where the response is the same tokens as
            the English answer, or one of a closed set in the language; `prompt` the privileged prompt always.
        reads: What the teacher reads before the instruction; nothing: it reads the student's prompt.
        require_texts: Refuse a node on a language's path that has no text.
        teacher: Renders the privileged prompts in its own template and ids; else `tokenizer` does.
        weights: Of each source of examples; see `draw.choose`.
        same: Whether languages learn the same examples, as far as their amounts reach.
        extra: Examples that are read besides the amounts, in every language that they have.

    Raises:
        DataError: A language has no usable example.
        ConfigError: A prompt is over the limit, a node lacks its text, or the template writes the response
            behind the teacher's prompt in another way than behind the student's.
    """
    # Examples that ask the same in English mean the same, whatever their ids.
    meanings: dict[str, int] = {}
    everything = [*examples, *extra]
    meaning = [meanings.setdefault(e.turns[SOURCE].instruction, n) for n, e in enumerate(everything)]

    def taught(example: ParallelExample, code: str) -> tuple[str | None, str | None]:
        return response_of(example, code, english.get(example.id, ""), responses)

    # A twin is read once for all languages, and few answers are given often.
    said = cache(partial(encode_response, tokenizer))
    asked = cache(partial(encode_prompt_with_text, tokenizer))

    def read(instruction: str, response: str) -> Encoded:
        prompt, own = asked(instruction)
        return Encoded(prompt, said(response), own)

    beside = _Privileged(tokenizer, teacher, tree, texts, reads, english, limit)
    chosen = choose(examples, amounts, weights, lambda example, code: taught(example, code)[1], same=same)
    rows: list[Row] = []
    too_long: list[str] = []
    for code in amounts:
        # Replay is English of stage 1 alone; a pair's own English is no instruction of it.
        more = [
            n
            for n, e in enumerate(extra, start=len(examples))
            if code != SOURCE and code in e.turns and taught(e, code)[0]
        ]
        if require_texts and "texts" in reads and code != SOURCE:
            check_texts(texts, tree.path(code))
        for number in [*chosen[code], *more]:
            example = everything[number]
            turn, twin, answer = example.turns[code], example.turns[SOURCE], english[example.id]
            response, _ = taught(example, code)
            assert response is not None
            name = f"{example.id}/{code}"
            student = read(turn.instruction, response)
            plain = student if code == SOURCE else read(twin.instruction, answer)
            if (longest := max(len(student.prompt), len(plain.prompt))) > limit:
                whose = "prompt" if longest == len(student.prompt) else "English prompt"
                too_long.append(
                    f"the {whose} of {name} has {longest} tokens and the limit is {limit}; "
                    "raise distill.max_prompt_length or leave the row out"
                )
                continue
            options, twin_options = (), ()
            if view == "english" and code != SOURCE and student.response != plain.response:
                options, twin_options = _options(said, example, code, student.response)
            if code == SOURCE:
                privileged = student.prompt
            elif options or (view == "english" and student.response == plain.response):
                privileged = plain.prompt
            else:
                try:
                    privileged = beside(example, code, student.prompt, response)
                except ConfigError as error:
                    too_long.append(str(error))
                    continue
            rows.append(
                Row(
                    name,
                    code,
                    meaning[number],
                    student,
                    privileged,
                    plain.prompt,
                    options,
                    twin_options,
                    plain.instruction_mask,
                )
            )
        if not chosen[code]:
            raise DataError(nothing_in(code, left_out(examples, [code], lambda e, c: taught(e, c)[1])))
    if too_long:
        others = f" ({len(too_long) - 1} more rows are over it)" if len(too_long) > 1 else ""
        raise ConfigError(too_long[0] + others)
    return rows


class _Privileged:
    """The teacher's prompt of an instruction in its language: what stands before it, in the teacher's ids."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase | None,
        tree: Tree,
        texts: NodeTexts,
        reads: Collection[str],
        english: Mapping[str, str],
        limit: int,
    ):
        self.tokenizer, self.teacher, self.tree = tokenizer, teacher, tree
        self.texts = texts if "texts" in reads else NodeTexts(root="")
        self.reads, self.english, self.limit = reads, english, limit
        self.checked: set[tuple[str, str]] = set()

    def __call__(
        self, example: ParallelExample, code: str, student: tuple[int, ...], response: str
    ) -> tuple[int, ...]:
        """The prompt's ids.

        Raises:
            ConfigError: It is over the limit, or the template writes the response behind it in another way
                than behind the student's.
        """
        instruction, name = example.turns[code].instruction, f"{example.id}/{code}"
        if not self.reads:
            return student if self.teacher is None else encode(self.teacher, instruction, response).prompt
        twin = Turn(example.turns[SOURCE].instruction, self.english[example.id])
        system = privileged_text(
            self.texts,
            self.tree.path(code),
            example.task,
            twin if "twin" in self.reads else None,
            answer="answer" in self.reads,
        )
        tokenizer = self.teacher or self.tokenizer
        prompt = teacher_prompt(tokenizer, system, instruction, limit=self.limit, row=name)
        # Apart from the twin the system text is fixed by language and task, so one check per pair is enough.
        # Another model has its own template and tokens, so there is nothing to check.
        if self.teacher is None and (code, example.task) not in self.checked:
            self.checked.add((code, example.task))
            check_response(tokenizer, system, instruction, response, row=name)
        return prompt


def sentence_rows(
    pairs: Mapping[str, Sequence[Pair]], tokenizer: PreTrainedTokenizerBase, limit: int, first: int = 0
) -> list[Row]:
    """Bare sentences as rows without a response, one as often as its pair is given; too long ones left out.

    Args:
        limit: Longest sentence in tokens.
        first: Number of the first meaning.
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
    return rows


Answers = tuple[tuple[int, ...], ...]


def _options(
    said: Callable[[str], tuple[int, ...]], example: ParallelExample, code: str, response: tuple[int, ...]
) -> tuple[Answers, Answers]:
    """All answers that a closed task allows, in a language and in English, in one order; none of an open one.

    A response that is none of them, as in data whose labels are worded in another way, makes no set.
    """
    ours, theirs = ((example.options or {}).get(one, {}) for one in (code, SOURCE))
    if not ours or ours.keys() != theirs.keys():
        return (), ()
    options = tuple(said(ours[meaning]) for meaning in theirs)
    if response not in options or len(set(options)) < len(options):
        return (), ()
    return options, tuple(said(wording) for wording in theirs.values())
