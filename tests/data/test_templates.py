"""Default chat templates for tokenizers without one: the choice, the rendered text and the end of turn."""

import shutil
from pathlib import Path

import pytest
from real import mistral_data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import MistralConfig, PreTrainedTokenizerFast

from isogloss.data.chat import encode, encode_chat, encode_prompt, end_of_turn
from isogloss.data.templates import TEMPLATES, give_template, template_name
from isogloss.errors import ConfigError
from isogloss.model.load import load_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Bye"},
]
WRITTEN = {
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "[INST]Be brief.\n\nHi[/INST]Yes</s>[INST]Bye[/INST]",
    "plain": "User:\nBe brief.\n\nHi\n\nAssistant:\nYes</s>User:\nBye\n\nAssistant:\n",
}
ENDS = {
    "gemma": "<end_of_turn>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>",
    "plain": "</s>",
}  # fmt: skip


def bare(*controls: str, eos: str | None = "</s>", bos: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with some control tokens and no template; it prepends `bos` if given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    named = {"eos_token": eos, "bos_token": bos}
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, **{name: token for name, token in named.items() if token}
    )
    found.add_tokens(list(controls), special_tokens=True)
    if bos:
        begin = [(bos, found.convert_tokens_to_ids(bos))]
        found.backend_tokenizer.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=begin)
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_base_model_gets_the_template_of_its_control_tokens(name: str):
    """Turns, system text and generation prompt are written as in that model family."""
    tokenizer = bare(*TEMPLATES[name][0])
    give_template(tokenizer)
    assert template_name(tokenizer) == name
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == WRITTEN[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_turn_is_one_token_after_the_answer(name: str):
    """The response is the answer and the template's own end of turn; the system text is in the prompt."""
    tokenizer = bare(*TEMPLATES[name][0])
    give_template(tokenizer)
    row = encode(tokenizer, "Hi", " Yes\n", "Be brief.")
    assert end_of_turn(tokenizer) == ENDS[name]
    assert tokenizer.decode(row.response) == "Yes" + ENDS[name]
    assert row.response[-1] == tokenizer.convert_tokens_to_ids(ENDS[name])
    chat = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(row.prompt) == chat


@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_is_written_once(name: str):
    """Models that were trained with a BOS token get one."""
    tokenizer = bare(*TEMPLATES[name][0], bos="<s>")
    give_template(tokenizer)
    ids = encode_prompt(tokenizer, "Hi")
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert template_name(tokenizer) == name


def test_a_tokenizers_own_template_is_kept():
    tokenizer = bare("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    before = tokenizer.chat_template
    give_template(tokenizer)
    assert tokenizer.chat_template == before and template_name(tokenizer) == ""
    give_template(tokenizer, "plain")
    assert template_name(tokenizer) == "plain"


def test_control_tokens_that_are_cut_into_pieces_do_not_count():
    """A tokenizer that splits <|im_start|> cannot use ChatML; the error lists what it can use."""
    tokenizer = bare("<start_of_turn>", "<end_of_turn>")
    with pytest.raises(ConfigError) as caught:
        give_template(tokenizer, "chatml")
    assert str(caught.value) == (
        "chat_template: chatml needs the tokens <|im_start|>, <|im_end|>, which the model's tokenizer lacks; "
        "use gemma or plain, or leave it out"
    )


def test_a_tokenizer_without_eos_has_no_default_template():
    with pytest.raises(ConfigError) as caught:
        give_template(bare(eos=None))
    assert str(caught.value) == (
        "chat_template: plain ends a turn with the EOS token, but the model's tokenizer has no "
        "eos_token; set chat_template to a Jinja file that ends an answer with a token it has"
    )


def test_a_custom_template_is_a_file(tmp_path: Path):
    """It is used as it is; an unknown name and an empty file are refused in one line."""
    tokenizer, file = bare(), tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}>{{ m.content }}</s>{% endfor %}assistant>")
    give_template(tokenizer, str(file))
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi")) == "user>Hi</s>assistant>"
    file.write_text(" \n")
    with pytest.raises(ConfigError, match=f"^chat_template: {file} is empty$"):
        give_template(tokenizer, str(file))
    with pytest.raises(ConfigError) as caught:
        give_template(tokenizer, "chatlm")
    assert str(caught.value) == (
        "chat_template: chatlm is not one of gemma, chatml, llama3, mistral, plain and not a UTF-8 text file"
    )
    with pytest.raises(ConfigError, match=r"^chat_template: ~no-such-user/own\.jinja is not one of gemma, "):
        give_template(tokenizer, "~no-such-user/own.jinja")


def test_the_default_template_is_kept_when_the_tokenizer_is_saved(tmp_path: Path, tiny):
    """Loaded, saved and loaded again, as in stage 1, the tokenizer encodes the same prompt."""
    bare("<|im_start|>", "<|im_end|>").save_pretrained(tmp_path / "base")
    tiny("qwen3").config.save_pretrained(tmp_path / "base")
    first = load_tokenizer(str(tmp_path / "base"))
    first.save_pretrained(tmp_path / "tuned")
    tiny("qwen3").config.save_pretrained(tmp_path / "tuned")
    again = load_tokenizer(str(tmp_path / "tuned"))
    assert again.chat_template == first.chat_template
    assert encode_prompt(again, "नमस्ते") == encode_prompt(first, "नमस्ते")
    overruled = load_tokenizer(str(tmp_path / "base"), "plain")
    assert overruled.decode(encode_prompt(overruled, "Hi")) == "User:\nHi\n\nAssistant:\n"


def test_mistrals_own_tokenizer_file_needs_a_template(tmp_path: Path):
    """A tekken.json names no EOS token; with a template file the model can be used."""
    shutil.copyfile(mistral_data() / "tekken_240911.json", tmp_path / "tekken.json")
    MistralConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(tmp_path))
    assert str(caught.value).startswith("chat_template: mistral ends a turn with the EOS token, but the")
    own = tmp_path / "own.jinja"
    own.write_text(
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(str(tmp_path), str(own))
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[3:])) == "<s>[INST]Bye[/INST]"


def test_a_hybrid_template_is_saved_with_thinking_off():
    """Other engines render it without our option, and must send the prompt that the model is tuned on."""
    tokenizer = bare("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{- m['content'] -}}{%- endfor -%}"
        "{%- if enable_thinking is not defined or enable_thinking -%}<think>{%- else -%}</think>{%- endif -%}"
    )
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False) == "Hi<think>"
    for _ in range(2):  # a run's own template is read again
        give_template(tokenizer)
        assert tokenizer.apply_chat_template(asked, tokenize=False) == "Hi</think>"
    assert tokenizer.chat_template.count("set enable_thinking") == 1
