"""The pipeline on a real model's files: Qwen 3's architecture and chat template, and a real tokenizer.

Only the weights are random, and small. There are two runs: float32 with full tuning, loaded from shards; and
`examples/qwen.yaml` on the command line, with nothing changed but the model, the data and its size.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from real import qwen3_like, trl_template
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from isogloss.adapters import generate
from isogloss.cli import main
from isogloss.config import load_config
from isogloss.data.chat import encode_prompt
from isogloss.errors import ConfigError
from isogloss.model import fingerprint
from isogloss.model.load import load_model
from isogloss.pipeline import stages
from isogloss.pipeline.folder import Run, open_run
from isogloss.train import batch

TAUGHT = ("hi", "sw", "ur")
SMALL = (
    "data={type: demo, english_items: 24}",
    "tune.batch_size=4",
    "tune.epochs=1",
    "languages.targets=[hi, sw, ur]",
    "languages.items={high: 7, middle: 7, low: 7}",
    "distill.batch_size=4",
    "distill.epochs=2",
    "evaluate.suites=[demo]",
    "evaluate.items=7",
    "evaluate.sentences=6",
    "evaluate.max_new_tokens=6",
)
ARTEFACTS = {
    "config.yaml", "selection.jsonl", "tuned", "adapters", "tree.json", "curves.jsonl",
    "predictions", "scores.json", "ledger.json", "report.html", "cache", "lock", "leaks.json",
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A model's folder as on the Hub: in one file, and in several."""

    whole: Path
    shards: Path


@dataclass(frozen=True)
class Finished:
    """A complete run, and every batch of its training: rows, prompt masks, supervised tokens."""

    run: Run
    batches: list[batch.Batch] = field(repr=False)

    @property
    def folder(self) -> Path:
        return self.run.folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    """Qwen3-0.6B scaled down, except for its vocabulary, and with its generation settings."""
    tokenizer = qwen3_like()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=40_960, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # with the usual 0.02, answers only repeat the last prompt token
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, bos_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    made = Base(tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("shards"))
    for folder, size in ((made.whole, "1GB"), (made.shards, "17MB")):
        model.save_pretrained(folder, max_shard_size=size)
        tokenizer.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base) -> Finished:
    """A run in float32 with full tuning, its base loaded from shards."""
    folder = tmp_path_factory.mktemp("full") / "run"
    more = (f"run={folder}", f"model={base.shards}", "dtype=float32", "tune.learning_rate=3e-4")
    run = open_run(load_config(None, (*SMALL, *more)))
    batches = []

    def watched(*args):
        batches.append(collate(*args))
        return batches[-1]

    collate = batch.collate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isogloss.train.trainer.collate", watched)
        assert stages.run_all(run)
    return Finished(run, batches)


@pytest.fixture(scope="module")
def example(tmp_path_factory, base) -> Path:
    """`isogloss run examples/qwen.yaml` in bfloat16: a LoRA in stage 1, the model's own English answers."""
    folder = tmp_path_factory.mktemp("example") / "run"
    file = Path(__file__).parents[1] / "examples" / "qwen.yaml"
    more = (
        f"run={folder}",
        f"model={base.whole}",
        "dtype=bfloat16",
        "evaluate.also=[bg]",
        "distill.epochs=1",
    )
    options = [part for entry in (*SMALL, *more) for part in ("--set", entry)]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file), *options])
    assert not ended.value.code
    return folder


def questions(run: Run, code: str) -> list[str]:
    return [item.turns[code].instruction for item in run.examples][:5]


def user_model(folder: Path, code: str | None = None):
    """Load the model like a user who does not have isogloss."""
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned", dtype=torch.float32).eval()
    return model if code is None else PeftModel.from_pretrained(model, str(folder / "adapters" / code)).eval()


def user_answers(folder: Path, code: str | None, texts: list[str], tokens: int) -> list[str]:
    """Return greedy answers, one at a time, by transformers and peft alone."""
    model, tokenizer = user_model(folder, code), AutoTokenizer.from_pretrained(folder / "tuned")
    found = []
    for text in texts:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, enable_thinking=False,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        made = model.generate(**asked, do_sample=False, max_new_tokens=tokens)
        answer = made[0, asked["input_ids"].shape[1] :]
        found.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    return found


def test_shards_load_to_the_same_model_as_one_file(base):
    """The weights are bit-identical."""
    assert len(list(base.shards.glob("*.safetensors"))) == 2
    assert len(list(base.whole.glob("*.safetensors"))) == 1
    models = [load_model(str(folder), torch.float32) for folder in (base.whole, base.shards)]
    assert fingerprint.fingerprint(models[0]) == fingerprint.fingerprint(models[1])


def test_a_run_writes_every_artefact(finished):
    """The documented files exist for every language, and nothing else; a second start does nothing."""
    assert {path.name for path in finished.folder.iterdir()} == ARTEFACTS
    adapters = {path.name for path in (finished.folder / "adapters").iterdir()}
    assert adapters == {*TAUGHT, "tree.safetensors"}
    scores = json.loads((finished.folder / "scores.json").read_text())
    assert set(scores["suites"]["demo"]["after"]["alignment"]["languages"]) == set(TAUGHT)
    assert not stages.run_all(finished.run)


