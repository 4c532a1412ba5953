"""The studies' own tables, from measurements whose every joule is known."""

import csv
import json

import pytest

import study
from quantwatt.artifacts import manifest

RUNS = """configuration,process,block,run,prompt,t_s,seconds,energy_j
method,0,0,0,0,10,2,100
method,0,0,1,1,12,4,300
method,1,0,0,0,30,4,220
method,1,1,0,1,40,2,
method,1,1,1,2,42,7,
baseline,0,0,0,0,20,2,900
"""
BLOCKS = """configuration,process,block,images,seconds,energy_j,integral_j,void,reason,beside
method,0,0,2,6,400,,False,,
method,1,0,1,4,220,,False,,
method,1,1,2,9,,,True,the energy counter was reset,
baseline,0,0,1,2,900,,False,,
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
41,90,method,1,1
43,91,method,1,1
"""


LATENCY_S = {"nf4": {"mean": 1.5}, "w4a8": None, "int8": {"mean": 2.5}}  # int8: measured without a meter


@pytest.fixture
def results(tmp_path):
    for method, latency_s in LATENCY_S.items():
        folder = tmp_path / "results/measurements/m" / method / "s"
        folder.mkdir(parents=True)
        for name, content in (("runs", RUNS), ("power", POWER), ("blocks", BLOCKS)):
            (folder / f"{name}.csv").write_text(content if method == "nf4" else content.splitlines()[0] + "\n")
        memory = {"value": 512.0} if latency_s else None
        record = {"memory_mb": memory, "latency_s": latency_s, "images_per_batch": 2}
        manifest.write_json(folder / "measurement.json", record)
        images = [{"file": f"shard-000/{i:05d}.png"} for i in range(2)]
        manifest.write_json(tmp_path / "results/images/m" / method / "s/manifest.json", {"images": images})
    return tmp_path / "results"


def test_sd35_large_energy(results, tmp_path):
    cells = [{"model": "m", "method": method, "sampling": "s"} for method in LATENCY_S]
    grid, output = tmp_path / "grid.json", tmp_path / "study/manifest.json"
    grid.write_text(json.dumps({"cells": cells}))
    study.main(["sd35-large-energy", "--results", str(results), "--grid", str(grid), "--output", str(output)])
    manifest.verify_files(output, manifest.read_json(output)["files"])
    with (output.parent / "intermediate_power_readings.csv").open() as file:
        readings = [tuple(row.values()) for row in csv.DictReader(file)]
    # The idle readings, the baseline's and a void block's are in no run; 12.0 s is the second run's first moment.
    assert [(row[0], row[1], row[2], float(row[3])) for row in readings] == [
        ("nf4", "0", "1", 50.0), ("nf4", "1", "1", 75.0), ("nf4", "1", "1", 76.0), ("nf4", "0", "2", 55.0),
    ]  # fmt: skip
    with (output.parent / "quantization_results_with_energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["Quantization Type"], row["Prompt Index"]) for row in rows] == [
        ("nf4", "0"), ("nf4", "1"), ("nf4", "2"), ("w4a8", "0"), ("w4a8", "1"), ("int8", "0"), ("int8", "1"),
    ]  # fmt: skip
    first, second, void, simulated, _, *unmetered = rows
    assert float(first["Average Time (s)"]) == 3 and float(first["Total Energy (J)"]) == 320
    assert float(first["Average Power (W)"]) == pytest.approx(320 / 6)
    assert float(second["Average Time (s)"]) == 4 and float(second["Total Energy (J)"]) == 300  # its void run is out
    assert float(second["Average Power (W)"]) == 75 and second["Image File Names"] == "shard-000/00001.png"
    assert float(void["Average Time (s)"]) == 3 and void["Total Energy (J)"] == void["Average Power (W)"] == ""
    assert simulated["Total Energy (J)"] == simulated["Average Time (s)"] == simulated["Average Memory (MB)"] == ""
    assert [float(row["Average Time (s)"]) for row in unmetered] == [5, 5]  # 2.5 s an image, two in a run
    assert all(row["Total Energy (J)"] == row["Average Power (W)"] == "" for row in unmetered)
