"""Settings: which are refused, with which message, and that dumped settings load back unchanged."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from isogloss.config import (
    Config,
    Settings,
    dump_config,
    home,
    load_config,
    refuse_shared,
    root_of_environment,
)
from isogloss.config.renamed import GONE, RENAMED
from isogloss.errors import ConfigError
from isogloss.languages import XGLUE_TWELVE

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


def refused(text: str, tmp_path: Path, *overrides: str, **options) -> list[str]:
    """Return the lines of the error, without the file's folder."""
    path = tmp_path / "run.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **options)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sed: 3", "run.yaml:1: sed is not a setting; did you mean seed?"),
        (
            "learning_rate: 1",
            "run.yaml:1: learning_rate is not a setting; "
            "did you mean tune.learning_rate or distill.learning_rate?",
        ),
        (
            "distill:\n  temprature: 2",
            "run.yaml:2: distill.temprature is not a setting; did you mean temperature?",
        ),
        (
            "data:\n  type: massive\n  task: [slot]",
            "run.yaml:3: data.task is not a setting of data type massive; did you mean tasks?",
        ),
        (
            "data: {columns: {}}",
            "run.yaml:1: data.columns is not a setting of data type demo; valid settings are weight, type, "
            "english_items",
        ),
        (
            "data: {type: masive}",
            'run.yaml:1: data.type is "masive"; it must be demo, massive, sib200, xnli, pawsx, mlqa, '
            "topic, parallel, chat or table; did you mean massive?",
        ),
        (
            "data:\n- {type: massive}\n- {type: xnli, english_itms: 3}",
            "run.yaml:3: data.english_itms is not a setting of data type xnli; did you mean english_items?",
        ),
        (
            "data:\n- {type: massive}\n- {type: xcopa}",
            'run.yaml:3: data.type is "xcopa"; it must be demo, massive, sib200, xnli, pawsx, mlqa, '
            "topic, parallel, chat or table",
        ),
        (
            "data: [{type: massive}, {type: xnli, weight: 0}]",
            "run.yaml:1: data.weight is 0; it must be a number above 0",
        ),
        ("data: {type: massive, weight: 2}", "run.yaml:1: data.weight must be 1 with a single source"),
        ("data: [{type: xnli}, {type: xnli}]", "run.yaml:1: data contains xnli twice; name each source once"),
        (
            "parallel_text:\n- {type: tatoeba, item: 3}",
            "run.yaml:2: parallel_text.item is not a setting; did you mean items?",
        ),
        ("data: {type: parallel}", "run.yaml:1: data.path is missing; it must be a path"),
        (
            "data: {type: table, path: a, columns: {table: 3}}",
            "run.yaml:1: data.columns.table is 3; it must be a string; put it in quotes",
        ),
        (
            "languages:\n  items: {hihg: 3}",
            "run.yaml:2: languages.items.hihg is not a setting; did you mean high?",
        ),
        (
            "languages: {targets: [sw, sww]}",
            "run.yaml:1: languages.targets: 'sww' is not a known language code; "
            "use one such as sw, swh_Latn or Swahili",
        ),
        (
            "languages:\n  targets:\n  - sw\n  - eng",
            "run.yaml:4: languages.targets: English is the source language; leave it out",
        ),
        (  # English always agrees with itself
            "evaluate: {also: [bg, en]}",
            "run.yaml:1: evaluate.also: English is the source language; leave it out",
        ),
        (
            "languages: {targets: []}",
            "run.yaml:1: languages.targets is []; it must be a list with at least one entry",
        ),
        (
            "languages: {middle: [es]}",
            "run.yaml:1: languages.middle was removed: resource classes now come from the registry "
            "(`isogloss languages`); use languages.amounts to set the amount of single languages",
        ),
        (
            "languages:\n  amounts: {sww: 3}",
            "run.yaml:2: languages.amounts.sww: 'sww' is not a known language code; "
            "use one such as sw, swh_Latn or Swahili",
        ),
        (
            "languages:\n  amounts: {sw: many}",
            'run.yaml:2: languages.amounts.sw is "many"; it must be a whole number of at least 1',
        ),
        ("tune: {learning_rate: 0}", "run.yaml:1: tune.learning_rate is 0; it must be a number above 0"),
        (
            "tune: {selection: {keep: 0}}",
            "run.yaml:1: tune.selection.keep is 0; it must be a number above 0 and at most 1",
        ),
        ("tune: {learning_rate: .nan}", "run.yaml:1: tune.learning_rate is NaN; it must be a number above 0"),
        (
            'tune: {learning_rate: "1"}',
            'run.yaml:1: tune.learning_rate is "1"; it must be a number above 0, without quotes',
        ),
        (
            "tune: {batch_size: 2.5}",
            "run.yaml:1: tune.batch_size is 2.5; it must be a whole number of at least 1",
        ),
        (
            "tune: {batch_size: true}",
            "run.yaml:1: tune.batch_size is true; it must be a whole number of at least 1",
        ),
        (
            "tune: {gradient_accumulation_steps: 5}",
            "run.yaml:1: tune.gradient_accumulation_steps must divide batch_size, which is 32",
        ),
        (
            "tune: {selection: 3}",
            "run.yaml:1: tune.selection is 3; it must be a mapping of the settings enabled, keep, max_chars",
        ),
        (
            "tune: {selection: {keep: 2}}",
            "run.yaml:1: tune.selection.keep is 2; it must be a number above 0 and at most 1",
        ),
        (
            "tune: {selection: {enabled: 1}}",
            "run.yaml:1: tune.selection.enabled is 1; it must be true or false",
        ),
        (
            "distill: {adapter: {ranks: {root: -1}}}",
            "run.yaml:1: distill.adapter.ranks.root is -1; it must be a whole number of at least 0",
        ),
        (
            "distill: {kl_weight: 0, ce_weight: 0, similarity_weight: 0}",
            "run.yaml:1: distill.kl_weight must be above 0 if ce_weight and similarity_weight are 0",
        ),
        (
            "shard: true\ntune: {method: full}",
            "run.yaml:2: tune.method must be lora with shard, which only shards frozen weights",
        ),
        (
            "shard: true\nfour_bit: true\ntune: {method: lora}",
            "run.yaml:2: four_bit must be false with shard; use one of them for a large model",
        ),
        (
            "compile: true\nshard: true\ntune: {method: lora}",
            "run.yaml:2: shard must be false with compile, which needs whole layers",
        ),
        (
            "evaluate: {suites: demo}",
            'run.yaml:1: evaluate.suites is "demo"; it must be a list with at least one entry, '
            "for example [demo]",
        ),
        (
            "evaluate: {suites: [flores]}",
            'run.yaml:1: evaluate.suites contains "flores"; each must be demo, massive, flores101, '
            "ntrex, translation, xnli, pawsx, sib200, xcopa, xquad, mlqa, xglue, language_confusion or "
            "parallel; did you mean flores101?",
        ),
        (
            "languages: {tree: 3}",
            "run.yaml:1: languages.tree is 3; it must be families, random, flat, shared or a path",
        ),
        (
            "languages:\n  amounts: {sw: 3, swh_Latn: 5}",
            "run.yaml:2: languages.amounts: sw and swh_Latn are the same language; keep one of them",
        ),
        ('run: ""', "run.yaml:1: run: names no folder; write . for the working directory"),
        (
            r'run: "\ud83d"',
            "run.yaml: a text has half a character (a lone surrogate); write it in UTF-8",
        ),
        (
            f"x: {'[' * 3000}",
            "run.yaml:1: not YAML (nested more than 50 deep); write settings as name: value",
        ),
        ("model: 3", "run.yaml:1: model is 3; it must be a non-empty string; put it in quotes"),
        ("seed: -1", "run.yaml:1: seed is -1; it must be a whole number between 0 and 4294967295"),
        ("seed: 1\n\nseed: 2", "run.yaml:3: seed was already set at run.yaml:1; keep one of them"),
        (
            "a: &x 1\nb: *x",
            "run.yaml:2: not YAML (aliases are not allowed; write the value out); "
            "write settings as name: value",
        ),
        (
            "tune: [1",
            "run.yaml:1: not YAML (expected ',' or ']', but got '<stream end>'); "
            "write settings as name: value",
        ),
        ("- 1", "run.yaml:1: not a mapping; write settings as name: value"),
        (
            "seed: !!int x",
            "run.yaml: not YAML (invalid literal for int() with base 10: 'x'); write settings as name: value",
        ),
    ],
)
def test_an_invalid_setting_gives_one_line_with_its_location_and_a_fix(text, line, tmp_path):
    """Union tags never show, settings have the names that the user wrote, and the line says what is valid."""
    assert refused(text, tmp_path) == [line]


