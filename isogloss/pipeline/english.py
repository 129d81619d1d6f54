"""The reference model's English answers, stored in a file of the run."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from isogloss import processes
from isogloss.data.chat import encode_prompt
from isogloss.data.examples import ParallelExample
from isogloss.data.reading import read_answer
from isogloss.languages import SOURCE
from isogloss.model.cost import StageCost, spending
from isogloss.pipeline.folder import Run
from isogloss.teacher.answers import TOGETHER, Answers, ended


def english_answers(
    run: Run, model: PreTrainedModel, examples: Sequence[ParallelExample], stage: StageCost
) -> dict[str, str]:
    """Return the English answer of each example by ID: the data's, or the reference model's if it has none.

    With `responses: teacher`, it is the reference model's, or the data's if that is empty or truncated.
    Examples that bring their own response always keep it. Examples without an answer are omitted.
    """
    longest = run.config.distill.max_new_tokens
    kept = kept_answers(run)
    asked = [e for e in examples if asks(run, e) and kept.of(*asked_of(e)) is None]
    if asked:
        with run.reporter.bar("English answers") as progress:
            for begin in range(0, len(asked), TOGETHER):
                some = asked[begin : begin + TOGETHER]
                prompts = [encode_prompt(run.tokenizer, e.turns[SOURCE].instruction) for e in some]
                with spending(stage, model):
                    texts = dict(ended(model, run.tokenizer, prompts, max_new_tokens=longest))
                # With a sharded model, all processes generate the same answers.
                kept.keep({asked_of(e): texts[n] for n, e in enumerate(some)}, write=processes.is_main())
                progress(begin + len(some), len(asked))
    return {e.id: answer for e in examples if (answer := english_answer(run, e, kept)) is not None}


def kept_answers(run: Run) -> Answers:
    """Return the reference model's stored English answers, for its current weights, template and limit."""
    limit = run.config.distill.max_new_tokens
    return Answers(run.folder / "english_answers.jsonl", {**run.answering, "limit": limit})


def asks(run: Run, example: ParallelExample) -> bool:
    """Return whether the reference model generates the example's English answer."""
    if example.own_response:
        return False
    return run.config.distill.responses == "teacher" or example.turns[SOURCE].response is None


def asked_of(example: ParallelExample) -> tuple[str, str]:
    """Return the key under which an answer is stored."""
    return example.id, example.turns[SOURCE].instruction


def english_answer(run: Run, example: ParallelExample, kept: Answers) -> str | None:
    """Return the reference model's answer if needed and complete, else the data's, else None."""
    given = (asks(run, example) and kept.of(*asked_of(example))) or example.turns[SOURCE].response
    return given if given and given.strip() else None


def useless_because(run: Run, example: ParallelExample, answer: str | None) -> str | None:
    """Return why the English answer makes the example unusable in every language; None if it is usable."""
    if answer is None:
        limit = run.config.distill.max_new_tokens
        return f"the model's English answer is empty or over {limit} tokens (distill.max_new_tokens)"
    if not asks(run, example) or example.options is None or run.config.distill.responses != "teacher":
        return None
    names = read_answer(example, SOURCE, answer) is not None
    return None if names else "the model's English answer names no option of its task"
