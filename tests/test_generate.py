"""Greedy decoding and sampling, whatever generation settings a model's folder has."""

import unicodedata

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from isogloss.adapters.generate import answers, complete, end_with_turn, whole_answers
from isogloss.adapters.tree import build_tree
from isogloss.data.chat import encode_prompt
from isogloss.errors import RunError
from isogloss.model.load import load_model, load_tokenizer
from isogloss.model.prefix import prefill

ASKED = ["Jambo", "abc abc abc", "Wo?", "1 2 3 4"]
BROUGHT = {
    "repetition_penalty": 1.3, "no_repeat_ngram_size": 1, "num_beams": 3, "min_new_tokens": 12,
    "suppress_tokens": list(range(5, 200)), "bad_words_ids": [[7]], "forced_eos_token_id": 9,
    "forced_bos_token_id": 8, "encoder_repetition_penalty": 2.0, "begin_suppress_tokens": [200, 201],
    "num_return_sequences": 2, "return_dict_in_generate": True, "cache_implementation": "static",
    "use_cache": False, "stop_strings": ["a"], "sequence_bias": [[[50], 50.0]], "max_time": 1e-6,
    "guidance_scale": 2.0, "exponential_decay_length_penalty": [1, 9.0], "remove_invalid_values": True,
    "prompt_lookup_num_tokens": 2, "max_length": 3, "do_sample": True, "temperature": 0.01, "top_k": 1,
    "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "epsilon_cutoff": 0.5, "renormalize_logits": True,
}  # fmt: skip
SETTINGS = [{key: value} for key, value in BROUGHT.items()] + [{"num_beams": 4, "num_beam_groups": 2}]


def with_settings(model, settings: dict):
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    for key, value in settings.items():
        setattr(model.generation_config, key, value)
    return model


