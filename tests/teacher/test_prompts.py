"""Teacher prompts: their parts, the order of the parts, and what is refused."""

import copy
from pathlib import Path

import pytest

from isogloss.adapters.tree import build_tree
from isogloss.data.examples import Turn
from isogloss.errors import ConfigError
from isogloss.languages import XGLUE_TWELVE
from isogloss.teacher.prompts import (
    NodeTexts,
    check_response,
    check_texts,
    load_texts,
    privileged_text,
    teacher_prompt,
)
from isogloss.teacher.showing import shown

TEXTS = NodeTexts(
    "Root.",
    {"Indo-European/Balto-Slavic/Slavic": "Slavic.", "Indo-European/Italic/Romance": "Romance."},
    {"ru": "Russian.", "fr": "French."},
    {"topic": "Topic."},
)
TREE = build_tree(("ru", "bg", "fr", "sw"), ranks={"root": 1, "family": 1, "language": 1})
SPOKEN = (*XGLUE_TWELVE, "de", "zh")  # the last two can be added to a run later
TWIN = Turn("Say yes", "yes")


@pytest.mark.parametrize(
    ("language", "task", "text"),
    [
        ("ru", "topic", "Root.\nSlavic.\nRussian.\nTopic.\nEnglish: Say yes\n→ yes"),
        ("bg", "topic", "Root.\nSlavic.\nTopic.\nEnglish: Say yes\n→ yes"),
        ("fr", "other", "Root.\nRomance.\nFrench.\nEnglish: Say yes\n→ yes"),
        ("pt", "other", "Root.\nRomance.\nEnglish: Say yes\n→ yes"),
        ("sw", "other", "Root.\nEnglish: Say yes\n→ yes"),
        ("en", "other", "Root.\nEnglish: Say yes\n→ yes"),
    ],
)
def test_texts_go_from_root_to_leaf_then_task_then_twin(language, task, text):
    """A node or task without a text adds nothing."""
    assert privileged_text(TEXTS, TREE.path(language), task, TWIN) == text


def test_the_privileged_answer_can_be_left_out():
    """The twin's instruction stays, so that the effect of the answer can be measured."""
    assert privileged_text(TEXTS, TREE.path("sw"), "", TWIN, answer=False) == "Root.\nEnglish: Say yes"


def test_a_twin_without_an_answer_gives_its_instruction():
    """The teacher sees neither an empty line nor None."""
    assert privileged_text(TEXTS, TREE.path("sw"), "", Turn("Say yes")) == "Root.\nEnglish: Say yes"


def test_without_a_twin_only_texts_are_used():
    """This is the prompt that a person would write."""
    assert privileged_text(TEXTS, TREE.path("ru"), "topic", None) == "Root.\nSlavic.\nRussian.\nTopic."


def test_a_teachers_prompt_is_a_system_turn_before_the_instruction(tokenizer):
    """Rendered by the model's own template, up to the start of the response."""
    ids = teacher_prompt(tokenizer, "Root.", "Sema", limit=100, row="x/sw")
    assert tokenizer.decode(ids) == "<|system|>Root.<|end|><|user|>Sema<|end|><|assistant|>"


def test_a_prompt_at_the_limit_is_accepted_and_one_over_it_refused(tokenizer):
    """1 + 5 + 1 + 1 + 4 + 1 + 1 tokens."""
    assert len(teacher_prompt(tokenizer, "Root.", "Sema", limit=14, row="x/sw")) == 14
    with pytest.raises(ConfigError) as caught:
        teacher_prompt(tokenizer, "Root.", "Sema", limit=13, row="x/sw")
    assert str(caught.value) == (
        "the teacher's prompt for x/sw has 14 tokens and the limit is 13; "
        "raise distill.max_prompt_length or shorten the node texts"
    )


def test_every_target_has_a_text_at_each_level():
    """A misspelt node name in the package's texts would go unnoticed."""
    texts, tree = load_texts(), build_tree(SPOKEN, ranks={"root": 1, "family": 1, "language": 1})
    assert [node.name for node in tree.nodes if not texts.of(node)] == []


