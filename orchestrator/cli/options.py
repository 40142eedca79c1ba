"""The command line's one application, and the options that commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.spec.experiment import Experiment
    from orchestrator.store import Store

app = typer.Typer(
    name="orchestrator",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train the paper's runs, keep every number, print its tables.",
)

PIPED_WIDTH = 160  # columns of tables that go to a file or a pipe
SPEC = Path("experiments.yaml")  # in the current folder
SPEC_HELP = "The YAML file of experiments."
SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help=SPEC_HELP)]
SpecOption = Annotated[  # of commands that have arguments of their own
    Path, typer.Option("--spec", metavar="SPEC", help=SPEC_HELP)
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="Which profile of SPEC; by default what fits the cluster."),
]
TrainedProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="Which profile of SPEC; by default that trained last."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all runs; repeatable."),
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="IDS", help="Just these runs, like 0,20-24.")
]
SeedsOption = Annotated[
    str | None,
    typer.Option(
        "--seeds", metavar="K", help="Replicates like 0..4; number k trains with seed + 1000 k."
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option("--results", help="Where results go.  [default: results/ beside SPEC]"),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Path or SQLAlchemy URL.  [default: store.db in the results]"),
]
TableOption = Annotated[
    str | None, typer.Option("--table", metavar="NAME", help="Just this table, by ID or title.")
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="At most so many runs at once.")
]
AddressOption = Annotated[
    str,
    typer.Option(
        "--address", help="The Ray cluster: local starts its own, else auto or HOST:PORT."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result and failures.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="More about what happens.")]


def open_store(spec: Path, results: Path | None, store: str | None) -> "Store":
    """An existing store. Raises: StoreError, SpecError if there is no file `spec`."""
    from orchestrator.errors import SpecError, StoreError
    from orchestrator.store import Store, exists

    if not spec.is_file():
        raise SpecError([f"{spec}: no such file"])

    location = store or str((results or spec.parent / "results") / "store.db")
    if not exists(location):
        raise StoreError(f"there is no store at {location} yet; `run` makes one")
    return Store(location)


def opened_profile(
    spec: Path,
    profile: str | None,
    settings: list[str] | None,
    results: Path | None,
    store: str | None,
) -> tuple["Store", "Experiment"]:
    """The store, and the profile asked for or trained last. Raises: StoreError, SpecError."""
    from orchestrator.spec.loader import SpecFile

    file = SpecFile(spec)
    opened = open_store(spec, results, store)
    chosen = profile or opened.newest_profile(file.profiles) or file.profiles[0]
    return opened, file.experiment(chosen, settings or ())
