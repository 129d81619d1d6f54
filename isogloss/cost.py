"""The ledger: what each stage cost, added up over resumes and never counted twice."""

import json
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from isogloss.files import write_text


@dataclass
class Stage:
    """The cost of one stage."""

    stage: str
    tokens_forwarded: int = 0
    tokens_backpropagated: int = 0
    tokens_generated: int = 0
    teacher_calls: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    started: float = field(default_factory=time.monotonic, repr=False)


class Ledger:
    """The stages of a run, kept in a file that is replaced whole."""

    def __init__(self, path: Path):
        self.path = path
        self.stages: dict[str, Stage] = {}
        if path.exists():
            for entry in json.loads(path.read_text("utf-8"))["stages"]:
                self.stages[entry["stage"]] = Stage(**entry)

    def begin(self, stage: str) -> Stage:
        """A stage's entry; one that was begun before keeps its seconds and starts its counts anew.

        Counts are set by the stage from its checkpoints at the end; seconds really spent are added.
        """
        spent = self.stages[stage].seconds if stage in self.stages else 0.0
        self.stages[stage] = Stage(stage, seconds=spent)
        return self.stages[stage]

    def pause(self, stage: Stage) -> None:
        """Add the time since `begin`, or since the last pause, and write."""
        now = time.monotonic()
        stage.seconds = round(stage.seconds + now - stage.started, 2)
        stage.started = now
        # ru_maxrss is in KiB on Linux
        stage.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        entries = [{k: v for k, v in asdict(s).items() if k != "started"} for s in self.stages.values()]
        write_text(self.path, json.dumps({"schema": 1, "stages": entries}, indent=1))


def forward_flops(model: nn.Module, tokens: int, head_tokens: int) -> float:
    """Floating-point operations of reading `tokens` and projecting `head_tokens` of them.

    Twice the weights that each token meets; the attention's own products, small at these lengths,
    are left out (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and so are adapters.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings().weight  # type: ignore[operator, union-attr]
    body = sum(
        p.numel()
        for name, p in model.named_parameters()
        if id(p) not in embeddings and p is not head and "lora_" not in name
    )
    return 2.0 * (body * tokens + head.numel() * head_tokens)