MUTE = "has no effect with kl_weight 0, as no prompt is distilled; set distill.kl_weight above 0"
SERVER = "kl_weight: 1, teacher: {type: server, url: 'http://a/v1', model: m}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "distill: {texts: a.yaml}",
            f"distill.texts {MUTE}",
        ),
        ("distill: {require_texts: true}", f"distill.require_texts {MUTE}"),
        ("distill: {teacher_reads: [texts]}", f"distill.teacher_reads {MUTE}"),
        ("distill: {divergence: reverse}", f"distill.divergence {MUTE}"),
        ("distill: {temperature: 2}", f"distill.temperature {MUTE}"),
        ("distill: {top_k: 8}", "distill.top_k has no effect with signal hidden"),
        (
            "distill: {signal: top_k, replay_fraction: 0}",
            "distill.signal has no effect with kl_weight and replay_fraction 0, "
            "as no teacher output is used",
        ),
        (
            "distill: {kl_weight: 1, teacher_reads: [twin], texts: a.yaml}",
            "distill.texts has no effect unless distill.teacher_reads includes texts",
        ),
        (
            f"distill: {{{SERVER}, signal: top_k}}",
            "distill.signal has no effect if another model scores the tokens (always as top_k)",
        ),
        (
            f"distill: {{{SERVER}, top_k: 8}}",
            "distill.top_k has no effect if another model scores the tokens; set teacher.top_k",
        ),
        (
            "distill: {similarity_weight: 0, similarity_temperature: 0.1}",
            "distill.similarity_temperature has no effect with similarity_weight 0",
        ),
        (
            "distill: {similarity_weight: 0, similarity_decay: 0}",
            "distill.similarity_decay has no effect with similarity_weight 0",
        ),
        (
            "distill: {similarity_weight: 0, similarity_layer: 3}",
            "distill.similarity_layer has no effect with similarity_weight 0",
        ),
        (
            "distill: {kl_weight: 1, teacher: {type: model, path: a/b, max_new_tokens: 9}}",
            "distill.teacher.max_new_tokens has no effect with level token, which writes no responses",
        ),
        (
            "distill: {teacher: {type: model, path: a/b, level: sequence, top_k: 9}}",
            "distill.teacher.top_k has no effect with level sequence, which scores no tokens",
        ),
        (
            "tune: {vary_wording: true}",
            "tune.vary_wording must be false unless data includes massive, sib200, xnli or pawsx, "
            "as no other task has several wordings",
        ),
        ("tune: {lora_rank: 8}", "tune.lora_rank has no effect with method full; use lora"),
        (
            "tune: {selection: {enabled: false, max_chars: 9}}",
            "tune.selection.max_chars has no effect if enabled is false",
        ),
        (
            "evaluate: {also: [bg, sw]}",
            "evaluate.also contains bg, sw, already in languages.targets",
        ),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(text, says, tmp_path):
    """Whoever sets it expects something that would not happen."""
    assert refused(text, tmp_path) == [f"run.yaml:1: {says}"]


