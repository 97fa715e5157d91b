"""Calls the client of Weights & Biases: its environment, the login, the sweep, a run.

`wandb` is imported inside functions: a driver needs only the environment, and must not wait.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpo_train.command_line import script
from tune.config.schema import SearchConfig
from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord
from tune.tracking import wandb_payload

Mode = Literal["online", "offline"]

LOGIN = script("wandb", "login")

_INIT_SECONDS = 4.0
"""Time to open one run. The client's default is 90."""

# The variables that a user may set: the server and the login. The search itself sets the others, so
# that a sweep, a run's id or a mode left over from another command has no effect.
_ACCESS = (
    "WANDB_API_KEY",
    "WANDB_APP_URL",
    "WANDB_BASE_URL",
    "WANDB_CACHE_DIR",
    "WANDB_CONFIG_DIR",
    "WANDB_DATA_DIR",
    "WANDB_ENTITY",
    "WANDB_HTTPS_PROXY",
    "WANDB_HTTP_PROXY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_INSECURE_DISABLE_SSL",
)


def environment() -> dict[str, str]:
    """Returns this process's environment, with only the client's variables for server and login."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ACCESS or not name.startswith("WANDB_")
    }
    return kept | {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_HTTP_TIMEOUT": "5",
    }


def describe_login(config: SearchConfig | None) -> str:
    """Returns one line on whether the user is logged in, and what the search sends to W&B."""
    login = "logged in" if _is_logged_in() else f"not logged in (type `{LOGIN}`)"
    if config is None:
        return login
    use = {
        "online": f"the search is shown in the project {config.wandb.project} while it runs",
        "offline": "the search writes files, which `wandb sync` sends",
        "disabled": "the search sends nothing",
    }
    return f"{login}; {config.wandb.mode}: {use[config.wandb.mode]}"


def _is_logged_in() -> bool:
    """Returns whether wandb finds an API key in the environment or its login file.

    No server is contacted.
    """
    import wandb  # slow to import, and it reads the environment then

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error:  # the key is malformed
        return False


def log_in() -> bool:
    """Checks the key with the server. Returns False without a key. Raises the client's errors."""
    import wandb  # slow to import, and it reads the environment then

    return bool(wandb.login(prompt=False, verify=True))


def make_sweep(config: SearchConfig) -> tuple[str, str]:
    """Creates the sweep of a search. Returns its path, entity/project/id, and its web address."""
    import wandb  # slow to import, and it reads the environment then

    settings = config.wandb
    definition = dict(wandb_payload.definition(config))
    sweep_id = wandb.sweep(definition, entity=settings.entity, project=settings.project)
    # The client writes the sweep's entity and project into this process's environment.
    path = f"{os.environ['WANDB_ENTITY']}/{os.environ['WANDB_PROJECT']}/{sweep_id}"
    return path, str(wandb.setup().settings.app_url)


def stop_sweep(path: str) -> None:
    """Marks a sweep as finished, as `wandb sweep --stop` does."""
    from wandb.cli.cli import sweep as command  # slow to import, and it reads the environment then

    command.main(["--stop", path], standalone_mode=False)


def end() -> None:
    """Ends the client's process and waits for its end."""
    import wandb  # slow to import, and it reads the environment then

    wandb.teardown()


@dataclass(frozen=True)
class Target:
    """Where the runs of a search go."""

    config: SearchConfig
    folder: Path
    """The run folder, under which the client writes."""
    mode: Mode
    sweep_id: str | None
    """The id of the sweep that the trials join."""


