"""What a device is good at, and what its memory costs."""
import ctypes
import platform
import time
from functools import cache

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
ROWS, SIZE, TRIES = 1024, 512, 5  # of the products that are timed: a few milliseconds each


def fast_bfloat16(device) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32: on GPUs that do not emulate it, on CPUs where a few, timed once, are.

    A CPU's instructions do not tell. GFLOP/s a core in bfloat16 and float32, measured: 470 and 104 with AVX512-BF16 on one processor, 84
    and 155 with AVX512-BF16 on another (an Intel one whose AMX tiles are hidden), 95 and 170 with neither.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or _cpu_is_faster_in_bfloat16()


@cache
def _cpu_is_faster_in_bfloat16() -> bool:
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        rows, square = torch.ones(ROWS, SIZE, dtype=dtype), torch.ones(SIZE, SIZE, dtype=dtype)
        rows @ square  # the first product prepares the kernel
        tries = []
        for _ in range(TRIES):
            start = time.perf_counter()
            rows @ square
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)  # the others were disturbed
    return seconds[torch.bfloat16] < seconds[torch.float32]


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees, for its next tensors. False where the C library is not glibc.

    By itself glibc maps every large block anew and gives it back when it is freed; the kernel then clears each page of every activation of
    every step again. On two CPU cores a full-size training step took a quarter longer for it. Of the memory a run needed at its peak
    nothing is given back before it ends, so this is for programs that do the same again and again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 1 << 26))  # no maps of their own, nothing given back, grown in large steps
    return all([mallopt(option, value) == 1 for option, value in settings])
