"""Full state dicts by parameter name, as FSDP's and ``torch.distributed.checkpoint``'s APIs make.

Reading them is part of `luma_core.convert.formats.torch_adamw`: their keys are names.
"""

from __future__ import annotations

from luma_core.convert.base import ConvertOptions, Progress, Source, Url, Written
from luma_core.convert.targets import write_torch_file
from luma_core.convert.writing import adamw_state_dict, require_names

FORMAT = "fsdp"


def write_fsdp(
    source: Source, destination: Url, options: ConvertOptions, progress: Progress | None, /
) -> Written:
    """Write a ``torch.save`` file of what ``set_optimizer_state_dict`` takes as a full state dict.

    Raises:
        ConversionError: the parameters have no names.
    """
    require_names(source, FORMAT)
    return write_torch_file(
        destination,
        options,
        lambda scratch: adamw_state_dict(source, scratch, progress, by_name=True),
    )
