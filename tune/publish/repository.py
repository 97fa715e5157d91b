"""Writes the folder that is published: weights, tokenizer, model card, search, results, report.

It is made from the run folder alone and is the same each time. Nothing in it names this machine.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from huggingface_hub import DatasetCard, ModelCard, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from dpo_train import export, hub_errors
from dpo_train.command_line import dpo_tune
from dpo_train.config import ModelConfig
from dpo_train.errors import InputError
from dpo_train.gguf.exported import refuse_unwritable_base, write_exported
from dpo_train.gguf.write import file_name
from dpo_train.storage import mirror
from tune.config.outputs import HubConfig
from tune.config.schema import SearchConfig
from tune.publish import model_card
from tune.publish.model_card import License
from tune.publish.secrets import known_secrets
from tune.report import page
from tune.run_folder import redact
from tune.run_folder.exports import ExportStamp
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results, write_results
from tune.run_folder.yaml_file import write_yaml
from tune.tracking import trackers


def write(results: Results, config: SearchConfig, hub: HubConfig, folder: Path) -> None:
    """Writes the repository of a search's winner. The folder appears only when it is complete.

    Raises InputError if the search has nothing to publish, or no licence to publish it under.
    """
    refuse_unpublishable(results, config)
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _fill(partial, results, config, hub)
        _refuse_private_content(partial, results.folder)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raises InputError if the user's folder exists and is not empty, or can't be replaced."""
    if not folder.name:
        raise InputError(f"--to: {folder} can't be replaced; name a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--to: {folder} is not an empty folder; name a new one")


def refuse_unpublishable(results: Results, config: SearchConfig) -> None:
    """Raises InputError if the search has no winner that can be published."""
    refuse_without_winner(results, config)
    if results.test_of_winner is None:
        raise InputError(
            f"{results.folder}: the winner was not evaluated on the test split, so the model card "
            "would have no number to quote; type "
            f"`{dpo_tune('resume', results.folder.argument, '--trials', '+1')}`"
        )


def refuse_without_winner(results: Results, config: SearchConfig) -> None:
    """Raises InputError if the search has no winner with weights.

    A winner at a URL is copied to this machine.
    """
    if config.trainer == "simulated":
        raise InputError("a simulated search has no model to publish")
    if results.winner is None:
        command = dpo_tune("resume", results.folder.argument)
        raise InputError(f"{results.folder} has no winner yet; type `{command}`")
    winner = mirror.pull(results.folder.winner)
    stamp = ExportStamp.read(winner)
    if stamp.trial != (results.winner.run or results.winner.trial):
        raise InputError(
            f"{results.folder}: winner/ holds trial {stamp.trial}, but results.json names "
            f"{results.winner.trial}; type `{dpo_tune('resume', results.folder.argument)}` to "
            "finish the search"
        )


def refuse_unpublishable_search(config: SearchConfig, hub: HubConfig) -> None:
    """Raises InputError if it is known before the search that its winner can't be published."""
    if config.trainer == "simulated":
        raise InputError("hub.when: a simulated search has no model to publish; give `never`")
    if config.lora is not None or "lora" in config.space:
        _refuse_adapter_without_base(config, hub)
    if hub.gguf:
        refuse_unwritable_base(config.model)


def _refuse_adapter_without_base(config: SearchConfig, hub: HubConfig) -> None:
    if not hub.merged and _is_not_on_hub(config.model):
        raise InputError(
            f"hub.merged: a LoRA adapter needs its base model, and {redact.model(config.model)!r} "
            "is not on the Hub; type `--merged`, or write `hub: {merged: true}` in the YAML"
        )


def find_license(config: SearchConfig, hub: HubConfig) -> License:
    """Returns the card's licence: `hub.license`, or the one that base model and dataset both state.

    Raises InputError if there is none. A licence is never guessed.
    """
    if hub.license:
        return License(hub.license)
    model, data = config.model, config.data
    base = _stated_license(model.id, "model", model.revision, redact.is_local_model(model))
    dataset = _stated_license(data.id, "dataset", data.revision, redact.is_local(data.id))
    if base and _is_same(base, dataset):
        return base
    sentences = [
        f"the {kind} {name!r} states {stated.license if stated else 'none'}"
        for kind, name, stated in (
            ("base model", redact.model(model), base),
            ("dataset", redact.source(data.id), dataset),
        )
    ]
    raise InputError(
        f"hub.license: {', '.join(sentences)}; say under which licence to publish the winner, like "
        "`--license apache-2.0`, or `hub: {license: apache-2.0}` in the YAML"
    )


