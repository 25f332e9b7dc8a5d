"""Put the best adapter of a run on the Hugging Face Hub, with a model card.

What is pushed is the adapter by itself: `cliptune.load("user/name")` reads it back anywhere. The
token is the one that the Hub's own tools use (`hf auth login`, or HF_TOKEN); it is never written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import done, say, word
from pipelines.workspace import workspace
from trainables.errors import CliptuneError, ConfigError, DataError

if TYPE_CHECKING:
    from trainables.models.backbone import Backbone


@dataclass(frozen=True)
class Args:
    run: Path
    """Folder of a study (its best adapter is taken) or of a single training run."""
    repo: str
    """The repository, as `user/name`; it is made where it is not there."""
    license: str = ""
    """Its licence, as the Hub calls it: apache-2.0, mit, cc-by-4.0, ... A card without one is
    refused."""
    base: str = ""
    """The Hub id where others find the frozen model, if the run has it from a folder."""
    base_revision: str = ""
    """The commit (40 hex digits) of `--base`."""
    private: bool = False
    """Only those whom you let in see it."""
    out: Path | None = None
    """Write the folder here and push nothing."""


def run(args: Args) -> None:
    from pipelines.runs.package import HUB_ID

    if not HUB_ID.fullmatch(args.repo):
        raise ConfigError(f"`--repo` must be `user/name`, got {args.repo}.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.license):
        raise ConfigError(
            "`--license` must be a licence as the Hub calls it, such as apache-2.0, got "
            f"{args.license or 'none'}: nobody may use what has none."
        )
    if args.out is not None and args.out.exists():
        raise DataError(f"`{args.out}` exists already: give another `--out`.")
    if args.out is not None:
        with workspace(args.out) as folder:
            _write(args, folder)
        done([args.out / "README.md", args.out / "adapter"], f'cliptune.load("{args.out}")')
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cliptune-") as name:
        _write(args, Path(name))
        _push(args, Path(name))


def _write(args: Args, folder: Path) -> None:
    from pipelines.push.card import About, card
    from pipelines.report.result import read_result
    from pipelines.runs.contestants import read_contest
    from pipelines.runs.package import write_package
    from trainables.config import to_json
    from trainables.features.features import backbone_of
    from trainables.training.checkpoint import read_config

    contest = read_contest(args.run, only_best=True)
    best = contest.best
    backbone = backbone_of(contest.features)
    base, revision = _base(args, backbone)
    write_package(contest, best, backbone, base, revision, folder)
    assert best.folder is not None
    config: dict[str, Any] = to_json(read_config(best.folder))
    about = About(args.repo, args.license, base, revision, config)
    text = card(about, contest, best, read_result(args.run / "result.json"))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _base(args: Args, backbone: Backbone) -> tuple[str, str | None]:
    """Where others find the frozen model."""
    from trainables.models.model_folder import COMMIT

    if backbone.kind == "embeddings":
        raise ConfigError(
            f"`{args.run}` was trained on finished embeddings, whose texts stand in no model: "
            "`cliptune export` hands its scores over."
        )
    if args.base:
        if not COMMIT.fullmatch(args.base_revision):
            raise ConfigError(
                f"`--base-revision` must be a commit of `{args.base}`, 40 hex digits, got "
                f"{args.base_revision or 'none'}."
            )
        return args.base, args.base_revision
    if backbone.revision is None:
        raise ConfigError(
            f"`{args.run}` has its frozen model from a folder, `{backbone.name}`: name where "
            "others find it by `--base` and `--base-revision`."
        )
    return backbone.name, backbone.revision


def _push(args: Args, folder: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(args.repo, private=args.private, exist_ok=True)
        made = api.upload_folder(
            repo_id=args.repo, folder_path=folder, commit_message="An adapter of cliptune"
        )
    except LocalTokenNotFoundError as error:
        raise ConfigError("the Hub asks who you are: `hf auth login`, or set HF_TOKEN.") from error
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CliptuneError(f"`{args.repo}` could not be pushed: {reason}") from error
    say(f"pushed {made.oid} to {api.endpoint}/{args.repo}")
    say(f'next: cliptune.load("{args.repo}")   or   cliptune report --run {word(args.run)}')


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("push")
