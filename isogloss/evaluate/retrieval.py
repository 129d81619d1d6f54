"""Sentence embeddings of a model and their comparison across languages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss.adapters.lora import TreeLora
from isogloss.config import Evaluate
from isogloss.data.chat import pad
from isogloss.data.tokens import encode_text
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.metrics import Retrieval, retrieve, same_targets
from isogloss.languages import SOURCE
from isogloss.model.decoder import by_length, layers_of, mean_pool, most_tokens, padded, states_up_to
from isogloss.model.load import pad_id
from isogloss.model.standardise import FEWEST, Statistics, standardised, statistics_of
from isogloss.progress import Progress


@dataclass(frozen=True)
class Model:
    """A model under evaluation: the reference model alone, or with adapters on each language's path."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    adapters: TreeLora | None = None


@dataclass(frozen=True)
class Retriever:
    """Retrieval between the subject's sentences and the reference model's English ones, in both directions.

    Layers and statistics come from sentences that are not reported. A language's statistics are computed from
    the measured subject on the language's path, so each side is standardised by its own. English embeddings
    and statistics always come from the reference model.

    Attributes:
        layer: Best decoder layer for `retrieval` and its variants.
        raw_layer: Best decoder layer for `retrieval_raw`, the raw cosine.
        statistics: By language, at `layer`. None with fewer than `standardise.FEWEST` sentences to compute
            them from; `retrieval` then uses the raw cosine too.
        english: The reference model's embeddings of the reported English sentences, by layer.
        sentences: Number of sentences that the layers and statistics come from.
    """

    layer: int
    raw_layer: int
    statistics: Mapping[str, Statistics] | None
    english: Mapping[int, Float[Tensor, "n d"]]
    sentences: int

    @property
    def kind(self) -> str:
        return "raw" if self.statistics is None else "standardised"

    def compare(
        self, code: str, english: Sequence[str], texts: Sequence[str], vectors: Mapping[int, Tensor]
    ) -> tuple[Retrieval, Retrieval]:
        """Return `retrieval` and `retrieval_raw` of a language's reported sentences.

        Args:
            vectors: The subject's embeddings of the texts, at both layers.
        """
        same = same_targets(english, texts)
        raw = retrieve(self.english[self.raw_layer], vectors[self.raw_layer], same)
        sides = {SOURCE: self.english[self.layer], code: vectors[self.layer]}
        if self.statistics is not None:
            sides = {one: standardised(side, self.statistics[one]) for one, side in sides.items()}
        return retrieve(sides[SOURCE], sides[code], same), raw


@torch.no_grad()
def embed(
    subject: Model,
    texts: Sequence[str],
    language: str,
    layers: Sequence[int],
    batch: int,
    done: Callable[[int], None] = lambda count: None,
) -> dict[int, Float[Tensor, "texts hidden"]]:
    """Embed bare sentences on a language's path: mean-pooled hidden states of some decoder layers.

    The forward pass stops at the highest requested layer.

    BOS and other control tokens are read but not pooled: they carry no information about the sentence, and in
    many models the norm of the first token's state exceeds that of all others together.

    Args:
        done: Called after each batch with its number of texts.
    """
    model, tokenizer, adapters = subject.model, subject.tokenizer, subject.adapters
    encoded = [encode_text(tokenizer, text) for text in texts]
    rows = [ids for ids, _ in encoded]
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(texts) for layer in layers}
    for chosen in by_length(rows, batch, most_tokens(model)):
        ids, mask = padded(model, [rows[i] for i in chosen], pad_id(tokenizer))
        own, _ = pad([[int(one) for one in encoded[i][1]] for i in chosen], 0)
        if adapters is not None:
            adapters.set_path([language] * len(chosen))
        for layer, states in states_up_to(model, ids, mask, layers).items():
            for number, vector in zip(chosen, mean_pool(states, own.to(ids.device)), strict=True):
                found[layer][number] = vector
        done(len(chosen))
    if adapters is not None:
        adapters.off()
    return {layer: torch.stack(vectors) for layer, vectors in found.items()}


def retriever(
    subject: Model, reference: Model, suite: SuiteData, settings: Evaluate, progress: Progress
) -> Retriever | None:
    """Choose the layers with the best mean retrieval over languages, and compute the statistics there.

    Uses the same comparison as the score, the subject's sentences against the reference model's English ones,
    but on sentences that are not reported. Returns None if the suite has no sentences.
    """
    if not suite.sentences:
        return None
    texts = suite.layer_sentences
    enough = len(texts.get(SOURCE, ())) >= FEWEST
    layers = [settings.layer] if settings.layer else list(range(1, len(layers_of(subject.model)) + 1))
    done = adding_up(progress, sum(map(len, texts.values())) + len(suite.sentences[SOURCE]))
    raw, scaled = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    statistics: dict[int, dict[str, Statistics]] = {}
    if settings.layer is None or enough:
        english = embed(reference, texts[SOURCE], SOURCE, layers, settings.batch_size, done)
        if enough:
            statistics = {layer: {SOURCE: statistics_of(english[layer])} for layer in layers}
        for code in [code for code in texts if code != SOURCE]:
            vectors = embed(subject, texts[code], code, layers, settings.batch_size, done)
            same = same_targets(texts[SOURCE], texts[code])
            for layer in layers:
                raw[layer] += retrieve(english[layer], vectors[layer], same).accuracy
                if enough:
                    of = statistics[layer]
                    of[code] = statistics_of(vectors[layer])
                    sides = standardised(english[layer], of[SOURCE]), standardised(vectors[layer], of[code])
                    scaled[layer] += retrieve(*sides, same).accuracy
    raw_layer = max(raw, key=lambda layer: raw[layer])
    layer = max(scaled, key=lambda layer: scaled[layer]) if enough else raw_layer
    chosen = sorted({layer, raw_layer})
    english = embed(reference, suite.sentences[SOURCE], SOURCE, chosen, settings.batch_size, done)
    return Retriever(layer, raw_layer, statistics.get(layer), english, len(texts.get(SOURCE, ())))


def adding_up(progress: Progress, total: int) -> Callable[[int], None]:
    """Wrap a progress callback so that it takes increments."""
    seen = 0

    def done(count: int) -> None:
        nonlocal seen
        seen += count
        progress(seen, total)

    return done
