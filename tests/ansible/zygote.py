"""Runs modules in forks of a process that has imported Ansible already, which saves most time.

Each line of standard input is a job; the answer is the exit status on a line of its own.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

import ansible.module_utils.basic  # noqa: F401  # this is what takes the time


def work(job: dict[str, object]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(str(job[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(job["environment"])  # type: ignore[call-overload]
    sys.path[:0] = [os.environ["PYTHONPATH"]]
    sys.argv = ["module", str(job["arguments"])]
    runpy.run_module(str(job["module"]), run_name="__main__", alter_sys=True)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work(json.loads(line))
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
