"""Settings that depend on the model: the defaults of each model, and what documented commands resolve to."""

import re
from functools import reduce
from pathlib import Path

import pytest
from documents import PAGES, commands
from transformers import LlamaConfig, Qwen3Config

from isogloss import bases
from isogloss.config import Config, dump_config, load_config, with_overrides
from isogloss.config.defaults import Facts, explain, look_up
from isogloss.errors import ConfigError

ROOT = Path(__file__).parents[1]
GEMMA_270M, QWEN_06B, LLAMA_8B = (
    Facts(268_098_176, 18, 640), Facts(596_049_920, 28, 1024), Facts(8_030_261_248, 32, 4096),
)  # fmt: skip


@pytest.fixture
def known(monkeypatch):
    """Replace look-ups on the Hub: only the models that a test adds are known."""
    models: dict[str, Facts] = {}

    def look_up(name: str) -> Facts:
        if name not in models:
            raise ConfigError(f"model: there is no {name}")
        return models[name]

    monkeypatch.setattr("isogloss.config.load.look_up", look_up)
    return models


def followed(config: Config) -> tuple:
    """Return the main settings that depend on the model."""
    tune, distill = config.tune, config.distill
    ranks = tuple(distill.adapter.levels.values())
    return (
        tune.method,
        tune.lora_rank,
        tune.epochs,
        tune.learning_rate,
        tune.batch_size,
        distill.learning_rate,
        distill.epochs,
        distill.kl_weight,
        ranks,
    )


@pytest.mark.parametrize(
    ("settings", "signal", "temperature"),
    [
        ([], "top_k", 4),
        (["distill.temperature=2"], "top_k", 2),
        (["distill.signal=hidden"], "hidden", 1),
        (["distill.kl_weight=0"], "top_k", 1),
        (["distill.kl_weight=0", "distill.replay_fraction=0"], "hidden", 1),
        (["distill.teacher={type: server, url: 'http://localhost:1/v1', model: m}"], "hidden", 4),
        (["distill.teacher={type: model, path: a/b}"], "hidden", 4),
        (["distill.teacher={type: model, path: a/b, level: sequence}"], "hidden", 1),
    ],
)
def test_the_default_signal_fits_the_other_settings(known, settings, signal, temperature):
    known["some/model"] = GEMMA_270M
    found = load_config(None, ["model=some/model", *settings], places=True)
    assert (found.distill.signal, found.distill.temperature) == (signal, temperature)


@pytest.mark.parametrize(
    ("data", "inputs"),
    [
        ("{type: massive}", True),
        ("[{type: parallel, path: x.jsonl}, {type: sib200}]", True),
        ("{type: parallel, path: x.jsonl}", False),
    ],
)
def test_inputs_are_read_if_the_data_has_known_templates(known, data, inputs):
    known["some/model"] = GEMMA_270M
    given = ["model=some/model", f"data={data}"]
    found = load_config(None, given).distill
    assert (found.similarity_inputs, found.similarity_decay) == (inputs, 0.0 if inputs else 0.7)
    off = load_config(None, [*given, "distill.similarity_inputs=false"]).distill
    assert off.similarity_decay == 0.7
    assert load_config(None, [*given, "distill.similarity_weight=0"]).distill.similarity_inputs is False
    if not inputs:
        with pytest.raises(
            ConfigError, match="similarity_inputs must be false unless data includes one of massive"
        ):
            load_config(None, [*given, "distill.similarity_inputs=true"])


@pytest.mark.parametrize(
    ("teacher", "view", "reads"),
    [
        ("{type: server, url: 'http://localhost:1/v1', model: m}", "english", ("twin",)),
        ("{type: model, path: a/b}", "english", ("twin",)),
        ("{type: model, path: a/b, level: sequence}", "prompt", ("texts", "twin", "answer")),
    ],
)
def test_another_teacher_that_scores_tokens_reads_the_twin(known, teacher, view, reads):
    """An answer in its prompt would be copied; one that writes the responses still reads everything."""
    known["some/model"] = GEMMA_270M
    found = load_config(None, ["model=some/model", f"distill.teacher={teacher}"]).distill
    assert (found.teacher_view, found.teacher_reads) == (view, reads)
    if view == "prompt":
        with pytest.raises(ConfigError, match="must be prompt if the teacher writes the responses"):
            load_config(
                None, ["model=some/model", f"distill.teacher={teacher}", "distill.teacher_view=english"]
            )


def test_the_embedded_model_has_its_own_defaults(known):
    """They are measured (docs/log.md), and no model is looked up."""
    assert followed(load_config(places=True)) == ("full", 16, 1.5, 1e-3, 32, 3e-3, 3.5, 0.0, (12, 2, 2))
    assert followed(load_config(None, ["model=demo", "tune.learning_rate=null"])) == followed(Config())


