"""LLM applications that get better from their own failures: attempt, verify, reflect, retry, and train on it.

    graph = build_graph(policy=OpenAIPolicy(url, model), verifier=check).compile()
    result = graph.invoke({"task": {"messages": [{"role": "user", "content": "..."}]}})

Importing it loads no torch: training is in `r3agent.train`, the embedded server in `r3agent.serve`, fakes for tests in
`r3agent.testing`.
"""

from r3agent.episodes.collect import collect
from r3agent.episodes.graph import build_graph
from r3agent.episodes.state import EpisodeContext
from r3agent.errors import (
    AccessError,
    BusyError,
    ConfigError,
    DeployError,
    EndpointError,
    PolicyError,
    ProtocolError,
    R3Error,
    RecordError,
    RequestError,
    SchemaVersionError,
    TrainingError,
    VerifierError,
)
from r3agent.policy.openai import OpenAIPolicy, Policy, Sampling
from r3agent.recording.instrument import instrument
from r3agent.recording.recorder import Recorder
from r3agent.recording.trace import trace
from r3agent.records.credit import Group, groups
from r3agent.records.summary import CollectSummary
from r3agent.records.trajectory import Generation, Span, Task, Trajectory, Verdict
from r3agent.store.labels import label
from r3agent.store.trajectories import load
from r3agent.verifiers import Answer, Verifier

__all__ = [
    "AccessError",
    "Answer",
    "BusyError",
    "CollectSummary",
    "ConfigError",
    "DeployError",
    "EndpointError",
    "EpisodeContext",
    "Generation",
    "Group",
    "OpenAIPolicy",
    "Policy",
    "PolicyError",
    "ProtocolError",
    "R3Error",
    "RecordError",
    "Recorder",
    "RequestError",
    "Sampling",
    "SchemaVersionError",
    "Span",
    "Task",
    "TrainingError",
    "Trajectory",
    "Verdict",
    "Verifier",
    "VerifierError",
    "build_graph",
    "collect",
    "groups",
    "instrument",
    "label",
    "load",
    "trace",
]
