"""Tasks as an array of Slurm jobs, by datatrove's executor."""

import shlex
import subprocess
import sysconfig
from typing import Any

from datatrove.executor import SlurmPipelineExecutor
from tqdm import tqdm

from pretraining.corpus.executor_settings import Executor
from pretraining.utils import UserError


class SlurmJobs(SlurmPipelineExecutor):
    """Each job imports this class by its name."""

    def launch_merge_stats(self) -> None:
        """Submits no job for statistics: nobody reads them, and it would wait for ever for a task that failed."""


def submit(step: Any, executor: Executor, name: str) -> None:
    """Submits the tasks of a ``workers.Worker``; raises UserError if Slurm refuses them."""
    jobs = SlurmJobs(
        [step],
        tasks=len(step.tasks),
        time=executor.time,
        partition=executor.partition,
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
        gpus_per_task=executor.gpus_per_worker,
        workers=executor.workers,
        job_name=name,
        qos=executor.qos,
        env_command=f"export PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH",
        srun_args={"cpus-per-task": executor.cpus_per_task},
        logging_dir=str(step.folder),
    )
    try:
        jobs.run()
    except subprocess.CalledProcessError:
        raise UserError("sbatch refused the job, see its line above; check --partition, --time, --qos and the sizes of a worker") from None
    tqdm.write(f"Slurm job {jobs.job_id} ({name}): {len(step.tasks):,} tasks; its logs: {jobs.slurm_logs_folder}")
