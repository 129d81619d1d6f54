"""NTREX, translation, XQuAD, language confusion and your own file: instructions, and scores by hand."""

import json
from pathlib import Path

import pytest
from xglue_files import squad

from isogloss.config import ParallelSuite, Translation
from isogloss.config.evaluate import TEST_ONLY
from isogloss.data.formats import flores
from isogloss.errors import DataError
from isogloss.evaluate.confusion import harmonic, lines_pass, words_pass
from isogloss.evaluate.suites import SUITES
from isogloss.evaluate.suites import translation as module

CANDIDATES = ("en", "sw", "th", "ru", "es")


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_suite_without_a_dev_split_says_so(name, tmp_path):
    with pytest.raises(DataError, match=f"has no dev split; remove {name} from evaluate.suites"):
        SUITES[name](tmp_path, "dev", ["es"], 1, 1)


def test_ntrex_reports_no_line_on_which_its_layer_was_chosen(tmp_path):
    """The first 200 lines choose the layer; a language without a file is left out; there is no dev split."""
    for name in ("src.eng", "ref.swa"):
        write(tmp_path / f"NTREX-128/newstest2019-{name}.txt", *(f"{name} {n}" for n in range(210)))
    suite = SUITES["ntrex"](tmp_path, "test", ["sw", "ast"], 0, 4)
    assert len(suite.sentences["sw"]) == 4
    assert set(suite.sentences["sw"]) < {f"ref.swa {n}" for n in range(200, 210)}
    assert [s.split()[-1] for s in suite.sentences["en"]] == [s.split()[-1] for s in suite.sentences["sw"]]
    assert len(suite.layer_sentences["en"]) == 200 and set(suite.sentences) == {"en", "sw"}
    with pytest.raises(DataError, match="NTREX has no dev split; remove ntrex"):
        SUITES["ntrex"](tmp_path, "dev", ["sw"], 0, 4)


@pytest.mark.parametrize(
    ("folder", "english", "chinese"),
    [
        ("flores101_dataset/dev", "eng.dev", "zho_simpl.dev"),
        ("flores200_dataset/dev", "eng_Latn.dev", "zho_Hans.dev"),
        ("floresp-v2.1/dev", "dev.eng_Latn", "dev.cmn_Hans"),
    ],
)
def test_flores_is_read_under_the_names_of_every_release(folder, english, chinese, tmp_path):
    """The code of Chinese in FLORES+ is cmn."""
    write(tmp_path / folder / english, "one", "two")
    write(tmp_path / folder / chinese, "一", "二")
    assert flores.read(tmp_path, "dev", ["en", "zh"]) == {"en": ("one", "two"), "zh": ("一", "二")}
    signed = {
        "flores101_dataset/dev": "101",
        "flores200_dataset/dev": "200",
        "floresp-v2.1/dev": "floresp-v2.1",
    }
    assert SUITES["flores101"](tmp_path, "dev", ["zh"], 0, 1).revision == signed[folder]


def test_flores_plus_is_read_from_json_lines_with_unique_ids(tmp_path):
    """The format of the Hub's first release."""
    for code, text in (("eng_Latn", "one"), ("cmn_Hans", "一")):
        write(tmp_path / f"flores_plus/dev/{code}.jsonl", json.dumps({"id": 7, "text": text}))
    assert flores.read(tmp_path, "dev", ["en", "zh"]) == {"en": ("one",), "zh": ("一",)}
    write(tmp_path / "flores_plus/dev/cmn_Hans.jsonl", '{"id": 7, "text": "一"}', '{"id": 7, "text": "二"}')
    with pytest.raises(DataError, match=r"cmn_Hans.jsonl:2: id 7 occurs twice; keep one row"):
        flores.read(tmp_path, "dev", ["en", "zh"])


