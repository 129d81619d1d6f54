"""Local models as translators: tiny ones of each architecture with random weights."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from isogloss.data.examples import ParallelExample, Turn
from isogloss.errors import ConfigError
from isogloss.translate.answers import Wanted
from isogloss.translate.local import Line, Seq2Seq, Shown, is_seq2seq

WORDS = ["<pad>", "</s>", "<unk>", "<s>", "the", "book", "is", "red", "it", "kitabu", "ni"]
SIZES = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "max_position_embeddings": 128,
}  # fmt: skip
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1}


def tokenizer(folder, tokens, **more):
    vocab = {word: n for n, word in enumerate([*WORDS, *tokens])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        extra_special_tokens=list(tokens), **more,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(vocab)


def nllb(folder):
    """Save a model with NLLB's tokenizer class over words; its languages are FLORES-200 codes."""
    made = NllbTokenizer(vocab={word: n for n, word in enumerate(WORDS)}, merges=[])
    made.save_pretrained(folder)
    net = M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(made), **SIZES, **ENDS))
    net.save_pretrained(folder)
    return folder


def m2m(folder):
    size = tokenizer(folder, ["__en__", "__sw__", "__ur__"])
    M2M100ForConditionalGeneration(M2M100Config(vocab_size=size, **SIZES, **ENDS)).save_pretrained(folder)
    return folder


def madlad(folder):
    size = tokenizer(folder, ["<2sw>", "<2ur>"])
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def opus(folder, tokens=(">>swa<<", ">>urd<<")):
    size = tokenizer(folder, list(tokens))
    MarianMTModel(MarianConfig(vocab_size=size, **SIZES, **ENDS)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def drawn():
    torch.manual_seed(0)


@pytest.mark.parametrize(("make", "token"), [(nllb, "swh_Latn"), (m2m, "__sw__")])
def test_the_translation_begins_with_the_languages_token(tmp_path, monkeypatch, make, token):
    """These decoders are given the language by their first token."""
    found = Seq2Seq(str(make(tmp_path)), ["sw", "ur"])
    seen = []
    generate = type(found._net).generate

    def spy(self, **given):
        made = generate(self, **given)
        seen.append((given, made))
        return made

    monkeypatch.setattr(type(found._net), "generate", spy)
    found.lines(["the book is red", "it"], "sw", "en")
    ((given, made),) = seen
    assert given["forced_bos_token_id"] == found._tokenizer.convert_tokens_to_ids(token)
    assert (made[:, 1] == given["forced_bos_token_id"]).all()
    assert found.identity(Wanted("it", "sw"))[2] == token


@pytest.mark.parametrize(("make", "token"), [(madlad, "<2sw>"), (opus, ">>swa<<")])
def test_the_languages_token_precedes_the_text(tmp_path, monkeypatch, make, token):
    """These encoders are given the language by the first ID of each row."""
    found = Seq2Seq(str(make(tmp_path)), ["sw"])
    seen = []
    generate = type(found._net).generate
    monkeypatch.setattr(
        type(found._net), "generate", lambda self, **given: (seen.append(given), generate(self, **given))[1]
    )
    found.lines(["the book is red", "it"], "sw", "en")
    ids = seen[0]["input_ids"]
    assert ids[:, 0].tolist() == [found._tokenizer.convert_tokens_to_ids(token)] * 2
    assert "forced_bos_token_id" not in seen[0]


def test_a_line_beyond_the_models_positions_is_cut_off_and_the_others_are_translated(tmp_path):
    """The model has 128 positions, for what it reads and for what it writes."""
    found = Seq2Seq(str(opus(tmp_path)), ["sw"])
    lines = found.lines(["it", "the " * 200, "book"], "sw", "en")
    assert lines[1] == Line("", False, 202, 0)
    assert [line.read for line in lines] == [3, 202, 3]
    assert found.lines(["book"], "sw", "en")[0].text == lines[2].text
    assert found.lines(["the " * 100], "sw", "en")[0].written < 128


def test_an_endless_translation_is_cut_off_though_the_model_forces_an_end(tmp_path):
    """OPUS-MT's settings force the end token at the limit, which would look like a finished line."""
    opus(tmp_path)
    net = MarianMTModel.from_pretrained(tmp_path)
    net.generation_config.forced_eos_token_id = 1
    net.final_logits_bias[0, 4] = 50.0
    net.save_pretrained(tmp_path)
    line = Seq2Seq(str(tmp_path), ["sw"]).lines(["it"], "sw", "en")[0]
    assert not line.ended
    assert line.written == 2 * 3 + 32


def test_other_weights_or_vocabularies_are_another_translator(tmp_path):
    """Files in any format count: answers of the old ones must not be used."""
    wanted = Wanted("it", "sw")
    found = {str(Seq2Seq(str(opus(tmp_path)), ["sw"]).identity(wanted))}
    for name in ("source.spm", "target.spm", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"other")
        found.add(str(Seq2Seq(str(tmp_path), ["sw"]).identity(wanted)))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("make", "source", "target"), [(nllb, "swh_Latn", "eng_Latn"), (m2m, "sw", "__en__")]
)
def test_the_back_translation_begins_with_the_token_of_english(tmp_path, monkeypatch, make, source, target):
    """The tokenizer's source language is set for each call."""
    found = Seq2Seq(str(make(tmp_path)), ["sw"], back=True)
    seen = []
    generate = type(found._net).generate
    monkeypatch.setattr(
        type(found._net), "generate", lambda self, **given: (seen.append(given), generate(self, **given))[1]
    )
    found.lines(["kitabu ni"], "en", "sw")
    assert seen[0]["forced_bos_token_id"] == found._tokenizer.convert_tokens_to_ids(target)
    assert getattr(found._tokenizer, "src_lang", source) == source
    assert found.identity(Wanted("kitabu ni", "en", "sw"))[2] == target


