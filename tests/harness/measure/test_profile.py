from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.measure.latency import LatencySample
from harness.measure.profile import LatencyPair, Profile, make_setting, profile_setting
from harness.registry import BUILT_IN
from harness.report.columns import BUSY
from harness.report.profile_tables import BUSY_NOTE, notes_of, print_profile, to_csv, to_markdown
from harness.specs import Spec, parse_specs

DAS_OF_THE_PAPER = "das[blocks=text.2+text.4+image.1+image.3]"


@pytest.fixture(scope="module")
def meter() -> Profile:
    """VQA on full-size METER as in the paper, with a decided and an undecided DAS."""
    setting = make_setting("meter", Spec("vqa"), None, 40)
    names = [Spec(name) for name in BUILT_IN["methods"]]
    return profile_setting(setting, [*names, *parse_specs(DAS_OF_THE_PAPER)])


def flat(profile: Profile) -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv([profile])))}


def test_published_table_is_reproduced(meter: Profile) -> None:
    rows = flat(meter)
    assert rows["full"]["macs_total"] == "93132291072"
    assert rows["full"]["image_height"] == rows["full"]["image_width"] == "384"
    updated = {name: int(row["parameters_updated"]) for name, row in rows.items()}
    assert {
        name: updated[name] for name in ("lora", "adapter", "parallel", "shallow_prompt", "deep_prompt")
    } == {
        "lora": 294_912,
        "adapter": 5_339_520,
        "parallel": 3_596_544,
        "shallow_prompt": 307_200,
        "deep_prompt": 1_843_200,
    }
    assert updated["classifier"] == 0
    assert updated[DAS_OF_THE_PAPER] == 5_376_384 + 768
    assert rows["lora"]["macs_change"] == "0"
    assert rows["lora"]["parameters_deployed"] == rows["full"]["parameters_total"]
    change = int(rows[DAS_OF_THE_PAPER]["macs_with_layer_norm_change"])
    assert round(100 * change / int(rows["full"]["macs_with_layer_norm"]), 3) == -11.968


def test_undecided_das_is_shown_for_every_number_of_blocks_per_stream(meter: Profile) -> None:
    rows = flat(meter)
    cases = [f"das, {4 - image} text + {image} image skipped" for image in range(5)]
    assert {label for label in rows if label.startswith("das, ")} == set(cases)
    numbers = [int(rows[case]["macs_change"]) for case in cases]
    assert numbers == sorted(numbers, reverse=True)  # an image block costs more than a text block
    assert rows["das, 2 text + 2 image skipped"]["macs_total"] == rows[DAS_OF_THE_PAPER]["macs_total"]


def test_markdown_and_terminal_state_input_conventions_and_command(meter: Profile) -> None:
    text = to_markdown([meter], "harness profile")
    assert "### meter, VQA2.0: image 384×384 pixels, text 40 tokens — parameters" in text
    assert "-11.968" in text
    assert "text encoder" in text
    assert "5 more for each element that a LayerNorm normalises" in text
    assert text.rstrip().endswith("Made with `harness profile`.")
    console = Console(file=io.StringIO(), width=160)
    print_profile(meter, console)
    assert "-11.968" in console.file.getvalue()


def test_published_and_given_input_sizes() -> None:
    assert make_setting("meter", Spec("nlvr2"), None, 40).image_size == (288, 288)
    assert make_setting("vilt", Spec("vqa"), None, 40).image_size == (384, 384)
    setting = make_setting("vilt", Spec("vqa"), (384, 640), 40)
    (full,) = profile_setting(setting, []).rows
    assert full.compute.macs_total == 25_894_854_144


@pytest.mark.parametrize(
    ("skipped", "parameters", "giga", "percent"),
    [(1, 3_594_240, -1.1157, -4.309), (2, 3_591_936, -3.2259, None), (4, 3_587_328, -7.4462, None)],
)
def test_das_on_vilt_costs_what_is_published(
    skipped: int, parameters: int, giga: float, percent: float | None
) -> None:
    setting = make_setting("vilt", Spec("vqa"), (384, 640), 40)
    blocks = "+".join(f"joint.{index}" for index in range(skipped))
    full, das = flat(profile_setting(setting, parse_specs(f"das[blocks={blocks}]"))).values()
    change = int(das["macs_change"])
    assert int(das["parameters_updated"]) == parameters == 297_408 * skipped + 299_712 * (12 - skipped)
    assert round(change / 1e9, 4) == giga
    if percent is not None:
        assert round(100 * change / int(full["macs_total"]), 3) == percent


