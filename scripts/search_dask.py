"""A search whose trainings run on a Dask cluster.

python scripts/search_dask.py search.duckdb --task file.py:task --budget 100 --address tcp://scheduler:8786
python scripts/search_dask.py search.duckdb --task file.py:task --budget 100 --workers 4    # a cluster of this machine

This process alone opens the database, so keep that on a local disk. Each worker gets a task and a function by pickle,
and returns the metrics: it needs aqx, the task's file under the same path (a shared folder, or installed everywhere)
and one thread, as two trainings in one process would share its GPU. A cluster of SLURM jobs, for instance, is
`dask_jobqueue.SLURMCluster(cores=1, processes=1, …)`; its `scheduler_address` is the address to give here.

A worker that dies is replaced by the cluster. Dask trains its function again on another one, some times over
(distributed.scheduler.allowed-failures), and then aqx does, once more. Ctrl-C, and the same command goes on.
"""

import argparse
from contextlib import ExitStack

import aqx
from aqx.search import Record


def print_trial(study: aqx.Study, record: Record) -> None:
    """Print how a trial ended, and where it ran."""
    result = record.reason if record.objective is None else f"{record.objective:.4f}"
    print(f"{record.id:5}  {record.name:40} {result}  ({record.environment.get('host')})", flush=True)


if __name__ == "__main__":  # workers of a local cluster import this file too
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--task", required=True)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--workers", type=int, help="trainings at a time; default: as many as the cluster has workers")
    parser.add_argument("--address", help="of a running scheduler; default: a cluster of this machine")
    args = parser.parse_args()
    from distributed import Client, LocalCluster  # not before: --help needs nothing

    with ExitStack() as stack:
        address = args.address
        if address is None:
            local = LocalCluster(n_workers=args.workers or 2, threads_per_worker=1, dashboard_address=":0")
            stack.enter_context(local)
            address = local.scheduler_address
        client = stack.enter_context(Client(address))
        client.wait_for_workers(1)
        workers = args.workers or len(client.scheduler_info(n_workers=-1)["workers"])
        study = aqx.Study(args.database, args.task, callbacks=[print_trial])
        study.search(args.budget, executor=client.get_executor(), workers=workers)
        print("best:", study.best())
