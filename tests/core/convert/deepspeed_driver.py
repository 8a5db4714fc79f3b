"""One rank of a DeepSpeed run on the CPU: trains, saves, and tells the state by DeepSpeed's API.

Arguments: ZeRO stage, rank, number of ranks, port, folder.
"""

import os
import sys

import torch
from torch import nn


def main(stage: int, rank: int, ranks: int, port: int, folder: str) -> None:
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
    from deepspeed.utils import safe_get_full_optimizer_state

    deepspeed.init_distributed("gloo", verbose=False)
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
        },
    )
    for _ in range(2):
        engine.backward(engine(torch.randn(4, 41).bfloat16()).square().mean())
        engine.step()
    if stage < 3:
        # DeepSpeed links the state after the first group's step, when the second has none yet.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    expected = {
        name: {
            moment: safe_get_full_optimizer_state(param, moment)
            for moment in ("exp_avg", "exp_avg_sq")
        }
        for name, param in engine.module.named_parameters()
    }
    engine.save_checkpoint(folder)
    if rank == 0:
        torch.save(expected, os.path.join(folder, "expected.pt"))  # noqa: PTH118
    # A rank that ends while another still talks to it is aborted by gloo's threads.
    deepspeed.comm.barrier()
    deepspeed.comm.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5])