@pytest.mark.parametrize("folder", ["flores_plus", "flores_plus_v4.2", "floresp-v4.2"])
def test_flores_plus_is_read_from_parquet_under_its_new_codes(folder, tmp_path):
    """The Hub's format since 2024; an error names the file of the release that is there."""
    import pyarrow
    import pyarrow.parquet

    for code, text in (("eng_Latn", "one"), ("ekk_Latn", "üks"), ("fil_Latn", "isa")):
        rows = [{"id": 0, "iso_639_3": code[:3], "text": text}, {"id": 1, "iso_639_3": code[:3], "text": "2"}]
        path = tmp_path / folder / "devtest" / f"{code}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert flores.read(tmp_path, "devtest", ["en", "est", "ekk_Latn", "tl"]) == {
        "en": ("one", "2"),
        "et": ("üks", "2"),
        "tl": ("isa", "2"),
    }
    with pytest.raises(DataError) as error:
        flores.read(tmp_path, "devtest", ["en", "zh"])
    missing = tmp_path / folder / "devtest" / "cmn_Hans.parquet"
    says = "no such file, so FLORES devtest has no zh here; put it there or leave it out"
    assert str(error.value) == f"{missing}: {says}"


@pytest.fixture
def translated(tmp_path):
    write(tmp_path / "flores101_dataset/dev/eng.dev", "The cat sat on it.", "It rained all day.")
    write(tmp_path / "flores101_dataset/dev/swh.dev", "Paka alikaa juu yake.", "Mvua ilinyesha siku nzima.")
    write(tmp_path / "flores101_dataset/dev/nld.dev", "De kat zat erop.", "Het regende de hele dag.")
    return tmp_path


