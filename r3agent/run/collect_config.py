"""Settings of a collection."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from r3agent.episodes.config import COLLECT_REFLECTIONS, EpisodeLimits, field_of
from r3agent.episodes.quota import CollectLimits
from r3agent.errors import ConfigError
from r3agent.store.remote import check_without_secret
from r3agent.store.shards import Fsync


class CollectConfig(EpisodeLimits, CollectLimits):
    n: int = Field(default=512, ge=1)
    """Number of tasks per collection."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task; crediting `attempt` needs at least 2."""
    revisit: float = Field(default=1.0, gt=0, le=1)
    """Chance of drawing a task again in a later round if all its recorded tries passed, or all failed: such tasks teach
    little, and this leaves more of a round to others. Tasks that a source generates anew are not drawn again anyway."""
    reflections: int = field_of("reflections", COLLECT_REFLECTIONS)
    concurrency: int | None = Field(default=None, ge=1)
    """Number of concurrent episodes; default: as many as the server's latency and errors allow, at most 512."""
    fsync: Fsync = "interval"
    """Time at which episodes are on disk for good, so that a loss of power does not lose them: `never` leaves it to the
    system, `interval` is every 5 seconds and at the end, `episode` before the next one is written, which takes a slow
    disk's time. The death of the process alone loses no episode that has ended."""
    engine: Literal["local", "ray"] = "local"
    """Engine of a collection: this process, or the workers of a Ray cluster."""
    address: str = ""
    """Address of the Ray cluster, such as `10.0.0.1:6379`; empty starts one on this machine."""
    shards: str = ""
    """URL of a folder to which the workers upload their shards, such as `s3://BUCKET/FOLDER`; the run fetches and
    removes them. Empty: the workers write into the run directory, which all nodes share."""

    @field_validator("shards")
    @classmethod
    def _without_secret(cls, shards: str) -> str:
        try:
            check_without_secret(shards)
        except ConfigError as error:
            raise ValueError(error) from None
        return shards

    @model_validator(mode="after")
    def _for_workers(self) -> Self:
        if self.shards and self.engine == "local":
            raise ValueError(
                f"shards = {self.shards!r}: only workers upload their shards; add --engine ray, or leave it out"
            )
        return self
