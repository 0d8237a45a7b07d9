"""Who turns the blocks into parts: processes of this machine, or Ray Data on one machine or a cluster.

- Both run the same stages on the same batches of the same blocks, so the parts have the same bytes.
- Memory is bounded in both: a process holds one batch, and Ray's streaming executor holds back a stage whose output is not yet taken.
- Nothing is asked of a worker but the block's path: input, frozen modules and --out must lie where all machines see them (as for --shard).
"""
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np

from dataset.build_stages import Encoder, Preparer, Settings, Worker, read_batches, write_part

ROOT = Path(__file__).resolve().parents[1]
# oneDNN keeps what it has prepared for the last 1,024 shapes, and clips have as many lengths: a worker grew by 460 MiB. With 16 it is no
# slower and stays as it is.
WORKER_ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
RAY_STORE_BYTES = 256 << 20  # of a Ray that is started here: batches on their way from one stage to the next
RAY_BLOCK_BYTES = 16 << 20  # a stage's output is handed on in pieces of about this size


@dataclass(frozen=True)
class Engine:
    name: str = "processes"  # or "ray"
    workers: int = 1  # of one thread each
    gpu_workers: int = 0  # Ray: further ones with a GPU each, to which the frozen modules move
    address: str | None = None  # Ray: of the cluster; None: one is started here, and ended

    def run(self, blocks: list[Path], settings: Settings) -> Iterator[Path]:
        """Yields the part of every block as it is finished; OSError when workers die."""
        if self.name == "ray":
            return run_ray(blocks, settings, self)
        return run_processes(blocks, settings, self.workers)


# ---- processes

def run_processes(blocks: list[Path], settings: Settings, workers: int) -> Iterator[Path]:
    """A pool of processes, or this one for `workers` 1."""
    os.environ.update(WORKER_ENV)  # read before the first convolution; processes of the pool inherit it
    if workers == 1 or len(blocks) < 2:
        worker = Worker(settings) if blocks else None
        yield from map(worker, blocks)
        return
    with ProcessPoolExecutor(min(workers, len(blocks)), get_context("spawn"), _watch_parent) as pool:
        waiting = [pool.submit(_work, settings, block) for block in blocks]
        try:
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise OSError("a worker was killed, perhaps for want of memory: run the same command with fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)  # after an error: do not build the rest first


_worker: Worker | None = None  # of this process of the pool


def _work(settings: Settings, block: Path) -> Path:
    global _worker
    _worker = _worker or Worker(settings)  # here rather than at the start of the process: what goes wrong then reaches the builder
    return _worker(block)


def _watch_parent() -> None:
    """A builder that is killed cannot stop its pool, which would wait for work forever."""
    Thread(target=lambda: parent_process().join() or os._exit(1), daemon=True).start()


# ---- Ray

def run_ray(blocks: list[Path], settings: Settings, engine: Engine) -> Iterator[Path]:
    """Blocks stream through stateful actors, which load their modules once; parts are written here, as their last batch arrives.

    Without GPU workers each actor does all stages. With them the CPU actors read, speak and clean, and the GPU actors encode.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install -r requirements-cluster.txt") from error
    if not blocks:
        return
    own = not ray.is_initialized()
    if own:
        start_ray(ray, engine)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = RAY_BLOCK_BYTES
    try:
        rows = ray.data.from_items([{"block": str(block)} for block in blocks], override_num_blocks=len(blocks))
        if engine.gpu_workers:
            rows = rows.map_batches(PrepareActor, fn_constructor_args=(settings,), batch_size=1, concurrency=engine.workers, num_cpus=1)
            rows = rows.map_batches(EncodeActor, fn_constructor_args=(replace(settings, device="cuda"),), batch_size=1,
                                    concurrency=engine.gpu_workers, num_cpus=1, num_gpus=1)
        else:
            rows = rows.map_batches(BuildActor, fn_constructor_args=(settings,), batch_size=1, concurrency=engine.workers, num_cpus=1)
        yield from collect_parts(rows.iter_rows())
    except ray.exceptions.RayError as error:
        raise OSError(f"the Ray engine failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if own:
            ray.shutdown()


def start_ray(ray, engine: Engine) -> None:
    """Join the cluster at `engine.address`, or start a Ray of `engine.workers` CPUs here. OSError when there is no such cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    here = {} if engine.address else {"num_cpus": engine.workers + engine.gpu_workers, "object_store_memory": RAY_STORE_BYTES,
                                      "include_dashboard": False}
    try:
        ray.init(address=engine.address or "local", logging_level="ERROR", log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **WORKER_ENV}}, **here)
    except Exception as error:  # Ray raises bare ones, too, when a node does not start in time
        where = f"--address {engine.address}" if engine.address else "this machine"
        raise OSError(f"no Ray on {where}: {error}") from error


def collect_parts(rows) -> Iterator[Path]:
    """Rows {"block", "number", "last", "payload": pickled (rows, rejects)} in any order -> the paths of the parts written."""
    found: dict[str, dict[int, tuple]] = {}
    sizes: dict[str, int] = {}
    for row in rows:
        block, number = row["block"], int(row["number"])
        found.setdefault(block, {})[number] = pickle.loads(row["payload"])
        if row["last"]:
            sizes[block] = number + 1
        if len(found[block]) == sizes.get(block):
            batches = found.pop(block)
            yield write_part(Path(block), (batches[i] for i in range(sizes.pop(block))))


def batch_row(block: str, number: int, last: bool, content) -> dict[str, np.ndarray]:
    """One row on its way through Ray; the content is pickled, as Arrow knows neither Clips nor Rejects."""
    payload = np.empty(1, object)
    payload[0] = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return {"block": np.array([block]), "number": np.array([number]), "last": np.array([last]), "payload": payload}


class BuildActor:
    """A Worker as an actor of Ray Data: a block comes in, its batches go out one by one."""

    def __init__(self, settings: Settings):
        self.stages = self.load(settings)

    def load(self, settings: Settings):
        return Worker(settings).build

    def __call__(self, rows: dict) -> Iterator[dict]:
        block = str(rows["block"][0])
        batches = list(read_batches(block))
        for number, entries in enumerate(batches):
            yield batch_row(block, number, number == len(batches) - 1, self.stages(entries))


class PrepareActor(BuildActor):
    """Its first half, on a CPU."""

    def load(self, settings: Settings):
        return Preparer(settings)


class EncodeActor:
    """Its second half, on a GPU."""

    def __init__(self, settings: Settings):
        self.encode = Encoder(settings)

    def __call__(self, rows: dict) -> dict:
        content = self.encode(pickle.loads(rows["payload"][0]))
        return batch_row(str(rows["block"][0]), int(rows["number"][0]), bool(rows["last"][0]), content)
