"""The ``refit`` command. What a command needs is imported when it runs: ``refit --help`` answers at once.

Exit status: 0 done (promoted, kept or skipped), 1 failed, 2 the request itself was wrong. Progress and messages go to stderr,
results to stdout; with ``--json`` exactly one JSON document goes to stdout.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from deployments import data_commands, predict_command
from deployments.environment import prepare_environment
from deployments.output import AsJson, as_plain, print_json, say, stderr, stdout
from refit.errors import RefitError, RequestError
from refit.full_disk import full_disk, is_disk_full

app = typer.Typer(
    help="Retrain Keras models on a schedule and ship a new one only when it has proved better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(data_commands.app, name="data")

File = Annotated[Path, typer.Argument(help="A deployment file, such as deployments/digits.yaml.")]
Files = Annotated[list[Path], typer.Argument(help="Deployment files.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the job, such as fit.epochs=3. Repeatable.")
]
DeploymentName = Annotated[str | None, typer.Option("--deployment", help="Which deployment of the file, where it has several.")]

_RUNNING = ("run", "serve")
_INTERRUPTED = 128 + signal.SIGINT


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of all commands; ``--debug`` is taken by ``main`` wherever it stands."""


# ---- working


@app.command()
def check(
    file: File,
    deep: Annotated[bool, typer.Option("--deep", help="Also read the sources, import and build the model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a job file: keys, types, combinations, the code it names. Imports no TensorFlow without --deep."""
    from refit import runs
    from refit.jobfile import read_deployments, telling_place

    deployments = read_deployments(file)
    for deployment in deployments:
        with telling_place(file, deployment.name):
            runs.check_references(deployment.job)
        _check_metrics(deployment.job)
        if deep:
            from deployments.quiet import import_tensorflow

            import_tensorflow()
            from deployments.deep_check import check_deeply

            check_deeply(deployment.job)
    if as_json:
        print_json({"file": str(file), "jobs": [d.job.model_dump(mode="json") for d in deployments]})
    else:
        stderr().print(f"[green]✓[/] {file}: {', '.join(d.job.name for d in deployments)}" + (" (deep)" if deep else ""), highlight=False)


def _check_metrics(job: Any) -> None:  # noqa: ANN401 -- Job, which is not imported here
    if job.target.kind:
        from refit import gate

        gate.check_gate(job.gate, job.target.kind)


@app.command()
def run(
    file: File,
    assignments: Assignments = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train although nothing changed; an interrupted run is still finished first.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train anew; an interrupted run is abandoned.")] = False,
    deployment: DeploymentName = None,
    as_json: AsJson = False,
) -> None:
    """Run a job here and now; needs no server."""
    from deployments.local_run import run_here
    from refit.jobfile import parse_assignments

    signal.signal(signal.SIGTERM, _terminate)
    record = run_here(file, parse_assignments(assignments or []), deployment=deployment, force=force, fresh=fresh)
    if as_json:
        print_json(record)
    else:
        from deployments.display import show_outcome

        show_outcome(stderr(), record)


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    _tell_stopped("terminated")
    raise SystemExit(128 + signum)


def _tell_stopped(how: str) -> None:
    """A run that was stopped is finished by the next one; other commands leave nothing to go on with."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    stderr().print(f"[yellow]{how}[/]" + ("; the next start of the job goes on from here" if command in _RUNNING else ""), highlight=False)


app.command()(predict_command.predict)


# ---- looking


@app.command("runs")
def list_runs(
    job: Annotated[str | None, typer.Option("--job", help="Only this job's runs.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    from refit import runs
    from refit.config import nearest
    from refit.errors import UnknownNameError
    from refit.layout import home_layout

    layout = home_layout()
    if job is not None and job not in layout.jobs():
        raise UnknownNameError(f'there is no job "{job}" with runs.{nearest(job, layout.jobs())}', where=str(layout.runs_dir))
    records = [r for name in ([job] if job else layout.jobs()) for r in runs.read_runs(layout, name)]
    newest = sorted(records, key=lambda r: r.started, reverse=True)[:limit]
    if as_json:
        print_json([as_plain(record) for record in newest])
    else:
        from deployments.display import show_runs

        show_runs(stdout(), newest, layout)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of one, or JOB/latest.")], as_json: AsJson = False
) -> None:
    """Explain one run."""
    from refit import runs
    from refit.layout import home_layout

    record = runs.find_run(home_layout(), name)
    if as_json:
        print_json(record)
    else:
        from deployments.display import show_run

        show_run(stdout(), record)


@app.command("models")
def list_models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this model, all its versions.")] = None, as_json: AsJson = False
) -> None:
    """List published models and their versions."""
    from refit import registry
    from refit.layout import home_layout

    layout = home_layout()
    names = [name] if name else registry.models(layout)
    found = {n: registry.versions(layout, n) for n in names}
    if as_json:
        print_json(
            [
                {
                    "model": n,
                    "champion": registry.champion(layout, n),
                    "held": registry.is_held(layout, n),
                    "versions": [as_plain(v) for v in vs],
                }
                for n, vs in found.items()
            ]
        )
    else:
        from deployments.display import show_models

        show_models(stdout(), found, {n for n in found if registry.is_held(layout, n)}, layout)


# ---- deciding


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run whose model is to serve.")],
    force: Annotated[bool, typer.Option("--force", help="Although the gate said no.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history. Needed with --force.")] = "",
    as_json: AsJson = False,
) -> None:
    """Publish the model of a run by hand."""
    from refit import promotion
    from refit.layout import home_layout

    version = promotion.promote_run(home_layout(), name, force=force, reason=reason)
    _announce(as_json, {"run": name, "version": version}, f"version {version} serves")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    to: Annotated[int | None, typer.Option("--to", help="The version to go back to; by default the last good one.")] = None,
    release: Annotated[bool, typer.Option("--release", help="Let runs promote by themselves again; changes no version.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Publish an earlier version again, under the next number, and hold automatic promotion."""
    from refit import promotion
    from refit.layout import home_layout

    if release:
        if to is not None:
            raise RequestError("--release changes no version.", received=f"--release --to {to}", remedy="Give one of them.")
        was_held = promotion.release_hold(home_layout(), name)
        _announce(as_json, {"model": name, "released": was_held}, "promotion is automatic again" if was_held else "promotion was not held")
        return
    version = promotion.roll_back(home_layout(), name, to=to, reason=reason)
    _announce(
        as_json, {"model": name, "version": version}, f"version {version} serves; promotion is held until refit rollback {name} --release"
    )


def _announce(as_json: bool, document: dict[str, Any], text: str) -> None:
    if as_json:
        print_json(document)
    else:
        stderr().print(f"[green]✓[/] {text}", highlight=False)


# ---- serving


@app.command()
def deploy(files: Files, as_json: AsJson = False) -> None:
    """Bring deployments to the configured Prefect server."""
    from dataclasses import asdict

    from deployments.deploy import deploy_file

    records = [record for file in files for record in deploy_file(file)]
    if as_json:
        print_json([asdict(record) for record in records])
        return
    for record in records:
        stderr().print(
            f"[green]✓[/] {record.name}  pool {record.work_pool}, {record.num_schedules} schedules  {record.url}", highlight=False
        )
    stderr().print("[dim]A worker runs them: prefect worker start --pool refit --type process[/]", highlight=False)


@app.command()
def serve(files: Files) -> None:
    """Server, schedules and runs in one process, until Ctrl-C."""
    from deployments.serve import serve_files

    serve_files(files)


@app.command()
def board(port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Where to listen; by default 6006.")] = None) -> None:
    """TensorBoard over all runs, until Ctrl-C."""
    from deployments.board import open_board
    from refit.layout import home_layout

    raise typer.Exit(open_board(home_layout().runs_dir, port=port))


# ---- later


def _later(what: str) -> NoReturn:
    raise RequestError(f"refit {what} is not there yet.", remedy="CHANGELOG.md says when it is.")


@app.command()
def diff(run_a: str, run_b: str) -> None:  # noqa: ARG001 -- kept for when it is there
    """Why two runs differ (not there yet)."""
    _later("diff")


@app.command()
def replay(run_id: Annotated[str, typer.Argument(metavar="RUN")]) -> None:  # noqa: ARG001
    """Refit from a run's record and compare (not there yet)."""
    _later("replay")


# ---- the end


def main() -> None:
    """Entry point: run a command and turn every error into one paragraph and an exit status."""
    debug = "--debug" in sys.argv
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--debug"]
    prepare_environment()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except RefitError as error:
        _fail(error, debug=debug)
    except KeyboardInterrupt:
        _tell_stopped("interrupted")
        sys.exit(_INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # Typer makes it of a KeyboardInterrupt
            _tell_stopped("interrupted")
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _fail(_unforeseen(error), debug=False)


def _unforeseen(error: Exception) -> RefitError:
    if is_disk_full(error):
        return full_disk(getattr(error, "filename", None) or os.environ.get("REFIT_HOME", ""))
    return RefitError(f"{type(error).__name__}: {error}.", remedy="This is a fault of refit or its packages; --debug shows where.")


def _fail(error: RefitError, *, debug: bool) -> NoReturn:
    if debug:
        raise error
    if "--json" in sys.argv:
        parts = {"error": type(error).__name__, "message": str(error), "where": error.where, "remedy": error.remedy}
        typer.echo(json.dumps(parts, indent=2))
    stderr().print("[bold red]error:[/] ", end="")
    say(stderr(), str(error))
    sys.exit(error.exit_status)
