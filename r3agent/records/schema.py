"""The JSON Schema of the record: `python -m r3agent.records.schema > r3agent/records/trajectory.schema.json`."""

from __future__ import annotations

import json

from r3agent.records.trajectory import Trajectory


def record_schema() -> str:
    """Text of `trajectory.schema.json`."""
    return json.dumps(Trajectory.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(record_schema(), end="")
