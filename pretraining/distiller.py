"""TextBrewer's GeneralDistiller, driven by torch's own mixed precision, accumulation and data parallelism, with exact resume.

The loss is TextBrewer's: ``compute_loss``, its match losses and projections are called as they stand.
"""

import json
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from cpu import ATTENTION, onednn_is_exact, onednn_products
from modeling import DENSE_BF16_PEAK, adaptor, flops_per_sample, kd_ce_loss, masked_lm_adaptor, masked_lm_outputs
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from utils import UserError, progress_bar, whole_file


class TrainedModules(nn.Module):
    """Student and projections as one module whose forward is the whole loss: one DDP, one compiled graph. The teacher stays outside."""

    def __init__(self, student: nn.Module, projections: list[nn.Module], losses):
        super().__init__()
        self.student, self.projections, self.losses = student, nn.ModuleList(projections), losses

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.losses(batch)


class Distiller(GeneralDistiller):
    """Distils ``teacher`` into ``student``; without a teacher trains the student by masked-LM.

    Args:
        args: config.TrainingArguments.
        student, teacher: BertForMaskedLM on ``device``; teacher may be None.
        intermediate_matches: from matches.get_matches.
        rank, processes: this process's place in torch.distributed, which was initialised if there are several.
        batches: my_datasets.TrainingBatches, asked which examples a broken step had.
        resumed: from checkpoint.load_state, to go on with that run.
    """

    def __init__(
        self,
        args,
        student,
        teacher,
        intermediate_matches: list[dict],
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
        batches=None,
        resumed: dict | None = None,
    ):
        self.args, self.device, self.processes = args, device, processes
        super().__init__(
            TrainingConfig(
                gradient_accumulation_steps=args.gradient_accumulation_steps,
                ckpt_steps=args.ckpt_steps,
                output_dir=args.output_dir,
                device=device,
                local_rank=-1 if processes == 1 else rank,
            ),
            DistillationConfig(
                temperature=args.temperature, intermediate_matches=intermediate_matches, hard_label_weight=1 if teacher is None else 0
            ),
            teacher,
            student,
            adaptor,
            masked_lm_adaptor if teacher is None else adaptor,
        )
        self.kd_loss = kd_ce_loss
        self.half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            if self.half:
                teacher.to(self.half)
        self.float32_products = nullcontext
        if device.type == "cpu":
            if not self.half and onednn_is_exact():
                self.float32_products = onednn_products
            for model in (student, teacher):
                if model is not None and model.config._attn_implementation == "sdpa" and not args.compile:
                    model.set_attn_implementation(ATTENTION)
        self.wanted = {
            (who, match["feature"]): {
                layer for m in intermediate_matches if m["feature"] == match["feature"] for layer in np.atleast_1d(m[key]).tolist()
            }
            for match in intermediate_matches
            for who, key in (("T", "layer_T"), ("S", "layer_S"))
        }
        self.trained = TrainedModules(student, [projection for projection in self.projs if projection is not None], self.losses)
        if args.compile:
            nothing = {name: torch.zeros(1, 1, dtype=torch.int64, device=device) for name in ("input_ids", "masked_positions")}
            for who, model in (("T", teacher), ("S", student)):
                if model is not None:
                    with torch.no_grad():  # transformers hooks its layers in the first forward, which would break the graph
                        self.outputs(who, model, nothing)
            self.trained.compile(dynamic=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.fp16)
        self.batches, self.resumed = batches, resumed
        self.start_step = 0
        self.stop_signal = None
        self.pending: list[tuple[int, float, torch.Tensor]] = []

    # ---------------------------------------------------------------- the loss

    def outputs(self, who: str, model, batch: dict):
        """One model's outputs with nothing but the matched layers kept; a layer that nobody matches is None."""
        kept = {kind: self.wanted.get((who, feature), ()) for kind, feature in (("hidden_states", "hidden"), ("attentions", "attention"))}
        outputs = masked_lm_outputs(model, batch, hidden_states=bool(kept["hidden_states"]), attentions=bool(kept["attentions"]))
        for kind, layers in kept.items():
            if layers:
                outputs[kind] = tuple(tensor if index in layers else None for index, tensor in enumerate(outputs[kind]))
        return outputs

    def losses(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """TextBrewer's total loss and its terms for one micro-batch on the device."""
        results_T = {}
        if self.model_T is not None:
            with torch.no_grad():
                results_T = self.adaptor_T(batch, self.outputs("T", self.model_T, batch))
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            results_S = self.adaptor_S(batch, self.outputs("S", self.model_S, batch))
            return self.compute_loss(results_S, results_T)

    def train_on_batch(self, batch: dict, args: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        return self.trained(batch)

    # ---------------------------------------------------------------- the loop

    def initialize_training(self, optimizer, scheduler_class, scheduler_args, scheduler):
        optimizer.add_param_group({"params": list(self.trained.projections.parameters()), "weight_decay": 0.0})
        scheduler = scheduler_class(optimizer, **scheduler_args)
        if self.processes > 1:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            self.trained = DistributedDataParallel(self.trained, device_ids=device_ids, broadcast_buffers=False)
        self.restore(optimizer, scheduler)
        if self.rank == 0:
            if self.start_step == 0:
                for stale in Path(self.args.output_dir).glob("events.out.tfevents.*"):
                    stale.unlink()
            threading.excepthook = _leave_to_the_caller
            with self.writing_scalars():
                self.tb_writer = SummaryWriter(self.args.output_dir, purge_step=self.start_step + 1 if self.start_step else None)
        return optimizer, scheduler, self.rank != 0

    def restore(self, optimizer, scheduler) -> None:
        """Takes over the resumed training state; nothing to do for a fresh run."""
        if self.resumed is None:
            return
        self.start_step = self.resumed["step"]
        self.core.projections.load_state_dict(self.resumed["projections"])
        optimizer.load_state_dict(self.resumed["optimizer"])
        scheduler.load_state_dict(self.resumed["scheduler"])
        self.scaler.load_state_dict(self.resumed["scaler"])
        self.resumed = None  # the optimizer has its own copy

    @property
    def core(self) -> TrainedModules:
        return self.trained.module if isinstance(self.trained, DistributedDataParallel) else self.trained

    def train_with_num_steps(
        self, optimizer, scheduler, tqdm_disable, dataloader, max_grad_norm, num_steps, callback, batch_postprocessor=None, **args
    ):
        """Trains to step ``num_steps``. ``dataloader`` yields this process's micro-batches from that of ``start_step`` on.

        Raises:
            UserError: the loss is no longer finite (float16 first skips steps and halves its scale).
            SystemExit: 143 or 130, after a checkpoint, when SIGTERM or SIGINT came.
        """
        self.core.student.train()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        accumulation = self.args.gradient_accumulation_steps
        shown = {"total": num_steps, "initial": self.start_step, "desc": Path(self.args.output_dir).name, "unit": "step"}
        read_every = 1 if self.device.type == "cpu" else 10  # reading a loss makes the host wait for the device
        batches, self.clock = iter(dataloader), (time.perf_counter(), self.start_step)
        with self.stopping_at_signals(), progress_bar(**shown, disable=tqdm_disable) as bar:
            for step in range(self.start_step + 1, num_steps + 1):
                micro_batches = [next(batches) for _ in range(accumulation)]
                stop = self.agree(micro_batches)
                torch.manual_seed(step_seed(self.args.random_seed, step, self.rank))  # dropout: nothing to save, nothing to lose
                sums = 0
                for index, batch in enumerate(micro_batches):
                    last = index == accumulation - 1
                    with nullcontext() if last or self.processes == 1 else self.trained.no_sync(), self.float32_products():
                        loss, terms = self.train_on_batch(batch, args)
                        self.scaler.scale(loss / accumulation).backward()
                    sums = sums + torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
                self.scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                self.scaler.step(optimizer)
                self.scaler.update()
                scale = self.scaler._scale if self.args.fp16 else torch.ones((), device=self.device)
                optimizer.zero_grad(set_to_none=True)
                self.names = ["total_loss", *terms, "grad_norm", "loss_scale"]
                self.pending.append(
                    (step, scheduler.get_last_lr()[0], torch.cat([sums / accumulation, torch.stack([norm, scale.detach()])]))
                )
                scheduler.step()

                due = step % self.args.ckpt_steps == 0 or step == num_steps or stop
                if step % read_every == 0 or due:
                    self.write_pending(bar)
                if due:
                    self.save_and_callback(step, optimizer, scheduler, callback)
                if stop:
                    bar.close()
                    self.leave(stop, step)
        if self.stop_signal:  # it came in the last step
            self.leave(self.stop_signal, num_steps)

    def leave(self, stop: int, step: int) -> None:
        if self.rank == 0:
            print(f"stopped by {signal.Signals(stop).name} after step {step}; the checkpoint is written", file=sys.stderr)
        sys.exit(128 + stop)

    def agree(self, micro_batches: list[dict]) -> int:
        """Gives the step's micro-batches one denominator over all processes, and all processes one answer whether to stop.

        The mean over masked positions is thus taken over the global batch: how it was split makes no difference.
        """
        counts = torch.tensor([sum(int((batch["labels"] >= 0).sum()) for batch in micro_batches), self.stop_signal or 0])
        if self.processes > 1:
            total = counts[:1].clone()
            dist.all_reduce(total)
            dist.all_reduce(counts, op=dist.ReduceOp.MAX)
            counts[0] = total[0]
        mean = counts[0].float().clamp(min=1) / (len(micro_batches) * self.processes)
        for batch in micro_batches:
            batch["mean_masked"] = mean
        return int(counts[1])

    def write_pending(self, bar) -> None:
        """Reads the steps' losses from the device at once, averages them over the processes, writes them and checks that they are finite."""
        steps, rates, values = zip(*self.pending)
        self.pending = []
        values = torch.stack(values)
        if self.processes > 1:
            losses = values[:, :-2].contiguous()  # NCCL takes no other
            dist.all_reduce(losses)
            values[:, :-2] = losses / self.processes
        for step, rate, row in zip(steps, rates, values.tolist()):
            named = dict(zip(self.names, row))
            norm, scale = named.pop("grad_norm"), named.pop("loss_scale")
            finite = np.isfinite([*named.values(), norm]).all()
            if not finite and (not self.args.fp16 or scale < 1):  # float16: no scale is small enough, so it is not the scale
                raise self.not_finite(step, {**named, "grad_norm": norm})
            with self.writing_scalars():
                for name, value in {**named, "grad_norm": norm, "learning_rate": rate}.items() if finite else ():
                    self.tb_writer.add_scalar(f"scalar/{name}", value, step)
            if not finite and self.rank == 0:
                bar.write(
                    f"step {step}: a gradient overflowed float16; the step was skipped, the loss scale is now {scale:g}", file=sys.stderr
                )
        (before, first), now = self.clock, time.perf_counter()
        self.clock = (now, steps[-1])
        rate = (steps[-1] - first) * self.args.train_batch_size * self.processes / (now - before)
        speed = {"samples/s": f"{rate:.1f}", "tokens/s": f"{rate * self.args.max_seq_length:.0f}"}
        if mfu := self.mfu(rate):
            speed["MFU"] = f"{mfu:.0%}"
        bar.set_postfix(loss=f"{values[-1, 0]:.4f}", lr=f"{rates[-1]:.2e}", **speed, refresh=False)
        bar.update(steps[-1] - bar.n)

    def mfu(self, samples_per_second: float) -> float | None:
        """Needed floating-point operations a second over the GPUs' dense bf16 peak; None in float32 and where the peak is not known."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" and self.half else ""
        peak = next((peak for part, peak in DENSE_BF16_PEAK.items() if part in name), None)
        return peak and samples_per_second * self.flops() / (peak * self.processes)

    def flops(self) -> float:
        """Needed floating-point operations of one sample: three forwards' worth for what is trained, one for the teacher."""
        length, masked = self.args.max_seq_length, max(1, round(self.args.mlm_probability * self.args.max_seq_length))
        trained = flops_per_sample(self.model_S.config, length, masked)
        trained += sum(2.0 * length * weight.numel() for weight in self.core.projections.parameters() if weight.dim() == 2)
        return 3 * trained + (flops_per_sample(self.model_T.config, length, masked) if self.model_T is not None else 0)

    def not_finite(self, step: int, values: dict[str, float]) -> UserError:
        size = self.args.train_batch_size * self.processes
        _, indices = self.batches.examples((step - 1) * size, size)
        path = Path(self.args.output_dir) / f"nonfinite_step{step}.json"
        if self.rank == 0:
            losses = {name: str(value) for name, value in values.items()}
            found = {"step": step, "losses": losses, "examples": indices.tolist(), "begin_with": self.batches.beginnings(indices)}
            with whole_file(path) as file:
                json.dump(found, file, ensure_ascii=False, indent=1)
        terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
        first = ", ".join(map(str, indices[:8]))
        return UserError(
            f"step {step}: the loss is no longer finite ({terms}); examples {first}{', …' if size > 8 else ''} (all in {path}, with their first words); "
            "the checkpoints are good: mend the data and resume with --ignore_data_fingerprint, or begin another --output_dir "
            "from the last one (--student_pretrained_weights) with a lower --learning_rate"
        )

    def save_and_callback(self, step: int, optimizer, scheduler, callback) -> None:
        """Hands the whole training state to ``callback(step, state)`` on rank 0; the others wait until it is on disk.

        Raises:
            UserError: it could not be written; on every process the same.
        """
        failed = [None]
        if self.rank == 0:
            state = {
                "step": step,
                "projections": self.core.projections.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            try:
                with self.writing_scalars():
                    self.tb_writer.flush()
                callback(step, state)
            except UserError as error:
                failed = [str(error)]
        if self.processes > 1:
            dist.broadcast_object_list(failed, device=torch.device("cpu"))
        if failed[0]:
            raise UserError(failed[0])

    @contextmanager
    def writing_scalars(self):
        """Makes one line of a full disk, which TensorBoard reports as an OSError without a file."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.args.output_dir}: the TensorBoard scalars could not be written ({error.strerror}); free some space and resume"
            ) from None

    @contextmanager
    def stopping_at_signals(self):
        """SIGTERM, SIGINT and a lost terminal ask the loop to finish its step and stop; more of them change nothing."""

        def note(number, frame):
            self.stop_signal = self.stop_signal or number

        wanted = [number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, note) for number in wanted}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _leave_to_the_caller(failed) -> None:
    """TensorBoard's thread hands a failed write to whoever writes or flushes next; a traceback of its own says nothing more."""
    if not (issubclass(failed.exc_type, OSError) and type(failed.thread).__module__.startswith("tensorboard")):
        threading.__excepthook__(failed)


def leave_signals_to_the_parent(worker: int) -> None:
    """For loader workers: a signal to the whole process group must not take the data away from the step that is to be finished."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the dropout of one step and process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's groups: decay for all but biases and LayerNorm (Devlin et al. 2019)."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.endswith("bias") or "LayerNorm" in name].append(parameter)
    return [{"params": groups[False], "weight_decay": weight_decay}, {"params": groups[True], "weight_decay": 0.0}]
