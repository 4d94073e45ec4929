"""Settings of a run (`r3.toml`), checked before any server is contacted.

The command line overrides the run's file, which overrides the defaults; only `load_config` implements this order.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from copy import deepcopy
from math import ceil
from pathlib import Path
from typing import Annotated, Any, cast

import tomlkit
from pydantic import BaseModel, Field, ValidationError, field_validator

from r3agent._util.files import decode
from r3agent._util.messages import did_you_mean, explain
from r3agent.audit.config import AuditConfig
from r3agent.deploy.config import DeployConfig
from r3agent.episodes.config import EpisodePrompts, field_of
from r3agent.errors import ConfigError
from r3agent.policy import Sampling
from r3agent.records.branching import Control
from r3agent.records.prompts import GENERIC_REFLECTION, PROMPTS, Kind
from r3agent.records.trajectory import Record
from r3agent.run.agent import AgentConfig
from r3agent.run.collect_config import CollectConfig
from r3agent.run.gate_config import GateConfig
from r3agent.run.policy_config import PolicyConfig
from r3agent.serve.config import ServeConfig
from r3agent.store.shards import CONFIG_FILE as CONFIG_FILE
from r3agent.tasks.catalogue import fault_of_params
from r3agent.tasks.splits import Split
from r3agent.telemetry.config import TelemetryConfig
from r3agent.train.config import TrainConfig
from r3agent.train.recipes import BY_RECIPE, with_other_recipe
from r3agent.verifiers.interface import CutOff


class TaskConfig(Record):
    source: str = ""
    """Task source: a built-in one, `hf:NAME`, a file (.jsonl, .json, .csv, .parquet), or your own `module:callable`. It
    has no default, and only a run whose episodes an application records needs none; `countdown` is one to try."""
    verifier: str = ""
    """Verifier: a built-in one, or your own `module:callable`; empty selects the source's default."""
    verifier_params: dict[str, Any] = {}
    """Parameters of the verifier."""
    cut_off: CutOff = field_of("cut_off", "fail")
    verify_timeout_s: float | None = field_of("verify_timeout_s", 600.0)
    seed: int = 0
    """Seed of the task draw; each round uses it together with the round number."""
    params: dict[str, Any] = {}
    """Parameters of the source, e.g. `max_number` of countdown. A file or `hf:NAME` takes `prompt`, `system`, `gold`
    (each a column, or a Jinja template such as `"Q: {{ question }}"`), `answer`, `id`, `tools` and `info` (columns);
    `hf:NAME` also takes `subset`, `hf_split`, `revision` and `data_files`."""

    @field_validator("verify_timeout_s", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        """Read "none", because TOML has no null."""
        return None if value == "none" else value

    @field_validator("params")
    @classmethod
    def _not_passed(cls, params: dict[str, Any]) -> dict[str, Any]:
        if fault := fault_of_params(params):
            raise ValueError(fault)
        return params


class PromptConfig(EpisodePrompts):
    """Prompts of the loop; an empty one selects the default for the verifier's kind of task."""

    reflect_prompt: str = field_of("reflect_prompt", "", note=" Empty: the default for the verifier's kind of task.")
    retry_prompt: str = field_of("retry_prompt", "", note=" Empty: the default.")
    blind_retry_prompt: str = field_of("blind_retry_prompt", "", note=" Empty: the default.")

    def filled(self, kind: Kind) -> PromptConfig:
        """Replace empty prompts by the defaults of the kind of task."""
        own = {name: text for name, text in self.model_dump().items() if text}
        return PromptConfig.model_validate(PROMPTS[kind].model_dump() | own)


class BranchConfig(Record):
    source: str = ""
    """Store, or run directory, with the recorded episodes to branch off; default: what this run recorded."""
    failed: bool = False
    """Leave out episodes whose final answer passed; default: branch all off whose first try failed."""
    since: str = ""
    """Branch off only episodes recorded since then: `7d`, `12h`, or a date such as 2026-11-01; default: all."""
    n: int | None = Field(default=None, ge=1)
    """Maximum number of recorded failures in a collection, of which each round takes others; default: all."""


class OtherSource(Record):
    """Tasks of another source, on which a version must not get worse; only first tries are sampled."""

    source: str = Field(min_length=1)
    """Task source, as `task.source`."""
    verifier: str = ""
    """Verifier; empty selects the source's default."""
    verifier_params: dict[str, Any] = {}
    """Parameters of the verifier."""
    params: dict[str, Any] = {}
    """Parameters of the source."""
    n: int = Field(default=200, ge=1)
    """Number of tasks."""
    budget: float = Field(default=2.0, ge=0)
    """Largest drop of first-try success that is accepted, in percentage points."""


class EvalConfig(Record):
    n: int = Field(default=500, ge=1)
    """Number of tasks for an evaluation, which are always the same."""
    split: Split = "test"
    """Split of the final evaluation. `test` is never used for training or promotions; `all` uses every task, including
    those trained on."""
    seed: int = 0
    """Seed of the task draw; the same seed draws the same tasks. Each gate uses it together with the round number."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task."""
    blind_retries: int = Field(default=1, ge=1)
    """Blind retries of each failed first try, as a control. One samples fewer tokens than a reflection and its retry;
    with about 3, evaluations also compare at equal tokens, and say how many that needs."""
    lift: float = Field(default=5.0, gt=0, le=100)
    """Lift after a reflection to plan for, in percentage points: an evaluation says how many tasks it needs."""
    controls: tuple[Control, ...] = ()
    """Further controls of the final evaluation, each of which samples one more retry of each failed first try:
    `generic` after one fixed text in place of a reflection, `donor` after the reflection on another task. For example
    `["generic", "donor"]`."""
    generic_reflection: str = Field(default=GENERIC_REFLECTION, min_length=1)
    """Text of the control `generic`."""
    forgetting: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], OtherSource] = {}
    """Other sources, by a name for them, on which first tries must not drop by more than a budget; each evaluation and
    each gate samples them under both versions, and a drop beyond the budget blocks a promotion. For example
    `{ "arithmetic" = { source = "gsm8k", n = 200, budget = 2.0 } }`."""