def test_every_text_of_the_package_belongs_to_a_node():
    """No text is kept for a node that no language uses."""
    texts, tree = load_texts(), build_tree(SPOKEN, ranks={"root": 1, "family": 1, "language": 1})
    assert set(texts.families) | set(texts.languages) <= set(tree.by_name)


def test_a_missing_file_of_texts_is_refused(tmp_path):
    """The message names the setting and the file."""
    path = tmp_path / "texts.yaml"
    with pytest.raises(ConfigError) as caught:
        load_texts(path)
    assert str(caught.value) == f"distill.texts: {path} does not exist"


def refusal(path: Path, content: bytes) -> str:
    """Return the message with which a file of node texts is refused."""
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_texts(path)
    return str(caught.value)


@pytest.mark.parametrize("text", ["root: A\nfamily: {}\n", "families: {}\n", "- root\n", ""])
def test_texts_with_other_keys_are_refused(tmp_path, text):
    """A misspelt key is not silently ignored."""
    path = tmp_path / "texts.yaml"
    assert refusal(path, text.encode()) == (
        f"{path}: node texts have the keys root, families, languages, tasks, answers; root is required"
    )


def test_a_text_that_is_missing_counts_as_none(tmp_path):
    """In every section, whatever its level."""
    path = tmp_path / "texts.yaml"
    path.write_text(
        "root: A\ntasks: {qa: }\nfamilies: {Uralic: }\nlanguages: {sw: }\nanswers: {sw: , ru: {qa: }}\n"
    )
    assert load_texts(path) == NodeTexts("A", answers={"ru": {"qa": None}})
    assert privileged_text(load_texts(path), (), "qa", None) == ""


@pytest.mark.parametrize(
    ("text", "what"), [("root: {a: b}", "root"), ("root: A\ntasks: {qa: [b]}", "tasks.qa")]
)
def test_a_text_of_another_type_is_refused(tmp_path, text, what):
    path = tmp_path / "texts.yaml"
    assert refusal(path, text.encode()) == f"{path}: {what} must be a text"


@pytest.mark.parametrize("words", ["yes", "{topic: yes}", "{topic: {yes: }}"])
def test_answer_words_that_are_no_mapping_are_refused(tmp_path, words):
    """They are given by language and task."""
    path = tmp_path / "texts.yaml"
    assert refusal(path, f"root: A\nanswers: {{sw: {words}}}\n".encode()) == (
        f"{path}: answers.sw must map each task to its English answer words and their wordings"
    )


def test_an_answer_word_that_yaml_reads_as_another_type_is_refused(tmp_path):
    """The teacher would read `True=ndiyo`, though the English answer is `true`."""
    path = tmp_path / "texts.yaml"
    said = f"{path}: answers.sw: True is not a text; put it in quotes"
    assert refusal(path, b"root: A\nanswers: {sw: {topic: {true: ndiyo}}}\n") == said


def test_texts_in_another_encoding_are_refused(tmp_path):
    path = tmp_path / "texts.yaml"
    assert refusal(path, "root: Español".encode("latin-1")) == f"{path}: not UTF-8; convert the file to UTF-8"


def test_texts_are_found_by_any_code_of_their_language(tmp_path):
    """`no` is Norwegian and not a boolean; an empty section counts as missing."""
    path = tmp_path / "texts.yaml"
    path.write_text(
        "root: A\nfamilies:\nlanguages:\n  no: Norsk.\n  swh: Swahili.\n"
        "tasks:\nanswers:\n  no:\n    topic: {no: nei}\n"
    )
    assert load_texts(path) == NodeTexts(
        "A", {}, {"nb": "Norsk.", "sw": "Swahili."}, {}, {"nb": {"topic": {"no": "nei"}}}
    )


def test_two_texts_for_one_language_are_refused(tmp_path):
    """Under two of its codes; one of them would be ignored."""
    path = tmp_path / "texts.yaml"
    assert refusal(path, b"root: A\nlanguages: {sw: Swahili., swh: Kiswahili.}\n") == (
        f"{path}: languages: swh is another name of sw; give one of them"
    )


def test_a_control_character_in_texts_is_refused_in_one_line(tmp_path):
    path = tmp_path / "texts.yaml"
    said = refusal(path, b"root: A\x07\n")
    assert said.startswith(f"{path}: not YAML: ") and "\n" not in said