def test_nlvr2_on_meter_is_two_passes_at_288() -> None:
    (full,) = profile_setting(make_setting("meter", Spec("nlvr2"), None, 40), []).rows
    assert full.compute.macs_total == 105_640_261_632
    assert full.trained.total + 631_040 == 324_008_194


@pytest.mark.parametrize(
    ("backbone", "macs"), [("meter", 93_125_127_168), ("vilt", 16_684_075_776)], ids=["meter", "vilt"]
)
def test_retrieval_is_the_forward_pass_of_one_pair(backbone: str, macs: int) -> None:
    (full,) = profile_setting(make_setting(backbone, Spec("retrieval"), None, 40), []).rows
    assert full.compute.macs_total == macs


def test_unsuitable_method_is_a_user_error() -> None:
    setting = make_setting("meter", Spec("vqa"), None, 40)
    with pytest.raises(UserError, match=r"no block 'joint\.1'"):
        profile_setting(setting, parse_specs("das[blocks=joint.1]"))


def test_all_methods_are_those_that_fit_the_backbone() -> None:
    found = profile_setting(
        make_setting("bridgetower", Spec("vqa"), None, 40), parse_specs("full,tome,lora"), leave_out=True
    )
    assert [row.case.label for row in found.rows] == ["full", "lora"]
    assert "Left out, as they do not fit bridgetower: tome." in notes_of([found])


def test_the_command_prints_and_saves(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.csv"
    both = ["-o", str(path.with_suffix(".md")), "-o", str(path)]
    arguments = ["profile", "--backbone", "vilt-mini", "--methods", "lora", *both]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "lora" in result.output
    assert [row["method"] for row in csv.DictReader(path.read_text().splitlines())] == ["full", "lora"]
    assert "vilt-mini, VQA2.0: image 64×64 pixels" in path.with_suffix(".md").read_text()
    with pytest.raises(UserError, match=r"must end in \.md or \.csv"):
        CliRunner().invoke(app, [*arguments[:-1], "profile.txt"], catch_exceptions=False)
    with pytest.raises(UserError, match="--image-size must be"):
        CliRunner().invoke(app, ["profile", "--image-size", "big"], catch_exceptions=False)


def test_latency_is_measured_beside_full_tuning(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    arguments = [
        "profile",
        "--backbone",
        "vilt-mini",
        "--methods",
        "lora",
        "--latency",
        "--batch-sizes",
        "1,2",
    ]
    CliRunner().invoke(app, [*arguments, "-o", str(path)], catch_exceptions=False)
    full, lora = csv.DictReader(path.read_text().splitlines())
    for size in (1, 2):
        assert full[f"p50_ms_batch_{size}_eager"] == ""
        assert float(lora[f"p50_ms_batch_{size}_eager"]) > 0
        assert float(lora[f"full_p50_ms_batch_{size}_eager"]) > 0
    with pytest.raises(UserError, match="--batch-sizes must be numbers"):
        CliRunner().invoke(app, [*arguments[:-1], "1,many"], catch_exceptions=False)


def pair(*reference_ms: float) -> LatencyPair:
    samples = [LatencySample(ms, ms, "cuda:0", 1) for ms in ((1.0, 1.0, 1.0), reference_ms)]
    return LatencyPair(16, "graph", *samples)


def test_disturbed_latency_is_marked_and_explained() -> None:
    setting = make_setting("vilt-mini", Spec("vqa"), None, 40)
    profile = profile_setting(setting, [])
    for reference, marked in (((2.0, 2.0, 2.0), False), ((2.0, 2.0, 4.0), True)):
        measured = Profile(setting, profile.rows, {"full": (pair(*reference),)})
        text = to_markdown([measured], "harness profile")
        assert "CUDA graph" in text
        assert (f"-50.0{BUSY}" in text) is marked
        assert (BUSY_NOTE in text) is marked
        assert flat(measured)["full"]["busy_batch_16_graph"] == str(marked)


def test_counts_of_the_papers_are_printed_beside_ours() -> None:

    setting = make_setting("meter", Spec("vqa"), None, 50)
    notes = "\n".join(
        notes_of([profile_setting(setting, parse_specs("das[blocks=text.1+text.2+image.1+image.2]"))])
    )
    assert "326,647,865 for full tuning (here 326,016,825)" in notes
    assert "updates 5,376,384 parameters without its trained token of 768" in notes
