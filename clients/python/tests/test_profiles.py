"""Profiles, their precedence, and what is wrong with them; completion by a real bash."""

import asyncio
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from fluoro_client.cli import app
from fluoro_client.options import DEFAULT_ENDPOINT, MEANINGS
from fluoro_client.profiles import (
    EndpointError,
    NoHomeError,
    ProfileError,
    TokenCommand,
    UnknownProfileError,
    access,
    config_file,
    load,
)

CLINIC = """
default = "clinic"

[profiles.clinic]
endpoint = "clinic.example:50051"
owner = "ada"
ca_file = "ca.crt"
token_file = "token"

[profiles.lab]
endpoint = "lab.example:50051"
"""


@pytest.fixture
def home(tmp_path):
    """A home whose configuration has two profiles; returns its variables."""
    folder = tmp_path / "fluoro"
    folder.mkdir()
    (folder / "config.toml").write_text(CLINIC)
    (folder / "token").write_text("secret\n")
    (folder / "token").chmod(0o600)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def written(home, text):
    file = config_file(home)
    file.write_text(text)
    return file


def test_options_come_before_the_environment_and_that_before_a_profile(home):
    assert access({}) == access({"HOME": "/nowhere"})
    assert access({"HOME": "/nowhere"}).endpoint == DEFAULT_ENDPOINT
    of_profile = access(home)
    assert (of_profile.endpoint, of_profile.owner) == ("clinic.example:50051", "ada")
    assert of_profile.token == config_file(home).with_name("token")
    assert of_profile.tls.ca_file == config_file(home).with_name("ca.crt")
    of_environment = access(
        {**home, "FLUORO_OWNER": "bob", "FLUORO_TOKEN": "mine", "FLUORO_CA_FILE": "/other.crt"}
    )
    assert (of_environment.endpoint, of_environment.owner) == ("clinic.example:50051", "bob")
    assert (of_environment.token, of_environment.tls.ca_file) == ("mine", Path("/other.crt"))
    given = access({**home, "FLUORO_OWNER": "bob"}, owner="eve", endpoint="here:1")
    assert (given.endpoint, given.owner) == ("here:1", "eve")
    assert given.words() == ["--profile", "clinic", "--endpoint", "here:1", "--owner", "eve"]
    assert access({**home, "FLUORO_PROFILE": "lab"}).endpoint == "lab.example:50051"
    assert access({**home, "FLUORO_PROFILE": "lab"}, profile="clinic").owner == "ada"


def test_the_configuration_is_where_the_xdg_rules_say():
    home = {"HOME": "/users/a"}
    assert config_file({**home, "XDG_CONFIG_HOME": "/etc/x"}) == Path("/etc/x/fluoro/config.toml")
    for variables in (home, {**home, "XDG_CONFIG_HOME": "relative"}):
        assert config_file(variables) == Path("/users/a/.config/fluoro/config.toml")


def test_a_user_without_a_home_has_no_profiles(monkeypatch):
    def unknown(_uid):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(NoHomeError, match="Set HOME"):
        config_file({})
    with pytest.raises(NoHomeError):
        access({}, profile="lab")
    assert access({"FLUORO_ENDPOINT": "here:1"}).endpoint == "here:1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("profiles = [", "is not TOML"),
        pytest.param("profiles = " + "[" * 100_000, "is not TOML", id="nested"),
        pytest.param("profiles = " + "1" * 5_000, "is not TOML", id="digits"),
        ("[clinic]\nendpoint = 'a:1'", "clinic is not known at the top"),
        ("[profiles]\na = 1", "as a table"),
        ("[profiles.a]\nendpoitn = 'a:1'", "says endpoitn, which is none of endpoint, owner"),
        ("[profiles.a]\ntls = 'yes'", "tls of profile a must be true or false"),
        ("[profiles.a]\ntoken_command = 'vault read'", "must be a list of words"),
        ("[profiles.a]\ntoken_command = []", "must be a list of words"),
        ("[profiles.a]\ntoken = 'x'", "Put it into a file of its own"),
        ("[profiles.a]\ntoken_file = 'x'\ntoken_command = ['y']", "has both"),
        ("default = 'b'\n[profiles.a]\nowner = 'a'", "default names b"),
        ("[profiles.a]\ntoken_file = '~nosuch/a'", "~ of somebody without a home"),
        ('[profiles.a]\ntoken_file = "a\\u0000b"', "token_file of profile a .*without NUL"),
        ('[profiles.a]\ntoken_command = ["a", "\\u0000"]', "token_command .*without NUL"),
    ],
)
def test_a_configuration_that_is_wrong_says_what(home, text, why):
    with pytest.raises(ProfileError, match=why):
        load(written(home, text))


