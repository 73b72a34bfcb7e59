"""Options of several commands: where on this machine a stored cell's data and weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DataRoot: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of the official data, for cells not trained on the embedded benchmark."),
]
Weights: TypeAlias = Annotated[
    str | None, typer.Option(help="Pretrained weights, as given to `harness run`.")
]
Tokenizer: TypeAlias = Annotated[str | None, typer.Option(help="Vocabulary, as given to `harness run`.")]
