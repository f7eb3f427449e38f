"""A CUDA device of fake tensors, which have device, dtype and shape but no values. What needs a value on the host shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
COPIES = ("_to_copy", "copy_", "to")  # in inference mode "to" is not broken down


class FakeCuda(TorchDispatchMode):
    """While it is active, CUDA tensors are fake and CPU tensors are real, so that counting and shuffling on the host go on as ever.

    A step of training may not make the host wait for the device; what makes it wait is noted. A value that is read is 1.

    Attributes:
        step: the current step; the user sets it.
        reads: the steps in which the host read values of the device: ``.item()``, ``bool()``, ``.tolist()``.
        blocking: the steps of copies between host and device that make the host wait; 0 is before the first.
        waits: for each wait for an event, the step that recorded it and the step that waited.
        early: the steps in which the host read what no event had told to have arrived.
        mixed: operators other than copies that got tensors of both devices, with the shapes of those on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors = FakeTensorMode(allow_non_fake_inputs=True)
        self.step = 0
        self.reads: set[int] = set()
        self.blocking: set[int] = set()
        self.mixed: set[str] = set()
        self.waits: set[tuple[int, int]] = set()
        self.early: set[int] = set()
        self.on_their_way: dict[int, torch.Tensor] = {}  # copies to the host that do not block, by their storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        wants_cuda = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        if not wants_cuda and not any(isinstance(tensor, FakeTensor) for tensor in given):
            return function(*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default:
            return self._read(given[0])
        with self.tensors:
            result = function(*args, **kwargs)
        self._note(function, given, _tensors(result), non_blocking=_non_blocking(function, args, kwargs))
        return result

    def _read(self, tensor: torch.Tensor) -> Any:
        if tensor.is_cuda:
            self.reads.add(self.step)
        elif _storage(tensor) in self.on_their_way:
            self.early.add(self.step)
        return torch.ones((), dtype=tensor.dtype).item()

    def _note(self, function: Any, given: list[torch.Tensor], results: list[torch.Tensor], non_blocking: bool) -> None:
        name = function._schema.name.removeprefix("aten::")
        devices = {tensor.device.type for tensor in given + results}
        if len(devices) < 2:
            return
        if name not in COPIES:
            self.mixed.add(f"{name} {[tuple(tensor.shape) for tensor in given if tensor.device.type == 'cpu']}")
        elif not non_blocking:
            self.blocking.add(self.step)
        elif not results[0].is_cuda:
            self.on_their_way[_storage(results[0])] = results[0]

    def event(self, *args: Any, **options: Any) -> "Event":
        """Stands for ``torch.cuda.Event``."""
        return Event(self)


class Event:
    """Tells the host that the copies before it have arrived."""

    def __init__(self, device: FakeCuda):
        self.device = device

    def record(self) -> None:
        self.step, self.before = self.device.step, set(self.device.on_their_way)

    def synchronize(self) -> None:
        self.device.waits.add((self.step, self.device.step))
        for storage in self.before:
            self.device.on_their_way.pop(storage, None)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _non_blocking(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    names = [argument.name for argument in function._schema.arguments]
    return bool({**dict(zip(names, args)), **kwargs}.get("non_blocking"))


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A fake CUDA device; what the CPU build of torch refuses about CUDA is replaced. For a process that :func:`shim.load` prepared."""
    device = FakeCuda()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # else autocast and GradScaler switch themselves off
    torch.cuda._lazy_init = lambda: None
    torch.cuda.Event = device.event
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.get_device_name = lambda device=None: "NVIDIA H100 80GB HBM3"
    nn.Module._apply = _apply
    with device, torch.autograd.set_multithreading_enabled(False):  # the mode holds in this thread alone
        yield device


def _apply(self: nn.Module, convert: Any, recurse: bool = True) -> nn.Module:
    """nn.Module's ``_apply`` for fake tensors, whose contents cannot be swapped: puts new tensors in the old ones' places, tied ones once."""
    new: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in self.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in new:
                    value = convert(old.detach())
                    new[id(old)] = old, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
                tensors[name] = new[id(old)][1]
    return self
