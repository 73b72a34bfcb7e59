"""Training LoRA: the harness's loop against Hugging Face `Trainer` + `peft`, and against a bare PyTorch loop.

    pytest -o addopts= tests/benchmarks/test_training_speed.py              (-k vilt-mini for the small one)

All train the same weights in float32 on the same examples, batches of the same size, images decoded before.
`Trainer` gets what a careful user gives it: texts padded to the longest of the batch, images to the largest
with a pixel mask, no validation, no logging, no saving, its default optimiser. Rounds are interleaved.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, ViltConfig, ViltForQuestionAnswering

from harness import registry
from harness.config.sources import make_settings
from harness.experiment.build import adapted_model, loader
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.process import prepare_process
from harness.training.loop import State, train_epoch
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer, build_schedule
from tasks.data.batches import pad_text
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.benchmarks.groups import Group, Measured, in_groups

RANK = 4

QUESTIONS = (
    "Is it raining?",
    "What color is the bus?",
    "How many people are there?",
    "Is the man wearing a hat?",
    "What is the woman holding in her left hand?",
    "Are there any clouds in the sky behind the tower?",
    "What is written on the sign above the door of the shop on the corner?",
    "Does the dog that lies in front of the fireplace look as if it were asleep?",
)
MIXED = ((640, 480), (480, 640), (640, 427), (500, 375), (427, 640), (640, 640), (500, 333), (612, 612))
"""Widths and heights of photographs as they occur in COCO."""


PEER = "Trainer + peft"


def vocabulary_of(backbone: str, folder: Path) -> Path:
    """The small vocabulary, for a full-size backbone filled up to its number of word embeddings."""
    if backbone.endswith("-mini"):
        return MINI_VOCABULARY
    words = MINI_VOCABULARY.read_text().splitlines()
    words += [f"[unused{place}]" for place in range(ViltConfig().vocab_size - len(words))]
    path = folder / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return path


def cell_of(root: Path, backbone: str, weights: str | None, batch_size: int) -> Cell:
    settings = make_settings(
        methods=f"lora[r={RANK}]",
        tasks="vqa",
        backbone=backbone,
        weights=weights,
        tokenizer=str(vocabulary_of(backbone, root)),
        data_root=root,
        epochs=1000,
        batch_size=batch_size,
        accelerator="cpu",
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    return cell


MINI_VOCABULARY = Path(registry.__file__).parent / "backbones" / "weights" / "vilt-mini" / "vocab.txt"


def harness_loop(cell: Cell) -> Callable[[], int]:
    """One epoch with the harness's training function."""
    model = adapted_model(cell, cell.method())
    training = cell.testbed.training
    batches = loader(cell.testbed, "train", 0)
    optimizer = build_optimizer(model, training, cell.learning_rate, training.head_learning_rate)
    schedule = build_schedule(optimizer, training.epochs * len(batches), training.warmup)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    state = State(wrapped, wrapped_optimizer, schedule)

    def epoch() -> int:
        train_epoch(fabric, state, cell.testbed.task, batches)
        state.next_epoch()
        return len(batches.examples)

    return epoch


def bare_loop(cell: Cell) -> Callable[[], int]:
    """The same model on batches made in advance: only forward, backward and optimiser step."""
    model: TaskModel = adapted_model(cell, cell.method()).train()
    task, training = cell.testbed.task, cell.testbed.training
    optimizer = build_optimizer(model, training, cell.learning_rate, training.head_learning_rate)
    batches = list(loader(cell.testbed, "train", 0))

    def epoch() -> int:
        for batch in batches:
            assert batch.targets is not None
            task.loss(model(batch), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sum(map(len, batches))

    return epoch


class HuggingFaceModel(nn.Module):
    """`ViltForQuestionAnswering` with LoRA by peft; head, pooler and token types train too."""

    def __init__(self, cell: Cell, answers: int) -> None:
        super().__init__()
        backbone: Any = cell.testbed.fresh_backbone()
        config = backbone.config
        config.num_labels = answers
        model = ViltForQuestionAnswering(config)
        model.vilt.load_state_dict(backbone.model.state_dict())
        # As in BERT, whose text embedding ViLT has.
        model.vilt.embeddings.text_embeddings.LayerNorm.eps = 1e-12
        lora = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=["query", "value"])
        self.model = get_peft_model(model, lora)
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in ("classifier", "pooler", "token_type")):
                parameter.requires_grad_(True)

    def forward(self, num_items_in_batch: Any = None, **batch: Tensor) -> Any:
        """Drops the number of examples, which `Trainer` passes to models with keyword arguments; ViLT takes none."""
        return self.model(**batch)


