"""Export the aligned model as a sentence embedder for sentence-transformers, with retrieval's embeddings.

A folder contains the model merged with one language's path, the choice of decoder layer, mean pooling over
the text's own tokens (BOS and other special tokens get weight 0), and the language's standardisation. English
uses the reference model, as in retrieval. The export is loaded again and compared with the run's embeddings.
Flow: scores.json → layer; other sentences → statistics; merged decoder + modules → folder → comparison.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from isogloss.data.tokens import special_ids
from isogloss.errors import RunError
from isogloss.evaluate import retrieval
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.suites import load_suite
from isogloss.export.adapters import refuse_bare, suites_of, writing
from isogloss.languages import SOURCE, resolve
from isogloss.model.decoder import layers_of
from isogloss.model.load import load_model, notices_folder
from isogloss.model.standardise import Statistics, standardised
from isogloss.notices import write_derived_card
from isogloss.pipeline.folder import Run
from isogloss.pipeline.provenance import learned_from

COMPARED = 16
"""Number of sentences on which the export is compared with the run's own embeddings."""
CLOSE = 1e-3
"""Largest allowed difference in a standardised dimension: covers the summation order in float32."""


@dataclass(frozen=True)
class Embedder:
    """One language's folder, and the largest difference of its embeddings from the run's own."""

    code: str
    folder: Path
    layer: int
    difference: float


def export_embedders(run: Run, codes: Sequence[str], folder: Path) -> list[Embedder]:
    """Write each language, and English, to `folder/<code>`, whole or not at all, in float32.

    Raises:
        RunError: sentence-transformers is not installed, the run has no retrieval scores, a language has too
            few sentences for standardisation, the layer is the last, a folder already exists, or the export
            loaded again gives different embeddings.
    """
    _library()
    name, layer = _read_by(run)
    suite = load_suite(name, run.data_root, run.config.evaluate, codes)
    codes = (SOURCE, *(code for code in codes if code != SOURCE))
    if without := [code for code in codes if code not in suite.layer_sentences]:
        raise RunError(
            f"{name} has no sentences in {', '.join(without)} for standardisation; leave the language out"
        )
    with writing(run, folder, [folder / code for code in codes]):
        refuse_bare(run, codes[1:])  # English needs no adapter
        return _export_all(run, codes, folder, layer, suite)


def _export_all(run: Run, codes: Sequence[str], folder: Path, layer: int, suite: SuiteData) -> list[Embedder]:
    exact = load_model(str(run.tuned), torch.float32)
    if layer == len(layers_of(exact)):
        raise RunError(
            f"retrieval uses layer {layer}, the last, which sentence-transformers only provides after the "
            f"final norm; evaluate with evaluate.layer={layer - 1} or lower"
        )
    plain = retrieval.Model(exact, run.tokenizer)
    aligned = load_model(str(run.tuned), torch.float32)
    subject = retrieval.Model(aligned, run.tokenizer, run.student(aligned, trained=True))
    settings = run.config.evaluate.model_copy(update={"layer": layer})
    limited = replace(suite, layer_sentences={code: suite.layer_sentences[code] for code in codes})
    with run.reporter.bar("Sentences for standardisation") as progress:
        found = retrieval.retriever(subject, plain, limited, settings, progress)
    if found is None or found.statistics is None:
        raise RunError(f"{suite.name} has too few sentences for standardisation; raise evaluate.sentences")
    return [
        _export(run, code, folder, layer, found.statistics[code], plain if code == SOURCE else subject, suite)
        for code in codes
    ]


def _library() -> None:
    try:
        import sentence_transformers  # noqa: F401  # only this export needs it
    except ImportError:
        raise RunError(
            "--format sentence-transformers needs sentence-transformers; install isogloss[embed]"
        ) from None


def _read_by(run: Run) -> tuple[str, int]:
    """Return the first suite with retrieval scores, and the layer used for retrieval."""
    for name, suite in suites_of(run).items():
        if layer := suite["layer"]["after"].get("retrieval"):
            return name, layer
    raise RunError(
        f"{run.folder / 'scores.json'} has no retrieval scores, which determine the layer; "
        "run `isogloss evaluate` on a suite with sentences"
    )


