"""The methods compared: ours with three tree shapes, DCO, and trl's SFT, DPO and GRPO.

Each is a thin wrapper: a model with one LoRA of the rank of a path in our tree, the contest's prompts, and a
`tick` after every step. Their settings are defined here; docs/baselines.md says how they were chosen.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from experiments.ablation import VARIANTS, as_usual
from experiments.contest import OURS, REFERENCE, Contest, Entry, MethodRun, Point, work_folder
from experiments.dco import DCOTrainer, pair_of
from experiments.peers import StepCallback, labelled_positions
from experiments.reward import Prompt, Reward
from isogloss.adapters.fit import lora_shape
from isogloss.adapters.generate import answers
from isogloss.adapters.lora import lora_config
from isogloss.bases import EMBEDDED
from isogloss.config import Config, with_overrides
from isogloss.config.yaml_io import Loader
from isogloss.data.chat import encode_response
from isogloss.errors import ConfigError, DataError
from isogloss.evaluate import retrieval
from isogloss.languages import SOURCE
from isogloss.model.cost import StageCost
from isogloss.model.decoder import causal_of
from isogloss.model.load import pad_id
from isogloss.pipeline.folder import Run
from isogloss.pipeline.training import scored_elsewhere
from isogloss.train.stage2 import TRAINING, distill

Settings = Mapping[str, Any]

SFT: Settings = {"learning_rate": 3e-3}
DPO: Settings = {
    "learning_rate": 2e-3,
    "beta": 0.1,
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 1.0],
}
GRPO: Settings = {
    "learning_rate": 3e-3,
    "beta": 0.04,
    "num_generations": 8,
    "temperature": 1.0,
    "steps_per_generation": 4,
}
BEHIND_SFT: Settings = {**GRPO, "learning_rate": 1e-4}
DCO: Settings = {"learning_rate": 1e-3, "beta": 1.0}
FOR_DEMO: Mapping[str, Settings] = {
    "sft": SFT,
    "sequence": SFT,
    "dco": DCO,
    "dpo": DPO,
    "grpo": GRPO,
    "sft-grpo": BEHIND_SFT,
}
"""Settings of the methods on the demo model; docs/baselines.md says how they were chosen."""
_SFT: Settings = {"learning_rate": 5e-4}
_GROUPS = {"learning_rate": 1e-4, "per_device_train_batch_size": 32}
FOR_OTHERS: Mapping[str, Settings] = {
    "sft": _SFT,
    "sequence": _SFT,
    "dco": {"learning_rate": 5e-4, "beta": 1.0},
    "dpo": {**DPO, "learning_rate": 1e-4},
    "grpo": {**GRPO, **_GROUPS},
    "sft-grpo": {**GRPO, **_GROUPS},
}
"""Settings of the methods on any other model: stage 2's learning rate, and for RL what LoRA is commonly tuned
with. GRPO's steps have at least 4 prompts with 8 answers each, whatever stage 2's batch size is."""
SAMPLES = 4
"""Answers sampled per prompt for preference pairs."""
CROSS_ENTROPY = (
    "languages.tree=flat",
    *VARIANTS["no-hidden"],
    *VARIANTS["no-kl"],
    "distill.replay_fraction=0",
    *as_usual("signal", "top_k"),
)
"""Settings of our trainer with cross-entropy alone, and a separate adapter for each language."""
PLAIN = {"enable_thinking": False}
"""Chat template arguments, as in our own prompts."""
TOGETHER = 256
"""Batch size for sampling answers."""


Method = Callable[[Contest, Settings], Entry]


def untrained(contest: Contest) -> Entry:
    """Evaluate the reference model, from which every method starts."""
    point = Point(0, 0.0, 0.0, contest.measure(contest.plain))
    return Entry(REFERENCE, contest.run.config.seed, [point], ended="not trained")


class _Late(Exception):  # noqa: N818  # not an error: the method's time is up
    """Stops a training loop that has no other way to stop."""


def distilled(contest: Contest, method: str, *overrides: str) -> Entry:
    """Our method, with the run's settings or overrides."""
    run = Run(with_overrides(contest.run.config, overrides), contest.run.reporter)
    rows, settings = contest.rows(run), run.config.distill
    adapters = run.student(contest.run.reference_model(), trained=False)
    subject = retrieval.Model(adapters.model, run.tokenizer, adapters)  # type: ignore[arg-type]
    parallel = sum(row.language != SOURCE for row in rows)
    steps = round(settings.epochs * parallel / (1 - settings.replay_fraction)) // settings.batch_size
    way = contest.start(method, subject, steps, adapters.tree.path_rank() / adapters.tree.rank)
    work = _clean(contest, method)

    @contextmanager
    def bar(what: str) -> Iterator[Callable[[int, int], None]]:
        def tick(done: int, of: int) -> None:
            if what == TRAINING and not way.tick(done):
                raise _Late

        yield tick

    cost = StageCost(method)
    with way, suppress(_Late):
        distill(
            adapters,
            rows,
            settings,
            pad_id=pad_id(run.tokenizer),
            seed=run.config.seed,
            work=work,
            curve=work / "curve.jsonl",
            cost=cost,
            bar=bar,
            scored=scored_elsewhere(run, rows, cost, bar),
        )
    return way.entry