def test_translation_asks_both_ways_and_scores_the_corpus(translated):
    """References score 1, and an empty answer costs; a language without templates is asked in English."""
    options = Translation(spbleu=False)
    suite = SUITES["translation"](translated, "dev", ["sw", "nl"], 10, 0, options=options)
    turns = {item.id: item.turns for item in suite.items}
    assert list(turns) == ["from_english-1", "to_english-1", "from_english-2", "to_english-2"]
    assert turns["from_english-1"]["nl"].instruction == "Translate into Dutch: The cat sat on it."
    assert "Paka alikaa juu yake." in turns["to_english-1"]["sw"].instruction
    assert suite.items[1].answer_language == {"sw": "en", "nl": "en"}
    answers = {code: {id: by[code].response for id, by in turns.items()} for code in ("sw", "nl")}
    answers["nl"]["to_english-2"] = ""
    found = suite.score(answers | {"en": {}})
    assert found.tasks["from_english"]["chrf++"]["mean"] == pytest.approx(1.0)
    assert found.tasks["to_english"]["chrf++"]["languages"]["sw"] == pytest.approx(1.0)
    assert found.tasks["to_english"]["chrf++"]["languages"]["nl"] < 0.8
    assert found.more["unreadable"]["to_english"] == {"sw": 0, "nl": 1}
    assert found.more["signatures"]["chrf++"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|")


def test_the_items_of_translation_count_both_directions(translated):
    suite = SUITES["translation"](translated, "dev", ["sw"], 2, 0, options=Translation(spbleu=False))
    assert [item.task for item in suite.items] == ["from_english", "to_english"]
    assert suite.revision == "101"


def test_without_its_model_spbleu_is_refused_before_anything_runs(translated, monkeypatch, tmp_path):
    """The message names the missing file and the fix."""

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.download_file", no_network)
    monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(DataError) as error:
        SUITES["translation"](translated, "dev", ["sw"], 10, 0)
    assert str(error.value) == (
        f"spBLEU cannot be computed: its model {tmp_path}/models/sacrebleu_tokenizer_spm.model is missing "
        "and cannot be downloaded; put it there, or set evaluate.translation.spbleu=false"
    )


def test_xquad_is_scored_like_mlqa(tmp_path):
    """Spanish articles are dropped; a partial answer counts by its tokens: 2·1/(1+2)."""
    write(tmp_path / "xquad/xquad.en.json", squad(("1", "A red cat.", "What?", "A red cat")))
    write(tmp_path / "xquad/xquad.es.json", squad(("1", "Un gato rojo.", "¿Qué?", "Un gato rojo")))
    suite = SUITES["xquad"](tmp_path, "test", ["es", "sw"], 10, 0)
    assert suite.items[0].turns["es"].instruction == "Un gato rojo.\n\nResponde con palabras del texto: ¿Qué?"
    found = suite.score({"en": {"1": "the red cat"}, "es": {"1": "gato"}})
    assert found.tasks["xquad"]["f1"]["languages"] == {"en": 1.0, "es": pytest.approx(2 / 3)}
    assert found.tasks["xquad"]["exact_match"]["languages"] == {"en": 1.0, "es": 0.0}
    write(tmp_path / "xquad/xquad.es.json", squad(("2", "Un gato rojo.", "¿Qué?", "gato")))
    with pytest.raises(DataError, match="question 1 exists in en or in es, but not in both"):
        SUITES["xquad"](tmp_path, "test", ["es"], 10, 0)


@pytest.mark.parametrize(
    ("text", "language", "passes"),
    [
        ("", "sw", False),  # the benchmark skips empty answers
        ("...", "sw", False),
        ("Привет, как у тебя дела сегодня", "ru", True),
        ("Привет, как у тебя дела сегодня\nI am fine and you are too", "ru", False),
        ("Привет, как у тебя дела сегодня\nI am fine", "ru", True),  # under five tokens
        ("Привет, как у тебя дела сегодня\nQ: and what else is there to say", "ru", True),  # cut off at Q:
        ("Да", "ru", True),  # no line of five tokens: judged as a whole
        ("Yes", "ru", False),
        ("สวัสดีครับวันนี้อากาศดีมาก", "th", True),  # one word if split at spaces
        ("Hello there, the weather is good today", "th", False),
    ],
)
def test_lines_pass_if_all_long_ones_are_in_the_language(text, language, passes):
    """Decided by the script where possible."""
    assert lines_pass(text, language, candidates=CANDIDATES) is passes


@pytest.mark.parametrize(
    ("text", "language", "passes"),
    [
        ("Мы идём домой", "ru", True),
        ("Мы go домой", "ru", True),  # not longer than three letters
        ("Мы went домой", "ru", False),
        ("Мы любим Python", "ru", True),  # not lower-case
        ("we go home", "es", None),
    ],
)
def test_words_pass_without_english_ones(text, language, passes):
    """Only decided in other scripts than Latin."""
    assert words_pass(text, language) is passes


def test_both_rates_are_combined_by_their_harmonic_mean():
    """2 · ½ · 1 / 1.5; lines only if words are not decided."""
    assert harmonic(0.5, 1.0) == pytest.approx(2 / 3) and harmonic(0.5, None) == 0.5
    assert harmonic(0.0, 0.0) == 0.0


def test_confusion_is_averaged_over_sources_then_languages(tmp_path):
    """Russian lines: ½ in one source and 1 in the other, so ¾. Words of passing answers: 1 and ½."""
    folder = tmp_path / "language_confusion/test_sets/monolingual"
    write(folder / "a/ru.csv", "prompt,source,language", '"Раз,\nдва",a,ru', "Три,a,ru")
    write(folder / "b/ru.csv", "prompt,source,language", "Четыре,b,ru", "Пять,b,ru")
    write(folder / "b/es.csv", "prompt,source,language", "Cinco,b,es")
    suite = SUITES["language_confusion"](tmp_path, "dev", ["ru", "es"], 10, 0)
    assert [item.id for item in suite.items] == [
        "monolingual-a-ru-1", "monolingual-a-ru-2", "monolingual-b-ru-1", "monolingual-b-ru-2",
        "monolingual-b-es-1",
    ]  # fmt: skip
    assert suite.items[0].turns["ru"].instruction == "Раз,\nдва" and suite.items[0].longest == 100
    found = suite.score(
        {
            "ru": {
                "monolingual-a-ru-1": "Да, конечно", "monolingual-a-ru-2": "",
                "monolingual-b-ru-1": "Да, really так и будет всегда", "monolingual-b-ru-2": "Нет",
            },
            "es": {"monolingual-b-es-1": "No lo sé, amigo mío, de verdad que no lo sé"},
        }
    ).tasks["monolingual"]  # fmt: skip
    assert found["lpr"]["languages"] == {"ru": 0.75, "es": 1.0} and found["lpr"]["mean"] == 0.875
    assert found["wpr"]["languages"] == {"ru": 0.75}
    # a: 2·½·1/1.5 = 2/3; b: 2·1·½/1.5 = 2/3
    assert found["lcpr"]["languages"]["ru"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["prompt,lang", "Uno,es"], "es.csv:1: the header has no column language; did you mean lang?"),
        (["prompt,language", "Uno,ru"], "es.csv:2: the language is 'ru', but the file is for es"),
        (["prompt,language", '" ",es'], "es.csv:2: the prompt is empty; leave the row out"),
        (["prompt,language"], "es.csv: the file is empty; it must contain prompts"),
    ],
)
def test_damaged_prompts_of_language_confusion_are_refused(lines, says, tmp_path):
    write(tmp_path / "language_confusion/monolingual/a/es.csv", *lines)
    with pytest.raises(DataError) as error:
        SUITES["language_confusion"](tmp_path, "dev", ["es"], 10, 0)
    assert str(error.value).endswith(says)


