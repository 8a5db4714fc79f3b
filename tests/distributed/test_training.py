"""PyTorch's own ways of training on several processes work with LUMA's optimizers."""

from pathlib import Path

from .harness import run


def test_ways_of_training(tmp_path: Path) -> None:
    cases = [
        "replicas_stay_equal",
        "zero_redundancy_is_replication",
        "backward_steps_sharded",
        "mixed_precision",
        "scaled_gradients",
        "offloaded",
    ]
    run(2, tmp_path, "training_cases", cases)