def trainer_loop(cell: Cell, folder: Path) -> Callable[[], int]:
    """One epoch with `Trainer.train`, called once per round."""
    testbed = cell.testbed
    task, processor, images = testbed.task, testbed.backbone.processor, testbed.images
    examples = list(testbed.data.splits["train"])
    tokens = processor.tokenize([example.text for example in examples])
    for _ in loader(testbed, "train"):
        pass  # decode all

    def collate(rows: list[int]) -> dict[str, Tensor]:
        ids, text_mask = pad_text([tokens[row] for row in rows], processor.pad_id)
        pictures = [images.get(str(examples[row].images[0])) for row in rows]
        height, width = (max(p.shape[side] for p in pictures) for side in (1, 2))  # type: ignore[union-attr]
        pixels = torch.zeros(len(rows), 3, height, width)
        mask = torch.zeros(len(rows), height, width, dtype=torch.long)
        for place, picture in enumerate(pictures):
            assert isinstance(picture, Tensor)
            _, h, w = picture.shape
            pixels[place, :, :h, :w] = processor.normalize(picture[None])[0]
            mask[place, :h, :w] = 1
        targets = task.collate_targets([examples[row] for row in rows])
        assert targets is not None
        attention = torch.ones_like(ids) if text_mask is None else text_mask.long()
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "pixel_values": pixels,
            "pixel_mask": mask,
            "labels": targets,
        }

    some = task.collate_targets(examples[:1])
    assert some is not None
    model = HuggingFaceModel(cell, some.shape[1])
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=testbed.training.batch_size,
        num_train_epochs=1,
        learning_rate=cell.learning_rate,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    indices: Any = list(range(len(examples)))

    def epoch() -> int:
        with redirect_stdout(io.StringIO()):
            Trainer(model, arguments, data_collator=collate, train_dataset=indices).train()
        return len(examples)

    return epoch


def race(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Seconds per example of every round: one untimed round, then `rounds` of each in turn."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, epoch in contestants.items():
            started = time.perf_counter()
            examples = epoch()
            if turn:
                found[name].append((time.perf_counter() - started) / examples)
    return found


def measure(
    data: Callable[[Path], Path], backbone: str, weights: str | None, batch: int, rounds: int, bar: float
) -> Measured:
    """LoRA on the data that `data` writes. bar: as a multiple of the time of `Trainer` and peft."""
    prepare_process()
    with TemporaryDirectory() as folder:
        cell = cell_of(data(Path(folder) / "data"), backbone, weights, batch)
        seconds = race(
            {
                PEER: trainer_loop(cell, Path(folder) / "trainer"),
                "harness": harness_loop(cell),
                "bare loop": bare_loop(cell),
            },
            rounds,
        )
    return {name: (found, {"bar": bar} if name == "harness" else {}) for name, found in seconds.items()}


def write_photographs(root: Path, sizes: tuple[tuple[int, int], ...], number: int) -> Path:
    """A VQA v2 folder with noise images of these sizes (width, height), as slow to train on as photographs."""
    rng = np.random.default_rng(0)
    for split in ("train2014", "val2014"):
        (root / split).mkdir(parents=True)
        questions, annotations = [], []
        for image in range(1, number + 1):
            width, height = sizes[image % len(sizes)]
            pixels = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((width, height))
            picture.save(root / split / f"COCO_{split}_{image:012d}.jpg")
            text = QUESTIONS[int(rng.integers(len(QUESTIONS)))]
            questions.append({"image_id": image, "question_id": image, "question": text})
            answer = ("yes", "no", "2", "red")[image % 4]
            answers = [{"answer": answer, "answer_id": k} for k in range(1, 11)]
            annotations.append(
                {
                    "image_id": image,
                    "question_id": image,
                    "answers": answers,
                    "answer_type": "other",
                    "multiple_choice_answer": answer,
                }
            )
        (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(
            json.dumps({"questions": questions})
        )
        (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return root


def test_losses_agree(tmp_path: Path) -> None:
    """Both sides compute the same loss, except for the random weights of the heads."""
    root = ensure_vqa(tmp_path, sizes=Sizes(40, 3, 4, 2, 4, 2))
    cell = cell_of(root, "vilt-mini", None, 16)
    batch = next(iter(loader(cell.testbed, "train")))
    assert batch.targets is not None
    theirs = HuggingFaceModel(cell, batch.targets.shape[1]).eval()
    ours = cell.testbed.fresh_backbone().eval()
    inputs = batch.inputs[0]
    mask = torch.ones_like(inputs.input_ids) if inputs.text_mask is None else inputs.text_mask.long()
    with torch.inference_mode():
        logits = theirs(input_ids=inputs.input_ids, attention_mask=mask, pixel_values=inputs.pixels).logits
        head = theirs.model.get_base_model().classifier
        torch.testing.assert_close(head(ours(inputs)), logits, atol=1e-4, rtol=0)
        expected = cell.testbed.task.loss(logits, batch.targets)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets) * logits.shape[1]
    torch.testing.assert_close(loss, expected)


def write_scenes(root: Path) -> Path:
    return ensure_vqa(root, sizes=Sizes(200, 3, 4, 2, 4, 2))


# As many photographs as a window of like shapes holds and more: of a few most batches lie on a border between shapes.
CONTESTANTS = (PEER, "harness", "bare loop")
GROUPS = [
    Group(title, CONTESTANTS, PEER, partial(measure, data, backbone, weights, batch, rounds, bar), quick)
    for title, data, backbone, weights, batch, rounds, bar, quick in (
        ("LoRA, vilt-mini, batch 16", write_scenes, "vilt-mini", None, 16, 5, 1 / 2, True),
        (
            "LoRA, ViLT-B/32, one shape, batch 4",
            partial(write_photographs, sizes=MIXED[:1], number=32),
            "vilt",
            "random",
            4,
            3,
            1 / 1.25,
            False,
        ),
        (
            "LoRA, ViLT-B/32, mixed shapes, batch 4",
            partial(write_photographs, sizes=MIXED, number=96),
            "vilt",
            "random",
            4,
            2,
            1 / 1.25,
            False,
        ),
    )
]


@in_groups(GROUPS)
def test_training(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)
