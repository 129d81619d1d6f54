"""Sentence vectors of a model, and how they are compared between languages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isogloss.adapters.generate import in_batches
from isogloss.adapters.lora import TreeLora
from isogloss.config import Evaluate
from isogloss.data.chat import encode_text, pad
from isogloss.evaluate.items import SuiteData
from isogloss.evaluate.metrics import Retrieval, retrieve, same_targets
from isogloss.languages import SOURCE
from isogloss.model.decoder import layers_of, mean_pool, most_tokens, states_up_to
from isogloss.model.load import pad_id
from isogloss.model.standardise import FEWEST, Statistics, standardised, statistics_of
from isogloss.progress import Progress


@dataclass(frozen=True)
class Model:
    """What answers: the reference model alone, or with its adapters on each language's path."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    adapters: TreeLora | None = None


@dataclass(frozen=True)
class Retriever:
    """How a subject's sentences are looked for among the reference model's English ones, and back.

    Both layers and the statistics come from sentences that are not reported. The statistics of a language
    are of the subject that is measured, read on the language's path, so each side is standardised by its
    own; English is the reference model's on both sides, statistics included.

    Attributes:
        layer: Decoder layer of `retrieval` and its variants, the best one for them.
        raw_layer: That of `retrieval_raw`, the plain cosine.
        statistics: By language, at `layer`; None where there are fewer than `standardise.FEWEST` sentences to
            take them from: `retrieval` is then the plain cosine too.
        english: The reference model's embeddings of the reported English sentences, by layer.
        sentences: How many the statistics are from.
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
        """Retrieval, and retrieval by the plain cosine, of a language's reported sentences.

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
    """States of some decoder layers for bare sentences, read on a language's path, as the mean over the text.

    No layer above the highest of them is read.

    BOS and other control tokens are read but not pooled: they say nothing of the sentence, and in many models
    the first token's states are longer than all others together.

    Args:
        done: Told after each batch how many texts it held.
    """
    model, tokenizer, adapters = subject.model, subject.tokenizer, subject.adapters
    device = next(model.parameters()).device
    encoded = [encode_text(tokenizer, text) for text in texts]
    rows = [ids for ids, _ in encoded]
    order = sorted(range(len(texts)), key=lambda number: len(rows[number]))
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(texts) for layer in layers}
    for chosen in in_batches(order, rows, batch, most_tokens(model)):
        ids, mask = (t.to(device) for t in pad([list(rows[i]) for i in chosen], pad_id(tokenizer)))
        own, _ = pad([[int(one) for one in encoded[i][1]] for i in chosen], 0)
        if adapters is not None:
            adapters.set_path([language] * len(chosen))
        for layer, states in states_up_to(model, ids, mask, layers).items():
            for number, vector in zip(chosen, mean_pool(states, own.to(device)), strict=True):
                found[layer][number] = vector
        done(len(chosen))
    if adapters is not None:
        adapters.off()
    return {layer: torch.stack(vectors) for layer, vectors in found.items()}


def retriever(
    subject: Model, reference: Model, suite: SuiteData, settings: Evaluate, progress: Progress
) -> Retriever | None:
    """The layers at which a subject's retrieval is best, mean over languages, and its statistics there.

    Chosen on what is scored: the subject's sentences against the reference model's English ones, of lines
    that are not reported. None where the suite has no sentences.
    """
    if not suite.sentences:
        return None
    texts = suite.layer_sentences
    enough = len(texts.get(SOURCE, ())) >= FEWEST
    layers = [settings.layer] if settings.layer else list(range(1, len(layers_of(subject.model)) + 1))
    done = adding_up(progress, sum(map(len, texts.values())) + len(suite.sentences[SOURCE]))
    raw, scaled = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    statistics: dict[int, dict[str, Statistics]] = {layer: {} for layer in layers}
    if settings.layer is None or enough:
        english = embed(reference, texts[SOURCE], SOURCE, layers, settings.batch_size, done)
        for code in (SOURCE, *(code for code in texts if code != SOURCE)):
            vectors = english
            if code != SOURCE:
                vectors = embed(subject, texts[code], code, layers, settings.batch_size, done)
            same = same_targets(texts[SOURCE], texts[code])
            for layer in layers:
                if enough:
                    statistics[layer][code] = statistics_of(vectors[layer])
                if code != SOURCE:
                    raw[layer] += retrieve(english[layer], vectors[layer], same).accuracy
                if code != SOURCE and enough:
                    of = statistics[layer]
                    sides = standardised(english[layer], of[SOURCE]), standardised(vectors[layer], of[code])
                    scaled[layer] += retrieve(*sides, same).accuracy
    raw_layer = max(raw, key=lambda layer: raw[layer])
    layer = max(scaled, key=lambda layer: scaled[layer]) if enough else raw_layer
    chosen = sorted({layer, raw_layer})
    english = embed(reference, suite.sentences[SOURCE], SOURCE, chosen, settings.batch_size, done)
    return Retriever(
        layer, raw_layer, statistics[layer] if enough else None, english, len(texts.get(SOURCE, ()))
    )


def adding_up(progress: Progress, total: int) -> Callable[[int], None]:
    """Progress told of parts."""
    seen = [0]

    def done(count: int) -> None:
        seen[0] += count
        progress(seen[0], total)

    return done
