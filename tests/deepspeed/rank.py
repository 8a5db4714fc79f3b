"""One rank of a DeepSpeed run on the CPU.

Arguments: what to do, ZeRO stage, rank, number of ranks, port, folder.

- ``train``: takes two steps with AdamW, saves them as ``trained``, tells state and weights.
- ``resume:TAG``: loads the universal checkpoint TAG, tells its state, takes a step, tells weights.
- ``client:KIND``: trains with one of our optimizers, saves, goes on; and once more from what was
  saved; tells the weights of both. ``refuse:KIND`` tells what the first step raises.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
BEFORE, AFTER = 3, 3


def client(kind, groups):
    from luma_core import LAMB, LUMA, AdamMini, TurboAdam

    small = {"min_compress_elements": 512, "seed": 1}
    return {
        "luma": lambda: LUMA(groups, lr=0.01, **small),
        "turbo": lambda: TurboAdam(groups, lr=0.01, min_m_compress_elements=512, **small),
        "lamb": lambda: LAMB(groups, seed=1),
        "mini": lambda: AdamMini(groups, seed=1, n_heads=1),
    }[kind]()


def made_engine(stage, optimizer="adamw", universal=False):
    import deepspeed

    torch.manual_seed(0)
    width = 7 if optimizer == "adamw" else 120
    model = nn.Sequential(nn.Linear(41, width), nn.Linear(width, 4))
    named = list(model.named_parameters())
    weights, biases = ([item for item in named if kind in item[0]] for kind in ("weight", "bias"))
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=0.01)
        if optimizer == "adamw"
        else client(optimizer, groups),
        config={
            "train_micro_batch_size_per_gpu": 4,
            "bf16": {"enabled": True},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": stage},
            "checkpoint": {"load_universal": universal},
        },
    )
    return engine


def step(engine, index):
    x = torch.randn(4, 41, generator=torch.Generator().manual_seed(index)).bfloat16()
    loss = engine(x).square().mean()
    engine.backward(loss)
    engine.step()
    return loss.item()


def state_of(engine, stage):
    from deepspeed.utils import safe_get_full_optimizer_state

    if stage < 3:
        # DeepSpeed links the state after the first group's step, when the second has none yet.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    return {
        name: {moment: safe_get_full_optimizer_state(param, moment) for moment in MOMENTS}
        for name, param in engine.module.named_parameters()
    }


def weights_of(engine):
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: safe_get_full_fp32_param(param).clone()
        for name, param in engine.module.named_parameters()
    }


def train(stage, folder, _):
    engine = made_engine(stage)
    for index in range(2):
        step(engine, index)
    engine.save_checkpoint(folder, tag="trained")
    return {"state": state_of(engine, stage), "weights": weights_of(engine)}


def resume(stage, folder, tag):
    engine = made_engine(stage, universal=True)
    engine.load_checkpoint(folder, tag=tag)
    told = {"state": state_of(engine, stage), "weights": weights_of(engine)}
    step(engine, 2)
    told["after"] = weights_of(engine)
    told["groups"] = [
        {key: value for key, value in group.items() if key != "params"}
        for group in engine.optimizer.optimizer.param_groups
    ]
    return told


def train_client(stage, folder, kind):
    engine = made_engine(stage, kind)
    losses = [step(engine, 0) for _ in range(BEFORE)]
    engine.save_checkpoint(folder, tag="trained")
    losses += [step(engine, 0) for _ in range(AFTER)]
    again = made_engine(stage, kind)
    again.load_checkpoint(folder, tag="trained")
    losses_again = [step(again, 0) for _ in range(AFTER)]
    fields = [sorted(state) for state in again.optimizer.optimizer.state.values()]
    return {
        "losses": losses,
        "losses_again": losses_again,
        "weights": weights_of(engine),
        "weights_again": weights_of(again),
        "fields": fields,
    }


def refuse(stage, _folder, kind):
    try:
        step(made_engine(stage, kind), 0)
    except TypeError as error:
        return {"raised": type(error).__name__, "message": str(error)}
    return {"raised": None}


TASKS = {"train": train, "resume": resume, "client": train_client, "refuse": refuse}


def main(task: str, stage: int, rank: int, ranks: int, port: int, folder: str) -> None:
    os.environ.update(
        DS_ACCELERATOR="cpu",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_SIZE=str(ranks),
        OMP_NUM_THREADS="1",
    )
    import deepspeed

    try:
        deepspeed.init_distributed("gloo", verbose=False)
        name, _, argument = task.partition(":")
        told = TASKS[name](stage, folder, argument)
        if rank == 0:
            torch.save(told, Path(folder) / f"{task.replace(':', '-')}.told")
        # A rank that ends while another still talks to it is aborted by gloo's threads.
        deepspeed.comm.barrier()
        deepspeed.comm.destroy_process_group()
    finally:
        remove_buffer(port, rank)


def remove_buffer(port: int, rank: int) -> None:
    """Remove the shared memory that DeepSpeed leaves of this process, 66 MiB of it."""
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_{rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6])
