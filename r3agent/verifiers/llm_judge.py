"""Judge open tasks with a language model, where no program can. Its verdicts are marked as noisy.

    [task]
    verifier = "llm_judge"
    verifier_params = {base_url = "https://api.openai.com/v1", model = "gpt-5-mini", votes = 3, rubric = "..."}

The judge has its own endpoint and should not be the policy: a model judges itself leniently. It sees task, reference
(`task.info["answer"]`, or else the gold answer) and answer between markers that the answer cannot know, and the prompt
declares them to be data. It must reply with a JSON object; if the endpoint cannot enforce one (`response_format`), the
prompt asks for it. Any other reply is sampled again, and is never a failure of the policy. An answer may still persuade
its judge, so measure the judge on answers that are known to be wrong.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from r3agent._util.aio import run_sync
from r3agent._util.templates import compile_template
from r3agent.errors import ConfigError, ProtocolError, VerifierError
from r3agent.http.errors import NO_KEY
from r3agent.http.headers import check_stored, fill_in
from r3agent.http.negotiation import Terms, negotiate
from r3agent.http.urls import ApiURL, check_proxy, redact_url
from r3agent.policy.base import Sampling
from r3agent.policy.endpoint import Endpoint
from r3agent.policy.parse import NOT_A_COMPLETION, not_a_completion
from r3agent.policy.reception import Reception
from r3agent.records.trajectory import Task, Verdict
from r3agent.telemetry.genai import ModelCall
from r3agent.verifiers.interface import Answer
from r3agent.verifiers.judge_prompt import KNOWN, RUBRIC, SCHEMA, Vote, messages, replies, vote_in, vote_summary

MAX_FRUITLESS = 3
"""Consecutive requests without a vote before the judge is considered unable to vote."""


class LLMJudge:
    """Verifier that asks a language model.

    Args:
        base_url: OpenAI-compatible endpoint; ends in `/v1`.
        model: served name of the judge.
        rubric: criteria for an answer to pass; a Jinja template that may use `task.messages`, `task.tools`, `answer`
            and `reference` (or "").
        api_key_env: environment variable with the API key; the key itself is never recorded.
        headers: further headers of every request, e.g. of a gateway; `$NAME` in a value is an environment variable.
            Secret values must come from one, because these parameters are recorded.
        votes: number of votes on each answer; the score is the share of votes to pass.
        threshold: an answer passes if its score exceeds this; by default a tie does not pass.
        temperature: the judge's sampling temperature; several votes need one above 0 to differ. `None`, or "none" in
            r3.toml, leaves it to the server.
        max_tokens: limit for one vote, including the judge's thinking; `None` or "none" likewise.
        extra: more fields of the request body, e.g. `{reasoning_effort = "low"}`.
        proxy: URL of a proxy; `$NAME` in it is an environment variable, from which a password must come.
        verify: PEM file with the authorities to trust, or False for no check of the certificate.
        concurrency, timeout_s, outage_s, max_tries: as in `OpenAIPolicy`.

    Raises:
        ConfigError: the rubric is not a template, the URL is invalid or has a password, or the votes cannot decide.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        rubric: str = RUBRIC,
        api_key_env: str = "OPENAI_API_KEY",
        headers: dict[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str = True,
        votes: int = 1,
        threshold: float = 0.5,
        temperature: float | Literal["none"] | None = 1.0,
        max_tokens: int | Literal["none"] | None = 1024,
        extra: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout_s: float = 120.0,
        outage_s: float = 600.0,
        max_tries: int = 6,
    ) -> None:
        if redact_url(base_url) != base_url:
            raise ConfigError(
                f"base_url = {redact_url(base_url)!r} with a password in it would be recorded; use api_key_env"
            )
        check_stored(headers or {}, setting="headers")
        check_proxy(proxy or "", setting="proxy")
        if votes < 1:
            raise ConfigError(f"votes = {votes}: the judge must be asked at least once")
        if votes > 1 and temperature == 0:
            raise ConfigError(f"votes = {votes} with temperature = 0: all would be the same vote; raise it, e.g. to 1")
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold = {threshold}: a share from 0 to below 1, which the votes must exceed")
        self.votes, self.threshold = votes, threshold
        self._rubric = compile_template(rubric, name="rubric", known=KNOWN)
        settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._body = {
            "model": model,
            **Sampling.model_validate({**settings, "top_p": None, "extra": extra or {}}).body(),
        }
        self._terms = Terms(f"judge {model!r} at {redact_url(base_url)}")
        self._endpoint = Endpoint(
            base_url,
            api_key=os.environ.get(api_key_env) or NO_KEY,
            headers=fill_in(headers or {}, setting="headers"),
            proxy=fill_in({"proxy": proxy or ""}, setting="proxy")["proxy"] or None,
            verify=verify,
            concurrency=concurrency,
            timeout_s=timeout_s,
            outage_s=outage_s,
            max_tries=max_tries,
        )

    async def __call__(self, task: Task, answer: Answer) -> Verdict:
        """Judge an answer by votes.

        Raises:
            VerifierError: the judge returned no vote.
            PolicyError: the judge's endpoint failed.
        """
        body = {**self._body, "messages": messages(task, answer, self._rubric)}
        votes: list[Vote] = []
        fruitless, last = 0, ""
        while len(votes) < self.votes:
            drawn = [(reply, vote_in(reply)) for reply in await self._ask(body, self.votes - len(votes))]
            good = [vote for _, vote in drawn if vote is not None]
            fruitless = 0 if good else fruitless + 1
            last = next((reply for reply, vote in drawn if vote is None), last)
            if fruitless == MAX_FRUITLESS:
                raise VerifierError(
                    f"{self._endpoint.base_url}, model {self._body['model']!r}: {fruitless} times no vote, lately "
                    f"{last[:200]!r}; raise max_tokens, or take a judge that replies in JSON"
                )
            votes += good
        score = sum(vote.passed for vote in votes) / len(votes)
        return Verdict(passed=score > self.threshold, score=score, feedback=vote_summary(votes), noisy=True)

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._endpoint.aclose()

    def close(self) -> None:
        """Close the connections that `graph.invoke` opened."""
        run_sync(self.aclose())

    async def _ask(self, body: dict[str, Any], n: int) -> list[str]:
        """Return up to `n` replies to one request; fields that the endpoint refuses are omitted from then on."""
        fields = {"response_format": SCHEMA, **({"n": n} if n > 1 else {}), **body}

        async def send(sent: dict[str, Any]) -> bytes:
            received = Reception("", None)
            call = ModelCall(
                str(sent["model"]), lambda: sent, sent["messages"], base_url=self._endpoint.base_url, purpose="judge"
            )
            try:
                with call:
                    await self._endpoint.post("/chat/completions", sent, received.take)
                    return received.beginning
            except NOT_A_COMPLETION as error:
                url, redact = self._endpoint.base_url, self._endpoint.redact
                why = not_a_completion(error, received.beginning, redact)
                raise ProtocolError(f"{url}, model {sent['model']!r}: {why}; {ApiURL(url).hint}") from error

        return replies(await negotiate(self._terms, fields, send, asked=self._body))[:n]
