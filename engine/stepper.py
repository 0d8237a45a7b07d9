"""Runs `decode_frame` eagerly, compiled, or as CUDA graphs, over as few rows and as little of the cache as the sessions need.

- Rows are rounded up to a power of two, and in graphs the length is, too: a handful of shapes covers everything.
- "graph": one CUDA graph per shape, captured when first needed. Capturing warms up with all rows inactive, so it changes nothing.
- "compile": torch.compile, anew for each number of rows, but not for each length; the codec, a CPU's kernels for which are faster than
  compiled ones, runs as it is. Compiling takes half a minute, once: the compiler keeps what it made on disk. On two CPU cores a full-size
  step in bfloat16 then takes 14 ms instead of 24, in int8 9 ms instead of 21.
- "compiled_graph": both: a graph of few fused kernels. The fastest step, after a minute or so per shape: on an H200 the full-size
  model's takes 0.30 ms instead of 1.34 ms.
"""
import itertools
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from engine.network import Network
from engine.rows import Rows, decode_frame, next_report
from model.kv_cache import KVCache
from model.mimi import Mimi, MimiState
from model.model_minimind import compiled

MODES = ("eager", "compile", "graph", "compiled_graph")
SHORTEST = 256  # cache positions of the smallest repeated shape
WARM_UPS = 3  # runs before a capture: libraries choose and allocate their workspaces in the first ones
_numbers = itertools.count()


class Stepper:
    """One step of the first rows: `run(count, end, speak)` -> its packed result on the CPU (see rows.read_report)."""

    def __init__(self, network: Network, cache: KVCache, rows: Rows, mimi: Mimi | None, mimi_state: MimiState | None, mode: str):
        assert mode in MODES, mode
        self.network, self.cache, self.rows, self.mimi, self.mimi_state, self.mode = network, cache, rows, mimi, mimi_state, mode
        self.slots = rows.active.shape[0]
        self.indices = torch.arange(self.slots, device=cache.pos.device)
        self.views: dict[int, tuple] = {}  # of the first rows, by their number
        self.graphs: dict[tuple, tuple] = {}
        self.host: dict[tuple, Tensor] = {}
        # one memory pool for all graphs: they never run at once, and a result is copied before the next one starts
        self.pool = torch.cuda.graph_pool_handle() if "graph" in mode else None
        self.reports: dict[int, Callable] = {}  # compiled next_report by the number of rows
        self.positions = torch.arange(cache.max_length, device=cache.pos.device)

    def rows_for(self, count: int) -> int:
        """How many rows a step for `count` of them runs over."""
        return min(1 << max(count - 1, 0).bit_length(), self.slots)

    def run(self, count: int, end: int, speak: bool) -> Tensor:
        """Step the first `count` rows, none of which stands at cache position `end` or beyond; `speak`: run the codec, too."""
        return self._run(self.rows_for(count), end, speak and self.mimi is not None)

    def warm_up(self) -> None:
        """Compile or capture what short conversations need, for every number of rows. Rows must be idle; nothing changes for them."""
        counts = sorted({self.rows_for(count) for count in range(1, self.slots + 1)})
        for count in counts if self.mode != "eager" else ():
            for speak in {False, self.mimi is not None}:
                self._run(count, min(SHORTEST, self.cache.max_length), speak)

    def _run(self, count: int, end: int, speak: bool) -> Tensor:
        if self.pool:
            end = min(max(SHORTEST, 1 << (end - 1).bit_length()), self.cache.max_length)
            result = self._replay((count, end, speak))
        else:
            report = self._compiled(count) if self.mode == "compile" else next_report
            result = decode_frame(*self._arguments(count, end, speak), next_step=report)
        return self._to_host((count, end, speak), result)

    def _compiled(self, count: int) -> Callable:
        if count not in self.reports:
            self.reports[count] = compile_unguarded(next_report)
            # its first call decides what may change later: the length, which must not be all of the cache then
            *arguments, reach, _, _ = self._arguments(count, min(SHORTEST, self.cache.max_length - 1), speak=False)
            torch._dynamo.mark_dynamic(reach, 0)
            self._while_idle(lambda: self.reports[count](*arguments, reach))
        return self.reports[count]

    def _arguments(self, count: int, end: int, speak: bool) -> tuple:
        if count not in self.views:
            self.views[count] = self.rows.first(count), self.indices[:count], self.mimi_state and self.mimi_state.first(count)
        rows, indices, mimi_state = self.views[count]
        codec = (self.mimi, mimi_state) if speak else (None, None)
        reach = self.positions[:max(end, 2)]  # the compiler takes a length of 1 for a constant
        return self.network, self.cache, rows, indices, reach, *codec

    def _replay(self, key: tuple) -> Tensor:
        if key not in self.graphs:
            self.graphs[key] = self._capture(self._arguments(*key))
        graph, result = self.graphs[key]
        graph.replay()
        return result

    def _capture(self, arguments: tuple) -> tuple:
        function = compile_unguarded(decode_frame) if self.mode == "compiled_graph" else decode_frame
        return self._while_idle(lambda: capture(lambda: function(*arguments), self.pool))

    def _while_idle(self, function: Callable):
        """function() while no row is active, so that steps in it change nothing."""
        active = self.rows.active.clone()
        self.rows.active.zero_()
        try:
            return function()
        finally:
            self.rows.active.copy_(active)

    def _to_host(self, key: tuple, result: Tensor) -> Tensor:
        """The one copy of a step; on a GPU into pinned memory, which the next step of this shape overwrites."""
        if not result.is_cuda:
            return result
        if key not in self.host:
            self.host[key] = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self.host[key].copy_(result, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self.host[key]


def compile_unguarded(function: Callable) -> Callable:
    """torch.compile for calls that differ from the first one in nothing but tensors' values and the sizes marked dynamic there.

    Nothing is looked at before a call, which saves half a millisecond of a full-size step. For that no other caller may meet what is
    compiled here: the compiler keeps it by code object, so the function gets one of its own.
    """
    own = FunctionType(function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}"), function.__globals__,
                       argdefs=function.__defaults__)
    return compiled(own, dynamic=False, options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "size_asserts": False})


def capture(function: Callable[[], Tensor], pool=None) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A CUDA graph of `function`, and the result that each replay writes anew. It runs WARM_UPS times before, on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # the encoders' thread may allocate meanwhile
        result = function()
    return graph, result
