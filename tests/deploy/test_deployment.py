"""Load, fingerprint, pointer: over HTTP, with weights that arrive, arrive in part, or do not arrive."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3agent.deploy import DeployConfig, DeployReport, deploy, load_version, rollback
from r3agent.errors import ConfigError, DeployError
from r3agent.store.history import history
from tests.deploy.endpoint import Endpoint, Run, save_adapter, save_model


def test_adapter_goes_live_under_its_own_name(run: Run, endpoint: Endpoint):
    version = run.train("lora", seed=1)
    report = deploy(version, registry=run.registry, base_url=endpoint.url, passed=True)
    assert run.registry.live == "v0001"
    assert {name: path.resolve() for name, path in endpoint.adapters.items()} == {"tiny@v0001": run.weights("v0001")}
    assert (report.served_name, report.strategy, report.previous, report.unloaded) == ("tiny@v0001", "lora", None, ())
    assert report.fingerprint is not None
    assert report.fingerprint.verdict == "arrived"
    assert report.warnings == ()


def test_deploy_by_hand_warns_that_no_gate_has_passed(run: Run, endpoint: Endpoint):
    where = {"registry": run.registry, "base_url": endpoint.url}
    run.train("lora", seed=1)
    says = "nothing records that v0001 passed the gate; `r3agent eval` of the run compares it with the base"
    assert deploy("v0001", **where).warnings == (says,)
    assert run.registry.passed == ()
    deploy("v0001", passed=True, **where)
    assert rollback(**where, by="anna", reasons=["too long"]).warnings == ()
    assert deploy("v0001", **where).warnings == ()
    assert run.registry.passed == ("v0001",)
    deploy("v0001", **where)  # it is live already, so nothing is decided
    found = [(e.event, e.version, e.other, e.by, e.reasons) for e in history(run.registry.policies_dir)]
    assert found == [
        ("deployed", "v0001", None, "person", ()),
        ("deployed", "v0001", "v0001", "person", ()),
        ("rolled_back", "v0000", "v0001", "anna", ("too long",)),
        ("deployed", "v0001", "v0000", "person", ()),
    ]


def test_deploy_that_cannot_be_recorded_warns(run: Run, endpoint: Endpoint):
    (run.registry.policies_dir / "history.jsonl").mkdir()
    report = deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url, passed=True)
    assert run.registry.live == "v0001"
    assert "the history does not have it: cannot write to" in report.warnings[0]


def test_reports_keep_the_key_and_the_names_of_old(run: Run, endpoint: Endpoint):
    report = deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url)
    values = report.model_dump(mode="json")
    assert values["canary"]["verdict"] == "arrived"
    assert "fingerprint" not in values
    assert DeployReport.model_validate(values) == report
    with pytest.deprecated_call(match="FingerprintReport"):
        from r3agent.deploy import CanaryReport
    with pytest.deprecated_call(match="now fingerprint"):
        assert isinstance(report.canary, CanaryReport)


def test_base_is_verified_and_nothing_is_loaded(run: Run, endpoint: Endpoint):
    run.train("lora", seed=1)
    report = deploy("v0000", registry=run.registry, base_url=endpoint.url)
    assert (report.strategy, report.served_name, run.registry.live) == ("none", "tiny", "v0000")
    assert set(endpoint.calls) == {"/v1/models", "/v1/completions", "/metrics"}
    endpoint.weights = run.weights("v0001")
    with pytest.raises(DeployError, match="old weights"):
        deploy("v0000", registry=run.registry, base_url=endpoint.url)


def test_version_without_a_fingerprint_is_deployed_with_a_warning(run: Run, endpoint: Endpoint):
    run.train("lora", seed=1, has_fingerprint=False)
    report = deploy("v0001", registry=run.registry, base_url=endpoint.url, passed=True)
    assert report.fingerprint is None
    assert report.warnings == ("v0001 has no fingerprint: nobody checked that the server answers with its weights",)


def test_deploying_again_is_harmless(run: Run, endpoint: Endpoint):
    run.train("lora", seed=1)
    for _ in range(2):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert endpoint.calls.count("/v1/load_lora_adapter") == 1
    assert (run.registry.live, run.registry.previous) == ("v0001", None)


def test_adapter_that_did_not_arrive_is_taken_off_again(run: Run, endpoint: Endpoint):
    run.train("lora", seed=1)
    endpoint.ignores_loads = True
    with pytest.raises(DeployError, match=r"old weights.*the server is as it was; nothing stays live"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert run.registry.live is None
    assert endpoint.adapters == {}


def test_name_taken_by_other_weights_is_left_alone(run: Run, endpoint: Endpoint, tmp_path: Path):
    run.train("lora", seed=1)
    endpoint.adapters["tiny@v0001"] = save_adapter(tmp_path / "of-another-run", seed=7)
    says = "an adapter with other weights than this version's; tiny@v0001 was served before, from .*-run: unload it or"
    with pytest.raises(DeployError, match=says):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert endpoint.adapters["tiny@v0001"] == tmp_path / "of-another-run"
    assert run.registry.live is None


@pytest.mark.parametrize("hardly", [True, False], ids=["indistinguishable", "arrived"])
def test_adapter_of_unknown_source_needs_its_fingerprint(run: Run, endpoint: Endpoint, hardly: bool):
    run.train("lora", seed=1, hardly=hardly)
    endpoint.hides_roots = True
    endpoint.adapters["tiny@v0001"] = run.base if hardly else run.weights("v0001")
    where = {"registry": run.registry, "base_url": endpoint.url}
    if not hardly:
        assert deploy("v0001", **where).version == "v0001"
        deploy(run.train("lora", seed=2), config=DeployConfig(keep=1), **where)
        assert "tiny@v0001" in endpoint.adapters  # nobody knows whose it is
        return
    with pytest.raises(
        DeployError, match=r"neither the path nor the fingerprint .* from an unknown path: unload it or restart"
    ):
        deploy("v0001", **where)
    assert run.registry.live is None


def test_broken_adapter_never_reaches_the_server(run: Run, endpoint: Endpoint):
    run.train("lora", seed=1)
    (run.weights("v0001") / "adapter_config.json").unlink()
    with pytest.raises(DeployError, match="incomplete"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert endpoint.calls == []


def test_server_of_another_model_is_refused(run: Run, endpoint: Endpoint):
    run.train("lora", seed=1)
    endpoint.name = "large"
    with pytest.raises(DeployError, match=r"'tiny' is the base model of this run, the server at .* has large"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert "/v1/load_lora_adapter" not in endpoint.calls


def test_old_adapters_are_unloaded_beyond_keep(run: Run, endpoint: Endpoint, tmp_path: Path):
    endpoint.adapters["tiny@mine"] = tmp_path
    for seed in (1, 2, 3):
        report = deploy(
            run.train("lora", seed=seed), registry=run.registry, base_url=endpoint.url, config=DeployConfig(keep=2)
        )
    assert report.unloaded == ("tiny@v0001",)
    assert set(endpoint.adapters) == {"tiny@mine", "tiny@v0002", "tiny@v0003"}


def test_old_adapter_that_does_not_go_is_a_warning(run: Run, endpoint: Endpoint):
    deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url)
    endpoint.fails_on = "/v1/unload_lora_adapter"
    report = deploy(
        run.train("lora", seed=2), registry=run.registry, base_url=endpoint.url, config=DeployConfig(keep=1)
    )
    assert run.registry.live == "v0002"
    assert "EngineCore encountered an issue" in report.warnings[0]


def test_rollback_loads_what_was_unloaded(run: Run, endpoint: Endpoint):
    for seed in (1, 2):
        deploy(run.train("lora", seed=seed), registry=run.registry, base_url=endpoint.url, config=DeployConfig(keep=1))
    assert set(endpoint.adapters) == {"tiny@v0002"}
    report = rollback(registry=run.registry, base_url=endpoint.url)
    assert (report.version, report.previous, run.registry.live) == ("v0001", "v0002", "v0001")
    assert set(endpoint.adapters) >= {"tiny@v0001"}
    assert rollback(registry=run.registry, base_url=endpoint.url).version == "v0000"
    with pytest.raises(ConfigError, match="nothing came before"):
        rollback(registry=run.registry, base_url=endpoint.url)


def test_rollback_that_fails_leaves_the_live_version(run: Run, endpoint: Endpoint):
    for seed in (1, 2):
        deploy(run.train("lora", seed=seed), registry=run.registry, base_url=endpoint.url)
    save_adapter(run.weights("v0001") / "other", seed=9)
    endpoint.adapters["tiny@v0001"] = run.weights("v0001") / "other"
    with pytest.raises(DeployError, match="v0002 stays live"):
        rollback(registry=run.registry, base_url=endpoint.url, to="v0001")
    assert run.registry.live == "v0002"


def test_version_is_loaded_beside_the_live_one(run: Run, endpoint: Endpoint):
    for seed in (1, 2, 3):
        deploy(run.train("lora", seed=seed), registry=run.registry, base_url=endpoint.url, config=DeployConfig(keep=1))
    report = load_version("v0001", registry=run.registry, base_url=endpoint.url)
    assert report.fingerprint is not None
    assert set(endpoint.adapters) == {"tiny@v0001", "tiny@v0003"}
    assert run.registry.live == "v0003"


# ---- full weights ----


def test_full_weights_are_read_in_place(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    report = deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert (report.strategy, report.served_name, run.registry.live) == ("reload", "tiny", "v0001")
    assert endpoint.weights == run.weights("v0001")
    assert not endpoint.paused
    assert [c for c in endpoint.calls if "v1" not in c] == [
        "/weight_info",
        "/pause?mode=wait",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/resume",
    ]
    assert rollback(registry=run.registry, base_url=endpoint.url).strategy == "reload"
    assert endpoint.weights == run.base


def test_weights_in_place_are_not_read_again(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    assert deploy("v0000", registry=run.registry, base_url=endpoint.url).strategy == "none"
    deploy("v0001", registry=run.registry, base_url=endpoint.url)
    endpoint.weight_version = "default"  # it was restarted with these weights
    assert deploy("v0001", registry=run.registry, base_url=endpoint.url).strategy == "none"
    assert endpoint.calls.count("/collective_rpc") == 1
    assert endpoint.weight_version == "v0001"
    endpoint.weight_version = "v0002"  # a version so near that it passes for v0001
    assert deploy("v0001", registry=run.registry, base_url=endpoint.url).strategy == "reload"


def test_full_weights_are_loaded_in_turn_to_compare_them(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    for version, weights in (("v0000", run.base), ("v0001", run.weights("v0001")), ("v0000", run.base)):
        load_version(version, registry=run.registry, base_url=endpoint.url)
        assert endpoint.weights == weights
    assert run.registry.live is None


def test_full_weights_do_not_slip_under_an_adapter(run: Run, endpoint: Endpoint):
    deploy(run.train("lora", seed=1), registry=run.registry, base_url=endpoint.url)
    run.train("full", seed=2, parent="v0000")
    with pytest.raises(DeployError, match=r"tiny@v0001: these adapters belong to .*; the server is as it was; v0001"):
        deploy("v0002", registry=run.registry, base_url=endpoint.url)
    assert endpoint.weights == run.base


def test_server_without_development_routes_is_refused_unchanged(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    endpoint.dev_routes = False
    with pytest.raises(DeployError, match=r"VLLM_SERVER_DEV_MODE=1.*the server is as it was; nothing stays live"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)


def test_half_arrived_weights_are_replaced_by_the_previous(run: Run, endpoint: Endpoint):
    deploy(run.train("full", seed=1), registry=run.registry, base_url=endpoint.url)
    run.train("full", seed=2)
    endpoint.mix_with = run.weights("v0001")
    with pytest.raises(DeployError, match=r"arrived in part.*v0001/model again; v0001 stays live"):
        deploy("v0002", registry=run.registry, base_url=endpoint.url)
    assert endpoint.weights == run.weights("v0001")
    assert not endpoint.paused
    assert run.registry.live == "v0001"


def test_cache_of_the_old_weights_is_not_kept(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    endpoint.holds_cache = True
    with pytest.raises(DeployError, match="success = false, generations still hold the cache of the old weights"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert run.registry.live is None


def test_server_that_dies_while_reloading_must_be_restarted(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    endpoint.fails_on = "/collective_rpc"
    with pytest.raises(DeployError, match=f"EngineCore .* putting the server back failed: .*restart.* {run.base}"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert not endpoint.paused
    assert run.registry.live is None


def test_incompatible_checkpoint_never_reaches_the_server(run: Run, endpoint: Endpoint):
    run.train("full", seed=1)
    weights = run.weights("v0001")
    for path in weights.iterdir():
        path.unlink()
    weights.rmdir()
    save_model(weights, seed=1, size=32)
    with pytest.raises(DeployError, match="only weights of the same architecture"):
        deploy("v0001", registry=run.registry, base_url=endpoint.url)
    assert endpoint.calls == []