async def test_terminals_obey_nothing_that_a_configuration_says(fluoro, home):
    bold = "\\u001b[1m\\u009b1m\\u202e"
    written(home, f'[profiles.a]\nowner = "{bold}é"\n[profiles."{bold}"]\nendpoint = "{bold}"')
    code, out, _ = await fluoro("profiles", "--profile", "a", **home, FLUORO_OWNER="")
    assert (code, out.count(r"\x1b[1m\x9b1m\u202e")) == (0, 4)
    assert "é" in out
    code, out, _ = await fluoro("profiles", "--output", "json", **home, FLUORO_OWNER="")
    assert out.count(r"\u001b[1m\u009b1m\u202e") == 3
    assert out.replace("\n", "").isprintable()
    written(home, f'[profiles.a]\n"{bold}" = 1')
    code, _, err = await fluoro("profiles", "--output", "json", **home)
    assert (code, err.replace("\n", "").isprintable()) == (5, True), err
    code, _, err = await fluoro("profiles", **home)
    assert (code, r"says \x1b[1m\x9b1m\u202e, which" in err) == (5, True), err
    assert (out + err).replace("\n", "").isprintable()


def test_secrets_and_configuration_are_for_their_owner_alone(home):
    token = config_file(home).with_name("token")
    token.chmod(0o640)
    with pytest.raises(ProfileError, match="chmod 600"):
        access(home)
    token.unlink()
    with pytest.raises(ProfileError, match="No such file"):
        access(home)
    config_file(home).chmod(0o666)
    with pytest.raises(ProfileError, match="chmod go-w"):
        access(home)


def test_an_endpoint_is_no_address_of_a_web_page(home):
    with pytest.raises(EndpointError, match=r"https://x:1 \(FLUORO_ENDPOINT\) must be host:port"):
        access({**home, "FLUORO_ENDPOINT": "https://x:1"})


def test_half_of_a_certificate_is_refused(home):
    written(home, "[profiles.a]\ncertificate_file = 'a.crt'")
    with pytest.raises(ProfileError, match=r"certificate_file and .*key_file belong together"):
        access(home, profile="a")
    with pytest.raises(ProfileError, match="FLUORO_KEY_FILE belong together"):
        access({**home, "FLUORO_CERTIFICATE_FILE": "a.crt"})
    with pytest.raises(UnknownProfileError, match="There is no profile b"):
        access(home, profile="b")


async def test_a_token_command_is_asked_anew_without_a_call_that_waits(tmp_path):
    count = tmp_path / "count"
    script = f"echo x >> {count}; wc -l < {count}; [ $(wc -l < {count}) != 2 ]"
    token = TokenCommand(["sh", "-c", script], refresh_seconds=0)
    assert token() == "1"
    async with asyncio.timeout(20):
        while token() != "3":  # the second time it failed, and the first token stayed
            assert token() in {"1", "3"}
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["false"], "ended with code 1"),
        (["true"], "printed no token"),
        (["fluoro-no-such-program"], "cannot be run: No such file"),
        (["sh", "-c", "while :; do :; done"], "did not end within 0.2 s"),
        (["sh", "-c", "exec >&-; exec sleep 60"], "did not end within 0.2 s"),
        (["sh", "-c", "sleep 60 & exit 1"], "did not end within 0.2 s"),
        (["yes"], "prints far more than a token"),
    ],
)
def test_a_token_command_that_gives_no_token_says_why(words, why):
    with pytest.raises(ProfileError, match=why):
        TokenCommand(words, seconds=0.2 if why.endswith("s") else 20)


async def test_what_cannot_be_a_token_is_told_without_showing_it(fluoro, home, tmp_path):
    written(home, "")
    file = tmp_path / "token"
    file.write_bytes(b"s\xc3\xa9cret")
    for words, variables in (
        (["list"], {"FLUORO_TOKEN": "secret\nand more"}),
        (["doctor"], {"FLUORO_TOKEN_FILE": str(file)}),
    ):
        code, _, err = await fluoro(*words, **{**home, **variables})
        assert (code, "is not one line of printable ASCII" in err) == (5, True), err
        assert "cret" not in err
    code, _, err = await fluoro("doctor", "--owner", "é", **home)
    assert (code, "owner must be printable ASCII" in err) == (2, True)


