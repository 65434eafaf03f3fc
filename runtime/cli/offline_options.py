"""What `recsys offline` can be asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

NOW: Final = "now"  # all that is archived so far

DataOption = Annotated[
    Path | None,
    typer.Option(help="The archive of a system (that of --state without), or a data set."),
]
UntilOption = Annotated[
    str,
    typer.Option(
        help="Event time to learn up to, e.g. 2026-11-25T00:00; now: all that is archived."
    ),
]
RegistryOption = Annotated[
    Path | None,
    typer.Option(help="Where the candidate goes: STATE/registry without, or registry."),
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Event time to begin at; the beginning without.")
]
EpochsOption = Annotated[int, typer.Option(help="At most; the last day says when to stop.")]
WorkersOption = Annotated[int, typer.Option(help="Of Ray Train; 0: in this process, without Ray.")]
CpusPerWorkerOption = Annotated[float, typer.Option(help="What Ray books for each.")]
FeaturesOption = Annotated[
    str, typer.Option(help="ids, ids+history or all; that of the state folder without.")
]
StateOption = Annotated[
    Path | None, typer.Option(help="Take configuration and feature set from this system.")
]
ConfigOption = Annotated[str, typer.Option(help="laptop, cluster, or a YAML file.")]
InitOption = Annotated[
    str | None,
    typer.Option(help="Start from this candidate, or from a line's folder of snapshots."),
]
StepExamplesOption = Annotated[int, typer.Option(help="Examples of a step.")]
CheckpointEveryOption = Annotated[int, typer.Option(help="Steps between two checkpoints.")]
TablesOption = Annotated[str, typer.Option(help="torchrec, or own: the shards' tables.")]
AllowGapsOption = Annotated[
    bool, typer.Option("--allow-gaps", help="Learn although examples are missing.")
]
ProposeOption = Annotated[
    Path | None, typer.Option(help="Propose the candidate to the system of this state folder.")
]
StudentOption = Annotated[
    str,
    typer.Option(help="A narrower model, e.g. dim=8,hidden=64x32, that a teacher helps to learn."),
]
TeacherOption = Annotated[
    str, typer.Option(help="A candidate that teaches; without: the live line, as it served.")
]
TeacherShareOption = Annotated[
    float | None, typer.Option(help="The teacher's in what the student learns: 0 to 1, or 0.5.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The closing table as JSON.")]


@dataclass(frozen=True)
class Asked:
    """The command's options. Times are as they were typed: a data set has a zone of its own."""

    data: Path
    registry: Path
    until: str
    from_: str | None = None
    epochs: int = 3
    workers: int = 1
    cpus: float = 1.0
    features: str = ""
    state: Path | None = None
    config: str = "laptop"
    init: str | None = None
    step_examples: int = 64
    checkpoint_every: int = 500
    tables: str = "torchrec"
    allow_gaps: bool = False
    propose: Path | None = None
    student: str = ""
    teacher: str = ""
    teacher_share: float | None = None
