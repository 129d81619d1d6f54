"""Prefix and embedding runs from training to export, on a tiny random model."""

import functools
import json
import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from experiments.ablation import VARIANTS
from isogloss.adapters.virtual import TreeEmbedding, TreePrefix
from isogloss.config import load_config, with_overrides
from isogloss.errors import RunError
from isogloss.export import adapters
from isogloss.export.distill_to_lora import lora_of_path
from isogloss.inference import Aligned
from isogloss.pipeline import add_language, evaluation, stages
from isogloss.pipeline.folder import ProgressReporter, Run, open_run

SMALL = (
    "languages.targets=[sw,ru]",
    "languages.items={high: 5, middle: 5, low: 5}",
    "data.english_items=20",
    "distill.epochs=2",
    "distill.batch_size=4",
    "distill.learning_rate=0.01",
    "evaluate.items=7",
    "evaluate.sentences=4",
    "evaluate.max_new_tokens=2",
    "distill.max_prompt_length=1024",
    "dtype=float32",
)
IDS = torch.arange(20, 40).view(2, 10)


pytestmark = pytest.mark.filterwarnings(
    "ignore:Position ids are not supported"
)  # PEFT's own generation calls its forward so


def logits(model):
    with torch.no_grad():
        # PEFT's prompt tuning also gives the logits of its virtual tokens.
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]


@pytest.fixture(scope="module", params=["prefix", "embedding"])
def done(request, base, tiny, tokenizer, tmp_path_factory):
    """A run whose stage 2 is done; its reference model is a random one."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    carrier = (
        f"distill.adapter={{type: {request.param}, num_virtual_tokens: {{root: 3, family: 1, language: 2}}}}"
    )
    config = load_config(None, (*SMALL, carrier, f"run={folder}", f"model={base}"))
    run = open_run(config)
    tiny("qwen3").save_pretrained(run.tuned)
    tokenizer.save_pretrained(run.tuned)
    stages.run_distill(run)
    return run


def answers_of(run, code):
    carrier = run.student(run.reference_model(), trained=True)
    with carrier.on([code] * 2) as model:
        return logits(model)


def test_training_moves_every_node_and_leaves_the_model(done):
    """The tree is whole on disk, and differs from where it began."""
    began = done.student(done.reference_model(), trained=False)
    done.start(began)
    ended = load_file(done.carriers)
    assert ended.keys() == began.state().keys()
    for node in done.tree.nodes:
        for name, rows in began.node_parameters(node).items():
            now = ended[name][node.start : node.start + node.rank]
            assert not torch.equal(now, rows)


def test_every_language_is_what_peft_loads(done):
    """PEFT's own prefix and prompt tuning give the same logits and the same greedy answers."""
    for code in ("sw", "ru"):
        loaded = PeftModel.from_pretrained(
            done.reference_model(), str(done.folder / "adapters" / code)
        ).eval()
        kind = {"prefix": "PREFIX_TUNING", "embedding": "PROMPT_TUNING"}[done.config.distill.adapter.type]
        assert loaded.active_peft_config.peft_type == kind
        assert (logits(loaded) - answers_of(done, code)).abs().max() <= 1e-4
        carrier = done.student(done.reference_model(), trained=True)
        options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "do_sample": False}
        with carrier.on([code] * 2) as model:
            wanted = model.generate(input_ids=IDS, **options)
        assert torch.equal(loaded.generate(input_ids=IDS, **options), wanted)


def test_languages_mixed_in_a_batch_answer_as_alone(done):
    """Through the inference interface; English has a shorter path than the others."""
    aligned = Aligned(done)
    texts, codes = ["habari ya leo", "что", "hello there you"], ["sw", "ru", "en"]
    together = aligned.generate(texts, codes, max_new_tokens=4)
    alone = [aligned.generate([t], c, max_new_tokens=4)[0] for t, c in zip(texts, codes, strict=True)]
    assert together == alone
    assert aligned.reference(texts, max_new_tokens=4) == Aligned(done).reference(texts, max_new_tokens=4)


def test_a_language_joins_and_the_others_stay_to_the_bit(done):
    """Spanish, with a family of its own; then all are measured."""
    before = {code: answers_of(done, code) for code in ("sw", "ru", "en")}
    add_language.add_languages(done, ["es"])
    assert done.taught == ("sw", "ru", "es")
    for code, was in before.items():
        assert torch.equal(answers_of(done, code), was)
    evaluation.run_evaluate(done)
    suite = json.loads((done.folder / "scores.json").read_text())["suites"]["demo"]
    assert suite["languages"] == ["sw", "ru", "es"]
    assert set(suite["after"]) >= {"alignment", "consistency", "retrieval", "retention"}


