"""The command line application and the options that commands share."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.models import ArgumentInfo

from aol.cli.paths import parse_path
from orchestrator.analysis.tables import runs_of
from orchestrator.environment import LOCAL
from orchestrator.errors import SpecError, StoreError
from orchestrator.formatting import VARIABLES
from orchestrator.sharing.archive import SUFFIX
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store, exists

if TYPE_CHECKING:
    from orchestrator.driver.session import RunOptions, Session

app = typer.Typer(
    name="orchestrator",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train the paper's runs, store their results and print its tables.",
)


PIPED_WIDTH = 160  # columns of tables that go to a file or a pipe
BUNDLE = "bundle.zip"  # in a profile's folder of the results
SPEC = Path("experiments.yaml")  # in the current folder
SPEC_HELP = "The YAML file of experiments."


def _require_nonempty(value: str | None) -> str | None:
    if value == "":
        raise typer.BadParameter(f"is empty; set {VARIABLES['--store']} to the store's URL")
    return value


SpecArgument = Annotated[Path, typer.Argument(parser=parse_path, metavar="SPEC", help=SPEC_HELP)]
SpecOption = Annotated[
    Path, typer.Option("--spec", parser=parse_path, metavar="SPEC", help=SPEC_HELP)
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results",
        parser=parse_path,
        metavar="PATH",
        help="Folder of the results.  [default: results/ beside SPEC]",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=VARIABLES["--store"],
        callback=_require_nonempty,
        help="Path or SQLAlchemy URL.  [default: store.db in the results]",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all runs; repeatable."),
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="IDS", help="Only these runs, such as 0,20-24.")
]
SeedsOption = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        metavar="K",
        help="Replicates such as 0..4; replicate k trains with seed + 1000 k.",
    ),
]
TableOption = Annotated[
    str | None, typer.Option("--table", metavar="NAME", help="Only this table, by ID or title.")
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Maximum number of runs at a time.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@dataclass(frozen=True)
class StoreOptions:
    """The options that select a result store."""

    spec: SpecArgument = SPEC
    results: ResultsOption = None
    store: StoreOption = None

    @cached_property
    def opened(self) -> ExitStack:
        """Return what the command has opened; it is closed when the command ends."""
        return ExitStack()

    @property
    def results_folder(self) -> Path:
        """Return the folder of the results."""
        return self.results or self.spec.parent / "results"

    @property
    def location(self) -> str:
        """Return the path or URL of the store."""
        return self.store or str(self.results_folder / "store.db")

    def open_store(self) -> Store:
        """Open an existing store, or the one in a bundle.

        Raises: BundleError, StoreError, SpecError if the YAML file is missing.
        """
        if not self.spec.is_file():
            raise SpecError([f"{self.spec}: no such file"])
        if self.location.endswith(SUFFIX):
            return self._open_bundle(self.location)
        if not exists(self.location):
            raise StoreError(f"there is no store at {self.location} yet; `run` creates it")
        return self.opened.enter_context(Store(self.location))

    def _open_bundle(self, location: str) -> Store:
        from orchestrator.sharing.bundle import open_results

        return self.opened.enter_context(open_results(location))


@dataclass(frozen=True)
class ProfileOptions(StoreOptions):
    """The options that select a profile with stored results."""

    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Profile of SPEC.  [default: the one trained last]"),
    ] = None
    settings: SetOption = None

    def open_profile(self) -> tuple[Store, Experiment]:
        """Open the store and read the profile.

        If the store has no run of the profile that was asked for, open the bundle in the folder of
        its results. Raises: BundleError, StoreError, SpecError.
        """
        file = SpecFile(self.spec)
        if self.profile and not self.store:
            experiment = file.experiment(self.profile, self.settings or ())
            bundle = self.results_folder / experiment.profile / BUNDLE
            if bundle.is_file() and not self._has_runs(experiment):
                typer.echo(f"Reading {bundle}, as the store has no run of the profile", err=True)
                return self._open_bundle(str(bundle)), experiment
        store = self.open_store()
        profile = self.profile or store.newest_profile(file.profiles) or file.profiles[0]
        return store, file.experiment(profile, self.settings or ())

    def _has_runs(self, experiment: Experiment) -> bool:
        if not exists(self.location):
            return False
        with closing(Store(self.location)) as store:
            return any(runs_of(experiment, store).values())


@dataclass(frozen=True)
class SessionOptions(StoreOptions):
    """The options that select runs to train and a cluster."""

    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Profile of SPEC.  [default: the one for the cluster]"),
    ] = None
    only: OnlyOption = None
    settings: SetOption = None
    address: Annotated[
        str,
        typer.Option("--address", help="Ray cluster: local starts one; or auto, or HOST:PORT."),
    ] = LOCAL

    @contextmanager
    def open_session(self, *, quiet: bool = False, **more: Any) -> Iterator["Session"]:
        """Open the session of these options and `more` fields of `RunOptions`."""
        from orchestrator.cli.console import ConsoleObserver
        from orchestrator.driver.session import RunOptions, Session

        given = asdict(self) | more | {"settings": tuple(self.settings or ())}
        with (
            closing(ConsoleObserver(quiet=quiet)) as observer,
            Session(RunOptions(**given), observer) as session,
        ):
            yield session


def store_options(options: "StoreOptions | RunOptions") -> list[str]:
    """Return the options that select the same results and store on the command line."""
    given = {"--results": options.results, "--store": options.store}
    if options.store == os.environ.get(VARIABLES["--store"]):
        del given["--store"]
    return [part for name, value in given.items() if value for part in (name, str(value))]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command; its parameter `options` becomes one option per field of its dataclass.

    SPEC is an argument, but an option `--spec` if the command has arguments of its own.
    """
    own = inspect.signature(function).parameters
    options_class = own["options"].annotation
    shared = dict(inspect.signature(options_class).parameters)
    if any(isinstance(info, ArgumentInfo) for p in own.values() for info in get_args(p.annotation)):
        shared["spec"] = shared["spec"].replace(annotation=SpecOption)

    @functools.wraps(function)
    def wrapper(**values: Any) -> None:
        options = options_class(**{name: values.pop(name) for name in shared})
        with options.opened:
            function(options=options, **values)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name in own
        for parameter in (shared.values() if name == "options" else [own[name]])
    ]
    wrapper.__dict__["__signature__"] = inspect.Signature(parameters)  # which Typer reads
    return app.command()(wrapper)