@pytest.mark.parametrize(
    "distill",
    [
        "{kl_weight: 1, texts: a.yaml, teacher_reads: [texts], divergence: reverse}",
        "{signal: top_k, top_k: 8}",  # English replay rows use the model's own output
        "{teacher: {type: model, path: a/b, level: sequence}, teacher_reads: [texts], texts: a.yaml}",
        "{temperature: 1, top_k: 32}",  # the defaults
    ],
)
def test_a_setting_with_an_effect_is_accepted(distill, tmp_path):
    """Another loss term or the teacher uses it, or it equals the default. It survives a dump and load."""
    (tmp_path / "run.yaml").write_text(f"distill: {distill}")
    config = load_config(tmp_path / "run.yaml")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_a_tilde_is_expanded_in_every_path(tmp_path, monkeypatch):
    """Paths and model folders are expanded at any level; any other tilde stays."""
    monkeypatch.setenv("HOME", "/home/ada")
    config = load_config(
        None,
        [
            "run=~/r", "model=~/m", "data_root=~/d", "data={type: table, path: ~/t, columns: {}}",
            "languages.tree=~/tree.yaml", "distill.kl_weight=1", "distill.texts=~/x", "distill.cache=~/c",
            "distill.teacher={type: model, path: ~/big}", "evaluate.xglue.path=~/g",
            "evaluate.parallel.path=~/p",
        ],
    )  # fmt: skip
    assert [
        config.run, config.model, config.data_root, getattr(config.data, "path", None),
        config.languages.tree, config.distill.texts, config.distill.cache,
        getattr(config.distill.teacher, "path", None), config.evaluate.xglue.path,
        config.evaluate.parallel.path,
    ] == [
        Path("/home/ada/r"), "/home/ada/m", Path("/home/ada/d"), Path("/home/ada/t"),
        Path("/home/ada/tree.yaml"), Path("/home/ada/x"), Path("/home/ada/c"), "/home/ada/big",
        Path("/home/ada/g"), Path("/home/ada/p"),
    ]  # fmt: skip
    monkeypatch.setenv("ISOGLOSS_DATA", "~/data")
    assert root_of_environment() == Path("/home/ada/data")
    assert load_config(None, ["model=no/~one", "run=~no-such-user/r"]).run == Path("~no-such-user/r")


