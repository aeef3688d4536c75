"""The command line that the benchmarks of trainings share."""

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job, run_jobs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that trains.

    Attributes:
        name: its module's.
        full: how much is done.
        quick: the same, small, to see that it runs.
        stages: plan -> trainings; those of one stage are finished before the next begins.
        write: (plan, directory of the trainings, directory of the results) -> what is printed, a part of what it wrote.
    """

    name: str
    full: Any
    quick: Any
    stages: Callable[[Any], Iterable[Sequence[Job]]]
    write: Callable[[Any, Path, Path], Any]

    def run(self, *, quick: bool = False, processes: int = 1, out: Path | None = None) -> None:
        """Train what is not trained yet, and write the results; those of a quick run lie beside its trainings."""
        plan = self.quick if quick else self.full
        out = out or Path("runs") / (f"{self.name}-quick" if quick else self.name)
        for jobs in self.stages(plan):
            run_jobs(jobs, out=out, processes=processes)
        results = out if quick else RESULTS
        results.mkdir(parents=True, exist_ok=True)
        print(json.dumps(self.write(plan, out, results), indent=2))

    def main(self, description: str) -> None:
        """Read the command line and run."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="a small part of the work, to see that it runs")
        parser.add_argument("--processes", type=int, default=2, help="trainings at once, one thread each")
        parser.add_argument("--out", type=Path, default=None, help="directory of the trainings")
        given = parser.parse_args()
        self.run(quick=given.quick, processes=given.processes, out=given.out)


def write_result(path: Path, plan: Any, found: dict[str, Any]) -> None:
    """Write a result with what it takes to make it again."""
    result = {
        "command": f"python -m benchmarks.{path.stem}",
        "machine": f"{platform.machine()}, no GPU, one thread a training",
        "seeds": list(plan.seeds),
        **found,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
