"""What a search finds, in TensorBoard, Weights & Biases or MLflow: three callbacks of a study, a dozen lines each.

python scripts/log_trials.py search.duckdb --task mnist1d --budget 20 --tensorboard runs
python scripts/log_trials.py search.duckdb --task file.py:task --wandb my-project
python scripts/log_trials.py search.duckdb --task file.py:task --mlflow sqlite:///mlflow.db

A callback is any function of (study, record). It is called in the process that runs the search, wherever the trainings
run, when a trial has ended and is stored; `record` says what was trained, how it ended and all that was reported. What
a callback raises ends the search, and the same command resumes it.

Each trial becomes a run of its own. Without a network: WANDB_MODE=offline, and `wandb sync` later; the others write
files. Each library is imported only where it is used: pip install tensorboardX, wandb or mlflow-skinny.
"""

import argparse
import math

import aqx
from aqx.search import Callback, Record

SUFFIX = "_by_step"


def final_values(record: Record) -> dict[str, float]:
    """Return the numbers that a training ended with."""
    numbers = {name: float(value) for name, value in record.metrics.items() if isinstance(value, int | float)}
    return numbers | ({} if record.seconds is None else {"seconds": record.seconds})


def curves(record: Record) -> dict[str, list[tuple[int, float]]]:
    """Return what was reported with a step, by metric."""
    kept = {name.removesuffix(SUFFIX): v for name, v in record.metrics.items() if name.endswith(SUFFIX)}
    return {name: [(step, value) for step, value in points] for name, points in kept.items()}


def facts(study: aqx.Study, record: Record) -> dict[str, str | int]:
    """Return what is fixed about a trial."""
    return {
        "function": record.name,
        "task": study.task.name,
        "seed": record.seed,
        "purpose": record.purpose,
        "status": record.status,
        "reason": record.reason or "",
        **record.environment,
    }


def tensorboard(folder: str) -> Callback:
    """Write each trial to a folder of its own in `folder`."""
    from tensorboardX import SummaryWriter

    def log(study: aqx.Study, record: Record) -> None:
        with SummaryWriter(f"{folder}/{study.task.name}/{record.id:05d}") as writer:
            writer.add_text("trial", "  \n".join(f"{name}: {value}" for name, value in facts(study, record).items()))
            for name, points in curves(record).items():
                for step, value in points:
                    writer.add_scalar(name, value, step)
            for name, value in final_values(record).items():
                writer.add_scalar(f"final/{name}", value, record.id)

    return log


def weights_and_biases(project: str) -> Callback:
    """Log each trial as a run of `project`, grouped by task."""
    import wandb  # pyright: ignore[reportMissingImports]

    def log(study: aqx.Study, record: Record) -> None:
        tags = [record.purpose, record.status]
        run = wandb.init(
            project=project, group=study.task.name, name=record.name, tags=tags, config=facts(study, record)
        )
        for name, points in curves(record).items():
            run.define_metric(name, step_metric="step")
            for step, value in points:
                run.log({name: value, "step": step})
        run.summary.update(final_values(record))
        run.finish(exit_code=int(record.status == "failed"))

    return log


def mlflow(tracking_uri: str) -> Callback:
    """Log each trial as a run of an experiment with the task's name."""
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_tracking_uri(tracking_uri)

    def log(study: aqx.Study, record: Record) -> None:
        mlflow.set_experiment(study.task.name)
        with mlflow.start_run(run_name=record.name):
            mlflow.log_params(facts(study, record))
            for name, points in curves(record).items():
                for step, value in points:
                    mlflow.log_metric(name, value, step=step)
            mlflow.log_metrics({name: v for name, v in final_values(record).items() if math.isfinite(v)})
            mlflow.end_run("FAILED" if record.status == "failed" else "FINISHED")

    return log


KINDS = {"tensorboard": tensorboard, "wandb": weights_and_biases, "mlflow": mlflow}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--task", required=True)
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", metavar="WHERE")
    args = parser.parse_args()
    callbacks = [make(getattr(args, kind)) for kind, make in KINDS.items() if getattr(args, kind)]
    study = aqx.Study(args.database, args.task, callbacks=callbacks)
    study.search(args.budget, workers=args.workers)
    print("best:", study.best())