async def test_what_is_no_file_makes_nobody_wait(fluoro, home, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    written(home, f"[profiles.a]\ntoken_file = '{pipe}'")
    for words, variables in (
        (["list", "--profile", "a"], {}),
        (["list"], {"FLUORO_TOKEN_FILE": "/dev/zero"}),
        (["doctor"], {"FLUORO_CA_FILE": str(pipe)}),
    ):
        code, _, err = await fluoro(*words, **{**home, **variables})
        assert (code, "not a regular file" in err) == (5, True), err
    code, _, err = await fluoro("upload", str(pipe), **home)
    assert (code, "is a pipe or a device" in err) == (2, True), err
    config_file(home).unlink()
    os.mkfifo(config_file(home), 0o600)
    code, _, err = await fluoro("list", **home)
    assert (code, "not a regular file" in err) == (5, True), err


async def test_a_command_calls_as_its_profile_says(gateway, fluoro, home):
    written(
        home,
        f"[profiles.a]\nendpoint = '{gateway.endpoint}'\nowner = 'bob'\n"
        "token_command = ['echo', 'secret']",
    )
    home |= {"FLUORO_ENDPOINT": "", "FLUORO_OWNER": "", "HOME": "/nowhere"}
    code, out, err = await fluoro("list", "--profile", "a", **home)
    assert (code, err) == (0, "")
    assert gateway.calls[-1].owner == "bob"
    code, out, _ = await fluoro("profiles", "--profile", "a", "--output", "json", **home)
    shown = json.loads(out)
    assert (code, shown["profiles"][0]["name"]) == (0, "a")
    assert shown["effect"]["owner"] == {"value": "bob", "from": "profile a"}
    assert "secret" not in out
    code, _, err = await fluoro("list", "--profile", "b", **home)
    assert (code, "There is no profile b" in err) == (2, True)
    written(home, "[")
    code, _, err = await fluoro("list", "--output", "json", **home)
    assert (code, "is not TOML" in json.loads(err)["error"]["message"]) == (5, True)


def completed(words, env):
    """What a real bash offers for the last word."""
    script = (
        'source <(fluoro completion bash)\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
        '_fluoro_completion fluoro\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        env={**env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_bash_completes_commands_options_pipelines_jobs_and_profiles(gateway, home):
    env = {**home, "FLUORO_ENDPOINT": gateway.endpoint, "FLUORO_OWNER": "ada"}
    env["FLUORO_PROFILE"] = "lab"
    job = gateway.add_job()
    assert completed(["fluoro", "ca"], env) == ["cancel"]
    assert completed(["fluoro", "list", "--st"], env) == ["--state"]
    assert completed(["fluoro", "list", "--state", "par"], env) == ["partially-succeeded"]
    assert completed(["fluoro", "run", "imag"], env) == ["imaging-report"]
    assert completed(["fluoro", "get", ""], env) == [job.name]
    assert completed(["fluoro", "list", "--profile", "c"], env) == ["clinic"]


def test_completion_is_silent_when_no_gateway_answers(home, unused_tcp_port):
    env = {**home, "FLUORO_ENDPOINT": f"127.0.0.1:{unused_tcp_port}", "FLUORO_TOKEN": "x"}
    assert completed(["fluoro", "run", "imag"], env) == []
    config_file(home).write_text("[")
    assert completed(["fluoro", "list", "--profile", ""], env) == []


@pytest.mark.parametrize(
    ("shell", "variables", "expected"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "fluoro canc"}, "cancel"),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "fluoro canc", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
            "cancel",
        ),
    ],
)
async def test_other_shells_ask_in_their_own_words(fluoro, shell, variables, expected):
    code, script, _ = await fluoro("completion", shell)
    assert (code, f"_FLUORO_COMPLETE=complete_{shell}" in script) == (0, True)
    _, out, err = await fluoro(**variables, _FLUORO_COMPLETE=f"complete_{shell}")
    assert expected in out
    assert err == ""


def test_help_and_documentation_have_the_same_exit_codes():
    page = (Path(__file__).parents[3] / "docs" / "command.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {code:d} | {meaning} |" in page
        assert f"{code:>3}  {meaning.replace('`', '')}" in app.info.epilog
