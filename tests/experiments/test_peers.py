"""TRL's trainers beside ours: their FLOPs are counted, and their step size decays in time."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("trl", reason="the baselines need the extra isogloss[rl]")

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from experiments.contest import MethodRun
from experiments.peers import StepCallback, labelled_positions, size
from isogloss.model.cost import Meter
from isogloss.model.load import load_model, load_tokenizer

CHATS = [
    {
        "prompt": [{"role": "user", "content": "Where did Anna buy bread? " * times}],
        "completion": [{"role": "assistant", "content": "at the market"}],
    }
    for times in (4, 6, 8, 9)
]


def counter_of_torch() -> FlopCounterMode:
    """Return torch's counter, extended by the product that TRL adds in place."""

    def in_place(into, a, b, *, out_shape=None, **kwargs):
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})


def trainer(base, folder, **more):
    torch.manual_seed(0)
    lora = LoraConfig(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_model(str(base), torch.float32), lora)
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, max_length=None, gradient_checkpointing=False, bf16=False,
        train_sampling_strategy="sequential", lr_scheduler_type="constant", **more,
    )  # fmt: skip
    made = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(CHATS),
        processing_class=load_tokenizer(str(base)),
    )  # fmt: skip
    return model, made


@pytest.mark.filterwarnings("ignore")
def test_the_head_only_processes_labelled_positions_and_is_counted(base, tmp_path):
    """Checked with torch's own counter; the loss is unchanged, and afterwards TRL is as it was."""
    _, plain = trainer(base, tmp_path / "plain")
    with counter_of_torch() as wasteful:
        loss = plain.train().training_loss
    model, made = trainer(base, tmp_path / "labelled")
    batch = next(iter(made.get_train_dataloader()))
    labelled, positions = int((batch["labels"] != -100).sum()), batch["labels"][:, 1:].numel()
    meter, causal = Meter(model), model.get_base_model()
    with labelled_positions(causal), meter.counting(), counter_of_torch() as counter:
        assert made.train().training_loss == pytest.approx(loss, rel=1e-5)
    # Forward, the same product again in backward, and the gradient.
    assert (meter.forward_heads, meter.backward_heads) == (2 * labelled, labelled)
    saved = 3 * 2 * causal.get_output_embeddings().weight.numel() * (positions - labelled)
    assert wasteful.get_total_flops() - counter.get_total_flops() == saved > 0
    _, again = trainer(base, tmp_path / "again")
    with counter_of_torch() as after:
        again.train()
    assert after.get_total_flops() == wasteful.get_total_flops()


def test_the_step_size_warms_up_and_decays():
    assert [size(one) for one in (0.0, 0.025, 0.05, 1.0, 1.2)] == [0.0, 0.5, 1.0, 0.0, 0.0]
    assert size(0.525) == pytest.approx(0.5)
    assert size(0.2875) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))


class Slow(MethodRun):
    """Takes ten seconds per step and is stopped after a hundred."""

    spent = 0.0  # type: ignore[assignment]  # its own clock

    def __init__(self, limit):
        self.contest = type("Contest", (), {"limit": limit})  # type: ignore[assignment]

    def tick(self, step):
        self.spent += 10.0  # type: ignore[misc]
        return self.spent < 100.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("limit", "last"), [(None, size(10 / 20)), (100.0, 0.0)])
def test_the_step_size_of_a_stopped_method_has_decayed(base, tmp_path, limit, last):
    """10 of 20 steps fit: the schedule is halfway by steps, and at its end by time."""
    _, made = trainer(base, tmp_path / "out", learning_rate=1e-3)
    made.args.max_steps = 20
    made.add_callback(StepCallback(Slow(limit)))
    made.train()
    assert made.state.global_step == 10
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * last, abs=1e-12)