def sft(contest: Contest, settings: Settings) -> Entry:
    """Supervised fine-tuning on the responses in every language, one adapter for all."""
    model, way = _begin(contest, "sft", _steps(contest))
    _sft(contest, model, way, _steps(contest), settings, contest.prompts)
    return way.entry


def sequence(contest: Contest, settings: Settings) -> Entry:
    """Sequence-level distillation (Kim & Rush 2016, D16-1139): supervised on the teacher's answers.

    The teacher gets the same privileged prompts as in our method, and may answer in another language.
    Generating its answers counts as cost; where one is truncated, the data's response is used.
    """
    model, way = _begin(contest, "sequence", _steps(contest))
    with way:
        prompts = contest.taught_prompts(model)
    _sft(contest, model, way, _steps(contest), settings, prompts)
    return way.entry


def dco(contest: Contest, settings: Settings) -> Entry:
    """Direct consistency optimisation towards the reference model's English, on rows of closed tasks."""
    run, rows = contest.run, contest.parallel
    encode = cache(partial(encode_response, run.tokenizer))
    made = [pair_of(row, contest.example(row), encode, run.config.seed) for row in rows]
    pairs = [pair for number in contest.order(rows) if (pair := made[number]) is not None]
    if not pairs:
        raise DataError("dco compares answers of closed tasks, but the data has none")
    steps = len(pairs) // run.config.distill.batch_size
    model, way = _begin(contest, "dco", steps)
    sizes = dict(settings)
    trainer = DCOTrainer(
        model=model,
        pairs=pairs,
        pad_id=pad_id(run.tokenizer),
        beta=sizes.pop("beta"),
        args=TrainingArguments(**_arguments(contest, "dco", steps) | sizes, remove_unused_columns=False),
        callbacks=[StepCallback(way)],
    )
    _train(trainer, way)
    return way.entry


def dpo(contest: Contest, settings: Settings, pairs: Dataset | None = None) -> Entry:
    """Direct preference optimisation on pairs built with the reward.

    Among `SAMPLES` answers of the reference model and the data's response, the one with the highest reward is
    preferred to the one with the lowest. Sampling them counts as cost.
    """
    model, way = _begin(contest, "dpo", _steps(contest))
    if pairs is None:
        with way:
            pairs = preference_pairs(contest, model)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**_arguments(contest, "dpo", _steps(contest)) | dict(settings), max_length=None),
        train_dataset=pairs,
        processing_class=contest.run.tokenizer,
        callbacks=[StepCallback(way)],
    )
    _train(trainer, way)
    return way.entry


def grpo(contest: Contest, settings: Settings) -> Entry:
    """Group-relative policy optimisation from the reference model."""
    model, way = _begin(contest, "grpo", _steps(contest))
    _grpo(contest, model, way, _steps(contest), settings)
    return way.entry