def test_a_model_that_does_not_translate_into_english_is_refused_for_the_round_trip(tmp_path):
    with pytest.raises(ConfigError, match=r"^--round-trip: .* does not translate into English; leave it out"):
        Seq2Seq(str(opus(tmp_path)), ["sw"], back=True)


def test_a_language_without_a_token_is_refused(tmp_path):
    """`it` is a word of the vocabulary, but not the token of a language."""
    with pytest.raises(ConfigError, match=r"has no token for it \(Italian\); leave it out of --to"):
        Seq2Seq(str(madlad(tmp_path)), ["it"])


def test_a_model_of_one_pair_is_only_used_for_its_own_language(tmp_path):
    """OPUS-MT models of one pair have no language tokens; their tokenizer's settings name the language."""
    folder = opus(tmp_path, ())
    file = folder / "tokenizer_config.json"
    with pytest.raises(ConfigError, match="translates into a single, unnamed language, not sw"):
        Seq2Seq(str(folder), ["sw"])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_lang": "swa"}))
    assert Seq2Seq(str(folder), ["sw"]).identity(Wanted("it", "sw"))[2] is None


def test_texts_are_translated_line_by_line_and_each_line_once(tmp_path):
    """Empty lines and indentation stay, a shared line is translated once, a truncated one gives no answer."""

    class Fixed(Seq2Seq):
        def __init__(self):
            self.read = []

        def lines(self, texts, code, source):
            self.read += texts
            return [Line(text.upper(), text != "endless", 4, 2) for text in texts]

    found, kept = Fixed(), {}
    wanted = [Wanted(text, "sw") for text in ("a\n\n  b", "b", "c\nendless")]
    found.run(wanted, lambda one, answer: kept.setdefault(one.text, answer), lambda done, of: None)
    assert found.read == ["b", "a", "c", "endless"]
    assert [kept[one.text].text for one in wanted] == ["A\n\n  B", "B", None]
    assert kept["c\nendless"].why == "cut off"
    assert kept["b"].spent.tokens_read == 16 and kept["a\n\n  b"].spent.tokens_read == 0


def test_at_most_64_lines_are_translated_at_once():
    class Fixed(Seq2Seq):
        def __init__(self):
            self.sizes = []

        def lines(self, texts, code, source):
            self.sizes.append(len(texts))
            return [Line(text, True, 1, 1) for text in texts]

    found, kept = Fixed(), []
    text = "\n".join(f"line {n}" for n in range(70))
    found.run([Wanted(text, "sw")], lambda one, answer: kept.append(answer.text), lambda done, of: None)
    assert found.sizes == [64, 6] and kept == [text]


def test_a_base_model_gets_examples_and_stops_at_the_end_of_the_line(monkeypatch):
    """The prompt has eight pairs and the line; text after a line break is dropped."""
    examples = [
        ParallelExample(str(n), "t", {"en": Turn(f"say {n}"), "sw": Turn(f"sema {n}")}) for n in range(9)
    ]
    found = Shown("demo", examples, ["sw"])
    head = found._heads["sw", "en"]
    assert head.startswith("English: say 0\nSwahili: sema 0\n\n") and head.count("English: ") == 8
    assert found._heads["en", "sw"].startswith("Swahili: sema 0\nEnglish: say 0\n\n")
    texts = [" sema 5\nEnglish: say", " sema"]
    ids = [found._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    seen = []

    def complete(model, tokenizer, prompts, **more):
        seen.extend(tokenizer.batch_decode(prompts))
        longest = max(map(len, ids))
        return torch.tensor([one + [tokenizer.pad_token_id] * (longest - len(one)) for one in ids])

    monkeypatch.setattr("isogloss.translate.local.complete", complete)
    lines = found.lines(["say 5", "say"], "sw", "en")
    assert seen[0].endswith("English: say 5\nSwahili:")
    assert lines[0][:2] == ("sema 5", True) and lines[1][0] == "sema"


def test_examples_are_computed_once_and_lines_are_the_same():
    examples = [
        ParallelExample(str(n), "t", {"en": Turn(f"say {n}"), "sw": Turn(f"sema {n}")}) for n in range(9)
    ]
    once, always = Shown("demo", examples, ["sw"]), Shown("demo", examples, ["sw"])
    for one in (once, always):
        one._net.float()  # in bfloat16 near ties can go either way
    assert once._read("sw", "en") is once._read("sw", "en") is not None
    always._read = lambda code, source: None
    texts = ["say 5", "say it to the others as well", "7"]
    assert once.lines(texts, "sw", "en") == always.lines(texts, "sw", "en")


def test_a_base_model_without_enough_examples_is_refused():
    examples = [ParallelExample("1", "t", {"en": Turn("say"), "sw": Turn("sema")})]
    with pytest.raises(ConfigError, match="--examples: 1 one-line instructions have sw; give at least 8"):
        Shown("demo", examples, ["sw"])


def test_the_kind_of_a_model_is_read_from_its_configuration(tmp_path):
    assert is_seq2seq(str(madlad(tmp_path))) and not is_seq2seq("demo")


def test_a_folder_without_a_model_is_named_in_one_line(tmp_path):
    """As for every other model; transformers' own error is a paragraph."""
    with pytest.raises(ConfigError) as caught:
        is_seq2seq(str(tmp_path))
    said = str(caught.value)
    assert said.startswith(f"model: {tmp_path} cannot be loaded: ") and "\n" not in said