def _is_same(one: License, other: License | None) -> bool:
    """Returns whether two licences are the same, apart from the link to their text."""
    return other is not None and replace(other, license_link=one.license_link) == one


def _stated_license(source: str, kind: str, revision: str | None, is_local: bool) -> License | None:
    """Returns the licence in the card of a model or dataset; None if it names none."""
    if source == "sample":
        return License("apache-2.0")
    folder = Path(source).expanduser()
    try:
        if is_local:
            text = (folder / "README.md").read_text(encoding="utf-8")
        else:
            path = hf_hub_download(source, "README.md", repo_type=kind, revision=revision)
            text = Path(path).read_text(encoding="utf-8")
        content = (ModelCard if kind == "model" else DatasetCard)(text, ignore_metadata_errors=True)
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # the library raises a dozen kinds, each about the named source
        if is_local and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise InputError(
            f"hub.license: the card of the {kind} {redact.source(source)!r} can't be read "
            f"({hub_errors.explain(error)}); give the licence, like `--license apache-2.0`"
        ) from None
    found = {}
    for name in ("license", "license_name", "license_link"):
        value = content.data.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, str):
            found[name] = value
    is_nameless = found.get("license") == "other" and "license_name" not in found
    is_unknown = found.get("license", "unknown") == "unknown"
    return None if is_nameless or is_unknown else License(**found)


def _fill(folder: Path, results: Results, config: SearchConfig, hub: HubConfig) -> None:
    if not _trained_in_full(results):
        _refuse_adapter_without_base(config, hub)
    repo = hub.repo or f"your-name/{config.name}"
    name = repo.rpartition("/")[2]
    publishing = model_card.Publishing(
        repo=repo,
        base=None if _is_not_on_hub(config.model) else config.model.id,
        dataset=None
        if config.data.id == "sample" or redact.is_local(config.data.id)
        else config.data.id,
        license=find_license(config, hub),
        kind="full" if _trained_in_full(results) else "merged" if hub.merged else "adapter",
        dtype=hub.dtype,
        gguf=file_name(name, hub.gguf) if hub.gguf else None,
        pages=trackers.public_pages(results.folder),
    )
    export.convert(results.folder.winner, folder, hub.merged, hub.dtype)
    if hub.gguf:
        write_exported(results.folder.winner, folder, name, hub.gguf)
    shown = redact.results(results, config)
    (folder / "README.md").write_text(str(model_card.render(shown, publishing)), encoding="utf-8")
    write_yaml(folder / "search.yaml", redact.search(config))
    write_results(folder / "results.json", shown)
    (folder / "report.html").write_text(page.render(shown), encoding="utf-8")


def _is_not_on_hub(model: ModelConfig) -> bool:
    """Returns whether this base is on this machine only, so that nobody else can load it."""
    return model.id == "sample" or redact.is_local_model(model)


def _trained_in_full(results: Results) -> bool:
    manifest = results.folder.winner / export.MANIFEST
    return bool(json.loads(manifest.read_text())["kind"] == "full")


def _refuse_private_content(folder: Path, run: RunFolder) -> None:
    """Raises InputError if a file contains a path of this machine or a secret.

    This is the last check before anything leaves the machine.
    """
    folders = {Path.home(), Path.cwd(), run.path.absolute()} - {Path("/")}
    private_paths = {f"{private}/" for private in folders}
    if run.url:
        private_paths.add(run.url.partition("?")[0])
    secrets = known_secrets()
    for path in sorted(folder.rglob("*")):
        if (
            path.is_dir()
            or path.suffix in (".safetensors", ".gguf")
            or path.name == "tokenizer.json"
        ):
            continue  # these hold numbers, or the base's vocabulary
        text = path.read_text(encoding="utf-8")
        if any(secret in text for secret in secrets):
            raise InputError(f"{path.name} would contain a secret of yours; nothing was written")
        for private in private_paths:
            if private in text:
                raise InputError(
                    f"{path.name} would contain the path {private!r} of this machine; nothing was "
                    "written. If it comes from your data, remove that row"
                )