class LoopConfig(Record):
    rounds: int = Field(default=1, ge=1)
    """Number of policy versions to train."""
    evaluate_every: int = Field(default=1, ge=1)
    """Rounds between evaluations; the last round is always evaluated."""
    branch: bool = False
    """Each round also branches recorded failures off, as section [branch] says, beside the fresh tasks of [collect]."""


class Config(Record):
    """All settings of a run, one field per section."""

    policy: PolicyConfig = PolicyConfig()
    serve: ServeConfig = ServeConfig()
    task: TaskConfig = TaskConfig()
    agent: AgentConfig = AgentConfig()
    prompts: PromptConfig = PromptConfig()
    sampling: Sampling = Sampling()
    collect: CollectConfig = CollectConfig()
    branch: BranchConfig = BranchConfig()
    train: TrainConfig = TrainConfig()
    deploy: DeployConfig = DeployConfig()
    eval: EvalConfig = EvalConfig()
    gate: GateConfig = GateConfig()
    loop: LoopConfig = LoopConfig()
    audit: AuditConfig = AuditConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def has_sequential_gate(self) -> bool:
        return self.gate.test == "sequential" and self.gate.split != self.eval.split

    @property
    def gate_tasks(self) -> int:
        """Largest number of tasks of a gate."""
        return self.gate.n or (ceil(1.5 * self.eval.n) if self.has_sequential_gate else self.eval.n)


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Load settings from a file and apply `overrides`, a mapping of dotted keys such as `{"collect.n": 64}`.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is invalid.
    """
    settings = _read(path) if path else {}
    on_file = deepcopy(settings)
    if "train.recipe" in overrides and isinstance(train := settings.get("train", {}), dict):
        settings["train"] = with_other_recipe(cast(dict[str, Any], train), overrides["train.recipe"])
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        table: Any = settings
        for depth, parent in enumerate(parents):
            table = table.setdefault(parent, _table(*parents[:depth], parent))
            if not isinstance(table, dict):
                raise ConfigError(f"{key}: {parent} = {table!r} is not a section; write [{parent}] with keys below it")
        table[leaf] = value
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(("" if _is_valid(on_file) else f"{path}: ") + explain(error, Config)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Parse `section.key=value` into a dotted key and a value; a value that is not TOML is a string.

    Raises:
        ConfigError: there is no `=` or no section, or no such key.
    """
    key, equals, value = text.partition("=")
    section, dot, name = (key := key.strip()).partition(".")
    if not equals or not dot:
        raise ConfigError(f"--set {text!r}: write section.key=value, e.g. --set train.learning_rate=1e-5")
    _check_known(text, section, Config)
    _check_known(text, name.partition(".")[0], Config.model_fields[section].annotation, prefix=f"{section}.")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _check_known(text: str, name: str, kind: Any, prefix: str = "") -> None:
    if name not in (fields := cast(type[BaseModel], kind).model_fields):
        raise ConfigError(f"--set {text!r}: no setting {prefix + name!r}; {did_you_mean(name, fields, prefix=prefix)}")


def to_toml(config: Config) -> str:
    """Render an `r3.toml` with every setting and its explanation; those of a recipe are comments."""
    document = tomlkit.document()
    by_recipe = _by_recipe(config.train)
    for section, field in Config.model_fields.items():
        kind = cast(type[BaseModel], field.annotation)
        table = tomlkit.table()
        for name, value in getattr(config, section).model_dump(mode="json").items():
            for line in (kind.model_fields[name].description or "").splitlines():
                table.add(tomlkit.comment(line.strip()))
            if value is None and kind.model_fields[name].default is None:  # TOML has no null
                table.add(tomlkit.comment(f"{name} ="))
            elif section == "train" and name in by_recipe:
                item: Any = _inline(value) if isinstance(value, dict) else tomlkit.item(value)
                table.add(tomlkit.comment(f"{name} = {item.as_string()}"))
            elif value is None:
                table.add(name, "none")
            else:
                table.add(name, _inline(value) if isinstance(value, dict) else value)
        document.add(section, table)
    return tomlkit.dumps(document)


def _by_recipe(config: TrainConfig) -> set[str]:
    """Return the names of settings that have the values of the recipe."""
    if config.recipe == "custom":
        return set()
    return {name for name in BY_RECIPE if getattr(config, name) == getattr(TrainConfig(recipe=config.recipe), name)}


def _is_valid(settings: dict[str, Any]) -> bool:
    try:
        Config.model_validate(settings)
    except ValidationError:
        return False
    return True


def _table(*path: str) -> dict[str, Any]:
    """Return the table to add a missing key to; for a mapping setting such as `train.credit`, its default."""
    default: Any = Config()
    for name in path:
        default = getattr(default, name, None)
    return dict(cast(dict[str, Any], default)) if isinstance(default, dict) else {}


def _inline(mapping: dict[str, Any]) -> Any:
    """Make an inline table, so that the settings after it stay in their section."""
    inline = tomlkit.inline_table()
    inline.update(mapping)
    return inline


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `r3agent init` writes one") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
