"""Which parameters of a model share one second moment in Adam-mini, and why."""

from luma_core.codecs.segments import Partition
from luma_core.partition.model import Overrides, partition_model, partition_names
from luma_core.partition.table import PartitionRow, PartitionTable

__all__ = [
    "Overrides",
    "Partition",
    "PartitionRow",
    "PartitionTable",
    "partition_model",
    "partition_names",
]