@torch.no_grad()
def by_hand(model, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """Return the reference: the likeliest token of a full forward pass, one after the other."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens and (len(ids) == len(prompt) or ids[-1] != 1):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def greedy(tiny, tokenizer) -> dict[tuple[int, ...], list[int]]:
    """The likeliest tokens after each prompt."""
    model = tiny()
    return {prompt: by_hand(model, prompt, 10) for prompt in (encode_prompt(tokenizer, t) for t in ASKED)}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_greedy_decoding_ignores_the_generation_settings_of_the_folder(tiny, tokenizer, greedy, settings):
    """Every token equals the reference, and the model's own settings are unchanged afterwards."""
    model = with_settings(tiny(), settings)
    before = model.generation_config
    made = complete(model, tokenizer, list(greedy), max_new_tokens=10)
    assert model.generation_config is before
    for row, expected in zip(made.tolist(), greedy.values(), strict=True):
        assert row[: len(expected)] == expected
        assert not any(row[len(expected) :])


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_a_cached_prefix_gives_the_tokens_of_the_whole_prompt(tiny, tokenizer, kind):
    """Rows of different lengths use the same prefix, twice; Gemma's attention window is shorter than it."""
    model = tiny(kind)
    if kind == "gemma3_text":
        model.config.sliding_window = 16
        for layer in model.model.layers:
            layer.self_attn.sliding_window = 16
    asked = [encode_prompt(tokenizer, text) for text in ASKED]
    shared = (2, *range(40, 70))
    prefix = prefill(model, shared)
    expected = [by_hand(model, (*shared, *prompt), 6) for prompt in asked]
    for _ in range(2):
        made = complete(model, tokenizer, asked, max_new_tokens=6, prefix=prefix)
        for row, one in zip(made.tolist(), expected, strict=True):
            assert row[: len(one)] == one


@pytest.mark.parametrize(
    "brought",
    [
        ("repetition_penalty", "suppress_tokens"),
        ("temperature", "top_k", "top_p"),
        ("min_p",),
        ("typical_p", "epsilon_cutoff"),
        ("num_beams",),
        ("sequence_bias", "forced_eos_token_id"),
    ],
)
def test_sampling_follows_the_models_own_distribution(tiny, tokenizer, brought):
    """Over 1,000 first tokens, each frequency is within four standard errors of its probability."""
    model = with_settings(tiny(), {key: BROUGHT[key] for key in brought})
    prompt = encode_prompt(tokenizer, "aa")
    torch.manual_seed(0)
    drawn = complete(model, tokenizer, [prompt] * 1000, max_new_tokens=1, sample=True)[:, 0]
    with torch.no_grad():
        p = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    share = torch.bincount(drawn, minlength=len(p)) / len(drawn)
    assert ((share - p).abs() <= 4 * (p * (1 - p) / len(drawn)).sqrt() + 1 / len(drawn)).all()


def test_a_loaded_model_keeps_only_eos_and_pad_of_its_generation_settings(tiny, tokenizer, tmp_path):
    """This also holds after saving and loading again; dropout is off and the cache is on."""
    model = tiny("gpt2")
    model.config.attn_pdrop = model.config.resid_pdrop = model.config.embd_pdrop = 0.5
    model.config.use_cache = False
    with_settings(model, {"repetition_penalty": 1.3, "do_sample": True, "top_k": 5, "eos_token_id": [1, 3]})
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"), torch.float32)
    loaded.save_pretrained(tmp_path / "tuned")
    for one in (loaded, load_model(str(tmp_path / "tuned"), torch.float32)):
        said = {k: v for k, v in one.generation_config.to_diff_dict().items() if v is not None}
        said.pop("transformers_version", None)
        assert said == {"eos_token_id": [1, 3], "pad_token_id": 0}
        assert one.config.use_cache
        ids = torch.tensor([[5, 6, 7]])
        one.train()
        assert torch.equal(one(ids).logits, one(ids).logits)
        one.eval()


def test_a_loaded_tokenizer_does_not_truncate_pad_or_clean_up(tiny, tokenizer, tmp_path):
    """Such settings in its files are ignored."""
    tiny().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    baked = load_tokenizer(str(tmp_path))
    baked.backend_tokenizer.enable_truncation(3)
    baked.backend_tokenizer.enable_padding(length=9)
    baked.clean_up_tokenization_spaces = True
    baked.padding_side = baked.truncation_side = "left"
    baked.split_special_tokens = True
    baked.save_pretrained(tmp_path)
    plain = load_tokenizer(str(tmp_path))
    assert plain.backend_tokenizer.truncation is None and plain.backend_tokenizer.padding is None
    assert encode_prompt(plain, "Was ?") == encode_prompt(tokenizer, "Was ?")
    assert plain.decode(plain("x != y , ok .")["input_ids"]) == "x != y , ok ."


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "gpt2", "llama"])
def test_rows_that_have_ended_are_dropped_and_the_others_go_on(tiny, tokenizer, kind):
    """Each row's tokens are those of the row alone, though the batch shrinks under it."""
    model = tiny(kind)
    prompts = [encode_prompt(tokenizer, text) for text in ["Jambo", "abc abc", "Wo?", "1 2 3", "x", "y z"]]
    alone = [complete(model, tokenizer, [prompt], max_new_tokens=12)[0].tolist() for prompt in prompts]
    # The first row ends at its first token, the second at its second, and so on.
    model.generation_config.eos_token_id = ends = [row[n] for n, row in enumerate(alone)]
    expected = [row[: 1 + next(n for n, token in enumerate(row) if token in ends)] for row in alone]
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    made = complete(model, tokenizer, prompts, max_new_tokens=12)
    handle.remove()
    longest = max(map(len, expected))
    assert made.tolist() == [row + [0] * (longest - len(row)) for row in expected]
    assert len(sizes) == longest
    assert sizes[0] == len(prompts)
    if longest > 2:
        assert sizes[-1] < len(prompts)


