"""Everything that the pages work with, opened on one data directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from app.bases import Bases
from app.catalogue import Catalogue
from app.datasets import Datasets
from app.history import Histories
from app.inputs import Inputs
from app.jobs import TRAINER, Jobs
from app.library import Library
from app.operations import COMMAND, Operations
from app.previews import WORKER, Previews, Worker
from app.workbench import Workbench
from trainer.errors import UserError
from trainer.files import sweep

FOLDERS = (
    "datasets",
    "runs",
    "adapters",
    "previews",
    "bases",
    "thumbs",
    "uploads",
    "reports",
    "inputs",
)


@dataclass(frozen=True)
class Workshop:
    """The services behind the pages. See `opened`."""

    data: Path
    catalogue: Catalogue
    histories: Histories
    jobs: Jobs
    datasets: Datasets
    bases: Bases
    library: Library
    previews: Previews
    inputs: Inputs
    workbench: Workbench

    @classmethod
    @contextmanager
    def opened(
        cls,
        data: Path,
        trainer: Sequence[str] = TRAINER,
        worker: Sequence[str] = WORKER,
        tools: Sequence[str] = COMMAND,
    ) -> Iterator[Workshop]:
        """A workshop on the directory `data`, made if need be, its queue kept going meanwhile.

        Raises:
            UserError: if the directory cannot be written, or another web app has it.
        """
        data = data.expanduser().resolve()
        try:
            for name in FOLDERS:
                (data / name).mkdir(parents=True, exist_ok=True)
            only_one = filelock.FileLock(data / "serve.lock", blocking=False)
            only_one.acquire()
        except filelock.Timeout:
            raise UserError(
                f"Another `atelier serve` has {data}.", "Stop it, or give another --data."
            ) from None
        except OSError as error:
            raise UserError(
                f"{data} cannot be written: {error.strerror}.", "Give another --data."
            ) from None
        resident = Worker(data / "preview-worker.log", worker)
        operations = Operations(data / "operations", tools)
        try:
            workshop = cls._assembled(data, trainer, resident, operations)
            with workshop.jobs.kept_going():
                yield workshop
        finally:
            operations.close()
            resident.close()
            only_one.release()

    @classmethod
    def _assembled(
        cls, data: Path, trainer: Sequence[str], worker: Worker, operations: Operations
    ) -> Workshop:
        for name in ("datasets", "adapters", "thumbs", "inputs"):
            sweep(data / name)
        catalogue = Catalogue(data / "catalogue.sqlite")
        histories = Histories()
        jobs = Jobs(data / "runs", catalogue, histories, trainer)
        library = Library(data / "adapters", jobs, catalogue)
        bases = Bases(data / "bases")
        return cls(
            data=data,
            catalogue=catalogue,
            histories=histories,
            jobs=jobs,
            datasets=Datasets(data / "datasets"),
            bases=bases,
            library=library,
            previews=Previews(data / "previews", worker),
            inputs=Inputs(data / "inputs"),
            workbench=Workbench(data / "reports", library, operations, bases.allows),
        )
