"""Settings of a run (`r3.toml`), checked before any server is contacted.

The command line overrides the run's file, which overrides the defaults; only `load_config` implements this order.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import tomlkit
from pydantic import BaseModel, Field, ValidationError, field_validator

from r3agent._util.files import decode
from r3agent._util.messages import explain
from r3agent.audit.config import AuditConfig
from r3agent.deploy.config import DeployConfig
from r3agent.episodes.config import COLLECT_REFLECTIONS, EpisodeLimits, EpisodePrompts, field_of
from r3agent.episodes.quota import CollectLimits
from r3agent.errors import ConfigError
from r3agent.http.errors import NO_KEY
from r3agent.http.headers import check_stored, fill_in, parse_headers
from r3agent.http.urls import ApiURL, check_proxy, redact_url
from r3agent.policy import Sampling
from r3agent.records.cost import Prices
from r3agent.records.prompts import PROMPTS, Kind
from r3agent.records.trajectory import Record
from r3agent.run.agent import AgentConfig
from r3agent.serve.config import ServeConfig
from r3agent.tasks.catalogue import fault_of_params
from r3agent.tasks.splits import Split
from r3agent.train.config import TrainConfig
from r3agent.verifiers.interface import CutOff

CONFIG_FILE = "r3.toml"
"""Settings of a run, in its directory."""


class Access(TypedDict):
    """Arguments of everything that sends requests to the server."""

    api_key: str | None
    headers: dict[str, str]
    proxy: str | None
    verify: bool | str


class PolicyConfig(Record):
    base_url: str = "http://127.0.0.1:8000/v1"
    """Base URL of an OpenAI-compatible server; usually ends in /v1."""
    base_urls: tuple[str, ...] = ()
    """Base URLs of more servers of the same model: each episode is sampled from one of them, and `deploy` loads a
    version onto all. A server that fails is taken out until it answers again."""
    model: str = Field(default="bundled", min_length=1)
    """Served name of the base model; version v0007 is served as `MODEL@v0007`."""
    base_model: str = Field(default="bundled", min_length=1)
    """Directory or hub id of the base model's weights, for training; `bundled` is the policy in the package."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; the key itself is never stored."""
    headers: dict[str, str] = {}
    """Further headers of every request, e.g. of a gateway. `$NAME` in a value is an environment variable; secret values
    must come from one, e.g. `headers = {api-key = "$AZURE_KEY"}`."""
    proxy: str = ""
    """URL of a proxy for requests to the server; `$NAME` in it is an environment variable, from which a password must
    come. Empty: those of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the environment."""
    verify: bool | str = True
    """Check of the server's certificate: a PEM file with the authorities to trust, e.g. of a company, or false for no
    check."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Timeout of one request, in seconds."""
    outage_s: float = Field(default=600.0, ge=0)
    """Seconds to wait for a server that has answered before and became unreachable."""
    prices: Prices | None = None
    """Prices per million tokens, for budgets of cost: `prices = {prompt = 0.15, cached = 0.075, sampled = 0.6}`, and a
    `currency` other than USD."""

    @field_validator("headers", mode="before")
    @classmethod
    def _headers(cls, headers: Any) -> Any:
        """Read lines `Name: value`, as of the command line, and refuse secrets, which would be written to r3.toml."""
        try:
            if isinstance(headers, list | tuple):
                headers = parse_headers(map(str, cast(list[Any], headers)), setting="policy.headers")
            if isinstance(headers, dict):
                check_stored(
                    {str(k): str(v) for k, v in cast(dict[Any, Any], headers).items()}, setting="policy.headers"
                )
        except ConfigError as error:
            raise ValueError(error) from None
        return headers

    @field_validator("proxy")
    @classmethod
    def _proxy(cls, proxy: str) -> str:
        try:
            check_proxy(proxy, setting="policy.proxy")
        except ConfigError as error:
            raise ValueError(error) from None
        return proxy

    @field_validator("base_urls")
    @classmethod
    def _all_without_password(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(cls._check_url, urls))

    @field_validator("base_url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        return cls._check_url(url)

    @staticmethod
    def _check_url(url: str) -> str:
        if redact_url(url) != url:
            raise ValueError(
                f"{redact_url(url)} with a password in it would be written to r3.toml; pass it as the API key"
            )
        try:
            ApiURL(url)
        except ConfigError as error:
            raise ValueError(error) from None
        return url

    def access(self) -> Access:
        """Return how to reach the server, with values from the environment.

        Raises:
            ConfigError: an environment variable that a header or the proxy names is not set.
        """
        proxy = fill_in({"proxy": self.proxy}, setting="policy.proxy")["proxy"]
        return {
            "api_key": os.environ.get(self.api_key_env),
            "headers": fill_in(self.headers, setting="policy.headers"),
            "proxy": proxy or None,
            "verify": self.verify,
        }

    def policy_access(self) -> Access:
        """Return the same for an `OpenAIPolicy`, which would otherwise take a key from `OPENAI_API_KEY`."""
        access = self.access()
        return {**access, "api_key": access["api_key"] or NO_KEY}


class TaskConfig(Record):
    source: str = ""
    """Task source: a built-in one, `hf:NAME`, a file (.jsonl, .json, .csv, .parquet), or your own `module:callable`. It
    has no default, and only a run whose episodes an application records needs none; `countdown` is one to try."""
    verifier: str = ""
    """Verifier: a built-in one, or your own `module:callable`; empty selects the source's default."""
    verifier_params: dict[str, Any] = {}
    """Parameters of the verifier."""
    cut_off: CutOff = field_of("cut_off", "fail")
    seed: int = 0
    """Seed of the task draw; each round uses it together with the round number."""
    params: dict[str, Any] = {}
    """Parameters of the source, e.g. `max_number` of countdown. A file or `hf:NAME` takes `prompt`, `system`, `gold`
    (each a column, or a Jinja template such as `"Q: {{ question }}"`), `answer`, `id`, `tools` and `info` (columns);
    `hf:NAME` also takes `subset`, `hf_split`, `revision` and `data_files`."""

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


class CollectConfig(EpisodeLimits, CollectLimits):
    n: int = Field(default=512, ge=1)
    """Number of tasks per collection."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task; crediting `attempt` needs at least 2."""
    reflections: int = field_of("reflections", COLLECT_REFLECTIONS)
    concurrency: int | None = Field(default=None, ge=1)
    """Number of concurrent episodes; default: as many as the server's latency and errors allow, at most 512."""


class EvalConfig(Record):
    n: int = Field(default=500, ge=1)
    """Number of tasks for an evaluation, which are always the same, and for a gate, which draws its own. A gate that
    has decided stays as it is."""
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


class GateConfig(Record):
    split: Split = "gate"
    """Split that decides on promotions. `gate` is used neither for training nor for the final evaluation. Use `test`
    only for a single decision whose numbers are reported either way."""
    min_lift: float = 0.0
    """Minimum gain of success after reflection for a promotion, in percentage points."""
    max_regression: float = Field(default=2.0, ge=0)
    """Maximum loss of first-try success, and maximum increase of errors, in percentage points."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Largest probability that a loop, however long, promotes a version that is no better, under one set of sampling,
    prompts and tasks. The first comparison is a two-sided test at this level; later ones get a third, a sixth, a tenth
    of it, and so on, and one that promotes hands its level on to the next."""


class LoopConfig(Record):
    rounds: int = Field(default=1, ge=1)
    """Number of policy versions to train."""
    evaluate_every: int = Field(default=1, ge=1)
    """Rounds between evaluations; the last round is always evaluated."""


class Config(Record):
    """All settings of a run, one field per section."""

    policy: PolicyConfig = PolicyConfig()
    serve: ServeConfig = ServeConfig()
    task: TaskConfig = TaskConfig()
    agent: AgentConfig = AgentConfig()
    prompts: PromptConfig = PromptConfig()
    sampling: Sampling = Sampling()
    collect: CollectConfig = CollectConfig()
    train: TrainConfig = TrainConfig()
    deploy: DeployConfig = DeployConfig()
    eval: EvalConfig = EvalConfig()
    gate: GateConfig = GateConfig()
    loop: LoopConfig = LoopConfig()
    audit: AuditConfig = AuditConfig()


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Load settings from a file and apply `overrides`, a mapping of dotted keys such as `{"collect.n": 64}`.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is invalid.
    """
    settings = _read(path) if path else {}
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
        in_file = any(".".join(map(str, each["loc"])) not in overrides for each in error.errors())
        where = f"{path}: " if path and in_file else ""
        raise ConfigError(where + explain(error, Config)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Parse `section.key=value` into a dotted key and a value; a value that is not TOML is a string.

    Raises:
        ConfigError: there is no `=` or no section.
    """
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set {text!r}: write section.key=value, e.g. --set train.learning_rate=1e-5")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def to_toml(config: Config) -> str:
    """Render an `r3.toml` with every setting and its explanation."""
    document = tomlkit.document()
    for section, field in Config.model_fields.items():
        kind = cast(type[BaseModel], field.annotation)
        table = tomlkit.table()
        for name, value in getattr(config, section).model_dump(mode="json").items():
            for line in (kind.model_fields[name].description or "").splitlines():
                table.add(tomlkit.comment(line.strip()))
            if value is None and kind.model_fields[name].default is None:  # TOML has no null
                table.add(tomlkit.comment(f"{name} ="))
            elif value is None:
                table.add(name, "none")
            else:
                table.add(name, _inline(value) if isinstance(value, dict) else value)
        document.add(section, table)
    return tomlkit.dumps(document)


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
