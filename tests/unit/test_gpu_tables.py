"""The documentation's table of a GPU's evidence, and the goals that it is held against."""

import json
import shutil

import pytest

from benchmarks import gpu_tables
from benchmarks.gpu import goals, stages
from benchmarks.gpu.denoisers import BASELINE
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError


@pytest.fixture
def evidence(tmp_path):
    """A folder of stages' files as of a GPU."""
    folder = tmp_path / "found"
    machine = {"device": "cuda", "size": "true", "torch": {"name": "NVIDIA H200", "version": "2.11.0"},
               "meter": {"fake": False, "driver": "580.1"}}  # fmt: skip
    rows = []
    for name, images, compiled in (("sd35-large", 1, True), ("sd35-large", 4, True)):
        place = {"denoiser": name, "images": images, "compiled": compiled, "steps": 28}
        for configuration, ratio in ((BASELINE, 1.0), ("int8 dynamic", 0.7)):
            rows.append({**place, "configuration": configuration, "reason": None, "image_seconds": 5 * ratio,
                         "image_energy_j": 4000.0 * ratio, "energy_reason": None, "peak_ratio": 0.6,
                         "weights_ratio": 0.5, **{f"{kind}_ratio{end}": ratio for kind in ("seconds", "energy")
                                                  for end in ("", "_low", "_high")}})  # fmt: skip
        rows.append({**place, "configuration": "nf4", "reason": "no kernel"})
    crosscheck = {"idle": {"crosscheck": {"difference": -0.02}}, "load": {"crosscheck": {"difference": 0.04}}}
    for stage, found in (
        ("machine", machine), ("denoisers", {"rows": rows}), ("sensor", {"phases": crosscheck}),
        ("tests", {"counts": {"passed": 9}}),
    ):  # fmt: skip
        manifest.write_json(folder / f"{stage}.json", found)
    return folder


def test_evidence_is_added_by_its_board_and_shown_on_the_page(evidence, tmp_path):
    home, page, figure = tmp_path / "gpu", tmp_path / "kernels.md", tmp_path / "gpu.png"
    home.mkdir()
    shutil.copy(gpu_tables.HOME / "published.json", home)
    page.write_text(f"before\n{gpu_tables.BEGIN}old\n{gpu_tables.END}after\n")
    assert gpu_tables.add(evidence, home, tmp_path) == home / "nvidia-h200"
    gpu_tables.write(home, page, figure)
    text = page.read_text()
    assert text.startswith(f"before\n{gpu_tables.BEGIN}*NVIDIA H200") and text.endswith(f"{gpu_tables.END}after\n")
    assert "| compiled | int8 dynamic | 3.5 | 2800 | 0.7 | 0.7 | 0.5 | 0.6 |" in text and "no kernel" in text
    assert "ML.ENERGY Benchmark v3: 4,420 J, 6.56 s an image" in text and "(gpu/nvidia-h200/README.md)" in text
    assert figure.read_bytes().startswith(b"\x89PNG") and "old" not in text
    whole = (home / "nvidia-h200/README.md").read_text()
    assert "sd35-large, 4 images" in whole and "sd35-large, 4 images" not in text
    assert "| difference of counter and integral, idle and load: 3 % at most | 0.04 | no |" in whole
    assert "1.3 at least | 1.43 | yes |" in whole and "25 % at most | 0.095 | yes |" in whole
    assert "| minutes of GPTQ, sd35-medium: 10 at most |  | not measured |" in whole


def test_a_rehearsal_is_no_evidence(evidence, tmp_path):
    machine = json.loads((evidence / "machine.json").read_text())
    for change in ({"device": "cpu"}, {"size": "tiny"}, {"meter": {"fake": True}}):
        manifest.write_json(evidence / "machine.json", machine | change)
        with pytest.raises(DataError, match="is a rehearsal, not of a GPU at true size; it is no evidence"):
            gpu_tables.add(evidence, tmp_path / "gpu")
    with pytest.raises(DataError, match="has no machine.json"):
        gpu_tables.add(tmp_path, tmp_path / "gpu")


def test_goals_without_figures_are_not_measured():
    found = goals.goals({stage: {} for stage in stages.MODULES})
    assert len(found) >= 10 and {met for _, _, met in found} == {goals.OPEN}


def test_the_page_shows_what_there_is(tmp_path):
    copied = tmp_path / "kernels.md"
    shutil.copy(gpu_tables.PAGE, copied)
    expected = gpu_tables.section(gpu_tables.HOME, gpu_tables.FIGURE, gpu_tables.PAGE.parent)
    assert gpu_tables.BEGIN + expected + gpu_tables.END in copied.read_text()