class OpenRun:
    """A run that the client has open."""

    def __init__(self, target: Target, run_id: str, settings: wandb_payload.Values | None) -> None:
        """Opens a run, which takes seconds at most online.

        `settings` are those of a trial, None for the run of the search. An online run continues
        after the last row that the server has; a run on disk starts from the beginning. Raises the
        client's errors; after an error the client refuses this id.
        """
        import wandb  # slow to import, and it reads the environment then

        self.id = run_id
        self.mode = target.mode
        config = target.config
        self.was_cut_off = False
        """Whether the client stopped sending, after an error or a click on `stop`."""
        self.has_ended = False
        """Whether the trial has ended. An interrupted trial has not."""
        # Open it.
        is_trial = settings is not None
        self._run = wandb.init(
            id=run_id,
            name=run_id if is_trial else f"{config.name} search",
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=config.name,
            job_type="trial" if is_trial else "search",
            tags=config.wandb.tags,
            config=settings or {},
            mode=target.mode,
            resume="allow" if target.mode == "online" else None,
            reinit="create_new",
            # The client copies it, which fails for a bound method, so we pass a function.
            settings=_settings(target, is_trial, lambda: self._cut_off()),
        )
        # Show a trial's metrics over the pairs that it has seen.
        if is_trial:
            self._run.define_metric("pairs_seen")
            self._run.define_metric("*", step_metric="pairs_seen")
        self._rows = int(self._run.step)
        self._finishing: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """The folder of its files, which can be removed once they are sent."""
        return Path(self._run.settings.sync_dir)

    def log(self, record: TrialRecord) -> None:
        """Logs the reports that W&B does not have yet; report number n is row n."""
        for number, report in enumerate(record.curve[self._rows :], start=self._rows):
            # Without a commit the last row would be sent at the end and overwrite the summary.
            self._run.log(report, step=number, commit=True)
        self._rows = max(self._rows, len(record.curve))

    def log_results(self, config: SearchConfig, results: Results, report: Path) -> None:
        """Logs the table of all trials, the report if it exists, the verdict, and an artifact with
        the address of the pushed winner."""
        import wandb  # slow to import, and it reads the environment then

        table = wandb_payload.table(config, results)
        media = {
            "trials": wandb.Table(columns=table.columns, data=table.rows, allow_mixed_types=True)
        }
        if report.exists():
            media["report"] = wandb.Html(report.read_text(encoding="utf-8"), inject=False)
        self._run.log(media)
        verdict = wandb_payload.verdict(results)
        self._run.summary.update(verdict)
        if results.published is not None and results.published.url:
            winner = wandb.Artifact(f"{config.name}-winner", "model", metadata=verdict)
            # The artifact has only the address, which names a commit, so no weights are read.
            winner.add_reference(results.published.url, name="repository", checksum=False)
            self._run.log_artifact(winner)

    def summarize(self, summary: wandb_payload.Values) -> None:
        """Adds values to the run's summary."""
        self._run.summary.update(summary)

    def interrupt(self) -> None:
        """Ends the run as one that will continue under the same id."""
        self._run.mark_preempting()
        self._finish(1)

    def end(self, exit_code: int) -> None:
        """Ends the run for good, in the background, since the client waits for the last upload."""
        self.has_ended = True
        self._finish(exit_code)

    def _finish(self, exit_code: int) -> None:
        def finish() -> None:
            try:
                self._run.finish(exit_code)
                self.was_cut_off |= _gave_up(self.folder)
            except Exception:  # the client's own process is gone
                traceback.print_exc()
                self._cut_off()

        self._finishing = threading.Thread(target=finish, daemon=True)
        self._finishing.start()

    @property
    def is_finishing(self) -> bool:
        """Whether the end has begun."""
        return self._finishing is not None

    @property
    def is_finished(self) -> bool:
        """Whether the last upload is over."""
        return self._finishing is not None and not self._finishing.is_alive()

    def wait(self) -> None:
        """Waits for the last upload."""
        if self._finishing is not None:
            self._finishing.join()

    def _cut_off(self) -> None:
        self.was_cut_off = True


def _gave_up(folder: Path) -> bool:
    """Returns whether the client had an error after which it stopped sending the run.

    `finish` returns normally even then, so we look in the client's log for a fatal error, which is
    slog's level above ERROR.
    """
    log = folder / "logs" / "debug-internal.log"
    return log.exists() and '"level":"ERROR+4"' in log.read_text(errors="replace")


def _settings(target: Target, is_trial: bool, cut_off: Callable[[], None]) -> Any:
    import wandb  # slow to import, and it reads the environment then

    return wandb.Settings(
        root_dir=str(target.folder),
        sweep_id=target.sweep_id if is_trial else None,
        init_timeout=_INIT_SECONDS,
        # Without this function, a click on `stop` would interrupt this process.
        stop_fn=cut_off,
        stop_on_fatal_error=True,
        silent=True,
        symlink=False,
        # Send nothing about this machine: no console, code, git state, host, packages, load.
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        label_disable=True,
        host="",
        program="dpo-tune",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        # If the client is killed, only what is on disk can be sent, so it writes every second.
        x_transaction_log_flush_interval=1.0,
    )
