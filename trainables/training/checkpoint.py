"""Checkpoints: folders of safetensors and JSON that are whole, or are not there.

Flows in: an adapter, and the state of its run. Flows out: a folder, and from it the adapter again.

A checkpoint folder holds `adapter.safetensors` (exactly what was trained), `config.json` (the run's
flat config), `classes.json` where it is about classes, optionally `optimizer.safetensors` and
`val.safetensors` (the values of single val images), `calibration.safetensors` (how its scores
become probabilities), `state.json` (where the run stands), and `manifest.json`, written last, with
the SHA-256 of each. safetensors has no checksum of its own: a flipped byte would load.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.parameter import is_lazy

from trainables.adapters.base import Adapter
from trainables.adapters.registry import build, make_config
from trainables.config import TrainConfig, in_epoch, to_json
from trainables.errors import CheckpointError, ConfigError, DataError
from trainables.features.classes import Classes
from trainables.files import (
    read_json,
    sha256_bytes,
    sha256_file,
    understood,
    write_bytes,
    write_hashed,
    write_json,
)
from trainables.hardware import Resolved, resolved
from trainables.metrics.calibration import Calibration
from trainables.models.backbone import Backbone
from trainables.training.integrity import verify

FORMAT = "cliptune-checkpoint-1"


def live_tensors(adapter: Adapter[Any]) -> dict[str, Tensor]:
    """The parameters and buffers that a checkpoint holds, by name, not copied."""
    tensors: dict[str, Tensor] = {n: p for n, p in adapter.named_parameters() if p.requires_grad}
    stored = adapter.state_dict(keep_vars=True).keys()  # of tensors that may have no shape yet
    return tensors | {n: b for n, b in adapter.named_buffers() if n in stored}


def trained_tensors(adapter: Adapter[Any]) -> dict[str, Tensor]:
    """Copies of what an adapter learned: parameters with `requires_grad`, and the buffers that it
    keeps."""
    return {name: t.detach().cpu().contiguous() for name, t in live_tensors(adapter).items()}


def save_checkpoint(
    folder: Path,
    adapter: Adapter[Any],
    state: Mapping[str, Any],
    optimizer: Mapping[str, Tensor] | None = None,
    val: Mapping[str, Tensor] | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write `folder` whole; the checkpoint that stood there becomes `<folder>.old`, to fall back
    to. An adapter with a number that is not finite is not written."""
    trained = trained_tensors(adapter)
    for name, tensor in trained.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"`{folder}` was not written: `{name}` is no finite number.")
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    _remove(new)
    config = to_json(adapter.train_config)
    backbone = adapter.backbone
    files = {"adapter.safetensors": save(trained)}
    if optimizer is not None:
        files["optimizer.safetensors"] = save(dict(optimizer))
    if val:
        files["val.safetensors"] = save(dict(val))
    if calibration is not None:
        files["calibration.safetensors"] = save(calibration.tensors())
    for name, data in files.items():
        write_bytes(new / name, data)
    write_json(new / "config.json", config)
    write_json(new / "state.json", dict(state))
    if adapter.classes is not None:
        write_json(new / "classes.json", adapter.classes.to_json())
    manifest = {
        "format": FORMAT,
        "backbone": {
            "name": backbone.name,
            "revision": backbone.revision,
            "fingerprint": backbone.fingerprint,
        },
        **({"beside": adapter.beside} if adapter.beside else {}),
        "precision": resolved(adapter.train_config.precision, backbone.device),
        "files": {path.name: sha256_file(path) for path in sorted(new.iterdir())},
    }
    write_hashed(new / "manifest.json", manifest)
    if folder.exists():  # else a save was killed right here, and `old` is all there is
        _remove(old)
        folder.rename(old)
    new.rename(folder)


