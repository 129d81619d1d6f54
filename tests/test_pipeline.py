"""The whole pipeline on a tiny random model: it resumes, repeats itself and keeps the reference model."""

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from isogloss.config import Config, load_config
from isogloss.data.chat import Encoded
from isogloss.data.demo.items import demo_items
from isogloss.errors import ConfigError, DataError, RunError
from isogloss.model.cost import TEACHER
from isogloss.pipeline import add_language, checks, evaluation, stages, training, training_rows
from isogloss.pipeline.folder import ProgressReporter, Run, load_run, open_run
from isogloss.pipeline.ledger import CORE_WATTS, Ledger
from isogloss.pipeline.stages import run_all, select_english
from isogloss.teacher.rows import Row
from tools.train_base import CHAT_TEMPLATE, SPECIAL

SMALL = (
    "seed=3",
    "data.english_items=120",
    "tune.batch_size=4",
    "tune.epochs=2",
    "languages.targets=[sw,ur,hi]",
    "languages.items={high: 21, middle: 21, low: 14}",
    "distill.batch_size=4",
    "distill.epochs=4.5",
    "distill.kl_weight=0.1",
    "distill.learning_rate=0.003",
    "distill.teacher_view=prompt",
    "distill.teacher_reads=[texts,twin,answer]",
    "evaluate.items=14",
    "evaluate.sentences=12",
    "evaluate.max_new_tokens=4",
)


class Killed(BaseException):
    """Stands for a process that is killed without warning."""


class Killer(ProgressReporter):
    """Kill a run at a step of one of its progress bars."""

    def __init__(self, what: str, at: int):
        self.what, self.at = what, at

    @contextmanager
    def bar(self, what):
        def progress(done, of):
            if what == self.what and done >= self.at:
                raise Killed

        yield progress


def settings(folder: Path, model: Path, *more: str) -> Config:
    return load_config(None, (*SMALL, f"run={folder}", f"model={model}", "dtype=float32", *more))


def ledger_of(config: Config) -> dict[str, dict]:
    return {s["stage"]: s for s in json.loads((config.run / "ledger.json").read_text())["stages"]}


def finish(config: Config, reporter: ProgressReporter | None = None) -> dict:
    run = open_run(config, reporter)
    run_all(run)
    return json.loads((config.run / "scores.json").read_text())


