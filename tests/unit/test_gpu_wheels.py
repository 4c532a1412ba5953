"""What a machine without a network carries to make the evidence of its GPU."""

import re
from importlib import metadata

from benchmarks.gpu import wheels

THERE = """torch triton transformers accelerate safetensors numpy pandas scipy matplotlib pillow nvidia-ml-py""".split()
OPTIONAL = {"timm", "open-clip-torch:timm"}  # open_clip imports it where it is there


def named(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name):
    """Names of what an installed package requires, without its extras; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        listed = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return set()
    parsed = map(Requirement, listed)
    return {named(each.name) for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})}


def test_the_wheels_hold_all_that_they_require():
    there, waiting = set(), list(map(named, THERE))
    while waiting:
        name = waiting.pop()
        if name not in there:
            there.add(name)
            waiting += requirements(name)
    carried = set(map(named, wheels.NEEDED + wheels.WORKFLOW))
    missing = {f"{name}: {sorted(requirements(name) - there - carried - OPTIONAL)}" for name in carried}
    assert {each for each in missing if not each.endswith("[]")} == set()
    assert set(wheels.NEEDED + wheels.WORKFLOW) <= set(wheels.pins())


def test_a_wheel_is_carried_without_what_is_for_other_devices(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bitsandbytes-1-py3-none-any.whl", "w") as wheel:
        files = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda130", "cuda128", "rocm72", "cpu")]
        files += ["bitsandbytes/__init__.py", "bitsandbytes/tests/test_all.py", "pulp/solverdir/cbc/osx/i64/cbc",
                  "pulp/solverdir/cbc/linux/i64/cbc"]  # fmt: skip
        for name in files:
            wheel.writestr(name, "x")
        wheel.writestr("bitsandbytes-1.dist-info/RECORD", "".join(f"{name},sha256=1,1\n" for name in files))
    wheels.carry(tmp_path / "bitsandbytes-1-py3-none-any.whl", tmp_path / "carried/b.whl")
    with zipfile.ZipFile(tmp_path / "carried/b.whl") as carried:
        kept = carried.namelist()[:-1]
        record = carried.read("bitsandbytes-1.dist-info/RECORD").decode()
    assert kept == [files[0], files[3], files[4], files[7]] and record.count("\n") == 4
