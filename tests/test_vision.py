"""A model with a vision tower: only its text decoder is read and adapted."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

from isogloss.adapters.fit import linear_names
from isogloss.adapters.generate import answers
from isogloss.adapters.lora import TreeLora, lora_config
from isogloss.data.chat import pad
from isogloss.model.decoder import capture, head, last_hidden, layers_of
from isogloss.model.load import check_base, check_logits, load_model

IDS, MASK = pad([[5, 6, 7, 8], [9, 10]], 0)


@pytest.fixture
def seeing():
    """Return a function that builds Gemma 3 with a three-layer text decoder and a tower of given depth."""

    def make(tower: int):
        text = Gemma3TextConfig(
            vocab_size=269, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, max_position_embeddings=1024, initializer_range=0.2,
            sliding_window=16, layer_types=["sliding_attention"] * 2 + ["full_attention"],
        )  # fmt: skip
        vision = SiglipVisionConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=tower, num_attention_heads=4,
            image_size=28, patch_size=14,
        )  # fmt: skip
        config = Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=268,
            boi_token_index=267, eoi_token_index=266, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    return make


@torch.no_grad()
@pytest.mark.parametrize("tower", [3, 2, 5])
def test_layers_and_logits_are_those_of_the_text_decoder(seeing, tower):
    """The tower has as many layers as the decoder, fewer, or more."""
    model = seeing(tower)
    whole = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True, use_cache=False)
    assert layers_of(model) is model.model.language_model.layers
    with capture(model, 2) as states:
        found = head(model, last_hidden(model, IDS, MASK))
    assert torch.equal(states[0], whole.hidden_states[2])
    torch.testing.assert_close(found, whole.logits)
    check_logits(model, "gemma")


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("tower", [3, 5])
def test_only_the_text_decoder_gets_adapters(seeing, five, tmp_path, tower, layers):
    """The tower's linear layers have the same names; an exported path loads onto the same layers."""
    model = seeing(tower)
    names = linear_names(model)
    assert len(names) == 3 * 7 and all(name.startswith("model.language_model.layers.") for name in names)
    adapters = TreeLora(model, five, targets=["q_proj", "v_proj"], scaling=2.0, layers=layers)
    adapted = {name.partition(".lora_")[0] for name in adapters.parameters()}
    assert len(adapted) == 2 * (layers or 3)
    assert all(".language_model.layers." in name for name in adapted)
    adapters.export("sw", tmp_path, "base")
    again = seeing(tower)
    again.load_adapter(str(tmp_path))
    on = {n for n, m in again.named_modules() if n.endswith("lora_A")}
    assert len(on) == len(adapted)


@pytest.mark.parametrize("tower", [3, 5])
def test_stage_1_trains_only_the_text_decoder(seeing, tower):
    """Text does not reach the tower or the projector."""
    base = seeing(tower)
    model = get_peft_model(base, lora_config(base, 2, targets="all-linear", scaling=2.0))
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learns) == 2 * 3 * 7
    assert all(".model.language_model.layers." in name for name in learns)


def test_it_answers_and_its_folder_passes_the_check(seeing, tokenizer, tmp_path):
    """It works like any other base."""
    model = seeing(3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_base(str(tmp_path), tokenizer)
    loaded = load_model(str(tmp_path), torch.float32)
    asked = ["Jambo", "Wo?"]
    assert answers(loaded, tokenizer, asked, max_new_tokens=5) == answers(
        model, tokenizer, asked, max_new_tokens=5
    )
