"""Run programs in forks of a process that has already imported the packages.

The import of PyTorch and Detectron2 takes longer than most programs of the tests.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]


class ForkServer:
    """A process of forked_program.py. It ends with this process, or with `close`.

    Args:
        modules: what it imports, once.
        environment: variables of the programs, beside those of this process.
    """

    def __init__(self, modules: Iterable[str], environment: dict[str, str] | None = None) -> None:
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked_program.py"), *modules],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program: Path, arguments: Iterable[object], **options: object) -> dict:
        """Run a program until it and its workers have ended.

        Args:
            program: its path.
            arguments: its command line.
            options: "cwd", the folder where it runs; "folder", "action" and "at", see
                forked_program.py.

        Returns:
            "status", "out", "err" and "moments".
        """
        request = {"program": str(program), "arguments": [*map(str, arguments)], **options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()  # it ends at the end of its input
