"""Modelfiles, from which Ollama builds a model; the LoRA has to be merged first."""

import json

from transformers import PreTrainedTokenizerBase

from isogloss.data.chat import encode_chat, end_of_turn

ADAPTER, MERGED, MODELFILE = "adapter.gguf", "merged.gguf", "Modelfile"


def modelfile(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a Modelfile for the merged model, with our chat template in Ollama's template language.

    Ollama applies its template once per turn, and its tokenizer adds BOS. Since 0.34.1 it takes no adapters,
    and by default it penalises tokens that the prompt contains.

    Returns:
        The file's text; None if the chat template cannot be expressed: it formats later turns differently,
        or does not simply wrap the user's text.
    """
    template = _turns(tokenizer)
    if template is None:
        return None
    return (
        f"FROM ./{MERGED}\n"
        f'TEMPLATE """{template}"""\n'
        f"PARAMETER stop {json.dumps(end_of_turn(tokenizer), ensure_ascii=False)}\n"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1\n"
    )


def _turns(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return one turn in Ollama's template language, inferred from the chat template's output."""
    system, first, answer, second = (f"isogloss{word}" for word in ("system", "first", "answer", "second"))
    asked = {"role": "user", "content": first}
    later = [{"role": "assistant", "content": answer}, {"role": "user", "content": second}]

    def read(messages: list[dict[str, str]], *marks: str) -> list[str] | None:
        try:
            text = tokenizer.decode(
                list(encode_chat(tokenizer, messages)), clean_up_tokenization_spaces=False
            )
        except Exception:  # templates reject messages with arbitrary exceptions
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
    with_system = read([{"role": "system", "content": system}, asked], system, first)
    opening = before
    if with_system is not None and with_system[2] == behind:
        start, middle, _ = with_system
        opening = f"{{{{ if .System }}}}{start}{{{{ .System }}}}{middle}{{{{ else }}}}{before}{{{{ end }}}}"
    written = (before, behind, ending, *(with_system or ()))
    if any('"""' in text or "{{" in text for text in written):
        return None
    return f"{opening}{{{{ .Prompt }}}}{behind}{{{{ .Response }}}}{ending}"
