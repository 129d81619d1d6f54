"""One instruction, answered by the reference model in English, zero-shot, and by the aligned model."""

from isogloss.errors import RunError
from isogloss.inference import Aligned
from isogloss.languages import SOURCE, UnknownLanguageError, resolve
from isogloss.pipeline.folder import Run


class Asker:
    """Keeps the model of a run in memory and answers in one language.

    Raises:
        RunError: The run is not trained, or no language has the code.
    """

    def __init__(self, run: Run, language: str):
        try:
            self.language = resolve(language)
        except UnknownLanguageError as error:
            raise RunError(str(error)) from None
        self.aligned = Aligned(run)

    @property
    def note(self) -> str:
        """What stands in for a language that was not taught; empty for one that was."""
        path = self.aligned.run.tree.path(self.language.code)
        if path[-1].level == "language" or self.language.code == SOURCE:
            return ""
        holds = [node for node in path if node.rank]
        if not holds:
            return (
                f"{self.language.name} was not taught and this tree shares nothing: the answer is zero-shot."
            )
        node = holds[-1]
        through = "the root" if node.level == "root" else f"its family, {node.name.replace('/', ' / ')}"
        return f"{self.language.name} was not taught; it answers through {through}."

    def answers(self, text: str, twin: str | None = None) -> dict[str, str]:
        """Answers by the name of who gives them.

        Args:
            text: The instruction in the asker's language.
            twin: The same in English, where there is one: the reference model answers it.
        """
        plain = self.aligned.reference([text] if twin is None else [text, twin])
        aligned = self.aligned.generate([text], self.language.code)
        english = {} if twin is None else {"reference, English": plain[1]}
        return {**english, "zero-shot": plain[0], "aligned": aligned[0]}
