"""Vision-language policies: a tiny one that lives on a CPU, and pretrained ones by hub id or folder."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # PEFT imports DeepSpeed where it is there, which asks on stdout
