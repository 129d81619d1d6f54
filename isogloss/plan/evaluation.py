"""Cost of evaluation on a machine: every answer before and after training, and the sentences of retrieval."""

from math import prod
from typing import Any, NamedTuple

from isogloss.adapters.generate import PROMPTS
from isogloss.data.chat import encode_prompt
from isogloss.evaluate.items import Item
from isogloss.evaluate.suites import load_suite
from isogloss.languages import SOURCE
from isogloss.model.cost import Meter
from isogloss.model.decoder import TOKENS, keeps_keys_alone, text_config
from isogloss.plan.memory import cache_bytes, parameter_bytes, read_bytes
from isogloss.plan.work import StagePlan, Work


class _Asked(NamedTuple):
    """Tokens of one question: of its prompt, of its answer, and of all options scored instead."""

    prompt: int
    new: int
    scored: int = 0
    option: int = 0
    """The longest of the scored options, which are read one at a time."""
    options: int = 1


def evaluate_plan(work: Work) -> StagePlan:
    """Plan evaluation: every answer before and after training, and the sentence embeddings."""
    settings, run, machine = work.config.evaluate, work.run, work.machine
    adapters = work.adapters()
    model, found = adapters.model, StagePlan("evaluate")
    causal: Any = model.get_base_model()
    config = text_config(model)
    before = Meter(causal, 0.0)
    after = Meter(causal, adapters.tree.path_rank() / max(1, adapters.tree.rank))
    sides, prompts, cached, logits = (before, after), [(1, 1)], [(1, 1)], 0
    # A recurrent model reads the prompt again with every option.
    again = not keeps_keys_alone(causal)
    for name in settings.suites:
        suite = load_suite(name, run.data_root, settings, run.measured)
        asked = [
            _answered(work, name, item, code, item.turns[code].instruction)
            for item in suite.items
            for code in (*run.measured, SOURCE)
            if code in item.turns
        ]
        # Only the reference model answers paraphrases.
        reworded = [
            _answered(work, name, item, SOURCE, text) for item in suite.items for text in item.paraphrases
        ]
        for side, some in ((before, asked + reworded), (after, asked)):
            for one in some:
                _generated(side, one.prompt, one.new, one.scored)
                found.tokens_forwarded += one.prompt + max(0, one.new - 1) + one.scored
                found.tokens_generated += one.new
                for _ in range(again * (one.options - 1)):
                    side.read(1, one.prompt)
                    found.tokens_forwarded += one.prompt
        if asked:
            longest = max(one.prompt for one in asked + reworded)
            width = max(one.prompt + max(one.new, one.option) for one in asked + reworded)
            option = max(one.option for one in asked + reworded)
            most = settings.batch_size
            rows = most if machine.gpu else min(most, max(1, PROMPTS // longest))
            scored = rows if machine.gpu else min(rows, max(1, TOKENS // longest))
            prompts.append((rows, longest))
            cached.append((rows, width))
            # Scoring holds the logits of two options, both joined, and their exponentials, in float32.
            logits = max(logits, rows * (work.dtype.itemsize + 4), scored * option * 4 * 4)
        for sentences in (suite.sentences, suite.layer_sentences):
            for code, texts in sentences.items():
                if code in (*run.measured, SOURCE):
                    sizes = [len(ids) for ids in work.tokenizer(list(texts))["input_ids"]]
                    for side in sides:
                        for size in sizes:
                            side.read(1, size, depth=settings.layer)
                    found.tokens_forwarded += 2 * sum(sizes)
    found.flops = before.flops + after.flops
    adapters.off()
    found.memory = {
        "program": machine.process,
        "weights": parameter_bytes(model, four_bit=work.config.four_bit),
        "adapters": parameter_bytes(model, adapters=True),
        "cache": cache_bytes(causal, *max(cached, key=prod)),
        "activations": machine.held(read_bytes(model, *max(prompts, key=prod)) + logits * config.vocab_size),
    }
    return found


def _answered(work: Work, suite: str, item: Item, code: str, text: str) -> _Asked:
    """Return the tokens of an instruction's prompt and answer.

    On a closed task the answer is as long as the right option or, if that is unknown, as the longest one. An
    open answer may reach its limit.
    """
    settings, prompt = work.config.evaluate, len(encode_prompt(work.tokenizer, text))
    limit = max(settings.max_new_tokens, item.longest or 0)
    if not item.options:
        return _Asked(prompt, limit)
    lengths = {key: work.answer_length(wording) for key, wording in item.options[code].items()}
    if suite in settings.likelihood:
        return _Asked(prompt, 0, sum(lengths.values()), max(lengths.values()), len(lengths))
    return _Asked(prompt, min(limit, lengths.get(item.gold or "", max(lengths.values()))))


def _generated(meter: Meter, prompt: int, new: int, scored: int = 0) -> None:
    """Add an answer: the prompt once, then generated tokens one at a time with a KV cache, or all options."""
    meter.read(1, prompt)
    for seen in range(prompt + 1, prompt + new):
        meter.read(1, 1, seen=seen)
    meter.read(1, scored, seen=prompt + scored)
    meter.project(new + scored)
