"""One instruction, answered by the reference model in English, zero-shot, and by the aligned model."""

from isogloss.generate import answers
from isogloss.languages import SOURCE, resolve
from isogloss.pipeline import Run


class Asker:
    """Keeps the model of a run in memory and answers in one language."""

    def __init__(self, run: Run, language: str):
        self.language = resolve(language)
        self.run = run
        self.model = run.reference_model()
        self.carrier = run.student(self.model, trained=True)
        self.note = self._note()

    def answers(self, text: str, twin: str | None = None) -> dict[str, str]:
        """Answers by the name of who gives them."""
        tokenizer, limit = self.run.tokenizer, 64
        found = {}
        if twin is not None:
            found["English twin"] = answers(self.model, tokenizer, [twin], max_new_tokens=limit)[0]
        found["zero-shot"] = answers(self.model, tokenizer, [text], max_new_tokens=limit)[0]
        found["aligned"] = answers(
            self.model,
            tokenizer,
            [text],
            languages=[self.language.code],
            carrier=self.carrier,
            max_new_tokens=limit,
        )[0]
        return found

    def _note(self) -> str:
        path = self.run.tree.path(self.language.code)
        if path[-1].level == "language" or self.language.code == SOURCE:
            return ""
        return f"{self.language.name} has no leaf in this run; it answers through {path[-1].name}."
