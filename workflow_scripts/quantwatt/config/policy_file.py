"""Read a policy of the gate, and check what it names against an experiment before any job starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantwatt.config import gate_policy
from quantwatt.config.schemas import ConfigurationError, complete
from quantwatt.config.yaml_files import read_yaml
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.registry import schema


def load_policy(path: str | Path, file: str) -> dict[str, Any]:
    """Read a policy of the gate, check it against its schema, and fill in every default.

    Args:
        path: of the YAML file; file: its name in messages.
    Raises:
        ConfigurationError: the file cannot be read, has an unknown key or a wrong value, or asks for nothing.
    """
    policy = complete(read_yaml(path, file), schema("gate"), file, "")
    if not policy["quality"] and not policy["cost"]:
        raise ConfigurationError(f"{file}: it holds methods against nothing; write limits under quality or cost.")
    return policy


def check_policy(config: Mapping[str, Any], experiment: Mapping[str, Any]) -> None:
    """Refuse a policy that names what the experiment does not have.

    Args:
        config, experiment: complete.
    Raises:
        ConfigurationError: names the policy's file and key.
    """
    if config["gate"]:
        policy = load_policy(ROOT / config["gate"], config["gate"])
        if sentence := gate_policy.wrong(policy, experiment, experiment["baseline"], experiment["metrics"]):
            raise ConfigurationError(f"{config['gate']}: {sentence}")
