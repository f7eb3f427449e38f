"""datatrove's Slurm executor without its last job."""

from datatrove.executor import SlurmPipelineExecutor


class SlurmJobs(SlurmPipelineExecutor):
    """Submits an array of jobs. Its class is imported by name in each job."""

    def launch_merge_stats(self) -> None:
        """Submits no job for statistics: nobody reads them, and it would wait for ever for a task that failed."""
