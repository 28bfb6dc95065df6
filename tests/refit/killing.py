"""Run as a process: imports once, then forks a child for each ingest and kills it at a random moment.

Usage: ``killing.py HOME JOB.json SEED ROUNDS SECONDS``; prints how many children were killed before they had finished.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from refit.config import parse_job
from refit.ingestion import ingest
from refit.layout import Layout


def main() -> None:
    home, job, seed, rounds, seconds = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), *sys.argv[3:]
    rng, num_killed = random.Random(int(seed)), 0
    for _ in range(int(rounds)):
        child = os.fork()
        if not child:
            ingest(parse_job(job), Layout(home))
            os._exit(0)
        time.sleep(rng.uniform(0, float(seconds)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        num_killed += os.WIFSIGNALED(status)
    sys.stdout.write(f"{num_killed}\n")


if __name__ == "__main__":
    main()
