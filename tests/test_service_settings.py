"""Settings come from variables and flags, and say in one line what is wrong with them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import BadSettings, Settings, load_settings


def test_defaults_are_for_this_machine_and_the_bundled_models() -> None:
    settings = load_settings([])
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 8000, "auto")
    assert settings.base_model is settings.sr_model is None


def test_variables_are_read_and_flags_come_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PORT", "9001")
    monkeypatch.setenv("SERVICE_SR_STEPS", "0")
    monkeypatch.setenv("SERVICE_GUIDANCE_SCALE", "2.5")
    settings = load_settings(["--port", "9002"])
    assert (settings.port, settings.sr_steps, settings.guidance_scale) == (9002, 0, 2.5)


def test_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_BASE_MODEL", "")
    assert load_settings([]).base_model is None


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PORT", "1")
    monkeypatch.setenv("SERVICES", "1")
    assert load_settings([]) == Settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SERVICE_PROT", "80", "SERVICE_PROT is not a setting; did you mean SERVICE_PORT?"),
        ("service_steps", "3", "service_steps is not a setting; did you mean SERVICE_SR_STEPS?"),
        ("SERVICE_QQ", "3", "SERVICE_QQ is not a setting; known are SERVICE_… ALLOW_ANONYMOUS, ALLOW_DOWNLOAD"),
        ("SERVICE_PORT", "80x", "SERVICE_PORT or --port: .*integer.*, got '80x'"),
        ("SERVICE_PORT", "65536", "SERVICE_PORT or --port: .*65535, got '65536'"),
        ("SERVICE_DTYPE", "int8", "SERVICE_DTYPE or --dtype: .*'float16' or 'bfloat16', got 'int8'"),
        ("SERVICE_DEVICE", "gpu", "SERVICE_DEVICE or --device: .*auto.*, got 'gpu'"),
        ("SERVICE_SR_STEPS", "51", "SERVICE_SR_STEPS or --sr-steps: .*50, got '51'"),
        ("SERVICE_AUG_LEVEL", "nan", "SERVICE_AUG_LEVEL or --aug-level: .*, got 'nan'"),
        ("SERVICE_QUEUE_SIZE", "0", "SERVICE_QUEUE_SIZE or --queue-size: .*1, got '0'"),
        ("SERVICE_BASE_MODEL", "/no/such/place", "SERVICE_BASE_MODEL or --base-model: there is no such dir"),
        ("SERVICE_SR_MODEL", __file__, "SERVICE_SR_MODEL or --sr-model: this is a file"),
        ("SERVICE_SR_MODEL", str(Path(__file__).parent), "--sr-model: the directory has no model_index.json"),
        ("SERVICE_STORAGE_ROOTS", '["/pictures"', "SERVICE_STORAGE_ROOTS or --storage-roots: this is no JSON: .*"),
        ("SERVICE_STORAGE_ROOTS", "[1]", "SERVICE_STORAGE_ROOTS or --storage-roots: .*string"),
        ("SERVICE_DATA_DIR", "~nosuch/data", "SERVICE_DATA_DIR or --data-dir: .*~nosuch/data"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match=message) as raised:
        load_settings([])
    assert "\n" not in str(raised.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PORT", "x")
    monkeypatch.setenv("SERVICE_DTYPE", "x")
    with pytest.raises(BadSettings, match=r"SERVICE_PORT.*; SERVICE_DTYPE"):
        load_settings([])


def test_unknown_flag_ends_the_program_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(["--prot", "1"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --prot" in capsys.readouterr().err


def test_directory_of_a_pipeline_and_a_hub_id_are_models(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    settings = load_settings(["--base-model", "someone/some-model.v1", "--sr-model", str(tmp_path)])
    assert (settings.base_model, settings.sr_model) == ("someone/some-model.v1", str(tmp_path))
    assert load_settings(["--base-model", str(tmp_path)]).base_model == str(tmp_path)
    with pytest.raises(BadSettings, match="--sr-model: there is no such directory"):
        load_settings(["--sr-model", "someone/some-model.v1"])


@pytest.mark.parametrize(
    ("given", "roots"),
    [
        ("/pictures", ["/pictures"]),
        ("/pictures, s3://bucket/in,", ["/pictures", "s3://bucket/in"]),
        ('["/pictures", "/one, two"]', ["/pictures", "/one, two"]),
        ("[]", []),
    ],
)
def test_storage_roots_are_named_with_commas_or_as_json(
    monkeypatch: pytest.MonkeyPatch, given: str, roots: list[str]
) -> None:
    assert load_settings(["--storage-roots", given]).storage_roots == roots
    monkeypatch.setenv("SERVICE_STORAGE_ROOTS", given)
    assert load_settings([]).storage_roots == roots


def test_origins_are_those_that_a_browser_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(["--cors-origins", "https://a.example, http://[::1]:3000"]).origins == [
        "https://a.example",
        "http://[::1]:3000",
    ]
    assert load_settings(["--cors-origins", "*"]).origins == ["*"] and load_settings([]).origins == []
    for wrong in ("a.example", "https://a.example/", "https://a.example/page", "HTTPS://A.example"):
        with pytest.raises(BadSettings, match="is no origin; one is written like https"):
            load_settings(["--cors-origins", wrong])


def test_keys_have_names_and_perhaps_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEYS", "me:0123456789abcdef, you/60:fedcba9876543210:/")
    first, second = load_settings([]).api_keys
    assert (first.name, first.per_minute, second.name, second.per_minute) == ("me", None, "you", 60)
    monkeypatch.setenv("SERVICE_API_KEYS", "you/often:fedcba9876543210")
    with pytest.raises(BadSettings, match="each must be NAME:KEY or NAME/REQUESTS_A_MINUTE:KEY") as raised:
        load_settings([])
    assert "fedcba" not in str(raised.value)