def sft_grpo(contest: Contest, settings: Settings) -> Entry:
    """The usual recipe: supervised fine-tuning, then group-relative policy optimisation.

    The supervised part adds a third of the steps, with the settings of `sft`.
    """
    steps = _steps(contest)
    model, way = _begin(contest, "sft-grpo", steps + steps // 3)
    _sft(contest, model, way, steps // 3, settings_of("sft", contest.run.config), contest.prompts)
    _grpo(contest, model, way, steps, settings, after=steps // 3)
    return way.entry


METHODS: Mapping[str, Method] = {
    OURS: lambda contest, settings: distilled(contest, OURS),
    REFERENCE: lambda contest, settings: untrained(contest),
    "flat": lambda contest, settings: distilled(contest, "flat", "languages.tree=flat"),
    "shared": lambda contest, settings: distilled(contest, "shared", "languages.tree=shared"),
    "sft": sft,
    "sft-languages": lambda contest, settings: distilled(contest, "sft-languages", *CROSS_ENTROPY),
    "sequence": sequence,
    "dco": dco,
    "dpo": dpo,
    "grpo": grpo,
    "sft-grpo": sft_grpo,
}
"""Methods by name; ours first, as its cost limits the others'."""


def settings_of(method: str, config: Config) -> Settings:
    """Return the trainer settings of a method for a run's model; empty for ours and its variants."""
    given = FOR_DEMO if config.model == EMBEDDED else FOR_OTHERS
    return given.get(method, {})


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a method's name, or a method with other trainer settings: `grpo: learning_rate=3e-4 beta=0`.

    Raises:
        ConfigError: The method is unknown, or lacks the setting.
    """
    name, colon, rest = text.partition(":")
    if name not in METHODS:
        raise ConfigError(f"--method {text}: unknown; choose from {', '.join(METHODS)}")
    known = FOR_OTHERS.get(name, {})
    changes = {setting: value for setting, _, value in (change.partition("=") for change in rest.split())}
    if colon and (not changes or not all(changes.values()) or not changes.keys() <= known.keys()):
        takes = f"known settings: {', '.join(known)}" if known else "it has no settings here"
        raise ConfigError(f"--method {text}: write it as '{name}: setting=value'; {takes}")
    return name, {setting: yaml.load(value, Loader) for setting, value in changes.items()}


def train(contest: Contest, text: str) -> Entry:
    """Train and evaluate a method named as for `parse`."""
    name, changes = parse(text)
    entry = METHODS[name](contest, {**settings_of(name, contest.run.config), **changes})
    entry.method = text
    return entry


def _sft(
    contest: Contest,
    model: PeftModel,
    way: MethodRun,
    steps: int,
    settings: Settings,
    prompts: Sequence[Prompt],
) -> None:
    rows = [_chat(prompt) | {"completion": _said(prompt.response)} for prompt in prompts]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_arguments(contest, "sft", steps) | dict(settings), max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=contest.run.tokenizer,
        callbacks=[StepCallback(way)],
    )
    _train(trainer, way)


def _grpo(
    contest: Contest,
    model: PeftModel,
    way: MethodRun,
    steps: int,
    settings: Settings,
    after: int = 0,
) -> None:
    prompts = contest.prompts
    reward = Reward(prompts, contest.english_responses)

    def alignment(completions: list, number: list[int], **kwargs: Any) -> list[float | None]:
        return [reward(said[0]["content"], prompts[n]) for said, n in zip(completions, number, strict=True)]

    arguments = _arguments(contest, "grpo", steps)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=alignment,
        args=GRPOConfig(
            **arguments | dict(settings),
            max_completion_length=contest.run.config.evaluate.max_new_tokens,
            shuffle_dataset=False,
            chat_template_kwargs=PLAIN,
        ),
        train_dataset=Dataset.from_list([_chat(prompt) | {"number": n} for n, prompt in enumerate(prompts)]),
        processing_class=contest.run.tokenizer,
        callbacks=[StepCallback(way, after)],
    )
    _train(trainer, way)


def _train(trainer: Trainer, way: MethodRun) -> None:
    """Train with the clock running; tokenisation happened before and does not count."""
    with labelled_positions(causal_of(way.subject.model)), way:
        trainer.train()


def preference_pairs(contest: Contest, model: nn.Module) -> Dataset:
    """Return DPO pairs: the best and the worst of the model's samples and the data's response."""
    prompts, tokenizer = list(dict.fromkeys(contest.prompts)), contest.run.tokenizer
    reward = Reward(prompts, contest.english_responses)
    torch.manual_seed(contest.run.config.seed)
    drawn = answers(
        model,
        tokenizer,
        [prompt.text for prompt in prompts for _ in range(SAMPLES)],
        max_new_tokens=contest.run.config.evaluate.max_new_tokens,
        sample=True,
        batch=TOGETHER,
    )
    pairs = {}
    for number, prompt in enumerate(prompts):
        given = [*drawn[number * SAMPLES : (number + 1) * SAMPLES], prompt.response]
        scored = sorted(((reward(text, prompt), text) for text in given), key=lambda pair: pair[0])
        if scored[0][0] < scored[-1][0]:
            pairs[prompt] = {"chosen": _said(scored[-1][1]), "rejected": _said(scored[0][1])}
    return Dataset.from_list([_chat(one) | pairs[one] for one in contest.prompts if one in pairs])


def _begin(contest: Contest, method: str, steps: int) -> tuple[PeftModel, MethodRun]:
    """Return the reference model with one LoRA of the rank of a path in the tree, and its counter."""
    run, settings = contest.run, contest.run.config.distill.adapter
    torch.manual_seed(run.config.seed)
    rank = run.tree.path_rank()
    reference = run.reference_model()
    model: Any = get_peft_model(reference, lora_config(reference, rank, **lora_shape(reference, settings)))
    return model, contest.start(method, retrieval.Model(model, run.tokenizer), steps)


def _steps(contest: Contest) -> int:
    """Return the number of steps that our method takes on rows other than English ones."""
    return len(contest.prompts) // contest.run.config.distill.batch_size


def _arguments(contest: Contest, method: str, steps: int) -> dict[str, Any]:
    """Return arguments common to all trainers: stage 2's batch size, order and precision."""
    return {
        "output_dir": str(_clean(contest, method)),
        "max_steps": steps,
        "seed": contest.run.config.seed,
        "per_device_train_batch_size": contest.run.config.distill.batch_size,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "adam_beta2": 0.98,
        "bf16": contest.run.dtype == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _clean(contest: Contest, method: str) -> Path:
    folder = work_folder(contest.run, method)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _chat(prompt: Prompt) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": prompt.text}], "chat_template_kwargs": PLAIN}


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