@pytest.fixture(scope="module")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A random two-layer model with a small real tokenizer, as save_pretrained writes them."""
    texts = [
        turn.instruction
        for item in demo_items("train", 400, ("en", "sw", "ur", "hi"))
        for turn in item.example.turns.values()
    ]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2_000, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_folder):
    """An uninterrupted run and its scores."""
    config = settings(tmp_path_factory.mktemp("whole") / "run", tiny_model_folder)
    return config, finish(config)


def test_a_run_writes_the_files_that_the_guide_names(finished):
    """Settings, models, answers, scores, ledger and report are in the folder, and nothing else."""
    config, _ = finished
    assert {path.name for path in config.run.iterdir()} == {
        "config.yaml", "selection.jsonl", "tuned", "adapters", "tree.json", "curves.jsonl",
        "predictions", "scores.json", "ledger.json", "report.html", "cache", "lock", "leaks.json",
    }  # fmt: skip
    assert {path.name for path in (config.run / "adapters").iterdir()} == {
        "sw",
        "ur",
        "hi",
        "tree.safetensors",
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
@pytest.mark.parametrize(
    ("what", "at"), [("English tuning", 55), ("Distillation", 52), ("demo: after", 1), ("Teacher scores", 1)]
)
def test_a_killed_run_resumes_to_the_same_scores(finished, tmp_path, tiny_model_folder, what, at):
    """Wherever it is killed, a second start gives the scores of an uninterrupted run."""
    config = settings(tmp_path / "run", tiny_model_folder)
    with pytest.raises(Killed):
        finish(config, Killer(what, at))
    assert finish(config)["suites"] == finished[1]["suites"]
    whole, broken = finished[0].run / "curves.jsonl", config.run / "curves.jsonl"
    assert [json.loads(line)["step"] for line in broken.open()] == [
        json.loads(line)["step"] for line in whole.open()
    ]
    # Nothing is lost, and nothing counted twice.
    for ours, theirs in zip(ledger_of(config).values(), ledger_of(finished[0]).values(), strict=True):
        for name in ("tokens_forwarded", "tokens_backpropagated", "tokens_generated", *TEACHER[:2]):
            assert ours[name] == theirs[name], name
        assert ours["flops"] == pytest.approx(theirs["flops"], rel=1e-9)


def test_the_same_seed_gives_the_same_scores(finished, tmp_path, tiny_model_folder):
    config = settings(tmp_path / "again", tiny_model_folder)
    assert finish(config)["suites"] == finished[1]["suites"]


def test_untaught_languages_are_measured_through_every_node(finished, tmp_path):
    """Without adapters, Spanish scores as before training; through the root, as in the evaluation."""
    config, _ = finished
    folder = shutil.copytree(config.run, tmp_path / "run")
    also = load_config(folder, ["evaluate.also=[es]"])
    for taught in ("sw", "en"):
        with pytest.raises(ConfigError) as caught:
            evaluation.run_transfer(load_run(folder), [taught], ["demo"])
        assert str(caught.value) == f"{taught} was taught; choose languages that the run was not trained on"
    run = load_run(folder)
    found = {one.through: one for one in evaluation.run_transfer(run, ["es"], ["demo"])}
    kinds = [one.kind for one in found.values()]
    assert kinds == ["nothing", "root", "other family", "other family"]
    evaluation.run_evaluate(open_run(also))
    measured = json.loads((folder / "scores.json").read_text())["suites"]["demo"]
    for side, node in (("before", "nothing"), ("after", "root")):
        assert found[node].mean("consistency") == measured[side]["consistency"]["languages"]["es"]["value"]
    kept = json.loads((folder / "transfer.json").read_text())
    assert [one["measure"] for one in kept["transfers"]] == ["consistency", "retrieval"]
    assert kept["transfers"][0]["root"] == found["root"].mean("consistency")


def test_closed_tasks_by_likelihood_answer_with_an_option(finished, tiny_model_folder):
    """Every answer of a closed task is one of its options; fidelity only counts free answers."""
    config, before = finished
    asked = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"likelihood": ("demo",)})}
    )
    copy = config.run.with_name("likelihood")
    shutil.copytree(config.run, copy)
    run = Run(asked.model_copy(update={"run": copy}), ProgressReporter())
    evaluation.run_evaluate(run)
    scored = json.loads((copy / "scores.json").read_text())["suites"]["demo"]
    assert "scoring:likelihood" in scored["signature"]
    assert "scoring:generation" in before["suites"]["demo"]["signature"]
    items = {item.example.id: item for item in demo_items("test", 14, ["en", "sw", "ur", "hi"])}
    lines = (copy / "predictions" / "demo.after.jsonl").read_text("utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    closed = [row for row in rows if items[row["id"]].example.options]
    assert closed
    for row in closed:
        assert row["answer"] in items[row["id"]].example.options[row["language"]].values()
    free = sum(not items[row["id"]].example.options for row in rows) // 3
    assert scored["after"]["fidelity"]["languages"]["sw"]["n"] == free
    assert scored["after"]["consistency"]["languages"]["sw"]["n"] == 14


def test_a_suite_without_any_of_the_languages_is_refused(tmp_path, tiny_model_folder):
    for code in ("en", "es"):
        folder = tmp_path / "root" / "pawsx" / code
        folder.mkdir(parents=True)
        (folder / "dev_2k.tsv").write_text("id\tsentence1\tsentence2\tlabel\n1\ta\tb\t1\n")
    more = ("evaluate.suites=[pawsx]", "evaluate.split=dev", f"data_root={tmp_path / 'root'}")
    run = Run(settings(tmp_path / "run", tiny_model_folder, *more), ProgressReporter())
    with pytest.raises(DataError, match=r"pawsx has none of sw, ur, hi; remove it from evaluate.suites"):
        checks.check(run)


def test_a_complete_run_is_not_run_again(finished):
    """`run_all` returns False."""
    config, _ = finished
    assert run_all(open_run(config)) is False


def test_scores_have_the_documented_shape(finished):
    """Schema 1: suite → side → measure → mean, and value, interval and n per language."""
    scores = finished[1]
    assert scores["schema"] == 1
    after = scores["suites"]["demo"]["after"]
    assert {"alignment", "consistency", "retrieval", "accuracy", "fidelity", "retention"} <= set(after)
    assert set(after["alignment"]["languages"]) == {"sw", "ur", "hi"}
    assert set(after["consistency"]["languages"]["sw"]) == {"value", "low", "high", "n"}
    mean = sum(entry["value"] for entry in after["alignment"]["languages"].values()) / 3
    assert after["alignment"]["mean"] == pytest.approx(mean)


def test_every_adapter_is_an_ordinary_peft_adapter_with_the_same_logits(finished):
    """PeftModel.from_pretrained on its folder gives the logits of the tree on that path."""
    config, _ = finished
    run = load_run(config.run)
    ids = torch.arange(20, 60)[None]
    for code in ("sw", "ur", "hi"):
        adapters = run.student(run.reference_model(), trained=True)
        with torch.no_grad(), adapters.on([code]) as model:
            ours = model(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(run.reference_model(), str(config.run / "adapters" / code))
        with torch.no_grad():
            assert (theirs(input_ids=ids).logits - ours).abs().max() <= 1e-4


def test_an_adapter_finds_its_base_from_anywhere_and_after_a_copy(finished, tmp_path, monkeypatch):
    """PEFT loads it from any working directory; in a copied run, its base is the copy's."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "a copy"
    shutil.copytree(finished[0].run, copy)
    for folder in (finished[0].run, copy):
        load_run(folder)  # as every command on the run does
        about = json.loads((folder / "adapters" / "sw" / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == str(folder / "tuned")
        loaded = AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapters" / "sw"))
        assert loaded.get_base_model().name_or_path == str(folder / "tuned")


def test_a_run_is_identified_by_its_folder(finished, tmp_path):
    """It may be copied or renamed, whatever folder its settings name; its config.yaml stands for it."""
    copy = tmp_path / "copy"
    shutil.copytree(finished[0].run, copy)
    for path in (copy, copy / "config.yaml"):
        assert load_config(path).run == copy
    assert load_config(copy, [f"run={tmp_path / 'new'}"]).run == tmp_path / "new"
    assert run_all(open_run(load_config(copy))) is False
    assert f"run: {copy}\n" in (copy / "config.yaml").read_text("utf-8")
    assert f"run: {finished[0].run}\n" in (finished[0].run / "config.yaml").read_text("utf-8")
    (copy / "config.yaml").write_bytes(b"")  # must not load as the default settings
    with pytest.raises(ConfigError) as caught:
        load_run(copy)
    assert str(caught.value) == f"{copy}/config.yaml is empty; restore it, or start in another run folder"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ledger.json", "ledger.json is empty; remove it to go on; what was counted so far is lost"),
        ("scores.json", "scores.json is empty; remove it and run `isogloss evaluate` again"),
        ("adapters/tree.safetensors", "adapters/tree.safetensors is damaged (Error while deserializing "),
        ("adapters/sw/adapter_config.json", "adapters/sw/adapter_config.json is empty; remove "),
    ],
)
def test_an_empty_state_file_is_named(finished, tmp_path, name, says):
    """A power cut may leave one."""
    copy = tmp_path / "copy"
    shutil.copytree(finished[0].run, copy)
    (copy / name).write_bytes(b"")
    with pytest.raises(RunError) as caught:
        run = load_run(copy)
        _ = run.ledger
        evaluation.run_evaluate(run)
    assert str(caught.value).startswith(f"{copy}/{says}")


