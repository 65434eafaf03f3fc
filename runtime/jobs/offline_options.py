"""Options of an offline job: apart from the job, so that their help is shown without importing torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True)
class OfflineOptions:
    """Options of `recsys offline`. Times are unparsed: a data set has a time zone of its own."""

    data: Annotated[Path | None, Option(help="Archive or data set; default: STATE/archive.")] = None
    until: Annotated[
        str, Option(help="Event time to learn up to, e.g. 2026-11-25T00:00; now: all archived events.")
    ] = "now"
    registry: Annotated[
        Path | None, Option(help="Candidate registry; default: STATE/registry or registry.")
    ] = None
    from_: Annotated[str | None, Option("--from", help="First event time; default: all.")] = None
    epochs: Annotated[int, Option(min=1, help="Maximum; the last day decides when to stop.")] = 3
    workers: Annotated[int, Option(min=0, help="Ray Train workers; 0: this process.")] = 1
    cpus_per_worker: Annotated[float, Option(help="CPUs that Ray reserves per worker.")] = 1.0
    features: Annotated[str, Option(help="ids, ids+history or all; default: STATE's.")] = ""
    state: Annotated[Path | None, Option(help="System whose configuration to use.")] = None
    config: Annotated[str, Option(help="laptop, cluster, or the path of a YAML file.")] = "laptop"
    init: Annotated[str | None, Option(help="Candidate or snapshot folder to start from.")] = None
    step_examples: Annotated[int, Option(min=1, help="Examples per step.")] = 64
    checkpoint_every: Annotated[int, Option(min=1, help="Steps between two checkpoints.")] = 500
    tables: Annotated[str, Option(help="torchrec, or own: the shards' tables.")] = "torchrec"
    allow_gaps: Annotated[bool, Option("--allow-gaps", help="Learn with missing examples.")] = False
    propose: Annotated[Path | None, Option(help="Propose the candidate to this system.")] = None
    student: Annotated[str, Option(help="Distil a smaller model, e.g. dim=8,hidden=64x32.")] = ""
    ranker: Annotated[str, Option(help="Ranker: a plug-in, NAME@VERSION, or built-in.")] = ""
    teacher: Annotated[str, Option(help="Teacher; by default the live line, as it served.")] = ""
    teacher_share: Annotated[
        float | None, Option(help="Weight of the teacher in the student's targets, 0 to 1; default 0.5.")
    ] = None

    @property
    def data_folder(self) -> Path:
        """Folder of the examples. Raises ValueError without --data and --state."""
        if self.data is None and self.state is None:
            raise ValueError("give --state FOLDER, of a system, or --data FOLDER")
        return self.data or (self.state or Path()) / "archive"

    @property
    def registry_folder(self) -> Path:
        return self.registry or (self.state or Path()) / "registry"
