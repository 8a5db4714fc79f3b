"""Launches a kernel twice on a stand-in for a GPU's driver, and prints what reached it, as JSON."""

import json

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from luma_kernels.triton.runtime.launch import KernelLaunch

calls = []
asked = []


def plain(item):
    if isinstance(item, torch.Tensor):
        asked[-1] += 1
        return item.data_ptr()
    return item if isinstance(item, int) else type(item).__name__


class Launcher:
    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments):
        asked.append(0)
        calls.append([plain(item) for item in arguments])


class Utils:
    def load_binary(self, name, kernel, shared, device):
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 1 << 17}


class Driver:
    launcher_cls = Launcher
    utils = Utils()

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 77


@triton.jit
def double(x):
    return x + x


@triton.jit(do_not_specialize=["count"])
def kernel(source, target, count, LANES: tl.constexpr, APPLY: tl.constexpr, TYPE: tl.constexpr):
    index = tl.program_id(0) * LANES + tl.arange(0, LANES)
    value = APPLY(tl.load(source + index, mask=index < count))
    tl.store(target + index, value.to(TYPE), mask=index < count)


driver.set_active(Driver())
binds = []
run = kernel.run
kernel.run = lambda *args, **kwargs: binds.append(1) or run(*args, **kwargs)
launch = KernelLaunch(kernel, {"TYPE": tl.float32, "LANES": 64, "APPLY": double}, num_warps=2)
source, target = torch.zeros(100), torch.zeros(100)
unbound = launch.repeated(2, source, target, 100)
for count in (100, 100, 1):
    launch(2, source, target, count)
repeat = launch.repeated(2, source, target, 100)
repeat()
report = {"calls": calls, "binds": len(binds), "tensors": asked, "unbound": unbound}
report["fusion"] = launch._compiled.metadata.enable_fp_fusion
print("REPORT " + json.dumps(report))
