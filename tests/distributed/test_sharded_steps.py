"""A sharded run leaves the same bits as the whole one, for every optimizer and codec."""

from pathlib import Path

import pytest

from .harness import run

KINDS = [
    *("luma", "luma_eager", "luma_whole", "luma_raise"),
    *("turbo_5bit", "turbo_8bit", "turbo_costate"),
    *("mini", "mini_fp8", "mini_whole"),
    *("lamb", "lamb_clip", "lamb_whole"),
    *("lion", "lion_whole"),
    *("adam_coupled", "nadamw_scheduled", "qhadamw_whole", "radam_coupled"),
    *("muon", "muon_8bit", "muon_whole"),
]
CASES = [
    *(f"same_bits:{kind}" for kind in KINDS),
    *(f"same_bits_bfloat16:{kind}" for kind in ("luma", "mini", "lamb", "muon")),
    *(f"same_bits_flat:{kind}" for kind in ("luma", "turbo_5bit")),
]


@pytest.mark.parametrize(
    "world",
    [3, *(pytest.param(world, marks=pytest.mark.heavy) for world in (1, 2, 4))],
)
def test_parts_leave_the_bits_of_the_whole(world: int, tmp_path: Path) -> None:
    run(world, tmp_path, "fsdp_cases", CASES)


def test_other_ways_of_sharding(tmp_path: Path) -> None:
    cases = [
        "columns_same_bits:luma_eager",
        "columns_same_bits:turbo_eager",
        "columns_same_bits:lamb",
        "columns_same_bits:muon",
        "columns_close:mini",
        "two_dimensions_same_bits:luma_eager",
        "two_dimensions_same_bits:muon",
        "matrices_move_in_16_bits_to_balanced_owners",
        "cut_blocks_train",
        "fully_shard_is_the_whole",
        "state_from_whole:luma",
        "state_from_whole:mini",
        "adamw_state_round_trip:luma",
        "adamw_state_round_trip:mini",
        "statistics_are_those_of_the_whole:mini",
        "statistics_are_those_of_the_whole:turbo_5bit",
        "nonfinite_counts_add_up",
        "nonfinite_raises_everywhere",
        "wrong_backend_is_refused",
        "segments_cut_along_inner_dimensions_are_refused",
        "strides_of_gradients_do_not_matter",
        "sums_of_fused_steps_add_up",
    ]
    run(4, tmp_path, "layout_cases", cases)
