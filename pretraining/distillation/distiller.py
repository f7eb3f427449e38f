"""TextBrewer's GeneralDistiller with one training loop: mixed precision, accumulation, data parallelism, exact resume.

The loss is TextBrewer's: ``compute_loss``, its match losses and its projections are used unchanged. TextBrewer's own loop and its
hooks are not used.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from textbrewer.presets import FEATURES
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertForMaskedLM

from pretraining.config import TrainingArguments
from pretraining.corpus.batches import TrainingBatches
from pretraining.distillation.cpu import onednn_is_exact, onednn_products
from pretraining.distillation.losses import kd_ce_loss, masked_lm_adaptor
from pretraining.distillation.modeling import flops_utilization, half_dtype, masked_lm_outputs, training_flops_per_sample
from pretraining.distillation.relations import SelfAttentionStates
from pretraining.distillation.signals import StopRequest, exit_stopped
from pretraining.distillation.training_log import Step, TrainingLog
from pretraining.distillation.training_state import restore_state
from pretraining.distillation.upcoming import Batch, UpcomingStep
from pretraining.utils import UserError, progress_bar

ComputeLoss = Callable[[dict, dict], tuple[torch.Tensor, dict[str, torch.Tensor]]]
SaveState = Callable[[int, dict[str, Any]], None]
StepCallback = Callable[[int, "Distiller"], None]

# ---------------------------------------------------------------- what is trained


class DistillationStep(nn.Module):
    """Student, projections and the whole loss of a micro-batch: what DDP wraps and torch.compile compiles.

    Args:
        teacher: BertForMaskedLM, or None. It is no submodule: DDP would broadcast it at the start.
        intermediate_matches: from ``matches.get_matches``.
        compute_loss: TextBrewer's, from the adaptors' results of student and teacher to the total loss and its terms.
        half: the dtype of the student's autocast; None computes in float32.
        soft_labels, hard_labels: the student learns the teacher's predictions; the true tokens.
    """

    def __init__(
        self,
        student: BertForMaskedLM,
        teacher: BertForMaskedLM | None,
        projections: list[nn.Module],
        intermediate_matches: list[dict],
        compute_loss: ComputeLoss,
        half: torch.dtype | None,
        soft_labels: bool,
        hard_labels: bool,
    ):
        super().__init__()
        self.student, self.projections = student, nn.ModuleList(projections)
        self.frozen = {"teacher": teacher}  # a dict hides the teacher from nn.Module
        self.compute_loss, self.autocast_dtype = compute_loss, half
        self.soft_labels, self.hard_labels = soft_labels, hard_labels
        self.teacher_layers = matched_layers(intermediate_matches, "layer_T")
        self.student_layers = matched_layers(intermediate_matches, "layer_S")
        self.student_states = SelfAttentionStates(student, self.student_layers)
        self.teacher_states = None if teacher is None else SelfAttentionStates(teacher, self.teacher_layers)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The total loss, a scalar, and its unweighted terms by name. ``batch`` is on the device and has ``mean_masked``."""
        teacher, results_T = self.frozen["teacher"], {}
        if teacher is not None and self.teacher_states is not None:
            with torch.no_grad():
                outputs_T = matched_outputs(teacher, batch, self.teacher_layers, self.soft_labels)
                results_T = masked_lm_adaptor(batch, outputs_T, soft_labels=self.soft_labels, hard_labels=False)
            results_T |= self.teacher_states.take(batch)
        dtype = self.autocast_dtype
        with torch.autocast(batch["input_ids"].device.type, dtype, enabled=dtype is not None):
            outputs_S = matched_outputs(self.student, batch, self.student_layers, self.soft_labels or self.hard_labels)
            results_S = masked_lm_adaptor(batch, outputs_S, soft_labels=self.soft_labels, hard_labels=self.hard_labels)
            return self.compute_loss({**results_S, **self.student_states.take(batch)}, results_T)

    def compile_all(self) -> None:
        """Has torch.compile run at the first forward pass, over student, teacher and loss as one graph."""
        device = self.student.device
        nothing = {name: torch.zeros(1, 1, dtype=torch.int64, device=device) for name in ("input_ids", "masked_positions")}
        for model, layers in ((self.frozen["teacher"], self.teacher_layers), (self.student, self.student_layers)):
            if model is not None:
                with torch.no_grad():  # transformers adds hooks to its layers in the first forward pass, which would break the graph
                    matched_outputs(model, nothing, layers, logits=True)
        for states in (self.student_states, self.teacher_states):
            if states is not None:
                states.take(nothing)
        self.compile(dynamic=False)


