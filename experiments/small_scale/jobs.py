"""The jobs of the experiment: which stages there are, and the command of every job."""

from dataclasses import dataclass
from pathlib import Path

from experiments.small_scale.runner import Job, JobStage
from experiments.small_scale.settings import ScaleSettings

HERE = Path(__file__).resolve().parent
STUDENTS = ("two_stage", "one_stage", "wide_shallow", "no_teacher")
SHAPE_OF = {  # the shape of each kind of model
    "shallow": "shallow",
    "teacher": "teacher",
    "ta": "ta",
    "two_stage": "narrow_deep",
    "one_stage": "narrow_deep",
    "wide_shallow": "wide_shallow",
    "no_teacher": "narrow_deep",
}


@dataclass(frozen=True)
class ExperimentJobs:
    """All commands for one work directory.

    Attributes:
        corpus, vocabulary, ltp, tasks_dir: the inputs, as absolute paths.
        work: the work directory, as an absolute path.
        python: the interpreter that runs the jobs.
    """

    settings: ScaleSettings
    corpus: Path
    vocabulary: Path
    ltp: Path
    tasks_dir: Path
    work: Path
    python: str

    def stages(self) -> list[JobStage]:
        """All stages in order; the jobs run in pretraining/."""
        settings = self.settings
        return [
            JobStage("data", 1, [self.prepare()]),
            JobStage("whole-word references", 1, [self.references()]),
            JobStage("shards", 1, [self.shards()]),
            JobStage("teacher, its first layers", 1, [self.shallow(), self.teacher_init()]),
            JobStage("teacher", 1, [self.teacher()]),
            JobStage(
                "assistant and one-stage students", settings.train_jobs, [self.ta_init(), *self.assistants(), *self.one_stage_students()]
            ),
            JobStage("two-stage students", settings.train_jobs, self.two_stage_students()),
            JobStage("fine-tuning", settings.finetune_jobs, self.finetunings()),
        ]

    def report(self, output_dir: Path) -> list[str]:
        """The command that writes the report."""
        return [self.python, str(HERE / "report.py"), "--work", str(self.work), "--output_dir", str(output_dir)]

    # ---------------------------------------------------------------- data

    def prepare(self) -> Job:
        settings = self.settings
        shapes = [f"{name}={settings.shape_of(name)}" for name in dict.fromkeys(SHAPE_OF.values())]
        arguments: list[object] = ["--scale", settings.scale]
        arguments += ["--corpus", self.corpus, "--corpus_bytes", settings.corpus_bytes, "--dev_every", settings.dev_every]
        arguments += ["--vocabulary", self.vocabulary, "--ltp", self.ltp, "--tasks_dir", self.tasks_dir, "--tasks", *settings.tasks]
        arguments += ["--positions", settings.positions, "--length", settings.length]
        arguments += ["--shapes", *shapes, "--output_dir", self.data]
        return self.job("prepare", HERE / "prepare.py", arguments)

    def references(self) -> Job:
        arguments = ["--data_files_json", self.data / "data.json", "--ltp", self.ltp, "--bert", self.data / "vocabulary"]
        return self.job("references", "run_chinese_ref.py", arguments)

    def shards(self) -> Job:
        arguments: list[object] = ["--data_files_json", self.data / "data.json", "--data_cache_dir", self.data / "shards"]
        arguments += ["--tokenizer", self.data / "vocabulary", "--max_seq_length", self.settings.length]
        return self.job("shards", "my_datasets.py", arguments)

    # ---------------------------------------------------------------- teacher and assistants

    def shallow(self) -> Job:
        """The shallow model whose layers become the teacher's first weights."""
        return self.train_teacher("shallow", steps=self.settings.shallow_steps, arguments=["--tokenizer", self.data / "vocabulary"])

    def teacher_init(self) -> Job:
        shallow = self.run_directory("shallow") / f"gs{self.settings.shallow_steps}"
        return self.first_layers("teacher_init", shallow, self.settings.teacher_layers)

    def teacher(self) -> Job:
        arguments = ["--tokenizer", self.data / "vocabulary", "--student_pretrained_weights", self.run_directory("teacher_init")]
        return self.train_teacher("teacher", steps=self.settings.teacher_steps, arguments=arguments)

    def ta_init(self) -> Job:
        return self.first_layers("ta_init", self.teacher_model, self.settings.ta_layers)

    def assistants(self) -> list[Job]:
        arguments = ["--teacher_name_or_path", self.teacher_model, "--student_pretrained_weights", self.run_directory("ta_init")]
        arguments += ["--matches", "L6_hidden_mse"]
        return [self.train_student("ta", seed, arguments) for seed in self.settings.seeds]

    # ---------------------------------------------------------------- students

    def one_stage_students(self) -> list[Job]:
        """The students taught by the teacher itself, and the one that has no teacher."""
        settings = self.settings
        large, narrow, wide = settings.teacher_shape.hidden, settings.narrow_deep_shape.hidden, settings.wide_shallow_shape.hidden
        taught = ["--teacher_name_or_path", self.teacher_model]
        narrow_deep = [*taught, "--matches", f"L6h{narrow}_L12h{large}_hidden_mse"]
        wide_shallow = [*taught, "--matches", f"L4h{wide}_L12h{large}_hidden_mse"]
        untaught = ["--tokenizer", self.data / "vocabulary"]
        return [
            *(self.train_student("one_stage", seed, narrow_deep) for seed in settings.seeds),
            *(self.train_student("wide_shallow", seed, wide_shallow) for seed in settings.seeds),
            *(self.train_student("no_teacher", seed, untaught) for seed in settings.seeds),
        ]

    def two_stage_students(self) -> list[Job]:
        """The students taught by the assistant of their seed."""
        settings = self.settings
        matches = f"L6h{settings.narrow_deep_shape.hidden}_L6h{settings.teacher_shape.hidden}_hidden_mse"
        jobs = []
        for seed in settings.seeds:
            arguments = ["--teacher_name_or_path", self.student_model("ta", seed), "--matches", matches]
            jobs.append(self.train_student("two_stage", seed, arguments))
        return jobs

    # ---------------------------------------------------------------- fine-tuning

    def finetunings(self) -> list[Job]:
        jobs = []
        for seed in self.settings.seeds:
            jobs.append(self.finetune("teacher", seed, self.teacher_model))
            jobs += [self.finetune(kind, seed, self.student_model(kind, seed)) for kind in STUDENTS]
        return jobs

    def finetune(self, kind: str, seed: int, model: Path) -> Job:
        """One seed of one model, on all tasks with all learning rates."""
        settings = self.settings
        arguments: list[object] = ["--model_name_or_path", model, "--tasks_dir", self.tasks_dir, "--tasks", *settings.tasks]
        arguments += ["--learning_rates", *settings.learning_rates, "--num_train_epochs", settings.epochs, "--seed", seed]
        arguments += ["--per_device_train_batch_size", settings.finetune_batch, *settings.precision.split()]
        arguments += ["--output_dir", self.work / "finetuning" / f"{kind}-{seed}"]
        return self.job(f"finetune-{kind}-{seed}", HERE / "finetune.py", arguments)

    # ---------------------------------------------------------------- the parts of the above

    @property
    def data(self) -> Path:
        return self.work / "data"

    @property
    def teacher_model(self) -> Path:
        return self.run_directory("teacher") / f"gs{self.settings.teacher_steps}"

    def student_model(self, kind: str, seed: int) -> Path:
        return self.run_directory(f"{kind}-{seed}") / f"gs{self.settings.student_steps}"

    def run_directory(self, name: str) -> Path:
        return self.work / "runs" / name

    def first_layers(self, name: str, model: Path, layers: tuple[int, ...]) -> Job:
        """Writes the first weights of a model, made of some layers of another; the jobs after it need them."""
        arguments = ["--model_name_or_path", model, "--dump_checkpoint", self.run_directory(name), "--layers", *layers]
        return self.job(name, "scripts/init_checkpoint_TA.py", arguments, blocking=True)

    def train_teacher(self, kind: str, *, steps: int, arguments: list) -> Job:
        """The teacher or its first layers; there is one for all seeds."""
        settings = self.settings
        return self.train(
            kind,
            shape=SHAPE_OF[kind],
            batch=settings.teacher_batch,
            steps=steps,
            save_steps=settings.teacher_save_steps,
            seed=0,
            arguments=arguments,
        )

    def train_student(self, kind: str, seed: int, arguments: list) -> Job:
        """All students and assistants have the same budget."""
        settings = self.settings
        return self.train(
            f"{kind}-{seed}",
            shape=SHAPE_OF[kind],
            batch=settings.student_batch,
            steps=settings.student_steps,
            save_steps=settings.student_save_steps,
            seed=seed,
            arguments=arguments,
        )

    def train(self, name: str, *, shape: str, batch: int, steps: int, save_steps: int, seed: int, arguments: list) -> Job:
        """A run of train.py, with its evaluation on the dev articles."""
        settings = self.settings
        common: list[object] = ["--do_train", "--do_eval", "--resume_from_checkpoint", "latest"]
        common += ["--student_config", self.data / "configs" / f"{shape}.json", "--output_dir", self.run_directory(name)]
        common += ["--data_files_json", self.data / "data.json", "--data_cache_dir", self.data / "shards"]
        common += ["--max_seq_length", settings.length, "--num_train_steps", steps, "--ckpt_steps", save_steps, "--keep_checkpoints", 1]
        common += ["--train_batch_size", batch, "--learning_rate", settings.learning_rate, "--temperature", settings.temperature]
        common += ["--random_seed", seed, *settings.precision.split()]
        return self.job(name, "train.py", [*common, *arguments])

    def job(self, name: str, script: str | Path, arguments: list, blocking: bool = False) -> Job:
        return Job(name, [self.python, str(script), *map(str, arguments)], blocking)