def test_every_path_setting_expands_a_tilde():
    """Every setting of type Path is validated by `home`."""
    plain = [
        f"{kind.__name__}.{name}"
        for kind in classes(Settings)
        for name, field in kind.model_fields.items()
        if Path in (field.annotation, *get_args(field.annotation)) and home not in notes(field)
    ]
    assert plain == []


def notes(field) -> list:
    """Return the functions that validate a field's value, also inside a union."""
    parts = [field, *get_args(field.annotation)]
    return [
        getattr(note, "func", None)
        for part in parts
        for note in (*getattr(part, "metadata", ()), *getattr(part, "__metadata__", ()))
    ]


@pytest.mark.parametrize(
    "setting", ["max_prompt_length=9", "similarity_temperature=0.1", "similarity_decay=0"]
)
def test_an_added_language_may_have_its_own_training_settings(setting):
    """Settings that it shares with the run's other languages are refused."""
    refuse_shared([f"distill.{setting}"])
    with pytest.raises(ConfigError, match=r"^--set seed=3: seed is fixed for the whole run"):
        refuse_shared([f"distill.{setting}", "seed=3"])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set seed: write it as name=value, for example --set distill.epochs=2"),
        ("=3", "--set =3: write it as name=value, for example --set distill.epochs=2"),
        ("seed.x=1", "--set seed.x=1: seed is not a mapping; write --set seed=value"),
        (
            "tune.learning_rate=-1",
            "--set tune.learning_rate=-1: tune.learning_rate is -1; it must be a number above 0",
        ),
        ("a=[1", "--set a=[1: the value is not YAML (expected ',' or ']', but got '<stream end>'); quote it"),
        (
            "a=!!int x",
            "--set a=!!int x: the value is not YAML (invalid literal for int() with base 10: 'x'); quote it",
        ),
        ("data.type=chat", "--set data.type=chat: data.path is missing; it must be a path"),
    ],
)
def test_an_invalid_override_is_reported_at_its_option(override, line, tmp_path):
    """The error names --set even if the file sets the same setting."""
    assert refused("seed: 1\ntune: {learning_rate: 0.1}", tmp_path, override) == [line]


def test_all_errors_are_reported_together_in_the_order_of_the_file(tmp_path):
    """One run of the command shows everything that must be fixed."""
    assert refused(
        "tune: {learning_rate: 0}\nsed: 1\nlanguages: {targets: [xx, en]}", tmp_path, "dtype=x"
    ) == [
        "run.yaml:1: tune.learning_rate is 0; it must be a number above 0",
        "run.yaml:2: sed is not a setting; did you mean seed?",
        "run.yaml:3: languages.targets: 'xx' is not a known language code; "
        "use one such as sw, swh_Latn or Swahili",
        "run.yaml:3: languages.targets: English is the source language; leave it out",
        '--set dtype=x: dtype is "x"; it must be auto, float32 or bfloat16',
    ]