def _export(
    run: Run,
    code: str,
    folder: Path,
    layer: int,
    statistics: Statistics,
    subject: retrieval.Model,
    suite: SuiteData,
) -> Embedder:
    part, work = folder / f"{code}.part", folder / f"{code}.work"
    for one in (part, work):
        shutil.rmtree(one, ignore_errors=True)
    decoder: Any = load_model(str(run.tuned), torch.float32)
    if subject.adapters is not None:
        subject.adapters.export(code, work, str(run.tuned.resolve()))
        decoder = PeftModel.from_pretrained(decoder, str(work)).merge_and_unload(safe_merge=True)
        shutil.rmtree(work)
    decoder.base_model.save_pretrained(work)
    run.tokenizer.save_pretrained(work)
    made = _modules(work, run.tokenizer, layer, statistics)
    made.save_pretrained(str(part), create_model_card=False)
    shutil.rmtree(work)
    texts = suite.layer_sentences[code][:COMPARED]
    ours = retrieval.embed(subject, texts, code, [layer], run.config.evaluate.batch_size)[layer]
    difference = _difference(part, texts, standardised(ours, statistics))
    if not difference <= CLOSE:
        raise RunError(
            f"{code}: loaded again, the export's embeddings differ by {difference:.2g}, more than the "
            f"allowed {CLOSE}; it is left in {part}"
        )
    one = Embedder(code, folder / code, layer, difference)
    _describe(run, one, part, len(texts))
    part.rename(one.folder)
    run.reporter.say(f"{code}: {one.folder}, largest difference in a dimension {difference:.2g}")
    return one


def _modules(decoder: Path, tokenizer: Any, layer: int, statistics: Statistics) -> Any:
    """Build the modules: text → hidden states of a layer → mean over the text's own tokens → standardised."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordWeights

    # hidden_states[0] are the embeddings, so hidden_states[n] is the output of layer n.
    text: Any = {"text": {"method": "forward", "method_output_name": ["hidden_states", layer]}}
    read: Any = Transformer(str(decoder), modality_config=text, module_output_name="token_embeddings")
    read.tokenizer.padding_side = "right"  # as in training: left padding would shift positions
    width, tokens = len(statistics.mean), max(len(tokenizer), read.model.config.vocab_size)
    silent = {*special_ids(tokenizer, len(tokenizer)), *tokenizer("")["input_ids"]}
    weights = WordWeights([str(n) for n in range(tokens)], {str(n): 0.0 for n in sorted(silent)})
    scale = 1 / statistics.scale
    scaled = Dense(
        width,
        width,
        activation_function=nn.Identity(),
        init_weight=scale.diag(),
        init_bias=-statistics.mean * scale,
    )
    return SentenceTransformer(modules=[read, weights, Pooling(width, "mean"), scaled], device="cpu")


def _difference(folder: Path, texts: Sequence[str], ours: Tensor) -> float:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs = loaded.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
    return (theirs.float().cpu() - ours.cpu()).abs().max().item()


def _describe(run: Run, one: Embedder, part: Path, compared: int) -> None:
    """Write the README of an export."""
    language = resolve(one.code)
    what = (
        "the reference model, without adapters" if one.code == SOURCE else "the path of its language, merged"
    )
    lines = (
        f"# Sentences in {language.name}, by isogloss",
        "",
        f"Sentence embeddings of {what}: the mean of layer {one.layer} over the text's own tokens, every "
        "dimension standardised by its mean and standard deviation in this language. Compare them by "
        "cosine with those of the other languages' folders next to this one, including English.",
        "",
        f"Compared with the run's own embeddings on {compared} sentences: no dimension differs by more "
        f"than {one.difference:.2g} standard deviations.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f"model = SentenceTransformer({json.dumps(str(one.folder.resolve()))})",
        'vectors = model.encode(["..."])',
        "```",
        "",
        f"Data: {learned_from(run, one.code)}",
    )
    front = (
        f"language: [{language.bcp47}]",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
    )
    base = notices_folder(run.config.model)
    write_derived_card(part, run.config.model, base, "\n".join(lines), *front)
