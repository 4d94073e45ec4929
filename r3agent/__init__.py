"""LLM applications that get better from their own failures: attempt, verify, reflect, retry, and train on it.

    graph = build_graph(policy=OpenAIPolicy(url, model), verifier=check).compile()
    result = graph.invoke({"task": {"messages": [{"role": "user", "content": "..."}]}})

Importing it loads none of its dependencies: each name is imported when it is used. Training is in `r3agent.train`, the
embedded server in `r3agent.serve`, fakes for tests in `r3agent.testing`.
"""

from typing import TYPE_CHECKING

from r3agent._util.lazy import lazy_names

if TYPE_CHECKING:
    from r3agent.episodes.agents.mcp import McpServer as McpServer
    from r3agent.episodes.agents.program import Program as Program
    from r3agent.episodes.branches import branch as branch
    from r3agent.episodes.collect import collect as collect
    from r3agent.episodes.config import EpisodeContext as EpisodeContext
    from r3agent.episodes.graph import build_graph as build_graph
    from r3agent.errors import AccessError as AccessError
    from r3agent.errors import AgentError as AgentError
    from r3agent.errors import BusyError as BusyError
    from r3agent.errors import ConfigError as ConfigError
    from r3agent.errors import DeployError as DeployError
    from r3agent.errors import EndpointError as EndpointError
    from r3agent.errors import HubError as HubError
    from r3agent.errors import PolicyError as PolicyError
    from r3agent.errors import ProtocolError as ProtocolError
    from r3agent.errors import R3Error as R3Error
    from r3agent.errors import RecordError as RecordError
    from r3agent.errors import RequestError as RequestError
    from r3agent.errors import SchemaVersionError as SchemaVersionError
    from r3agent.errors import TrainingError as TrainingError
    from r3agent.errors import VerifierError as VerifierError
    from r3agent.policy import OpenAIPolicy as OpenAIPolicy
    from r3agent.policy import Policy as Policy
    from r3agent.policy import Sampling as Sampling
    from r3agent.recording.blocks import unrecorded as unrecorded
    from r3agent.recording.instrument import instrument as instrument
    from r3agent.recording.recorder import Recorder as Recorder
    from r3agent.recording.trace import trace as trace
    from r3agent.records.cost import Prices as Prices
    from r3agent.records.credit import Group as Group
    from r3agent.records.credit import groups as groups
    from r3agent.records.summary import CollectSummary as CollectSummary
    from r3agent.records.trajectory import Generation as Generation
    from r3agent.records.trajectory import Span as Span
    from r3agent.records.trajectory import Task as Task
    from r3agent.records.trajectory import Trajectory as Trajectory
    from r3agent.records.trajectory import Verdict as Verdict
    from r3agent.store.labels import label as label
    from r3agent.store.trajectories import load as load
    from r3agent.verifiers import Answer as Answer
    from r3agent.verifiers import Verifier as Verifier
else:
    __getattr__, __dir__ = lazy_names(__name__)