def test_a_missing_file_or_folder_is_named(tmp_path, monkeypatch):
    """Paths are only checked with `places`, so a finished run still loads when its data is gone."""
    monkeypatch.delenv("ISOGLOSS_DATA", raising=False)
    text = (
        f"run: {tmp_path}/run.yaml\nmodel: {tmp_path}/base\ndata: {{type: chat, path: {tmp_path}/a.jsonl}}\n"
        f"distill: {{texts: {tmp_path}/t.yaml}}\nevaluate: {{suites: [demo, xnli]}}\n"
    )
    assert refused(text, tmp_path, places=True) == [
        "run.yaml:1: run is run.yaml, which is a file; name a folder",
        f"run.yaml:2: model is {tmp_path}/base; there is no such folder".replace(f"{tmp_path}/", ""),
        "run.yaml:3: data.path is a.jsonl; there is no such file",
        "run.yaml:4: distill.texts is t.yaml; there is no such file",
        "run.yaml:5: evaluate.suites contains xnli, which needs a data root; "
        "set data_root, --data-root or ISOGLOSS_DATA",
    ]
    assert load_config(tmp_path / "run.yaml").model == f"{tmp_path}/base"


@pytest.mark.parametrize(
    ("distill", "line"),
    [
        ("teacher: {type: model, path: FOLDER/large}", "distill.teacher.path is large; there is no model"),
        ("teacher: {type: model, path: FOLDER/t.gguf}", "distill.teacher.path is t.gguf; there is no model"),
        (
            "teacher: {type: server, url: 'http://a/v1', model: m, key_env: NO_KEY}",
            "distill.teacher.key_env names an environment variable that is not set; put the key there",
        ),
        ("cache: FOLDER/run.yaml", "distill.cache is run.yaml, which is a file; name a folder"),
    ],
)
def test_a_teacher_that_is_not_available_is_refused(distill, line, tmp_path, monkeypatch):
    """A folder without a model counts as missing, and an empty variable as not set."""
    (tmp_path / "large").mkdir()
    monkeypatch.setenv("NO_KEY", "")
    text = f"distill:\n  kl_weight: 1.0\n  {distill}\n".replace("FOLDER", str(tmp_path))
    assert refused(text, tmp_path, places=True) == [f"run.yaml:3: {line}"]
    load_config(tmp_path / "run.yaml")


def test_a_tree_that_is_not_a_shape_must_be_a_file(tmp_path):
    """A misspelt shape is taken for a file, so the error mentions both."""
    assert refused("languages: {tree: familes}\n", tmp_path, places=True) == [
        "run.yaml:1: languages.tree is familes; it is neither a file nor one of "
        "families, random, flat, shared",
    ]
    assert load_config(tmp_path / "run.yaml").languages.tree == Path("familes")


def test_topic_data_needs_a_data_root(tmp_path, monkeypatch):
    """Its sentences are stored there."""
    monkeypatch.delenv("ISOGLOSS_DATA", raising=False)
    with pytest.raises(
        ConfigError, match=r"data\.type topic needs a data root; set data_root, --data-root or"
    ):
        load_config(None, ["data=[{type: demo}, {type: topic}]", f"run={tmp_path}/run"], places=True)


def test_a_missing_data_root_is_refused(tmp_path, monkeypatch):
    """The error says whether the option or the environment named it."""
    gone = tmp_path / "gone"
    for option, where in (({"data_root": gone}, f"--data-root {gone}: data_root"), ({}, "ISOGLOSS_DATA")):
        monkeypatch.setenv("ISOGLOSS_DATA", str(gone))
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=["data.type=massive"], places=True, **option)
        assert str(caught.value) == f"{where} is {gone}; there is no such folder"


