"""What is asked of the machine: the faster number format is found by trying, and freed memory stays with the process when asked for."""
import contextlib
import platform
import subprocess
import sys
import time

import pytest
import torch

from model.hardware import fast_bfloat16

FREED = """
import torch
from model.hardware import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
if {keep}:
    assert keep_freed_memory()
before = resident()
block = torch.ones(64 * 2**18)  # 64 MiB
held = resident() - before
del block
print(held, resident() - before)
"""


def test_a_gpu_is_fast_in_bfloat16_and_a_cpu_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(asked.append(device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert fast_bfloat16("cuda") and fast_bfloat16(torch.device("cuda", 1)) and asked == [torch.device("cuda"), torch.device("cuda", 1)]
    first, started = fast_bfloat16("cpu"), time.perf_counter()
    assert fast_bfloat16("cpu") is first and time.perf_counter() - started < 1e-3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_kept_when_asked(keep):
    code = FREED.format(keep=keep)
    held, after = map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert held > 60 and (after > 60 if keep else after < 8), (held, after)
