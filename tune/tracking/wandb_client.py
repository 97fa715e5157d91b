"""All that is known of Weights & Biases' client: its environment, the login, the sweep, a run.

It imports `wandb` inside its functions: a driver needs the environment alone, and must not wait.
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
from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results
from tune.tracking import wandb_payload

Mode = Literal["online", "offline"]

LOGIN = script("wandb", "login")

_INIT_SECONDS = 4.0
"""For one run; the client's own default is 90."""

# What the user's environment may say: where the server is, who one is. All else (a sweep, a run's
# id, a mode that is left over from another command) is the search's own to say.
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
    """This process's environment, without what the client reads beyond who and where."""
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
    """Whether one is logged in, and what the search will do with it, in one line."""
    login = "logged in" if _is_logged_in() else f"not logged in (`{LOGIN}`)"
    if config is None:
        return login
    use = {
        "online": f"the search is seen in {config.wandb.project} while it runs",
        "offline": "the search writes files, `wandb sync` sends them",
        "disabled": "the search tells it nothing",
    }
    return f"{login}; {config.wandb.mode}: {use[config.wandb.mode]}"


def _is_logged_in() -> bool:
    """Whether wandb finds an API key in the environment or its login file; asks no server."""
    import wandb  # slow to import, and it reads the environment then

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error:  # a key that can't be one
        return False


def log_in() -> bool:
    """Asks the server whether it knows the key; False without a key. Raises what the client
    raises."""
    import wandb  # slow to import, and it reads the environment then

    return bool(wandb.login(prompt=False, verify=True))


def make_sweep(config: SearchConfig) -> tuple[str, str]:
    """Makes the sweep of a search; its path, entity/project/id, and where people see it."""
    import wandb  # slow to import, and it reads the environment then

    wanted = config.wandb
    definition = dict(wandb_payload.definition(config))
    made = wandb.sweep(definition, entity=wanted.entity, project=wanted.project)
    # Where it came to lie, the client leaves in this process's environment.
    path = f"{os.environ['WANDB_ENTITY']}/{os.environ['WANDB_PROJECT']}/{made}"
    return path, str(wandb.setup().settings.app_url)


def stop_sweep(path: str) -> None:
    """Marks a sweep as finished, as `wandb sweep --stop` does."""
    from wandb.cli.cli import sweep as command  # slow to import, and it reads the environment then

    command.main(["--stop", path], standalone_mode=False)


def end() -> None:
    """Ends the client's own process and waits for that."""
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
    """Of the sweep that the trials join."""


class OpenRun:
    """A run that the client holds open, and how it ends."""

    def __init__(self, target: Target, run_id: str, settings: wandb_payload.Values | None) -> None:
        """Opens it; online for seconds at most. `settings` are a trial's, None for the search.

        An online run goes on after the last row that the server has; one on disk begins anew.
        Raises what the client raises, after which it takes this id no more.
        """
        import wandb  # slow to import, and it reads the environment then

        self.id = run_id
        self.mode = target.mode
        config = target.config
        self.was_cut_off = False
        """Whether the client stopped sending, after an error or a click on `stop`."""
        self.has_ended = False
        """Whether the trial has; an interrupted one has not."""
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
            # A function, which the client can copy; a bound method it can't.
            settings=_settings(target, is_trial, lambda: self._cut_off()),
        )
        if is_trial:
            self._run.define_metric("pairs_seen")
            self._run.define_metric("*", step_metric="pairs_seen")
        self._rows = int(self._run.step)
        self._finishing: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """Where its files lie; what was sent can be removed."""
        return Path(self._run.settings.sync_dir)

    def log(self, record: TrialRecord) -> None:
        """Logs the reports that W&B does not have yet, each as the row of its number."""
        for number, report in enumerate(record.curve[self._rows :], start=self._rows):
            # Committed, else the last row waits for the end and overwrites the summary.
            self._run.log(report, step=number, commit=True)
        self._rows = max(self._rows, len(record.curve))

    def log_results(self, config: SearchConfig, results: Results, report: Path) -> None:
        """Logs the table of all trials, the report if there is one, the verdict, and as an artifact
        where the winner was pushed to."""
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
            # By its address alone, which names a commit: nothing is fetched.
            winner.add_reference(results.published.url, name="repository", checksum=False)
            self._run.log_artifact(winner)

    def summarize(self, summary: wandb_payload.Values) -> None:
        self._run.summary.update(summary)

    def interrupt(self) -> None:
        """Ends it as one that goes on under the same id."""
        self._run.mark_preempting()
        self._finish(1)

    def end(self, exit_code: int) -> None:
        """Ends it for good. In the background, since the client waits for the last upload."""
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
        return self._finishing is not None

    @property
    def is_finished(self) -> bool:
        return self._finishing is not None and not self._finishing.is_alive()

    def wait(self) -> None:
        if self._finishing is not None:
            self._finishing.join()

    def _cut_off(self) -> None:
        self.was_cut_off = True


def _gave_up(folder: Path) -> bool:
    """Whether the client met an error after which it sends no more of a run.

    `finish` returns as ever then, so its log is asked: slog's level above ERROR is the fatal one.
    """
    log = folder / "logs" / "debug-internal.log"
    return log.exists() and '"level":"ERROR+4"' in log.read_text(errors="replace")


def _settings(target: Target, is_trial: bool, cut_off: Callable[[], None]) -> Any:
    import wandb  # slow to import, and it reads the environment then

    return wandb.Settings(
        root_dir=str(target.folder),
        sweep_id=target.sweep_id if is_trial else None,
        init_timeout=_INIT_SECONDS,
        # Without it a click on `stop` would interrupt this process.
        stop_fn=cut_off,
        stop_on_fatal_error=True,
        silent=True,
        symlink=False,
        # Nothing of this machine: no console, code, git state, host, packages, load.
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
        # What a killed client has on disk is what can be sent later.
        x_transaction_log_flush_interval=1.0,
    )
