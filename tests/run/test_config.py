from __future__ import annotations

from pathlib import Path

import pytest

from r3agent.errors import ConfigError
from r3agent.run.config import Config, load_config, parse_override, to_toml


def test_the_written_file_reads_back_as_the_same_settings(tmp_path):
    settings = {
        "collect.n": 7,
        "task.params": {"max_number": 9},
        "train.method": "full",
        "sampling.temperature": "none",
    }
    config = load_config(None, settings)
    assert config.sampling.temperature is None
    path = tmp_path / "r3.toml"
    path.write_text(to_toml(config))
    assert load_config(path, {}) == config


@pytest.mark.parametrize("section", Config.model_fields)
def test_every_setting_is_explained_in_the_file(section):
    lines = to_toml(Config()).splitlines()
    lines = lines[lines.index(f"[{section}]") :]
    for key in Config.model_fields[section].annotation.model_fields:
        at = next(i for i, line in enumerate(lines) if line.startswith((f"{key} = ", f"# {key} =")))
        above = next(line for line in reversed(lines[:at]) if line)
        assert above.startswith("# "), f"{section}.{key}"


def test_what_is_none_by_default_is_commented_out():
    assert "# seed =\n" in to_toml(Config())
    assert "# save_steps =\n" in to_toml(Config())


def test_an_explanation_is_the_settings_docstring():
    text = to_toml(Config())
    assert "# G: reflections of each failed try, a GRPO group; 0 retries without reflecting.\nreflections = 8" in text
    assert "# Weight of the KL divergence from the starting policy. The paper: 0.001.\nbeta = " in text


def test_command_line_beats_file_beats_default(tmp_path):
    path = tmp_path / "r3.toml"
    path.write_text("[collect]\nn = 5\nreflections = 3\n")
    config = load_config(path, {"collect.n": 6})
    assert (config.collect.n, config.collect.reflections, config.collect.retries) == (6, 3, 1)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"collect.reflexions": 4}, "did you mean 'collect.reflections'"),
        ({"colect.n": 4}, "did you mean 'collect'"),
        ({"policy.zzz": 4}, "known are base_url"),
        ({"collect.n": "many"}, "collect.n = 'many'"),
        ({"policy.model": "tiny@live"}, "write tiny, the base model"),
        ({"policy.base_url": "http://me:pa#ss@host/v1"}, "http://host/v1 with a password in it"),
        ({"policy.base_url": "localhost:8000/v1"}, "must start with http://"),
        ({"train.epochs": 0}, "train.epochs = 0: Input should be greater than or equal to 1"),
        ({"sampling.temperature": -1}, "sampling.temperature = -1"),
        ({"train.credit.retry": "lift"}, "train.credit: retry = 'lift': what fits retry is 'success' or 'score'"),
        ({"task.params.split": "all"}, "task.params: split cannot be set; collections draw from train, and gate.split"),
        ({"task.params.seed": 3}, "task.params: seed cannot be set; task.seed and eval.seed"),
        ({"train.credit": "lift"}, "train.credit = 'lift': Input should be a valid dictionary"),
        ({"train.credit_weights.reflect": 0}, "train.credit_weights.reflect = 0: Input should be greater than 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(overrides, says):
    with pytest.raises(ConfigError, match=r".") as error:
        load_config(None, overrides)
    assert says in str(error.value)


def test_a_key_of_a_mapping_is_added_and_a_whole_mapping_replaces(tmp_path):
    path = tmp_path / "r3.toml"
    path.write_text('[train]\ncredit = {reflect = "lift"}\n')
    for file, reflect in ((None, "retry_success"), (path, "lift")):
        added = load_config(file, {"train.credit.retry": "success"})
        assert added.train.credit == {"reflect": reflect, "retry": "success"}
        assert load_config(file, {"train.credit": {"retry": "score"}}).train.credit == {"retry": "score"}
    path.write_text(to_toml(added))
    assert load_config(path, {}) == added


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match="r3agent init"):
        load_config(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("[collect\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml", {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_load_config_reads_a_file_of_a_windows_editor(tmp_path, encoding):
    (tmp_path / "r3.toml").write_bytes('[policy]\r\nmodel = "größe"\r\n'.encode(encoding))
    assert load_config(tmp_path / "r3.toml", {}).policy.model == "größe"
    (tmp_path / "r3.toml").write_bytes('[policy]\nmodel = "größe"\n'.encode("cp1252"))
    with pytest.raises(ConfigError, match=r"r3\.toml:2 is not UTF-8 \(byte 0xf6\); save it as UTF-8"):
        load_config(tmp_path / "r3.toml", {})


def test_overrides_are_toml_values_or_else_text():
    assert parse_override("train.learning_rate=1e-4") == ("train.learning_rate", 1e-4)
    assert parse_override("task.params={max_number = 9}") == ("task.params", {"max_number": 9})
    assert parse_override("policy.model=qwen") == ("policy.model", "qwen")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_override("learning_rate=3")
    with pytest.raises(ConfigError, match=r"--set 'colect\.n=3': no setting 'colect'; did you mean 'collect'\?"):
        parse_override("colect.n=3")
    with pytest.raises(ConfigError, match=r"no setting 'task\.sorce'; did you mean 'task\.source'"):
        parse_override("task.sorce=3")


def test_a_file_is_named_only_for_its_own_mistakes(tmp_path):
    path = tmp_path / "r3.toml"
    path.write_text("[collect]\nn = 3\n")
    for overrides in ({"colect.n": 4}, {"train.credit.reflekt": "lift"}, {"collect.n": 0}):
        with pytest.raises(ConfigError) as error:
            load_config(path, overrides)
        assert str(path) not in str(error.value)
    path.write_text('[train]\ncredit = {reflekt = "lift"}\n')
    with pytest.raises(ConfigError, match=f"{path}: train.credit: unknown label 'reflekt'"):
        load_config(path, {"train.credit.retry": "success"})


@pytest.mark.parametrize("key", ["collect.n", "collect.reflections", "collect.retries"])
def test_whole_numbers_may_be_written_as_floats(key: str) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config(None, {key: 8.0}), section), name) == 8


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "r3.toml").write_text("[eval]\nn = 5\n")
    with pytest.raises(ConfigError, match=r"^eval\.n = 0: "):
        load_config(tmp_path / "r3.toml", {"eval.n": 0})