def test_a_missing_config_suggests_a_similar_name(tmp_path):
    """A folder has its own message."""
    (tmp_path / "massive.yaml").touch()
    for name, says in (
        ("masive.yaml", f"{tmp_path}/masive.yaml does not exist; did you mean {tmp_path}/massive.yaml?"),
        ("x", f"{tmp_path}/x does not exist; name a YAML file of settings"),
        ("", f"{tmp_path} is a folder without config.yaml; name a YAML file of settings"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert str(caught.value) == says


def test_overrides_are_yaml_and_lists_are_replaced():
    """Scalars follow YAML 1.2 (1e-3 is a number, no is text); language codes are normalised and unique."""
    config = load_config(
        overrides=[
            "tune.learning_rate=1e-3",
            "languages.targets=[swh_Latn, nb, sw]",
            "model=no",
            "data.type=massive",
        ]
    )
    assert (config.tune.learning_rate, config.languages.targets, config.model) == (0.001, ("sw", "nb"), "no")
    assert config.data.type == "massive"


def test_amounts_not_given_keep_their_defaults():
    """A single class can be changed alone."""
    amount = load_config(overrides=["languages.items.high=16"]).languages.amount
    assert [amount(code) for code in ("fr", "hi", "th", "sw", "pt")] == [16, 16, 192, 48, 16]


def test_amounts_follow_the_resource_class_of_the_registry():
    """Every language has one of Joshi et al.'s classes; `languages.amounts` overrides it."""
    amount = load_config().languages.amount
    assert {code: amount(code) for code in XGLUE_TWELVE} == {
        "ar": 512, "es": 512, "fr": 512, "hi": 512, "ru": 512, "tr": 512, "vi": 512,
        "bg": 192, "el": 192, "th": 192, "ur": 192, "sw": 48,
    }  # fmt: skip
    assert [amount(code) for code in ("pt", "it", "ja", "ko", "pl", "nl")] == [512] * 6
    own = load_config(overrides=["languages.amounts={swh_Latn: 100}", "languages.items.low=7"]).languages
    assert [own.amount(code) for code in ("sw", "am", "fr")] == [100, 7, 512]


def test_languages_are_low_resource_by_class_or_by_a_small_amount():
    """If low-resource languages get more items than others, amounts are ignored."""
    scarce = load_config(overrides=["languages.amounts={ur: 48, hi: 192}"]).languages
    assert [code for code in XGLUE_TWELVE if scarce.is_low(code)] == ["sw", "ur"]
    more = ["languages.items={high: 1200, middle: 1200, low: 4200}", "languages.amounts={ur: 3000, fr: 900}"]
    assert [code for code in XGLUE_TWELVE if load_config(overrides=more).languages.is_low(code)] == ["sw"]


def test_an_amount_for_an_untaught_language_is_refused(tmp_path):
    """It would have no effect."""
    assert refused("languages: {targets: [sw], amounts: {ur: 9}}", tmp_path, places=True) == [
        "run.yaml:1: languages.amounts names ur, which is not among languages.targets"
    ]


@pytest.mark.parametrize("path", [None, *EXAMPLES], ids=lambda p: p.stem if p else "default")
def test_every_example_survives_a_dump_and_load(path, tmp_path):
    """Strings that look like numbers survive too."""
    config = load_config(path, ["tune.learning_rate=0.00001", 'model="1e3"'])
    (tmp_path / "config.yaml").write_text(dump_config(config), "utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert dump_config(load_config(tmp_path / "config.yaml")) == dump_config(config)


def test_the_examples_of_the_guide_exist():
    assert [path.stem for path in EXAMPLES] == ["files", "massive", "qwen", "real-parallel", "real"]


def classes(kind: type) -> set[type]:
    return {kind} | {below for child in kind.__subclasses__() for below in classes(child)}


@pytest.mark.parametrize("kind", sorted(classes(Settings) - {Settings}, key=lambda kind: kind.__name__))
def test_every_setting_is_documented_and_frozen(kind):
    """The docstring under a field is its manual."""
    assert [name for name, field in kind.model_fields.items() if not field.description] == []
    assert kind.model_config["frozen"] and kind.model_config["strict"] and kind.__doc__


def test_without_a_file_the_defaults_load():
    assert load_config() == Config()


def test_settings_do_not_import_torch():
    """Errors in a file are reported before slow imports."""
    code = "import sys, isogloss.config; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_missing_file_of_a_suite_is_refused(tmp_path):
    """XGLUE and parallel files have path settings; with XGLUE's, no data root is needed."""
    text = f"evaluate:\n  suites: [xglue, parallel]\n  xglue: {{path: {tmp_path}/x.tar.gz}}\n"
    assert refused(text, tmp_path, places=True) == [
        "run.yaml:3: evaluate.xglue.path is x.tar.gz; there is no such file or folder",
        "run.yaml:2: evaluate.suites contains parallel, which needs a file; set evaluate.parallel.path",
    ]


def test_several_sources_survive_a_dump_and_load(tmp_path):
    """With a single source, `sources` has one entry."""
    text = "data: [{type: massive, weight: 2.0}, {type: xnli}]\nparallel_text: [{type: tatoeba}]\n"
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml")
    assert [(one.type, one.weight) for one in config.sources] == [("massive", 2.0), ("xnli", 1.0)]
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert [one.type for one in load_config().sources] == ["demo"]


def test_a_missing_file_of_one_of_several_sources_is_refused(tmp_path):
    text = f"data:\n- {{type: demo}}\n- {{type: parallel, path: {tmp_path}/x.jsonl}}\n"
    assert refused(text, tmp_path, places=True) == ["run.yaml:3: data.path is x.jsonl; there is no such file"]


def test_each_source_without_a_data_root_is_named_at_its_line(tmp_path, monkeypatch):
    monkeypatch.delenv("ISOGLOSS_DATA", raising=False)
    way = "needs a data root; set data_root, --data-root or ISOGLOSS_DATA"
    assert refused("data:\n- type: massive\n- type: xnli\n", tmp_path, places=True) == [
        f"run.yaml:2: data.type massive {way}",
        f"run.yaml:3: data.type xnli {way}",
    ]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("key_env=sk-1", "key_env must be the name of an environment variable, not the key itself"),
        ("url=http://me:sk-1@a/v1", "url must be http(s)://…/v1, without a user name or key"),
    ],
)
def test_a_key_is_never_shown(setting, says, tmp_path):
    """Neither in the message nor in the option that it repeats; the same holds for a file."""
    name, _, value = setting.partition("=")
    teacher = {"type": "server", "url": "http://a/v1", "model": "m"}
    text = f"distill: {{kl_weight: 1, teacher: {teacher}}}"
    option = f"--set distill.teacher.{name}=…: "
    assert refused(text, tmp_path, f"distill.teacher.{setting}") == [f"{option}distill.teacher.{says}"]
    text = f"distill: {{kl_weight: 1, teacher: {teacher | {name: value}}}}"
    assert refused(text, tmp_path) == [f"run.yaml:1: distill.teacher.{says}"]


def test_settings_of_a_suite_that_is_not_measured_are_refused(tmp_path):
    """Only in new settings: in a run, `evaluate --suite` measures others than the settings name."""
    text = (
        "evaluate:\n  likelihood: [xnli, flores101]\n  parallel: {path: RUN}\n"
        "  xglue: {skip_missing: true}\n  translation: {spbleu: false}\n"
    ).replace("RUN", str(tmp_path / "run.yaml"))
    what = "has no effect unless evaluate.suites contains"
    assert refused(text, tmp_path, places=True) == [
        "run.yaml:2: evaluate.likelihood contains xnli; add it to evaluate.suites, or leave it out here",
        "run.yaml:2: evaluate.likelihood contains flores101, which has no closed tasks; leave it out",
        f"run.yaml:4: evaluate.xglue {what} xglue; add it, or leave this out",
        f"run.yaml:5: evaluate.translation {what} translation; add it, or leave this out",
        f"run.yaml:3: evaluate.parallel {what} parallel; add it, or leave this out",
    ]
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path, places=True).evaluate.likelihood == ("xnli", "flores101")


