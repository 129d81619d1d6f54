"""Exports as sentence embedders: sentence-transformers gives the vectors that retrieval uses."""

import sys

import pytest
import torch

from isogloss.cli import main
from isogloss.errors import RunError
from isogloss.evaluate.suites import load_suite
from isogloss.export import embedding
from isogloss.files import write_json
from isogloss.model.load import load_model
from isogloss.model.standardise import Statistics

LAYER = 2
MISSING = "sentence-transformers is not installed: pip install 'isogloss[embed]'"


def score(run, **layers) -> None:
    write_json(run.folder / "scores.json", {"suites": {"demo": {"layer": {"after": layers}}}})


@pytest.fixture
def scored(aligned):
    """A run whose retrieval was best at layer 2 of 3."""
    score(aligned.run, retrieval=LAYER)
    yield aligned.run
    (aligned.run.folder / "scores.json").unlink()


def by_hand(run, code, texts):
    """Return the mean hidden states by PEFT and transformers alone, one text at a time."""
    from peft import PeftModel

    model = load_model(str(run.tuned), torch.float32)
    if code != "en":
        folder = run.folder / f"by-hand-{code}"
        run.student(load_model(str(run.tuned), torch.float32), trained=True).export(
            code, folder, str(run.tuned)
        )
        model = PeftModel.from_pretrained(model, str(folder))
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([run.tokenizer(text).input_ids])
            rows.append(model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER][0].mean(0))
    return torch.stack(rows)


def test_sentence_transformers_gives_the_vectors_of_retrieval(scored, tmp_path):
    """An independent computation gives the same, also for texts of different lengths in one batch."""
    library = pytest.importorskip("sentence_transformers", reason=MISSING)
    found = embedding.export_embedders(scored, ["sw", "ur"], tmp_path / "out")
    assert [one.code for one in found] == ["en", "sw", "ur"]
    suite = load_suite("demo", None, scored.config.evaluate, ["sw", "ur"])
    texts = ["Habari yako?", "a", "Maria alinunua mkate sokoni kila asubuhi, kisha akarudi nyumbani."]
    for one in found:
        assert one.difference < 1e-3 and one.layer == LAYER
        theirs = library.SentenceTransformer(str(one.folder), device="cpu").encode(
            texts, convert_to_tensor=True, show_progress_bar=False
        )
        others = by_hand(scored, one.code, suite.layer_sentences[one.code])
        ours = (by_hand(scored, one.code, texts) - others.mean(0)) / others.std(0, correction=0)
        torch.testing.assert_close(theirs.cpu(), ours, atol=2e-3, rtol=0)
        assert "library_name: sentence-transformers" in (one.folder / "README.md").read_text("utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["en", "sw", "ur"]
    with pytest.raises(RunError, match="already exists; choose another --out or remove it"):
        embedding.export_embedders(scored, ["sw"], tmp_path / "out")


def test_control_tokens_and_constant_dimensions_have_no_weight(aligned, tmp_path):
    pytest.importorskip("sentence_transformers", reason=MISSING)
    decoder = load_model(str(aligned.run.tuned), torch.float32)
    decoder.base_model.save_pretrained(tmp_path)
    aligned.run.tokenizer.save_pretrained(tmp_path)
    scale = torch.full((24,), 2.0)
    scale[3] = torch.inf
    made = embedding._modules(tmp_path, aligned.run.tokenizer, 1, Statistics(torch.ones(24), scale))
    weights = made[1].emb_layer.weight.flatten().tolist()
    assert (weights[:5], set(weights[5:])) == ([0.0] * 5, {1.0})
    found = made[3]({"sentence_embedding": torch.full((1, 24), 5.0)})["sentence_embedding"][0].tolist()
    assert found == [2.0] * 3 + [0.0] + [2.0] * 20


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (
            {},
            "has no retrieval scores, which determine the layer; run `isogloss evaluate` on a suite with "
            "sentences",
        ),
        (
            {"retrieval": 3},
            "retrieval uses layer 3, the last, which sentence-transformers only provides after the final "
            "norm; evaluate with evaluate.layer=2 or lower",
        ),
    ],
)
def test_a_run_without_a_usable_layer_is_refused(layers, says, aligned, scored, tmp_path, monkeypatch):
    """Nothing is written."""
    monkeypatch.setattr(embedding, "_library", lambda: None)
    score(aligned.run, **layers)
    with pytest.raises(RunError) as caught:
        embedding.export_embedders(scored, ["sw"], tmp_path / "out")
    assert str(caught.value).endswith(says) and not (tmp_path / "out").exists()


def test_a_missing_library_is_named(aligned, tmp_path, monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RunError) as caught:
        embedding.export_embedders(aligned.run, ["sw"], tmp_path / "out")
    assert str(caught.value) == (
        "--format sentence-transformers needs sentence-transformers; install isogloss[embed]"
    )


def test_an_embedder_has_no_rank(aligned, capsys):
    """--max-rank is refused."""
    folder = str(aligned.run.folder)
    with pytest.raises(SystemExit) as caught:
        main(["export", folder, "--all", "--format", "sentence-transformers", "--max-rank", "2"])
    assert caught.value.code == 2
    said = "error --max-rank: an embedder has no rank; leave it out or use --format peft\n"
    assert capsys.readouterr().err == said
