"""The studies' own tables, from measurements whose every joule is known."""

import csv

import pytest

import write_study
from quantwatt import manifest

RUNS = """configuration,process,block,run,prompt,t_s,seconds,energy_j
method,0,0,0,0,10,2,100
method,0,0,1,1,12,4,300
method,1,0,0,0,30,4,220
method,1,1,0,1,40,2,
baseline,0,0,0,0,20,2,900
"""
POWER = """t_s,watts,configuration,process,block
0,20,method,0,idle-before
10.5,50,method,0,0
12.0,75,method,0,0
15.9,76,method,0,0
16.5,20,method,0,idle-after
21,450,baseline,0,0
31,55,method,1,0
32,,method,1,0
"""


@pytest.fixture
def results(tmp_path):
    for method, measured in (("nf4", True), ("w4a8", False)):
        folder = tmp_path / "results/measurements/m" / method / "s"
        folder.mkdir(parents=True)
        (folder / "runs.csv").write_text(RUNS if measured else RUNS.splitlines()[0] + "\n")
        (folder / "power.csv").write_text(POWER if measured else POWER.splitlines()[0] + "\n")
        manifest.write_json(folder / "measurement.json", {"memory_mb": {"value": 512.0} if measured else None})
        images = [{"file": f"shard-000/{i:05d}.png"} for i in range(2)]
        manifest.write_json(tmp_path / "results/images/m" / method / "s/manifest.json", {"images": images})
    return tmp_path / "results"


def test_sd35_large_energy(results, tmp_path):
    cells = '[{"model": "m", "method": "nf4", "sampling": "s"}, {"model": "m", "method": "w4a8", "sampling": "s"}]'
    output = tmp_path / "study/manifest.json"
    write_study.main(["sd35-large-energy", "--results", str(results), "--cells", cells, "--output", str(output)])
    manifest.verify_files(output, manifest.read_json(output)["files"])
    with (output.parent / "intermediate_power_readings.csv").open() as file:
        readings = [tuple(row.values()) for row in csv.DictReader(file)]
    # The idle readings and the baseline's are in no run; 12.0 s is the second run's first moment.
    assert [(row[0], row[1], row[2], float(row[3])) for row in readings] == [
        ("nf4", "0", "1", 50.0), ("nf4", "1", "1", 75.0), ("nf4", "1", "1", 76.0), ("nf4", "0", "2", 55.0),
    ]  # fmt: skip
    with (output.parent / "quantization_results_with_energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["Quantization Type"], row["Prompt Index"]) for row in rows] == [
        ("nf4", "0"), ("nf4", "1"), ("w4a8", "0"), ("w4a8", "1"),
    ]  # fmt: skip
    first, second, simulated, _ = rows
    assert float(first["Average Time (s)"]) == 3 and float(first["Total Energy (J)"]) == 320
    assert float(first["Average Power (W)"]) == pytest.approx(320 / 6)
    assert float(second["Average Time (s)"]) == 3 and float(second["Total Energy (J)"]) == 300  # one run without joules
    assert float(second["Average Power (W)"]) == 75 and second["Image File Names"] == "shard-000/00001.png"
    assert simulated["Total Energy (J)"] == simulated["Average Time (s)"] == simulated["Average Memory (MB)"] == ""
