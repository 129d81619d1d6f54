"""Chat templates for tokenizers without one, such as those of base models.

Each template uses control tokens that the tokenizer already has, so that a turn ends with one token that no
text can spell; a tokenizer without any gets plain text and its EOS token. If a model family has no system
role, the system text is put before the user's first turn.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from isogloss.config import home
from isogloss.errors import ConfigError

# Collects the system text and puts it before the next turn.
_SYSTEM_FIRST = (
    "{%- set ns = namespace(told='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}"
    "{%- set ns.told = ns.told + message['content'] | trim + '\\n\\n' -%}"
    "{%- else -%}"
    "{%- set text = ns.told + message['content'] | trim -%}"
    "{%- set ns.told = '' -%}"
)
_END = "{%- endif -%}{%- endfor -%}"


def _asked(text: str) -> str:
    return "{%- if add_generation_prompt -%}{{- '" + text + "' -}}{%- endif -%}"


TEMPLATES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "gemma": (
        ("<start_of_turn>", "<end_of_turn>"),
        _SYSTEM_FIRST
        + "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) -}}"
        "{{- '\\n' + text + '<end_of_turn>\\n' -}}" + _END + _asked("<start_of_turn>model\\n"),
    ),
    "chatml": (
        ("<|im_start|>", "<|im_end|>"),
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' -}}"
        "{%- endfor -%}" + _asked("<|im_start|>assistant\\n"),
    ),
    "llama3": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "{%- for message in messages -%}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
        "{{- message['content'] | trim + '<|eot_id|>' -}}"
        "{%- endfor -%}" + _asked("<|start_header_id|>assistant<|end_header_id|>\\n\\n"),
    ),
    "mistral": (
        ("[INST]", "[/INST]"),
        _SYSTEM_FIRST
        + "{{- text + eos_token if message['role'] == 'assistant' else '[INST]' + text + '[/INST]' -}}"
        + _END,
    ),
    "plain": (
        (),
        _SYSTEM_FIRST + "{{- 'Assistant:\\n' + text + eos_token if message['role'] == 'assistant' -}}"
        "{{- 'User:\\n' + text + '\\n\\n' if message['role'] == 'user' -}}" + _END + _asked("Assistant:\\n"),
    ),
}
"""By name, the control tokens that a template needs, and the template; the default is the first that fits."""


NO_THINKING = "{%- set enable_thinking = false -%}"


def give_template(tokenizer: PreTrainedTokenizerBase, wanted: str | None = None) -> None:
    """Make sure that a tokenizer has a chat template.

    Args:
        wanted: A name in `TEMPLATES` or a Jinja file, to use instead of the tokenizer's own template.

    Raises:
        ConfigError: The tokenizer lacks a template's control tokens or an EOS token, or the file is missing
            or empty.
    """
    if wanted is None and tokenizer.chat_template:
        tokenizer.chat_template = _without_thinking(tokenizer.chat_template)
        return
    if wanted is None:
        wanted = next(name for name, (controls, _) in TEMPLATES.items() if not _lacks(tokenizer, controls))
    if wanted not in TEMPLATES:
        tokenizer.chat_template = _without_thinking(_read(wanted))
        return
    controls, text = TEMPLATES[wanted]
    if lacking := _lacks(tokenizer, controls):
        fitting = [name for name, (needed, _) in TEMPLATES.items() if not _lacks(tokenizer, needed)]
        raise ConfigError(
            f"chat_template: {wanted} needs the tokens {', '.join(lacking)}, which the model's tokenizer "
            f"lacks; use {' or '.join(fitting)}, or leave it out"
        )
    if "eos_token" in text and not tokenizer.eos_token:
        raise ConfigError(
            f"chat_template: {wanted} ends a turn with the EOS token, but the model's tokenizer has no "
            "eos_token; set chat_template to a Jinja file that ends an answer with a token it has"
        )
    tokenizer.chat_template = ("{{- bos_token -}}" if _begins(tokenizer) else "") + text


def _without_thinking(template: Any) -> Any:
    """Turn off a hybrid template's thinking for whoever renders it, as the model is tuned without."""
    if not isinstance(template, str) or "enable_thinking" not in template or template.startswith(NO_THINKING):
        return template
    return NO_THINKING + template


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name in `TEMPLATES` of a tokenizer's chat template; empty if it is not one of them."""
    given = str(tokenizer.chat_template).removeprefix("{{- bos_token -}}")
    return next((name for name, (_, text) in TEMPLATES.items() if text == given), "")


def _lacks(tokenizer: PreTrainedTokenizerBase, controls: tuple[str, ...]) -> list[str]:
    """Return the control tokens that the tokenizer would split."""
    return [token for token in controls if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1]


def _begins(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts BOS before a text, which the model then expects."""
    read: Any = tokenizer("a")["input_ids"]
    return tokenizer.bos_token is not None and read[0] == tokenizer.bos_token_id


def _read(file: str) -> str:
    path = home(Path(file))
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"chat_template: {file} is not one of {', '.join(TEMPLATES)} and not a UTF-8 text file"
        ) from None
    if not text.strip():
        raise ConfigError(f"chat_template: {file} is empty")
    return text
