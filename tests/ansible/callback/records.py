"""A callback that writes what each task returned to the file RECORDS, one JSON object a line."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: records
type: aggregate
short_description: Write what each task returned
description: For tests.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "records"

    def _write(self, result, ok):
        with open(os.environ["RECORDS"], "a") as file:
            record = {"task": result._task.get_name(), "ok": ok, "result": result._result}
            file.write(json.dumps(record, default=str) + "\n")

    def v2_runner_on_ok(self, result):
        self._write(result, True)

    def v2_runner_on_failed(self, result, ignore_errors=False):  # noqa: ARG002  # part of the interface
        self._write(result, False)
