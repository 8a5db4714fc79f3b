"""One rank of a DeepSpeed run on the CPU around universal checkpoints.

Arguments: what to do, ZeRO stage, rank, number of ranks, port, folder. ``train`` takes two steps
and saves; ``resume:TAG`` loads the universal checkpoint TAG, tells its state, takes a step, and
tells the weights.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def step(engine, index):
    x = torch.randn(4, 41, generator=torch.Generator().manual_seed(index)).bfloat16()
    engine.backward(engine(x).square().mean())
    engine.step()


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


def made_engine(stage, universal):
    import deepspeed

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(41, 7), nn.Linear(7, 4))
    weights, biases = ([getattr(layer, kind) for layer in model] for kind in ("weight", "bias"))
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=0.01),
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

    deepspeed.init_distributed("gloo", verbose=False)
    name, _, tag = task.partition(":")
    engine = made_engine(stage, name == "resume")
    if name == "train":
        for index in range(2):
            step(engine, index)
        engine.save_checkpoint(folder, tag="trained")
        told = {"state": state_of(engine, stage), "weights": weights_of(engine)}
    else:
        engine.load_checkpoint(folder, tag=tag)
        told = {"state": state_of(engine, stage), "weights": weights_of(engine)}
        step(engine, 2)
        told["after"] = weights_of(engine)
        told["groups"] = [
            {key: value for key, value in group.items() if key != "params"}
            for group in engine.optimizer.optimizer.param_groups
        ]
    if rank == 0:
        torch.save(told, Path(folder) / f"{task.replace(':', '-')}.told")
    # A rank that ends while another still talks to it is aborted by gloo's threads.
    deepspeed.comm.barrier()
    deepspeed.comm.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6])