@pytest.mark.parametrize(
    ("facts", "tune_lr", "distill_lr"),
    [
        (GEMMA_270M, 5e-4, 1e-3),
        (Facts(500_000_000, 24, 896), 5e-4, 1e-3),
        (QWEN_06B, 2e-4, 5e-4),
        (Facts(2_000_000_000, 28, 2048), 2e-4, 5e-4),
        (LLAMA_8B, 2e-4, 2e-4),
    ],
)
def test_a_pretrained_model_gets_a_lora_and_learning_rates_by_its_size(known, facts, tune_lr, distill_lr):
    """Larger models get smaller learning rates; a size at a limit belongs to the smaller class."""
    known["some/model"] = facts
    found = load_config(None, ["model=some/model"], places=True)
    assert followed(found) == ("lora", 32, 1.0, tune_lr, 8, distill_lr, 2.0, 1.0, (16, 4, 4))


@pytest.mark.parametrize(
    ("shapes", "facts"),
    [
        (
            # Qwen/Qwen3-0.6B, with its published parameter count.
            Qwen3Config(
                vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
            ),
            QWEN_06B,
        ),
        (
            # meta-llama/Llama-3.1-8B.
            LlamaConfig(
                vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
            ),
            LLAMA_8B,
        ),
    ],
    ids=["Qwen3-0.6B", "Llama-3.1-8B"],
)  # fmt: skip
def test_a_models_facts_are_read_from_its_config_alone(tmp_path, shapes, facts):
    """The folder has no weights."""
    shapes.save_pretrained(tmp_path)
    assert look_up(str(tmp_path)) == facts
    found = load_config(None, [f"model={tmp_path}"])
    assert found.distill.learning_rate == (5e-4 if facts is QWEN_06B else 2e-4)


def test_settings_of_the_user_override_the_defaults(known):
    """Each setting is kept on its own, even a single rank; null means not set."""
    known["some/model"] = GEMMA_270M
    overrides = (
        "model=some/model",
        "tune.learning_rate=1e-5",
        "distill.adapter.ranks.root=20",
        "distill.learning_rate=null",
    )
    found = load_config(None, [*overrides, "distill.kl_weight=0.5"], places=True)
    assert followed(found) == ("lora", 32, 1.0, 1e-5, 8, 1e-3, 2.0, 0.5, (20, 4, 4))


def test_full_tuning_of_a_pretrained_model_gets_a_small_learning_rate(known):
    """The LoRA rank keeps its default, as it has no effect."""
    known["some/model"] = GEMMA_270M
    found = load_config(None, ["model=some/model", "tune.method=full"], places=True)
    assert (found.tune.learning_rate, found.tune.lora_rank, found.tune.batch_size) == (2e-5, 16, 32)


def test_resolved_settings_are_not_looked_up_again(known, tmp_path):
    """A run's config.yaml has them all, so it still loads when the model is gone or an override is added."""
    known["some/model"] = GEMMA_270M
    found = load_config(None, ["model=some/model"], places=True)
    (tmp_path / "config.yaml").write_text(dump_config(found))
    known.clear()
    assert load_config(tmp_path / "config.yaml", places=True) == found
    assert with_overrides(found, ["seed=3"]).tune == found.tune


def test_an_override_of_a_run_changes_the_defaults_that_depend_on_it(known, tmp_path):
    """What the user set, here the layer and the temperature, stays."""
    known["some/model"] = GEMMA_270M
    run = load_config(None, ["model=some/model", "distill.similarity_layer=3"], places=True)
    (tmp_path / "config.yaml").write_text(dump_config(run))
    without = load_config(tmp_path, ["distill.kl_weight=0"], places=True).distill
    assert (without.teacher_view, without.teacher_reads) == ("prompt", ("texts", "twin", "answer"))
    assert (without.temperature, without.signal, without.similarity_layer) == (1.0, "top_k", 3)
    assert with_overrides(run, ["distill.kl_weight=0", "distill.kl_weight=1"]) == run
    assert with_overrides(with_overrides(run, ["distill.kl_weight=0"]), ["distill.kl_weight=1"]) == run
    warm = with_overrides(run, ["distill.temperature=2"])
    with pytest.raises(ConfigError, match=r"distill\.temperature has no effect with kl_weight 0"):
        with_overrides(warm, ["distill.kl_weight=0"])


def test_another_method_of_stage_1_gets_its_own_defaults(known):
    """As in advice on memory."""
    known["some/model"] = GEMMA_270M
    full = load_config(None, ["model=some/model", "tune.method=full"], places=True)
    lora = with_overrides(full, ["tune.method=lora"]).tune
    assert (lora.learning_rate, lora.lora_rank, lora.batch_size) == (5e-4, 32, 8)
    assert with_overrides(full, ["seed=3"]).tune == full.tune


def test_errors_are_reported_before_a_model_is_looked_up(known):
    """Waiting for a Hub that does not respond takes time."""
    with pytest.raises(
        ConfigError,
        match=r"^--set tune.learning_rate=0: tune.learning_rate is 0; it must be a number above 0$",
    ):
        load_config(None, ["model=gone/model", "tune.learning_rate=0"], places=True)


