"""A scheduler of dask and its workers, forked from one import, each started again when it dies, as a cluster does.

python tests/dask_processes.py PORT WORKERS PIDS, where PIDS is the file that always says who is at work: a JSON object
of process ids by "scheduler", "0", "1" and so on.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile

import distributed

from atalaia.files import write_json


async def serve(role: str, port: int, folder: str) -> None:
    if role == "scheduler":
        server = distributed.Scheduler(host="127.0.0.1", port=port, dashboard=False)
    else:
        server = distributed.Worker(
            f"tcp://127.0.0.1:{port}", nthreads=1, name=role, dashboard=False, local_directory=folder, memory_limit=0
        )
    async with server:
        await server.finished()


def start(role: str, port: int, folder: str) -> int:
    if pid := os.fork():
        return pid
    try:
        asyncio.run(serve(role, port, folder))
    except Exception as error:
        print(json.dumps([role, repr(error)]), file=sys.stderr)
    os._exit(0)


def main(port: int, workers: int, pids: str) -> None:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        running: dict[str, int] = {}
        while True:
            for role in ("scheduler", *map(str, range(workers))):
                if role not in running:
                    running[role] = start(role, port, folder)
            write_json(pids, running)
            dead, _ = os.wait()
            running = {role: pid for role, pid in running.items() if pid != dead}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
