"""Without a GPU these tests run the kernels in Triton's interpreter, chosen before its import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
