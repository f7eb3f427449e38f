"""Every training argument: one typed, documented field each. ``python train.py --help`` prints them."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from pretraining.utils import (
    OneLineErrors,
    UserError,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    random_seed,
    sequence_length,
    share,
)

# Arguments that a resumed run may change: they say where and how, not what is computed. The identity of a run compares the files
# that the paths name (checkpoint.run_identity).
FREE_TO_CHANGE = {
    "teacher_name_or_path",
    "student_config",
    "student_pretrained_weights",
    "tokenizer",
    "data_files_json",
    "data_cache_dir",
    "preprocessing_num_workers",
    "verify_data",
    "output_dir",
    "ckpt_steps",
    "keep_checkpoints",
    "resume_from_checkpoint",
    "ignore_data_fingerprint",
    "check_only",
    "do_train",
    "do_eval",
    "train_batch_size",
    "gradient_accumulation_steps",
    "cpu_kernels",
    "compile",
}


def argument(*, help: str, **options: Any) -> Any:
    """A field with its help text; ``options`` are those of HfArg: default, default_factory, aliases."""
    return HfArg(help=help, **options)


@dataclass
class TrainingArguments:
    """The arguments of ``train.py``; the defaults are the published recipe's values where it has one."""

    # ---- models
    student_config: str = argument(help="BERT config JSON of the student, for example distill_configs/MiniRBT-h256.json")
    output_dir: str = argument(help="the run's directory: checkpoints gs<step>/, TensorBoard scalars, arguments.json")
    teacher_name_or_path: str | None = argument(
        default=None, help="teacher model directory; without one the student is trained by masked-LM only"
    )
    student_pretrained_weights: str | None = argument(
        default=None,
        aliases=["--init_checkpoint_S"],
        help="the student's first weights: a model directory or a state-dict file; without them they are random",
    )
    tokenizer: str | None = argument(
        default=None, help="directory with vocab.txt; default: the teacher's, or without a teacher that of --student_pretrained_weights"
    )

    # ---- what is matched
    matches: list[str] = argument(
        default_factory=list, help="names from matches.py: which layers of the student learn from which of the teacher"
    )
    temperature: float = argument(default=8.0, help="divides both models' logits in the distillation loss")
    kd_weight: float = argument(
        default=1.0, help="weight of the loss on the teacher's soft labels; 0: none, and the teacher needs no masked-LM head"
    )
    hard_label_weight: float = argument(
        default=0.0, help="weight of masked-LM on the true tokens, beside the teacher; without a teacher it is the only loss"
    )
    output_encoded_layers: bool = argument(
        default=True, help="false: the models return no hidden states, so only logits (and attentions) can be matched"
    )

    # ---- data
    data_files_json: str = argument(default="./jsons/data.json", help="which files are train and dev, and their reference files")
    data_cache_dir: str = argument(default="./dataset/shards", help="where the tokenised shards are kept")
    max_seq_length: int = argument(default=512, help="tokens per sample, [CLS] and [SEP] included")
    preprocessing_num_workers: int = argument(default=os.cpu_count() or 1, help="threads that tokenise; the shards do not depend on it")
    verify_data: bool = argument(
        default=False, help="read and check all texts, references and shards again, also those that seem unchanged since the last time"
    )
    mlm_probability: float = argument(default=0.15, help="share of the tokens that are masked, as whole words")

    # ---- optimisation
    do_train: bool = argument(default=False, help="train")
    num_train_steps: int = argument(default=100_000, help="optimizer steps of the run")
    train_batch_size: int = argument(
        default=32,
        help="samples per optimizer step and process; the global batch is this times the processes, and its split changes nothing but dropout "
        "(seeded per process) and rounding",
    )
    gradient_accumulation_steps: int | None = argument(
        default=None,
        help="forward passes per optimizer step; each takes train_batch_size / this samples; default: as few as the GPU's memory allows, "
        "on a CPU of at most 64 samples each",
    )
    learning_rate: float = argument(default=4e-4, help="peak learning rate")
    official_schedule: Literal["linear", "const"] = argument(default="linear", help="after the warm-up: linear decay to zero, or constant")
    warmup_proportion: float = argument(default=0.1, help="share of num_train_steps over which the learning rate rises from zero")
    weight_decay_rate: float = argument(default=0.01, help="AdamW's decay, for all but biases, LayerNorm and the projections")
    random_seed: int = argument(
        default=10236797, help="decides the first weights, the order of the samples, the masks and the dropout of each process"
    )

    # ---- how it is computed
    fp16: bool = argument(default=False, help="float16 autocast with a gradient scaler, the teacher entirely in float16; needs CUDA")
    bf16: bool = argument(default=False, help="bfloat16 autocast, the teacher entirely in bfloat16; CUDA or CPU")
    compile: Literal["auto", "yes", "no"] = argument(
        default="auto", help="torch.compile over student, teacher and loss; auto: on a GPU, where there is a C compiler"
    )
    no_cuda: bool = argument(default=False, help="use the CPU even where there is a GPU")
    cpu_kernels: bool = argument(default=True, help="on a CPU, use the faster kernels of distillation/cpu.py; false: torch's own")

    # ---- evaluation and checkpoints
    do_eval: bool = argument(default=False, help="masked-LM loss and accuracy of student and teacher on the dev files, with fixed masks")
    ckpt_steps: int = argument(default=10_000, help="steps between checkpoints; the last step always writes one")
    keep_checkpoints: int = argument(default=3, help="how many of the newest checkpoints to keep; 0 keeps all")
    resume_from_checkpoint: str | None = argument(
        default=None, help='"latest" (the newest whole checkpoint of output_dir, or the start if it has none) or a checkpoint directory'
    )
    ignore_data_fingerprint: bool = argument(default=False, help="resume although the training data are not those the run was started on")

    check_only: bool = argument(
        default=False, help="check arguments, files and sizes, then end; for a teacher that is not trained yet, give its config JSON"
    )

    @property
    def tokenizer_directory(self) -> str:
        """The directory of the tokenizer; :meth:`check` refuses arguments without one."""
        return self.tokenizer or self.teacher_name_or_path or self.student_pretrained_weights or ""

    def check(self) -> None:
        """Raises UserError for arguments that contradict each other; reads nothing from disk."""
        if self.mlm_probability == 0:
            raise UserError(f"--mlm_probability {self.mlm_probability}: nothing would be masked; give a number above 0")
        if self.gradient_accumulation_steps and self.train_batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"--train_batch_size {self.train_batch_size} is not divisible by --gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )
        if not (self.do_train or self.do_eval):
            raise UserError("nothing to do: give --do_train, --do_eval or both")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; choose one")
        if self.matches and not self.teacher_name_or_path:
            raise UserError("--matches needs a teacher: give --teacher_name_or_path")
        if not self.teacher_name_or_path and (self.kd_weight != 1 or self.hard_label_weight != 0):
            raise UserError("--kd_weight and --hard_label_weight need a teacher: without one masked-LM is the only loss")
        if self.do_train and self.teacher_name_or_path and not (self.kd_weight or self.hard_label_weight or self.matches):
            raise UserError("--kd_weight 0: there is no loss; give --matches, --hard_label_weight or a teacher's soft labels")
        if self.do_eval and not self.do_train and not (self.student_pretrained_weights or self.resume_from_checkpoint):
            raise UserError("--do_eval alone needs a model: give --student_pretrained_weights or --resume_from_checkpoint")
        if not self.tokenizer_directory:
            raise UserError("no vocabulary: give --tokenizer, --teacher_name_or_path or --student_pretrained_weights")

    def dump(self) -> str:
        """The arguments as JSON, one per line, in the order of the fields."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


# The argument types that are stricter than the fields' Python types.
ARGUMENT_TYPES: dict[str, Callable[[str], Any]] = {
    "temperature": positive_float,
    "kd_weight": non_negative_float,
    "hard_label_weight": non_negative_float,
    "max_seq_length": sequence_length,
    "preprocessing_num_workers": positive_int,
    "mlm_probability": share,
    "num_train_steps": positive_int,
    "train_batch_size": positive_int,
    "gradient_accumulation_steps": positive_int,
    "learning_rate": positive_float,
    "warmup_proportion": share,
    "weight_decay_rate": share,
    "random_seed": random_seed,
    "ckpt_steps": positive_int,
    "keep_checkpoints": non_negative_int,
}


class TrainingArgumentParser(OneLineErrors, HfArgumentParser):
    """One argument for each field of TrainingArguments."""

    def add_argument(self, *flags: str, **options: Any) -> Any:
        name = flags[0].removeprefix("--")
        if name in ARGUMENT_TYPES:
            options["type"] = ARGUMENT_TYPES[name]
        return super().add_argument(*flags, **options)


def parse(argv: list[str] | None = None) -> TrainingArguments:
    """Parses and checks the command line. Unknown and abbreviated arguments are errors."""
    parser = TrainingArgumentParser([TrainingArguments], allow_abbrev=False)
    args = TrainingArguments(**vars(parser.parse_args(argv)))
    args.check()
    return args