@pytest.mark.parametrize("stage", ['{"stage": "tune", "watts": 3}', '{"seconds": 3.0}'])
def test_the_ledger_of_another_version_is_refused(tmp_path, stage):
    """Costs are not dropped silently."""
    (tmp_path / "ledger.json").write_text('{"schema": 1, "stages": [' + stage + "]}")
    with pytest.raises(RunError) as caught:
        Ledger(tmp_path / "ledger.json")
    assert str(caught.value) == (
        f"{tmp_path}/ledger.json is not a ledger of this version; remove it to go on; what was counted so "
        "far is lost"
    )


def test_slow_steps_are_announced(capsys):
    """Fast ones are not."""

    class Told(ProgressReporter):
        def say(self, text):
            print(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isogloss.pipeline.folder.SILENCE", 0.01)
        with Told().waiting("Loading x"):
            time.sleep(0.2)
    with Told().waiting("Loading y"):
        pass
    assert capsys.readouterr().out == "Loading x …\n"


@pytest.mark.parametrize(
    ("slow", "does", "says"),
    [
        ("checks.load_suite", checks.leaks, "Reading the suites …"),
        ("stages.within", select_english, "Selecting English items …"),
    ],
)
def test_slow_steps_before_training_are_announced(tmp_path, tiny_model_folder, monkeypatch, slow, does, says):
    """Reading and comparing large files takes minutes before the first progress bar."""
    heard: list[str] = []

    class Told(ProgressReporter):
        def say(self, text):
            heard.append(text)

    quick = resolve_name(f"isogloss.pipeline.{slow}")

    def slowly(*given, **how):
        time.sleep(0.3)
        return quick(*given, **how)

    monkeypatch.setattr("isogloss.pipeline.folder.SILENCE", 0.1)
    monkeypatch.setattr(f"isogloss.pipeline.{slow}", slowly)
    does(Run(settings(tmp_path / "run", tiny_model_folder), Told()))
    assert says in heard


def test_stage_two_trains_the_adapters(finished):
    """Every node's B has moved away from zero."""
    config, _ = finished
    state = load_file(config.run / "adapters" / "tree.safetensors")
    run = load_run(config.run)
    for node in run.tree.nodes:
        columns = [p[:, node.start : node.start + node.rank] for name, p in state.items() if "lora_B" in name]
        assert any(part.abs().max() > 0 for part in columns), node.name


def test_other_settings_are_refused_in_the_same_folder(finished, tiny_model_folder):
    """The error names the first setting that differs."""
    config = settings(finished[0].run, tiny_model_folder, "distill.learning_rate=0.5")
    with pytest.raises(
        RunError, match=r"made with other settings \(learning_rate: 0\.003 there, learning_rate: 0\.5 here\)"
    ):
        open_run(config)


def test_distillation_settings_may_change_until_there_are_adapters(finished, tiny_model_folder, tmp_path):
    """Settings of stage 1 may not change."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0].run, folder, ignore=shutil.ignore_patterns("adapters"))
    changed = settings(folder, tiny_model_folder, "distill.learning_rate=0.5")
    open_run(changed)
    assert load_config(folder).distill.learning_rate == 0.5
    with pytest.raises(RunError, match="made with other settings"):
        open_run(settings(folder, tiny_model_folder, "tune.learning_rate=0.5"))


def test_the_data_root_of_a_run_may_change(finished, tiny_model_folder, tmp_path):
    """Data sets may be moved."""
    config = settings(finished[0].run, tiny_model_folder, f"data_root={tmp_path}")
    assert open_run(config).data_root == tmp_path


def test_a_broken_teacher_is_refused_before_stage_1(tmp_path, tiny_model_folder):
    """It would only be loaded after stage 1."""
    teacher = Path(shutil.copytree(tiny_model_folder, tmp_path / "teacher"))
    weights = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    more = f"distill.teacher={{type: model, path: {json.dumps(str(teacher))}, level: sequence}}"
    with pytest.raises(ConfigError, match=r"^model: .*/teacher/model\.safetensors is truncated"):
        checks.check(Run(settings(tmp_path / "run", tiny_model_folder, more), ProgressReporter()))


def test_a_language_without_data_is_refused_before_anything_is_written(tmp_path, tiny_model_folder):
    """The demo has fifteen languages, but not Polish."""
    config = settings(tmp_path / "run", tiny_model_folder, "languages.targets=[sw,pl]")
    with pytest.raises(DataError, match="pl"):
        checks.check(Run(config, ProgressReporter()))
    assert not (tmp_path / "run").exists()


def test_reference_answers_that_are_too_long_give_a_warning(tmp_path, tiny_model_folder):
    """It comes before training, as a truncated answer never matches them."""
    turns = {code: {"instruction": f"q {code}", "response": "a" * 90} for code in ("en", "sw")}
    items = [{"id": "1", **turns}, {"id": "2", **turns, "sw": turns["sw"] | {"response": "a"}}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for limit, count in ((8, 3), (200, 0)):
        heard: list[str] = []

        class Told(ProgressReporter):
            def say(self, text, heard=heard):
                heard.append(text)

        suite = (
            "evaluate.suites=[parallel]", f"evaluate.parallel.path={tmp_path / 'own.jsonl'}",
            f"evaluate.max_new_tokens={limit}",
        )  # fmt: skip
        checks.check_suites(Run(settings(tmp_path / "run", tiny_model_folder, *suite), Told()))
        assert len(heard) == bool(count)
        for line in heard:
            assert line.startswith(f"Warning: {count} of 4 reference answers of the suite parallel have ")
            assert line.endswith("longer answers are truncated: raise evaluate.max_new_tokens")


def test_the_ledger_counts_every_stage(finished):
    """It has tokens, FLOPs, seconds, energy, memory and bytes written."""
    config, _ = finished
    stages = ledger_of(config)
    assert list(stages) == ["tune", "distill", "evaluate"]
    assert (
        stages["distill"]["teacher_calls"] == 21 + 14 + 21 + 28
    )  # hi, sw, ur, and English as a tenth of all draws: a ninth of the 252 draws in 4.5 passes over 56 rows
    assert all(stages[name]["flops"] > 0 and stages[name]["seconds"] > 0 for name in stages)
    # Three languages and English, before and after, at most four tokens per answer.
    asked = 14 * 4 * 2
    assert asked < stages["evaluate"]["tokens_generated"] <= 4 * asked
    for stage in stages.values():
        assert stage["device_seconds"] == pytest.approx(stage["seconds"], abs=0.5)
        assert stage["energy_joules"] == pytest.approx(
            stage["seconds"] * CORE_WATTS * torch.get_num_threads(), rel=0.2
        )
        assert stage["peak_memory_bytes"] > 100e6
    # Checkpoints and adapters are written too, not only the cached signals.
    assert stages["distill"]["bytes_written"] > stages["distill"]["cache_bytes_written"] > 0


def test_adding_a_language_leaves_the_others_bit_identical(finished, tmp_path, tiny_model_folder):
    """German, then Arabic are added, each with its family; the others and English have identical logits."""
    config = settings(tmp_path / "run", tiny_model_folder)
    shutil.copytree(finished[0].run, config.run)
    run = load_run(config.run)
    ids = torch.arange(20, 40).view(2, 10)

    def logits(code):
        adapters = run.student(run.reference_model(), trained=True)
        with torch.no_grad(), adapters.on([code] * 2) as model:
            return model(input_ids=ids).logits

    def items():
        nodes = json.loads((config.run / "tree.json").read_text())["nodes"]
        return {node["name"]: node["items"] for node in nodes}

    before = {code: logits(code) for code in ("sw", "ur", "hi", "en")}
    counted = items()
    assert counted["root"] == sum(counted[code] for code in run.taught)  # without English replay
    zero_shot = logits("de")
    add_language.add_languages(run, ["de"])
    add_language.add_languages(run, ["ar"])
    assert run.taught == ("sw", "ur", "hi", "de", "ar")
    assert [node.name for node in run.tree.path("de")] == [
        "root",
        "Indo-European/Germanic/West Germanic",
        "de",
    ]
    for code, was in before.items():
        assert torch.equal(logits(code), was)
    assert not torch.equal(logits("de"), zero_shot)
    loaded = PeftModel.from_pretrained(run.reference_model(), str(config.run / "adapters" / "de"))
    with torch.no_grad():
        assert (loaded(input_ids=ids).logits - logits("de")).abs().max() <= 1e-4
    assert counted["root"] > counted["sw"] == 14  # the root also learns from English replay
    families = ("Indo-European/Germanic/West Germanic", "Afro-Asiatic/Semitic/Central Semitic")
    assert items() == counted | dict.fromkeys((*families, "de", "ar"), 21)
    # The run's data have German too, so its rows can be shown and their signals are cached.
    row, _ = training_rows.row_of(run, "de", next(e.id for e in run.examples if "de" in e.turns))
    assert row.language == "de"
    assert stages.run_cache(run).cached_hits >= 14 + 21 + 21
    spent = json.loads((config.run / "ledger.json").read_text())["stages"]
    assert [stage["stage"] for stage in spent][-3:] == ["add de", "add ar", "cache"]
    evaluation.run_evaluate(run)
    scores = json.loads((config.run / "scores.json").read_text())["suites"]["demo"]
    assert scores["languages"] == ["sw", "ur", "hi", "de", "ar"]
    old = finished[1]["suites"]["demo"]["after"]["consistency"]["languages"]
    new = scores["after"]["consistency"]["languages"]
    assert {code: new[code]["value"] for code in old} == {code: old[code]["value"] for code in old}


@pytest.mark.parametrize(
    ("codes", "error", "says"),
    [
        (["sw"], RunError, "sw was already taught; choose another language"),
        (["en"], RunError, "en is the source language; choose another language"),
        (["de", "pt"], DataError, "the data has no pt; add items, or name a file by --data"),
    ],
)
def test_a_language_that_cannot_be_added_is_refused(codes, error, says, finished):
    """The run is unchanged."""
    before = (finished[0].run / "adapters" / "tree.safetensors").read_bytes()
    with pytest.raises(error) as caught:
        add_language.add_languages(load_run(finished[0].run), codes)
    assert str(caught.value) == says
    assert (finished[0].run / "adapters" / "tree.safetensors").read_bytes() == before


class Told(ProgressReporter):
    """Keeps the lines that a run reports."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_leaks_that_stage_1_was_tuned_on_are_reported_and_remembered(tmp_path):
    """Other suites after stage 1 contain three of its items, one of which selection had dropped."""

    def file(name: str, **words: str) -> Path:
        rows = [
            {"id": id, **{code: {"instruction": f"{code} {word}", "response": "y"} for code in ("en", "sw")}}
            for id, word in words.items()
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    given = (
        f"run={tmp_path / 'run'}", "languages.targets=[sw]", "evaluate.suites=[parallel]",
        f"data={{type: parallel, path: {file('data.jsonl', a='x', b='z', c='v', d='w')}}}",
    )  # fmt: skip
    first, second = file("first.jsonl", t="w"), file("second.jsonl", t="x", u="v", w="w")

    def run_with(suite: Path) -> Run:
        return Run(load_config(None, (*given, f"evaluate.parallel.path={suite}")), Told())

    checks.leave_out_leaks(early := run_with(first))
    assert [e.id for e in early.english] == ["a", "b", "c"]
    early.tuned.mkdir()
    lines = [{"id": "a", "kept": True}, {"id": "b", "kept": True}, {"id": "c", "kept": False}]
    (early.folder / "selection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checks.leave_out_leaks(late := run_with(second))
    assert late.reporter.lines == [
        "2 training examples are left out, as they occur in the evaluation suites: "
        "leaks.json lists their ids",
        "Warning: stage 1 was already tuned on 1 of 2 training examples that occur in the evaluation suites; "
        "scores may be too high: tune again in another run folder",
    ]
    assert [e.id for e in late.examples] == ["b"]
    found = json.loads(late.leaks.read_text())
    assert (found["left_out"], found["tuned_on"]) == (["d", "a", "c"], ["a"])
    # A finished run still warns, though its suites are those of the last check, and keeps that check.
    training.save_whole({}, late.trained, {"families": '{"sw": "Bantu"}'})
    for suite, says in ((second, 1), (first, 0)):
        checks.tell_of_leaks(again := run_with(suite))
        assert [line.partition("'s")[0] for line in again.reporter.lines] == [
            "Warning: 1 test item occurs in the run"
        ] * says
        checks.leave_out_leaks(again)
    assert json.loads(late.leaks.read_text()) == found


def test_the_leak_check_runs_again_when_a_file_of_the_user_has_changed(tmp_path):
    """The ids may be row numbers; those of before must not stay left out."""

    def file(name: str, *words: str) -> Path:
        turns = (
            {code: {"instruction": f"{code} {word}", "response": "y"} for code in ("en", "sw")}
            for word in words
        )
        rows = [{"id": number, **turn} for number, turn in enumerate(turns)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    given = (
        f"run={tmp_path / 'run'}", "languages.targets=[sw]", "evaluate.suites=[parallel]",
        f"data={{type: parallel, path: {file('data.jsonl', 'x', 'v', 'w')}}}",
        f"evaluate.parallel.path={file('own.jsonl', 'x')}",
    )  # fmt: skip

    def checked() -> list[str]:
        checks.leave_out_leaks(run := Run(load_config(None, given), Told()))
        return [example.turns["en"].instruction for example in run.english]

    assert checked() == ["en v", "en w"]
    file("own.jsonl", "w")
    assert checked() == ["en v"]  # what an earlier test file had stays left out
    file("data.jsonl", "w", "v", "x")
    assert checked() == ["en v", "en x"]


def test_another_teachers_prompts_are_measured_against_its_own_positions(base, tmp_path):
    """They are in its own tokens; a served teacher knows its limit itself."""
    short = Path(shutil.copytree(base, tmp_path / "short"))
    sizes = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(sizes | {"max_position_embeddings": 64}))
    row = Row("1/sw", "sw", 0, Encoded((5,) * 10, (6, 1)), (7,) * 70, (5,))

    def check(model: Path, teacher: str) -> None:
        more = f"model={model}", "distill.kl_weight=1", f"distill.teacher={teacher}"
        checks.check_lengths(Run(load_config(None, more), ProgressReporter()), [row], str(model))

    for model, teacher in ((base, f"{{type: model, path: {short}}}"), (short, "{type: self}")):
        with pytest.raises(ConfigError) as caught:
            check(model, teacher)
        assert str(caught.value) == f"1/sw has 72 tokens, but {short} has only 64 positions; leave it out"
    check(short, f"{{type: model, path: {base}}}")
    check(short, "{type: server, url: 'http://a/v1', model: m}")