def _remove(folder: Path) -> None:
    """Remove a folder. Of a link, the link alone: nothing is removed in the place that it leads
    to."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def load_tensors(folder: Path, adapter: Adapter[Any]) -> None:
    """Put the tensors of a verified checkpoint into `adapter`, in place. Raises `CheckpointError`
    for other names, shapes or types, and for numbers that are not finite."""
    try:
        stored = load_file(folder / "adapter.safetensors")
    except SafetensorError as error:
        path = folder / "adapter.safetensors"
        raise CheckpointError(f"`{path}` is not a safetensors file: {error}.") from None
    named = live_tensors(adapter)
    if stored.keys() != named.keys():
        odd = sorted(stored.keys() ^ named.keys())
        raise CheckpointError(f"`{folder}` does not fit the adapter: tensors {odd[:3]} differ.")
    with torch.no_grad():
        for name, tensor in named.items():
            if is_lazy(tensor):  # its shape was for the training data to say
                tensor.materialize(stored[name].shape)
            if stored[name].shape != tensor.shape:
                raise CheckpointError(
                    f"`{name}` in `{folder}` must have shape {tuple(tensor.shape)}, "
                    f"got {tuple(stored[name].shape)}."
                )
            if stored[name].is_floating_point() != tensor.is_floating_point():
                raise CheckpointError(
                    f"`{name}` in `{folder}` must be of {tensor.dtype}, got {stored[name].dtype}."
                )
            if not stored[name].isfinite().all():
                raise CheckpointError(
                    f"`{name}` in `{folder}` holds what is no finite number: its training diverged."
                )
            tensor.copy_(stored[name])


def val_values(folder: Path) -> dict[str, Tensor]:
    """The values of single val images in a checkpoint; empty where none were kept. Raises
    `CheckpointError` for a checkpoint that was altered."""
    if not (folder / "manifest.json").is_file():
        return {}
    verify(folder)
    path = folder / "val.safetensors"
    return load_file(path) if path.is_file() else {}


def check_beside(folder: Path, adapter: Adapter[Any]) -> None:
    """Raise `CheckpointError` unless the models beside `adapter` are those of a checkpoint."""
    for role, then in read_json(folder / "manifest.json").get("beside", {}).items():
        now = adapter.beside[role]
        if then["fingerprint"] != now["fingerprint"]:
            raise CheckpointError(
                f"`{folder}` was trained with the {role.replace('_', ' ')} `{then['name']}` with "
                f"fingerprint {then['fingerprint'][:12]}, got {now['fingerprint'][:12]}: restore "
                "that one, or train again."
            )


def read_config(folder: Path) -> TrainConfig:
    """The config a checkpoint or run folder was trained with.

    >>> read_config(checkpoint).adapter.n_ctx
    4
    """
    path = folder / "config.json"
    with understood(path):
        flat = dict(read_json(path))
        try:
            return make_config(str(flat.pop("name")), flat)
        except ConfigError as error:
            raise ConfigError(f"`{path}`: {error}") from None


def load_adapter(
    folder: Path, backbone: Backbone, precision: Resolved | None = None
) -> Adapter[Any]:
    """The trained adapter in `folder`, verified, in eval mode, on a backbone of equal weights. It
    computes in `precision`, by default that in which it was trained and chosen, even where `auto`
    would choose another here.

    >>> adapter = load_adapter(checkpoint, backbone)
    >>> adapter.train_config.name, adapter.classes.names
    ('coop', ('red', 'green', 'blue'))
    """
    verify(folder)
    manifest, config = read_json(folder / "manifest.json"), read_config(folder)
    with understood(folder / "manifest.json"):
        made_on = manifest["backbone"]
        if made_on["fingerprint"] != backbone.fingerprint:
            raise CheckpointError(
                f"`{folder}` was trained on backbone `{made_on['name']}` with fingerprint "
                f"{made_on['fingerprint'][:12]}, got `{backbone.name}` "
                f"with {backbone.fingerprint[:12]}."
            )
        here = resolved(config.precision, backbone.device)
        if (computed := precision or manifest.get("precision", here)) != here:
            config = replace(config, precision=computed)
    adapter = build(config, backbone)
    now = in_epoch(config, config.epochs)  # those of the changes that are in it have begun
    adapter.objective.follow(now.loss, now.temperature)
    check_beside(folder, adapter)
    if (folder / "classes.json").is_file():
        with understood(folder / "classes.json"):
            adapter.classes = Classes.of_json(read_json(folder / "classes.json"))
    if "calibration.safetensors" in manifest["files"]:
        adapter.calibration = _calibration(folder, len(adapter.classes or ()))
    load_tensors(folder, adapter)
    return adapter.to(backbone.device).eval()


def _calibration(folder: Path, classes: int) -> Calibration:
    """The calibration of a verified checkpoint."""
    path = folder / "calibration.safetensors"
    try:
        return Calibration.of_tensors(load_file(path), classes)
    except (SafetensorError, DataError) as error:
        raise CheckpointError(f"`{path}` is no calibration: {error}") from None


def adapter_digest(adapter: Adapter[Any]) -> str:
    """The hash of the trained bytes, as `adapter.safetensors` would hold them."""
    return sha256_bytes(save(trained_tensors(adapter)))