def test_exports_load_as_their_cards_say(done, tmp_path, monkeypatch):
    """In PEFT's format, as prompt embeddings, and distilled into a LoRA; whole models are refused."""
    kind = done.config.distill.adapter.type
    said = []
    monkeypatch.setattr(done.reporter, "say", said.append)
    (peft,) = adapters.export(done, ["sw"], "peft", tmp_path / "peft")
    assert peft.difference <= 1e-4 and (peft.same, peft.asked) == (4, 4)
    assert peft.rank == sum(node.rank for node in done.tree.path("sw"))
    card = (peft.folder / "README.md").read_text()
    assert f"{peft.rank} virtual positions (PEFT {'prefix' if kind == 'prefix' else 'prompt'} tuning)" in card
    exec(card.split("```")[1].removeprefix("python"), {})
    monkeypatch.setattr(adapters, "lora_of_path", functools.partial(lora_of_path, steps=3))
    (lora,) = adapters.export(done, ["sw"], "lora", tmp_path / "lora", max_rank=4)
    settings = json.loads((lora.folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], lora.rank) == ("LORA", 4, 4)
    assert any(say.startswith("Warning: sw: ") for say in said) == (lora.same < lora.asked)
    assert f"distilled from a carrier of type {kind}" in (lora.folder / "README.md").read_text()
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == ["sw"]
    with pytest.raises(RunError, match=f"a carrier of type {kind} is no weight of the model; take lora"):
        adapters.export(done, ["sw"], "merged", tmp_path / "merged")
    with pytest.raises(RunError, match=f"a carrier of type {kind} has no rank; leave it out"):
        adapters.export(done, ["sw"], "peft", tmp_path / "ranked", max_rank=4)
    if kind == "prefix":
        with pytest.raises(RunError, match="only carriers of type embedding are prompts, not prefix"):
            adapters.export(done, ["sw"], "vllm-embeds", tmp_path / "embeds")
        return
    (embeds,) = adapters.export(done, ["sw"], "vllm-embeds", tmp_path / "embeds")
    assert embeds.difference <= 1e-4 and embeds.same == embeds.asked == 4
    rows = load_file(embeds.folder / "prompt_embeds.safetensors")["prompt_embeds"]
    assert rows.shape == (embeds.rank, 24)
    assert "enable_prompt_embeds=True" in (embeds.folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_a_card_tells_how_to_load_and_ask(aligned, tmp_path, capsys, kind):
    """Its lines, run as they are, print what the run answers."""
    (one,) = adapters.export(aligned.run, ["sw"], kind, tmp_path)
    card = (one.folder / "README.md").read_text()
    assert "Data: demo (the package); licence: Apache-2.0." in card
    exec(card.split("```")[1].removeprefix("python").replace('"..."', '"Habari ya leo"'), {})
    assert capsys.readouterr().out.strip() == aligned.generate(["Habari ya leo"], "sw")[0]


def test_an_adapter_of_a_bfloat16_run_is_compared_without_rounding(aligned, tmp_path):
    """So it has to be exact there too."""
    run = Run(aligned.run.config.model_copy(update={"dtype": "bfloat16"}), aligned.run.reporter)
    (one,) = adapters.export(run, ["ru"], "peft", tmp_path)
    assert one.difference <= 1e-4 and one.same == one.asked == 4
    assert "Compared in float32 with the run's own model on " in (one.folder / "README.md").read_text()


def test_a_file_of_ones_own_has_a_licence_to_be_stated(tmp_path, monkeypatch):
    """The package cannot know it; and a language that joined may have come from another."""
    data = f"data={{type: parallel, path: {tmp_path}/mine.jsonl}}"
    run = Run(load_config(None, [data, "languages.targets=[ru]"]), ProgressReporter())
    monkeypatch.setattr(Run, "families", {"ru": "Slavic", "sw": "Bantu"})
    mine = "mine.jsonl; its licence is not known here: state it before you pass this on."
    assert adapters._data(run, "ru") == mine
    later = "The language was added later, from these data or from a file of its own."
    assert adapters._data(run, "sw") == f"{mine} {later}"


def test_an_export_that_is_not_what_was_trained_is_refused(done, tmp_path, monkeypatch):
    """The carrier writes another language's path, and no folder of that name is left."""
    kind = {"prefix": TreePrefix, "embedding": TreeEmbedding}[done.config.distill.adapter.type]
    write = kind.export
    monkeypatch.setattr(kind, "export", lambda self, code, *rest: write(self, "ru", *rest))
    with pytest.raises(RunError, match=r"^sw: loaded again, the export is not the run's own model: largest"):
        adapters.export(done, ["sw"], "peft", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sw.part"]


def test_an_export_that_only_comes_near_says_where_it_answers_differently(done, tmp_path):
    """One line; what must be exact is refused for the same, or for a difference that is no number."""
    said = []
    reporter = type("Heard", (ProgressReporter,), {"say": lambda self, text: said.append(text)})()
    run = Run(done.config, reporter)
    one = adapters.Exported("sw", tmp_path, 4, 0.5, 0.1, 9, same=3, asked=4)
    adapters._judge(run, one, tmp_path, "rank 4 does not hold all of the path")
    assert said == ["Warning: sw: 1 of 4 greedy answers differ; rank 4 does not hold all of the path"]
    for wrong in ({"difference": 0.0}, {"difference": math.nan, "same": 4}):
        with pytest.raises(RunError, match=r"where at most 0\.0001 and all are right; it is left in"):
            adapters._judge(run, replace(one, **wrong), tmp_path, "")


@pytest.mark.parametrize("make", [TreePrefix, TreeEmbedding])
def test_a_lora_learns_what_a_carrier_does(tiny, five, tokenizer, tmp_path, make):
    """Sixty steps leave less than a third of the divergence; unloaded, the model is as before."""
    model = tiny("llama")
    reference = logits(model)
    carrier = make(model, five)
    with carrier.on(["sw"]) as on:
        wanted = logits(on)
    prompts = [row.tolist() for row in torch.arange(20, 40).repeat(4).view(8, 10)]
    student = lora_of_path(
        carrier, "sw", prompts, tokenizer, work=tmp_path / "work", seed=0, rank=8, steps=60, max_new_tokens=4
    )
    with student.on(["root"] * 2) as on:
        found = logits(on)

    def divergence(other):
        p, q = wanted.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    assert divergence(found) < divergence(reference) / 3
    assert torch.equal(logits(student.model.unload()), reference)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_each_carrier_is_a_variant_of_an_ablation(kind):
    """It replaces the adapters' settings as a whole, and the step with them."""
    config = with_overrides(load_config(None, ["distill.adapter.ranks.root=3"]), VARIANTS[kind])
    assert (config.distill.adapter.type, config.distill.learning_rate) == (kind, 0.1)