def test_a_model_that_cannot_be_found_is_a_one_line_error(monkeypatch):
    """It is raised when the settings load, not after the data is read."""

    def skeleton(name):
        raise ConfigError(f"model: {name} is neither a local folder nor to be had from the hub")

    monkeypatch.setattr("isogloss.model.load.skeleton", skeleton)
    with pytest.raises(ConfigError, match=r"^model: gone/model is neither a local folder nor"):
        load_config(None, ["model=gone/model"], places=True)


def test_resolved_settings_are_explained(known):
    """Each line gives a setting's value and the reason, or the default that the user replaced."""
    known["some/model"] = GEMMA_270M
    found = load_config(None, ["model=some/model", "distill.epochs=4"], places=True)
    assert explain(found, GEMMA_270M) == [
        "some/model: 268,098,176 weights, 18 layers, hidden size 640; settings that follow the model:",
        "  tune.method lora: the model is pretrained",
        "  tune.epochs 1: the model is pretrained",
        "  tune.learning_rate 0.0005: LoRA on 268 million weights",
        "  tune.batch_size 8: more steps from the same rows",
        "  tune.lora_rank 32: the model is pretrained",
        "  distill.learning_rate 0.001: adapters on 268 million weights",
        "  distill.kl_weight 1: a pretrained model makes use of its prompt",
        "  distill.teacher_view english: the model is pretrained",
        "  distill.teacher_reads [twin]: for answers in the words of the language",
        "  distill.signal top_k: the vocabulary is large",
        "  distill.temperature 4: a nearly certain teacher's other answers count too",
        "  distill.similarity_weight 1: the model is pretrained",
        "  distill.similarity_layer 7: two fifths of 18, where translations are most similar",
        "  distill.epochs 4: as set; the model's default is 2",
        "  distill.adapter.ranks.root 16: rank 24 per path, most of it shared",
        "  distill.adapter.ranks.family 4: rank 24 per path, most of it shared",
        "  distill.adapter.ranks.language 4: rank 24 per path, most of it shared",
        "  distill.adapter.layers 12: two thirds of 18",
    ]
    assert explain(Config(), GEMMA_270M) == []


TRAINING = {"run", "tune", "distill", "plan", "ablate", "cache"}
DOCUMENTED = dict.fromkeys(
    tuple(words[words.index("isogloss") + 1 :])
    for page in PAGES
    for command in commands(page)
    if "isogloss" in (words := command.words) and not command.mentioned
    if words[words.index("isogloss") + 1] in TRAINING
)


@pytest.mark.parametrize("command", DOCUMENTED, ids=" ".join)
def test_a_documented_command_gets_sane_settings(command, known, monkeypatch, tmp_path):
    """A pretrained model gets a LoRA and small learning rates, never the embedded model's settings."""
    known |= {"Qwen/Qwen3-0.6B": QWEN_06B, "Qwen/Qwen2.5-7B": LLAMA_8B, "gemma-3-270m": GEMMA_270M}
    known |= {"./my-model": LLAMA_8B, "some/model": LLAMA_8B}
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").touch()
    (tmp_path / "my-data.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    file = next((ROOT / word for word in command[1:2] if word.endswith(".yaml")), None)
    yours = ["model=some/model"] if "CONFIG" in command else []
    overrides = [*yours, *(command[n + 1] for n, word in enumerate(command) if word == "--set")]
    found = load_config(file, overrides, data_root=tmp_path, places=True)
    if found.model == bases.EMBEDDED:
        assert (found.tune.method, found.distill.learning_rate) == ("full", 3e-3), found.model
    else:
        assert (
            found.tune.method == "lora"
            and found.tune.learning_rate <= 5e-4
            and found.distill.learning_rate <= 1e-3
        )


def test_the_documented_commands_are_found():
    """The test above cannot pass by finding none; one of the commands uses a model from the Hub."""
    assert len(DOCUMENTED) >= 6 and any("model=Qwen/Qwen3-0.6B" in command for command in DOCUMENTED)


def test_the_guides_table_of_defaults_matches_the_code(known, tmp_path):
    """Each row has a value for the embedded model and for one model of each size."""
    cells = " ".join([r"(\S+) \|"] * 4)
    rows = re.findall(
        rf"^\| `([\w.]+)` \| {cells}$", (ROOT / "docs/guide/model.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) >= 8
    configs = [load_config()]
    for known["some/model"] in (GEMMA_270M, QWEN_06B, LLAMA_8B):
        given = ["model=some/model", "data={type: massive}"]
        configs.append(load_config(None, given, data_root=tmp_path, places=True))
    for name, *values in rows:
        for config, value in zip(configs, values, strict=True):
            found = reduce(getattr, name.split("."), config)
            number = {"true": 1, "false": 0}.get(value, value)
            assert found == (value if isinstance(found, str) else float(number)), name
