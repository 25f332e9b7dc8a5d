"""What an `arena.json` holds, read strictly.

Flows in: the parsed JSON. Flows out: its cells by block. A block is one comparison: every adapter
on the same data, shots and protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.errors import DataError, unknown

FORMAT = "cliptune-arena-1"
PROTOCOLS = {
    "all": "all classes",
    "base_to_new": "base to new classes",
    "transfer": "transfer to other data",
    "shift": "shifted data",
}
STATES = ("done", "failed", "pending")


@dataclass(frozen=True)
class Block:
    """The data, shots and protocol that the adapters of one table share; `target` is the data set
    measured on."""

    dataset: str
    protocol: str
    target: str | None
    shots: int

    @property
    def data(self) -> str:
        return f"{self.dataset} to {self.target}" if self.target else self.dataset

    @property
    def name(self) -> str:
        """Unique in an arena."""
        shots = f"{self.shots} shot{'' if self.shots == 1 else 's'}"
        kind = "" if self.protocol == "all" else f", {PROTOCOLS[self.protocol]}"
        return f"{self.data}{kind}, {shots}"


@dataclass(frozen=True)
class Cell:
    """One adapter's run with one seed; `correct` has one character a test image, 1 = right,
    `images` a number, equal where the bytes are, and `labels` its class."""

    adapter: str
    seed: int
    state: str
    reason: str
    accuracy: Mapping[str, float]  # without the keys that the adapter cannot have
    per_class: Mapping[str, Mapping[str, float]]
    correct: Mapping[str, str]
    images: Mapping[str, Sequence[int]]
    labels: Mapping[str, Sequence[int]]  # without the keys of which an older arena holds none
    tests: Mapping[str, str]  # the name of the images that were measured on, by key
    ece: Mapping[str, tuple[float, float]]  # before and after val's temperature; {} if unknown
    seconds: float | None
    parameters: int | None


def read_cells(arena: Mapping[str, Any]) -> dict[Block, list[Cell]]:
    """The cells of each block, in the order in which a reader looks for them."""
    if arena.get("format") != FORMAT:
        raise DataError(f"`format` must be {FORMAT!r}, got {arena.get('format')!r}.")
    blocks: dict[Block, list[Cell]] = {}
    seen = set()
    for row in arena["cells"]:
        _known("protocol", row["protocol"], PROTOCOLS)
        _known("state", row["state"], STATES)
        _known("adapter", row["adapter"], arena["adapters"])
        block = Block(row["dataset"], row["protocol"], row.get("target"), int(row["shots"]))
        key = (block, row["adapter"], row["seed"])
        if key in seen:
            raise DataError(
                f"`cells` must hold each run once, got `{row['adapter']}` with seed {row['seed']} "
                f"on `{block.name}` twice."
            )
        seen.add(key)
        blocks.setdefault(block, []).append(_cell(row, arena.get("tests") or {}))
    for block, cells in blocks.items():
        _same_images(block, cells)
    order = list(PROTOCOLS)
    return {
        block: blocks[block]
        for block in sorted(
            blocks, key=lambda b: (order.index(b.protocol), b.dataset, b.target or "", b.shots)
        )
    }


def _known(kind: str, name: str, choices: Any) -> None:
    if name not in choices:
        raise DataError(unknown(kind, name, choices))


def _cell(row: Mapping[str, Any], tests: Mapping[str, Any]) -> Cell:
    done = row["state"] == "done"
    accuracy = (row.get("accuracy") or {}) if done else {}
    if done and not any(value is not None for value in accuracy.values()):
        raise DataError(
            f"`accuracy` of a run that is done must hold a number, got {row.get('accuracy')!r} "
            f"for `{row['adapter']}` on `{row['dataset']}`, seed {row['seed']}."
        )
    correct = {k: v for k, v in (row.get("correct") or {}).items() if v}
    named = {key: name for key, name in (row.get("tests") or {}).items() if key in correct}
    plain = {key: range(len(answers)) for key, answers in correct.items()}
    return Cell(
        adapter=row["adapter"],
        seed=row["seed"],
        state=row["state"],
        reason=row.get("reason") or "no reason was recorded",
        accuracy={key: float(value) for key, value in accuracy.items() if value is not None},
        per_class={k: v for k, v in (row.get("per_class") or {}).items() if v},
        correct=correct,
        images=plain | {key: tests[name]["images"] for key, name in named.items()},
        labels={key: tests[name]["labels"] for key, name in named.items()},
        tests=named,
        ece={k: (float(v["before"]), float(v["after"])) for k, v in (row.get("ece") or {}).items()},
        seconds=row.get("seconds"),
        parameters=row.get("trainable_parameters"),
    )


def _same_images(block: Block, cells: list[Cell]) -> None:
    """Raise unless all answers are on the same images: only then can they be paired."""
    images: dict[tuple[str, str], int] = {}
    for cell in cells:
        for key, answers in cell.correct.items():
            if not set(answers) <= {"0", "1"}:
                found = sorted(set(answers) - {"0", "1"})[0]
                raise DataError(
                    f"`correct` must be made of 0 and 1, got {found!r} for `{cell.adapter}` "
                    f"on `{block.name}`, seed {cell.seed}."
                )
            test = (key, cell.tests.get(key, ""))
            least = images.setdefault(test, len(cell.images[key]))
            if least != len(answers):
                raise DataError(
                    f"`correct` must have one character for each of the {least:,} test "
                    f"images of `{block.name}`, got {len(answers):,} for `{cell.adapter}`, "
                    f"seed {cell.seed}."
                )