def test_after_rows_are_dropped_each_row_keeps_its_languages_adapter(tiny, tokenizer, student):
    """With a different adapter for each row, answers equal those of the rows alone."""
    codes = ["es", "hi", "sw", "tr"]
    adapters = student(tiny(), build_tree(codes, ranks={"root": 2, "family": 2, "language": 4}))
    model = adapters.model
    prompts = [encode_prompt(tokenizer, text) for text in ASKED]
    how = {"adapters": adapters, "max_new_tokens": 10}
    alone = [
        complete(model, tokenizer, [prompt], languages=[code], **how)[0].tolist()
        for prompt, code in zip(prompts, codes, strict=True)
    ]
    bare = complete(model, tokenizer, prompts, max_new_tokens=10).tolist()
    assert sum(one != other for one, other in zip(alone, bare, strict=True)) >= 3
    left = [False, False, False, False]

    def stopped(made):
        for row in range(made.shape[1] // 2):  # one row more after every second token
            left[row] = True
        return left

    streamed: list[list[int]] = []

    class Streamer(BaseStreamer):
        def put(self, value):
            streamed.append(value.tolist())

        def end(self):
            streamed.append([])

    made = complete(
        model, tokenizer, prompts, languages=codes, stopped=stopped, streamer=Streamer(), **how
    ).tolist()
    lengths = [2, 4, 6, 8]
    assert made == [row[:n] + [0] * (8 - n) for row, n in zip(alone, lengths, strict=True)]
    assert len(streamed[0]) == 4 and streamed[-1] == []
    assert [list(row) for row in zip(*streamed[1:-1], strict=True)] == made


def test_truncated_answers_are_marked_as_not_ended(tiny, tokenizer):
    """If the last allowed token is the end of turn, the answer has ended."""
    model = tiny()
    prompts = [encode_prompt(tokenizer, text) for text in ASKED]
    whole = [by_hand(model, prompt, 12) for prompt in prompts]
    model.generation_config.eos_token_id = ends = [1, whole[0][2]]
    length = next(n for n, token in enumerate(whole[0], 1) if token in ends)
    found = whole_answers(model, tokenizer, ASKED, max_new_tokens=length)
    expected = [any(token in ends for token in row[:length]) for row in whole]
    assert [answer.ended for answer in found] == expected
    assert expected[0]
    cut = whole_answers(model, tokenizer, ASKED[:1], max_new_tokens=length - 1)
    assert not cut[0].ended
    assert answers(model, tokenizer, ASKED, max_new_tokens=length) == [answer.text for answer in found]


def test_the_end_of_turn_is_no_part_of_an_answer_even_if_it_is_no_special_token(tiny, tokenizer, monkeypatch):
    """A template may end turns with an ordinary added token, which decoding would keep."""
    model = tiny()
    decoded: list[list[int]] = []
    monkeypatch.setattr(
        tokenizer, "batch_decode", lambda rows, **how: decoded.extend(map(list, rows)) or ["x"] * len(rows)
    )
    prompt = encode_prompt(tokenizer, ASKED[0])
    said = by_hand(model, prompt, 4)
    model.generation_config.eos_token_id = [said[2]]
    expected = said[: said.index(said[2])]
    whole_answers(model, tokenizer, ASKED[:1], max_new_tokens=4)
    assert decoded == [expected]


def test_the_end_of_turn_is_added_to_the_saved_eos_tokens_once(tokenizer):
    """transformers and vLLM stop at these alone; the model's own stay."""
    settings = GenerationConfig(eos_token_id=7)
    assert end_with_turn(settings, tokenizer)
    assert settings.eos_token_id == [1, 7]
    assert not end_with_turn(settings, tokenizer)
    assert settings.eos_token_id == [1, 7]
    assert end_with_turn(empty := GenerationConfig(), tokenizer)
    assert empty.eos_token_id == [1]


def test_generation_ends_at_the_models_last_position(tiny, tokenizer):
    """GPT-2 has an embedding for each position: a longer prompt is refused, and an answer stops there."""
    model = tiny("gpt2")
    most = model.config.n_positions
    prompt = [5] * (most - 3)
    assert complete(model, tokenizer, [prompt, [6]], max_new_tokens=9).shape[1] <= 3
    with pytest.raises(RunError, match=f"^a prompt has {most} tokens, but the model has only {most}"):
        complete(model, tokenizer, [[5] * most], max_new_tokens=1)


def test_answers_are_normalised_to_composed_characters(tiny, tokenizer, monkeypatch):
    """A model may write a letter and its mark separately; gold answers and references never do."""
    apart = unicodedata.normalize("NFD", "tiếng Việt\r\n")
    monkeypatch.setattr(tokenizer, "batch_decode", lambda rows, **how: [apart] * len(rows))
    assert answers(tiny(), tokenizer, ASKED[:2], max_new_tokens=1) == ["tiếng Việt"] * 2