@pytest.mark.parametrize("section", ["languages", "answers"])
def test_a_text_for_an_unknown_language_is_refused(tmp_path, section):
    """It would never be used."""
    path = tmp_path / "texts.yaml"
    path.write_text(f"root: A\n{section}:\n  swx: {{}}\n")
    with pytest.raises(ConfigError) as caught:
        load_texts(path)
    assert str(caught.value).startswith(f"{path}: 'swx' is not a known language code; ")
    assert "\n" not in str(caught.value)


def test_a_node_without_a_text_is_refused_if_texts_are_required():
    """Root, family or language: the message names the key to add it under."""
    check_texts(TEXTS, TREE.path("ru"))
    with pytest.raises(ConfigError) as caught:
        check_texts(TEXTS, TREE.path("bg"))
    assert str(caught.value) == (
        "the node bg has no text and distill.require_texts is true; "
        "write one under languages in the file of distill.texts"
    )
    with pytest.raises(ConfigError, match=r"^the node Atlantic-Congo.* write one under families in the file"):
        check_texts(TEXTS, TREE.path("sw"))
    with pytest.raises(ConfigError, match=r"^the node root has no text .*; write one in the file of"):
        check_texts(NodeTexts(""), TREE.path("ru"))


def test_a_template_that_changes_the_response_after_a_system_text_is_refused(tokenizer):
    """This one adds a greeting if there is a system text."""
    check_response(tokenizer, "Root.", "Sema", "ndiyo", row="x/sw")
    greeting = copy.deepcopy(tokenizer)
    greeting.chat_template = (
        "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' -}}"
        "{%- if m['role'] == 'assistant' and messages[0]['role'] == 'system' -%}Well, {% endif -%}"
        "{{- m['content'] + '<|end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    )
    with pytest.raises(ConfigError) as caught:
        check_response(greeting, "Root.", "Sema", "ndiyo", row="x/sw")
    assert str(caught.value) == (
        "the chat template writes the response of x/sw after the teacher's prompt as "
        "'Well, ndiyo<|end|>' and after the student's as 'ndiyo<|end|>'; "
        "set chat_template to one that writes both alike"
    )


@pytest.mark.parametrize(("instruction", "response"), [("Sema\nsasa", "ndiyo"), ("ndiyo", "O ndiyo")])
def test_a_template_that_rewrites_the_instruction_is_checked_too(tokenizer, instruction, response):
    """It joins lines and greets after a system text; a response may repeat the instruction."""
    made = copy.deepcopy(tokenizer)
    plain = (
        "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' + GREETING -}}"
        "{{- m['content'] | replace('\\n', ' ') + '<|end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    )
    made.chat_template = plain.replace("GREETING", "''")
    check_response(made, "Root.", instruction, response, row="x/sw")
    greeting = "('Well, ' if m['role'] == 'assistant' and messages[0]['role'] == 'system' else '')"
    made.chat_template = plain.replace("GREETING", greeting)
    with pytest.raises(
        ConfigError, match=f"prompt as 'Well, {response}<.*' and after the student's as '{response}<"
    ):
        check_response(made, "Root.", instruction, response, row="x/sw")


def test_a_prompt_that_ends_differently_after_a_system_text_is_refused(tokenizer):
    """Here only the teacher would start to think."""
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = tokenizer.chat_template.replace(
        "'<|assistant|>'", "'<|assistant|>' + ('<think>' if messages[0]['role'] == 'system' else '')"
    )
    with pytest.raises(ConfigError) as caught:
        check_response(thinking, "Root.", "Sema", "ndiyo", row="x/sw")
    assert "as 'ndiyo<|end|>' in place of '<think>' and after the student's as 'ndiyo<|end|>';" in str(
        caught.value
    )


def test_response_tokens_are_shown_one_by_one_and_split_characters_together(tokenizer):
    """ж is two byte tokens, which its bracket shows."""
    ids = tokenizer("aж")["input_ids"]
    assert shown(tokenizer, [3, *tokenizer("Hi")["input_ids"]], [*ids, 1]) == "<|user|>Hi⟦a⟧⟦ж⟧×2⟦<|end|>⟧"
