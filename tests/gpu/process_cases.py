"""Cases for several processes on the CPU: two real ones with gloo, and one that stands for the first of many."""

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.gpu import setting

CPU = torch.device("cpu")
PROCESSES, MICRO_BATCHES, STEPS = 2, 2, 2
Gradients = list[dict[str, torch.Tensor]]


def two_processes(compiled: bool) -> dict[str, Any]:
    """Two processes and one eager process train on the same examples.

    Returns:
        ``difference`` of the gradients of all steps, relative to the largest; ``change`` from the first step to the next, likewise, which
        says what a wrong gradient looks like; ``graphs``, how many each process gave to the compiler.
    """
    with tempfile.TemporaryDirectory() as directory:
        arguments = (Path(directory), compiled)
        torch.multiprocessing.start_processes(one_of_two, arguments, nprocs=PROCESSES, start_method="fork")
        ranks = [torch.load(Path(directory) / f"{rank}.pt") for rank in range(PROCESSES)]
        alone = gradients(Path(directory), 0, world_size=1)
    return {
        "difference": max(difference(own, step) for rank in ranks for own, step in zip(rank["gradients"], alone, strict=True)),
        "change": difference(*alone),
        "graphs": [rank["graphs"] for rank in ranks],
    }


def one_of_two(rank: int, directory: Path, compiled: bool) -> None:
    """One of the processes; writes its gradients. DDP reduces them in buckets, the first of 1 MiB; torch.compile splits its graph there."""
    compile_module = nn.Module.compile
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list) -> Any:
        nonlocal graphs
        graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)

    nn.Module.compile = lambda self, **options: compile_module(self, backend=counting, **options)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=PROCESSES)
    own = gradients(directory, rank, PROCESSES, compiled)
    torch.save({"gradients": own, "graphs": graphs}, directory / f"{rank}.pt")
    dist.destroy_process_group()


def gradients(directory: Path, rank: int, world_size: int, compiled: bool = False) -> Gradients:
    """The gradients of each step as the optimizer sees them. A single process takes the micro-batches of all."""
    chosen = setting.of_kind("hidden", "hidden_mse", projection=True, sizes=(192, 256))
    for config in (chosen.student, chosen.teacher):
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    micro_batches = MICRO_BATCHES * PROCESSES // world_size
    split = {"train_batch_size": 2 * micro_batches, "gradient_accumulation_steps": micro_batches, "cpu_kernels": False}
    args = setting.arguments(directory / f"run{rank}of{world_size}", steps=STEPS, **split)
    torch.manual_seed(0)
    distiller = setting.build_distiller(chosen, setting.build_models(chosen), args, CPU, compiled, rank=rank, world_size=world_size)
    found: Gradients = []

    def keep(*_: Any) -> None:
        found.append({name: parameter.grad.clone() for name, parameter in distiller.module.named_parameters()})

    own = (setting.batch(step * world_size * micro_batches + rank * micro_batches + i) for step in count() for i in range(micro_batches))
    setting.train(distiller, own, before_update=keep)
    return found


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest difference of two steps' gradients, relative to the largest gradient."""
    largest = max(float(tensor.abs().max()) for tensor in right.values())
    return max(float((left[name] - tensor).abs().max()) for name, tensor in right.items()) / largest


def first_of(processes: int) -> dict[str, Any]:
    """The loop as rank 0 of many processes, over torch's fake process group, whose sums are this process's own values.

    Returns:
        ``saved`` steps; ``moved``, whether the student was trained; ``mean_masked`` of a micro-batch times processes and micro-batches, and
        the ``masked`` positions of its step; ``reductions`` of the loop: "async" or "blocking" and the dtype.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    initialize, all_reduce = DistributedDataParallel.__init__, dist.all_reduce
    reductions, denominators, saved = [], [], []

    def counted(tensor: torch.Tensor, *args: Any, async_op: bool = False, **options: Any) -> Any:
        reductions.append(f"{'async' if async_op else 'blocking'} {str(tensor.dtype).removeprefix('torch.')}")
        return all_reduce(tensor, *args, async_op=async_op, **options)

    def with_hook(self: DistributedDataParallel, *args: Any, **options: Any) -> None:
        initialize(self, *args, **options)
        self.register_comm_hook(None, own_bucket)

    DistributedDataParallel.__init__, dist.all_reduce = with_hook, counted
    chosen = setting.of_kind("hidden", "hidden_mse", projection=True)
    with tempfile.TemporaryDirectory() as directory:
        args = setting.arguments(Path(directory), steps=STEPS, bf16=True)
        distiller = setting.build_distiller(chosen, setting.build_models(chosen), args, CPU, rank=0, world_size=processes)
        distiller.module.register_forward_pre_hook(lambda module, given: denominators.append(float(given[0]["mean_masked"])))
        before = [parameter.detach().clone() for parameter in distiller.module.parameters()]
        setting.train(distiller, setting.batches(), callback=lambda step, state: saved.append(step))
        moved = [not torch.equal(*pair) for pair in zip(before, distiller.module.parameters())]
    DistributedDataParallel.__init__, dist.all_reduce = initialize, all_reduce
    dist.destroy_process_group()
    masked = sum(int((setting.batch(seed)["labels"] >= 0).sum()) for seed in range(MICRO_BATCHES))
    means = {"mean_masked": denominators[0] * processes * MICRO_BATCHES, "masked": masked}
    return {"saved": saved, "moved": all(moved), "reductions": reductions, **means}


def own_bucket(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Stands for the sum of a bucket of gradients: the fake group gives DDP no result."""
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