def test_a_blank_response_of_your_own_file_counts_as_none(tmp_path):
    row = {
        "id": "1",
        "en": {"instruction": "Hi", "response": "Ho"},
        "sw": {"instruction": "Je", "response": ""},
    }
    path = write(tmp_path / "own.jsonl", json.dumps(row))
    (item,) = SUITES["parallel"](None, "dev", ["sw"], 10, 10, options=ParallelSuite(path=path)).items
    assert sorted(item.measures) == ["consistency", "fidelity"]
    assert item.turns["sw"].response is None


def test_your_own_file_is_a_suite(tmp_path):
    """Accuracy only if every response is there; no retrieval from fewer than 40 instructions."""
    rows = [
        {
            "id": "1",
            "en": {"instruction": "Hi", "response": "Ho"},
            "sw": {"instruction": "Je", "response": "Ho"},
        },
        {"id": "2", "en": {"instruction": "Bye", "response": "Oh"}, "sw": {"instruction": "Kwa"}},
        {"id": "3", "en": {"instruction": "Only English"}},
    ]
    path = write(tmp_path / "own.jsonl", *map(json.dumps, rows))
    suite = SUITES["parallel"](None, "dev", ["sw"], 10, 10, options=ParallelSuite(path=path))
    assert [(item.id, sorted(item.measures)) for item in suite.items] == [
        ("1", ["accuracy", "consistency", "fidelity"]), ("2", ["consistency", "fidelity"]),
    ]  # fmt: skip
    assert suite.sentences == {}
    more = [{"id": n, "en": {"instruction": f"e {n}"}, "sw": {"instruction": f"s {n}"}} for n in range(40)]
    write(path, *map(json.dumps, more))
    suite = SUITES["parallel"](None, "dev", ["sw"], 10, 10, options=ParallelSuite(path=path))
    assert len(suite.layer_sentences["sw"]) == len(suite.sentences["en"]) == 10
    assert not set(suite.layer_sentences["sw"]) & set(suite.sentences["sw"])
    assert set(suite.layer_sentences["sw"]) != {f"s {n}" for n in range(10)}  # not the first ones
    write(path, *map(json.dumps, more), *(json.dumps({**row, "id": f"again {row['id']}"}) for row in more))
    twice = SUITES["parallel"](None, "dev", ["sw"], 10, 10, options=ParallelSuite(path=path))
    assert (twice.sentences, twice.layer_sentences) == (suite.sentences, suite.layer_sentences)
    with pytest.raises(DataError, match="no example has both English and one of ur"):
        SUITES["parallel"](None, "dev", ["ur"], 10, 10, options=ParallelSuite(path=path))