def nested(name: str) -> str:
    """Return YAML that sets a dotted name to 1."""
    *outer, last = name.split(".")
    return "".join(f"{part}: {{" for part in outer) + f"{last}: 1" + "}" * len(outer)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_setting_is_refused_with_its_new_name(old, new, tmp_path):
    """In a file and with --set, the error is one line."""
    assert refused(nested(old), tmp_path) == [f"run.yaml:1: {old} was renamed; write {new}"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{old}=1"])
    assert f"--set {old}=1: {old} was renamed; write {new}" == str(caught.value)


@pytest.mark.parametrize(("name", "why"), GONE.items())
def test_a_removed_setting_is_refused_with_the_reason(name, why, tmp_path):
    """In a file and with --set, the error is one line."""
    assert refused(nested(name), tmp_path) == [f"run.yaml:1: {name} {why}"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{name}=1"])
    assert f"--set {name}=1: {name} {why}" == str(caught.value)


def test_another_type_of_adapter_is_refused_with_the_reason():
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["distill.adapter.type=prefix"])
    assert str(caught.value) == (
        "--set distill.adapter.type=prefix: distill.adapter.type was removed: every adapter is a LoRA; "
        "prefix and embedding did worse (docs/log.md)"
    )


def test_every_new_name_of_a_renamed_setting_exists():
    """Otherwise a user would be sent from one error to the next."""
    entries = load_config().model_dump()
    for new in RENAMED.values():
        at = entries
        for part in new.split("."):
            at = at[part]


def test_a_run_of_an_earlier_release_is_refused_with_every_new_name(tmp_path):
    """Its config.yaml lists all settings: there is one line for each that was renamed or removed."""
    text = "distill:\n  carrier: {type: lora}\n  kl: 0.0\n  hear: all\ntune:\n  lr: 0.001"
    assert refused(text, tmp_path) == [
        "run.yaml:2: distill.carrier was renamed; write distill.adapter",
        "run.yaml:3: distill.kl was renamed; write distill.kl_weight",
        "run.yaml:4: distill.hear was removed: it lowered scores (docs/log.md)",
        "run.yaml:6: tune.lr was renamed; write tune.learning_rate",
    ]


def test_a_run_that_did_not_use_removed_settings_still_opens(tmp_path):
    """A removed setting in its config.yaml is only refused if its value had an effect."""
    (tmp_path / "ledger.json").write_text("{}")
    idle = "adapter: {type: lora}, on_policy: 0.0, level_dropout: 0.0, shrinkage: 0.0"
    text = f"distill: {{{idle}, loraplus_lr_ratio: 1.0, kl_mask: all, epochs: 2}}"
    (tmp_path / "config.yaml").write_text(text)
    found = load_config(tmp_path)
    assert (found.distill.epochs, found.run) == (2, tmp_path)
    (tmp_path / "config.yaml").write_text(text.replace("on_policy: 0.0", "on_policy: 0.25"))
    with pytest.raises(ConfigError, match="on_policy was removed: its steps took longer"):
        load_config(tmp_path)


def test_optimiser_settings_can_be_set_for_both_stages():
    """The stages have the same defaults."""
    config = load_config()
    usual = {"warmup_ratio": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.98, "max_grad_norm": 1.0}
    for stage in (config.tune, config.distill):
        assert {name: getattr(stage, name) for name in usual} == usual
    assert config.tune.weight_decay == 0.01
    changed = load_config(None, ["tune.adam_beta1=0.8", "distill.max_grad_norm=0"])
    assert (changed.tune.adam_beta1, changed.distill.max_grad_norm) == (0.8, 0.0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("distill.weight_decay=0.1", "distill.weight_decay is not a setting: it would also change the nodes"),
        ("tune.adam_beta2=1", "tune.adam_beta2 is 1; it must be a number of at least 0 and below 1"),
        (
            "distill.replay_fraction=1",
            "distill.replay_fraction is 1; it must be a number of at least 0 and below 1",
        ),
        ("distill.warmup_ratio=1.5", "distill.warmup_ratio is 1.5; it must be a number between 0 and 1"),
        ("distill.max_grad_norm=-1", "distill.max_grad_norm is -1; it must be a number of at least 0"),
    ],
)
def test_invalid_optimiser_settings_are_refused(override, says):
    """The error is one line that names the setting."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"--set {override}: {says}") and "\n" not in str(caught.value)