def matched_layers(intermediate_matches: list[dict], key: str) -> dict[str, set[int]]:
    """The layers that are matched, by feature ("hidden", "attention", "query", ...); ``key`` is "layer_S" or "layer_T"."""
    layers: dict[str, set[int]] = {feature: set() for feature in FEATURES}
    for match in intermediate_matches:
        layers[match["feature"]].update(np.atleast_1d(match[key]).tolist())
    return layers


def matched_outputs(model: BertForMaskedLM, batch: Batch, layers: dict[str, set[int]], logits: bool) -> Any:
    """The outputs of a model with only the matched layers; a layer that is not matched is None, so that its memory is freed."""
    wanted = {"hidden_states": bool(layers["hidden"]), "attentions": bool(layers["attention"]), "logits": logits}
    outputs = masked_lm_outputs(model, batch, **wanted)
    for name, feature in (("hidden_states", "hidden"), ("attentions", "attention")):
        if layers[feature]:
            outputs[name] = tuple(tensor if index in layers[feature] else None for index, tensor in enumerate(outputs[name]))
    return outputs


# ---------------------------------------------------------------- the distiller


class Distiller(GeneralDistiller):
    """Distils ``teacher`` into ``student``; without a teacher trains the student by masked-LM.

    Args:
        student, teacher: BertForMaskedLM, prepared by ``modeling.prepare_models``; teacher may be None.
        intermediate_matches: from ``matches.get_matches``.
        rank, world_size: this process and the number of processes; several need an initialised process group.
        forward_passes: micro-batches of an optimizer step.
        compiled: torch.compile runs over student, teacher and loss.
        batches: names the examples of a step whose loss is not finite.

    Attributes:
        module: DistillationStep.
        start_step: the step that :meth:`train` continues from; see :meth:`restore`.
    """

    def __init__(
        self,
        args: TrainingArguments,
        student: BertForMaskedLM,
        teacher: BertForMaskedLM | None,
        intermediate_matches: list[dict],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        forward_passes: int = 1,
        compiled: bool = False,
        batches: TrainingBatches | None = None,
    ):
        kd_weight, hard_label_weight = (0, 1) if teacher is None else (args.kd_weight, args.hard_label_weight)
        weights = {"kd_loss_weight": kd_weight, "hard_label_weight": hard_label_weight}
        super().__init__(
            TrainingConfig(output_dir=args.output_dir, device=device, local_rank=-1 if world_size == 1 else rank),
            DistillationConfig(temperature=args.temperature, intermediate_matches=intermediate_matches, **weights),
            teacher,
            student,
            masked_lm_adaptor,
            masked_lm_adaptor,
        )
        self.kd_loss = kd_ce_loss
        self.args, self.device, self.batches = args, device, batches
        self.rank, self.world_size, self.forward_passes = rank, world_size, forward_passes
        half = half_dtype(args)
        projections = [projection for projection in self.projs if projection is not None]
        labels = {"soft_labels": kd_weight > 0, "hard_labels": hard_label_weight > 0}
        self.module = DistillationStep(student, teacher, projections, intermediate_matches, self.compute_loss, half, **labels)
        if compiled:
            self.module.compile_all()
        self.parallel: nn.Module = self.module
        if world_size > 1:
            device_ids = [device.index] if device.type == "cuda" else None
            unused = not any(labels.values())  # the head, and what comes after the last matched states
            self.parallel = DistributedDataParallel(
                self.module, device_ids=device_ids, forward_sync_buffers=False, find_unused_parameters=unused
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.fp16)
        uses_onednn = device.type == "cpu" and args.cpu_kernels and half is None and onednn_is_exact()
        self.float32_products: Callable[[], AbstractContextManager] = onednn_products if uses_onednn else nullcontext
        self.start_step = 0
        self.stop = StopRequest()

    def restore(self, state: dict[str, Any], optimizer: torch.optim.AdamW, scheduler: Any) -> None:
        """Continues from the training state of a checkpoint (``checkpoint.load_state``); the student has its weights already.

        Raises:
            UserError: as ``restore_state``.
        """
        restore_state(state, self.module.projections, optimizer, scheduler, self.scaler)
        self.start_step = state["step"]

    def train(
        self,
        optimizer: torch.optim.Optimizer,
        dataloader: Any,
        *,
        scheduler: Any,
        num_steps: int,
        max_grad_norm: float,
        callback: SaveState,
        step_callback: StepCallback | None = None,
    ) -> None:
        """Trains from ``start_step`` to step ``num_steps``. Replaces TextBrewer's ``train``; the signature differs.

        Args:
            dataloader: yields the micro-batches of this process, those after ``start_step`` first.
            callback: ``callback(step, training state)`` writes a checkpoint; called on rank 0.
            step_callback: ``step_callback(step, distiller)`` runs at the start of each step, on every process.

        Raises:
            UserError: the loss is no longer finite, or a checkpoint cannot be written: on every process. A full disk: on rank 0.
            SystemExit: with 128 + its number (143 for SIGTERM) after one of utils.STOP_SIGNALS, when a checkpoint is written.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        write_every = 1 if self.device.type == "cpu" else 10  # to read a loss makes the host wait for the device
        log = TrainingLog(self.args, self.start_step, self.rank, self.world_size, self.batches, self.utilization)
        bar_settings = {"total": num_steps, "initial": self.start_step, "desc": Path(self.args.output_dir).name, "unit": "step"}
        batches = iter(dataloader)
        self.module.student.train()
        with self.stop.listening(), progress_bar(**bar_settings, disable=self.rank != 0) as bar:
            micro_batches, _ = self.load_step(batches).wait()
            for step in range(self.start_step + 1, num_steps + 1):
                if step_callback is not None:
                    step_callback(step, self)

                # ---- gradients; meanwhile the processes add up what they must know before the next step
                upcoming = self.load_step(batches)
                names, losses = self.forward_backward(step, micro_batches)

                # ---- update
                self.scaler.unscale_(optimizer)
                grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                self.scaler.step(optimizer)
                self.scaler.update()
                optimizer.zero_grad(set_to_none=True)
                log.add(Step(step, scheduler.get_last_lr()[0], losses, grad_norm, self.loss_scale()))
                scheduler.step()
                micro_batches, stop = upcoming.wait()

                # ---- once in a while: write the losses, write a checkpoint, stop
                saves = step % self.args.ckpt_steps == 0 or step == num_steps or bool(stop)
                if step % write_every == 0 or saves:
                    log.write(names, bar, wait=saves or self.device.type == "cpu")
                if saves:
                    self.save(step, optimizer, scheduler, log, callback)
                if stop:
                    bar.close()
                    exit_stopped(stop, step, self.rank)
        _, stop = UpcomingStep([], self.stop.number, self.world_size).wait()  # one process may have got it in the last step
        if stop:
            exit_stopped(stop, num_steps, self.rank)

    def load_step(self, batches: Iterator[Batch]) -> UpcomingStep:
        """Takes the micro-batches of the next step from the loader; none are left behind the last step."""
        return UpcomingStep(list(islice(batches, self.forward_passes)), self.stop.number, self.world_size)

    def forward_backward(self, step: int, micro_batches: list[Batch]) -> tuple[list[str], torch.Tensor]:
        """Adds up the gradients of a step's micro-batches.

        Returns:
            the names of the total loss and its terms; (terms,) float on the device: their means over the micro-batches.
        """
        torch.manual_seed(step_seed(self.args.random_seed, step, self.rank))  # dropout depends on the step, so resume needs no state
        losses: Any = 0
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1  # DDP reduces the gradients only in the last backward pass
            no_sync = nullcontext() if is_last or self.world_size == 1 else self.parallel.no_sync()  # type: ignore[operator]
            with no_sync, self.float32_products():
                loss, terms = self.loss(batch)
                self.scaler.scale(loss / len(micro_batches)).backward()
            losses = losses + torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        return ["total_loss", *terms], losses / len(micro_batches)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of one micro-batch, from any device, and its terms by name; ``UpcomingStep`` has prepared it."""
        return self.parallel({name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()})

    def save(self, step: int, optimizer: torch.optim.Optimizer, scheduler: Any, log: TrainingLog, callback: SaveState) -> None:
        """Flushes the log and calls ``callback(step, training state)`` on rank 0; if it fails, all processes raise the same UserError."""
        failed: list[str | None] = [None]
        if self.rank == 0:
            state = {
                "step": step,
                "projections": self.module.projections.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            try:
                log.flush()
                callback(step, state)
            except UserError as error:
                failed = [str(error)]
        if self.world_size > 1:
            dist.broadcast_object_list(failed, device=torch.device("cpu"))
        if failed[0]:
            raise UserError(failed[0])

    def loss_scale(self) -> torch.Tensor:
        """The scale of the float16 gradients, 1 in other precisions; a scalar on the device."""
        return self.scaler.scale(torch.ones((), device=self.device)).detach()

    def utilization(self, samples_per_second: float) -> float | None:
        """MFU at this rate over all processes; None in float32, on a CPU, and on a GPU whose peak is not known."""
        if self.module.autocast_dtype is None:
            return None
        flops = self.flops_per_sample() * samples_per_second / self.world_size
        return flops_utilization(flops, self.device)

    def flops_per_sample(self) -> float:
        """Floating-point operations that one training sample needs."""
        teacher = self.module.frozen["teacher"]
        return training_flops_per_sample(
            self.module.student.config,
            teacher.config if teacher is not None else None,
            self.module.projections,
            length=self.args.max_seq_length,
            mlm_probability=self.args.mlm_probability,
        )


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the dropout of one step and process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
