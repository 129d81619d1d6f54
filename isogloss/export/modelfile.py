"""Modelfiles: what Ollama makes a model of a GGUF base and a LoRA of."""

import json

from transformers import PreTrainedTokenizerBase

from isogloss.data.chat import encode_chat, end_of_turn

ADAPTER, MODELFILE = "adapter.gguf", "Modelfile"


def modelfile(tokenizer: PreTrainedTokenizerBase, model: str) -> str | None:
    """What Ollama makes a model of: base, adapter, the chat template in its own language, the end of turn.

    Ollama's template is written once for each turn, and BOS by its tokenizer.

    Returns:
        None: The chat template writes a turn otherwise behind another, or not as a text around the user's.
    """
    template = _turns(tokenizer)
    if template is None:
        return None
    return (
        f"FROM {model}\nADAPTER ./{ADAPTER}\n"
        f'TEMPLATE """{template}"""\n'
        f"PARAMETER stop {json.dumps(end_of_turn(tokenizer), ensure_ascii=False)}\n"
        "PARAMETER temperature 0\n"
    )


def _turns(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One turn in Ollama's template language, read off what the chat template writes."""
    system, first, answer, second = (f"isogloss{word}" for word in ("system", "first", "answer", "second"))
    asked = {"role": "user", "content": first}
    later = [{"role": "assistant", "content": answer}, {"role": "user", "content": second}]

    def read(messages: list[dict[str, str]], *marks: str) -> list[str] | None:
        try:
            text = tokenizer.decode(
                list(encode_chat(tokenizer, messages)), clean_up_tokenization_spaces=False
            )
        except Exception:  # a template refuses by raising whatever its author chose
            return None
        assert isinstance(text, str)
        pieces = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                return None
            pieces.append(before)
        return [
            piece.removeprefix(str(tokenizer.bos_token or "")) if n == 0 else piece
            for n, piece in enumerate([*pieces, text])
        ]

    alone, more = read([asked], first), read([asked, *later], first, answer, second)
    if alone is None or more is None:
        return None
    before, behind = alone
    if more[:2] != alone or more[3] != behind or not more[2].endswith(before):
        return None
    ending = more[2].removesuffix(before)
    told = read([{"role": "system", "content": system}, asked], system, first)
    opening = before
    if told is not None and told[2] == behind:
        opening = (
            f"{{{{ if .System }}}}{told[0]}{{{{ .System }}}}{told[1]}{{{{ else }}}}{before}{{{{ end }}}}"
        )
    written = (before, behind, ending, *(told or ()))
    if any('"""' in text or "{{" in text for text in written):
        return None
    return f"{opening}{{{{ .Prompt }}}}{behind}{{{{ .Response }}}}{ending}"