def test_the_tuned_folder_is_a_complete_model(finished, base):
    """The tokenizer is unchanged, the template has thinking off; of the generation settings, BOS, EOS and pad
    tokens are kept."""
    tuned, given = (AutoTokenizer.from_pretrained(f) for f in (finished.folder / "tuned", base.shards))
    assert given.chat_template == trl_template("qwen3")
    assert tuned.chat_template == "{%- set enable_thinking = false -%}" + given.chat_template
    assert tuned.get_vocab() == given.get_vocab()
    assert tuned.special_tokens_map == given.special_tokens_map
    for text in (item for code in TAUGHT for item in questions(finished.run, code)):
        assert tuned(text)["input_ids"] == given(text)["input_ids"]
    kept, theirs = (
        GenerationConfig.from_pretrained(f).to_diff_dict() for f in (finished.folder / "tuned", base.shards)
    )
    assert "top_p" in theirs and "top_p" not in kept
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert kept.get(name) == theirs.get(name)


def test_no_thinking_is_supervised(finished):
    """Every prompt has the empty thinking block; only the answer and its end are trained, in both stages."""
    tokenizer = finished.run.tokenizer
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert {bool(batch.languages[0]) for batch in finished.batches} == {False, True}
    for read in finished.batches:
        assert not set(read.response.tolist()) & set(marks)
        learnt = torch.zeros_like(read.ids).flatten()
        learnt[read.positions + 1] = 1
        for ids, mine, mask in zip(read.ids, learnt.view_as(read.ids), read.mask, strict=True):
            prompt = tokenizer.decode(ids[: int((mask == 1).nonzero()[-1]) + 1][: int(mine.nonzero()[0])])
            answer = tokenizer.decode(ids[mine == 1])
            assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
            assert answer.endswith("<|im_end|>")
            assert answer.count("<|") == 1


def test_training_prompts_are_those_of_a_user(finished):
    """They have the IDs that `apply_chat_template` gives without thinking."""
    tokenizer = finished.run.tokenizer
    for text in questions(finished.run, "ur"):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, enable_thinking=False
        )["input_ids"]
        assert tuple(ids) == encode_prompt(tokenizer, text)


@pytest.mark.parametrize("code", TAUGHT)
def test_an_adapter_loads_with_peft_alone(finished, code):
    """Over the tuned folder it has the logits of the tree's path, which are not the reference model's."""
    run = finished.run
    prompt = torch.tensor([encode_prompt(run.tokenizer, questions(run, code)[0])])
    adapters = run.student(run.reference_model(), trained=True)
    with torch.no_grad():
        theirs = user_model(finished.folder, code)(input_ids=prompt).logits
        plain = adapters.model(input_ids=prompt).logits
        with adapters.on([code]) as model:
            ours = model(input_ids=prompt).logits
    assert (theirs - ours).abs().max() <= 1e-4
    assert (plain - ours).abs().max() > 1e-2


@pytest.mark.parametrize("code", [None, "sw", "hi"])
def test_a_user_gets_the_same_answers(finished, code):
    """Greedy decoding by transformers, one prompt at a time, equals that of our padded batches."""
    run, texts = finished.run, questions(finished.run, code or "en")
    model = run.reference_model()
    adapters = run.student(model, trained=True) if code else None
    ours = generate.answers(
        adapters.model if adapters else model, run.tokenizer, texts,
        languages=[code] * len(texts) if code else None, adapters=adapters, max_new_tokens=8,
    )  # fmt: skip
    assert ours == user_answers(finished.folder, code, texts, tokens=8)
    assert len(set(ours)) > 1


def test_the_example_for_a_real_model_completes(example):
    """All files exist, including the English answers of the model itself."""
    assert {path.name for path in example.iterdir()} == ARTEFACTS | {"english_answers.jsonl"}
    scores = json.loads((example / "scores.json").read_text())
    assert set(scores["suites"]["demo"]["after"]["alignment"]["languages"]) == {*TAUGHT, "bg"}


def test_the_lora_of_stage_1_is_merged(example, base):
    """`tuned/` is a plain bfloat16 model: the base's names, unchanged embeddings, changed layers."""
    assert not (example / "tuned" / "adapter_config.json").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (base.whole, example / "tuned"))
    assert set(before) == set(after)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_teacher_prompts_over_the_limit_are_refused(finished, tmp_path):
    """One line names the row, the limit and the setting; no adapters are written."""
    first = finished.run
    texts = [turn.instruction for item in first.examples for turn in item.turns.values()]
    limit = max(len(encode_prompt(first.tokenizer, text)) for text in texts)
    shutil.copytree(first.tuned, tmp_path / "run" / "tuned")
    more = (f"run={tmp_path / 'run'}", f"model={first.config.model}", "dtype=float32")
    more += ("distill.teacher_view=prompt", "distill.teacher_reads=[texts,twin,answer]")
    run = open_run(load_config(None, (*SMALL, *more, f"distill.max_prompt_length={limit}")))
    with pytest.raises(ConfigError) as caught:
        stages.run_all(run)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the teacher's prompt for train-parallel-")
    assert f"the limit is {limit}; raise distill.max_prompt_length" in message
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "lock", "leaks.json", "tuned"}
