"""Teachers by name: manifests, downloads from a server that misbehaves in every way, and the command line."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from functools import partial

import huggingface_hub
import pytest
import torch

from lib.config import MODEL_SIZES, WorldModelConfig
from lib.records.paths import ROOT
from lib.weights import cli
from lib.weights import names as registry
from lib.weights.names import file_hash
from lib.weights.native import (
    CheckpointError,
    load_world_model,
    save_world_model,
    shipped_teachers,
    size_of,
    teacher_key,
    teacher_path,
)
from lib.weights.official import MT30, SINGLE
from tests.tiny import tiny_model

REAL = ROOT.parent / "shared" / "fixtures" / "tdmpcopt_mt30_1m_fp16.pt"

FIXTURES = ROOT / "tests" / "fixtures"
WEIGHTS = (FIXTURES / "official_tiny_single_new.pt").read_bytes()
OTHER = (FIXTURES / "official_tiny_single_old.pt").read_bytes()
SHA, WRONG_SHA = file_hash(FIXTURES / "official_tiny_single_new.pt"), "0" * 64
TEACHERS = ROOT / "data" / "teachers"  # the real one; tests that fetch have folders of their own


class Handler(http.server.BaseHTTPRequestHandler):
    """`/<behaviour>/file.pt`; any other path is that of a file too."""

    def do_GET(self):
        behaviour = self.path.split("/")[1]
        self.server.requests.append(self.path)
        elsewhere = {"redirect": "/good/file.pt", "escape": f"file://{FIXTURES}/x.pt", "loop": self.path}
        refused = {"missing": 404, "busy": 503}
        if behaviour in refused:
            self.send_error(refused[behaviour])
        elif behaviour in elsewhere:
            self.reply(302, {"Location": elsewhere[behaviour], "Content-Length": "0"})
        else:
            self.send_file(behaviour)

    do_HEAD = do_GET  # which the hub's client asks first

    def reply(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, behaviour):
        body = b"<html>please log in</html>" if behaviour == "page" else self.server.body
        length = {"less": len(body) // 2, "more": len(body) + 9, "garbled": "many"}.get(behaviour, len(body))
        if behaviour in ("cut", "stall"):
            body = body[: len(body) // 2]
        self.reply(200, {"Content-Length": str(length), "ETag": '"of the file"', "X-Repo-Commit": "0" * 40})
        self.wfile.write(body if self.command == "GET" else b"")
        self.wfile.flush()
        if behaviour == "stall":
            self.server.released.wait(5)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server that behaves as the path asks."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients hang up on purpose
    server.requests, server.body, server.released = [], WEIGHTS, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Folders of its own, a manifest named by the environment, short waits. Writes the manifest; has the folders."""
    for kind in ("teachers", "cache"):
        monkeypatch.setenv(f"SPECULATIVE_TDMPC2_{kind.upper()}", str(tmp_path / kind))
    monkeypatch.setattr(registry, "TIMEOUT", (2, 0.3))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv(registry.MANIFEST_VARIABLE, str(tmp_path / "manifest.json"))
    (tmp_path / "teachers").mkdir()

    def manifest(content):
        (tmp_path / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))

    manifest.folder, manifest.teachers, manifest.cache = tmp_path, tmp_path / "teachers", tmp_path / "cache"
    return manifest


def record_of(path):
    return path.with_name(f"{path.name}.meta.json")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------------------- downloads


def test_a_listed_teacher_is_fetched_once_and_loads_by_name(home, server, capsys):
    url = f"{server.url}/redirect/walker.pt?download=true"
    home({"mine/walker-1": {"url": url, "sha256": SHA, "task": "walker-walk", "licence": "CC0"}})
    wm = load_world_model("mine/walker-1")
    said = capsys.readouterr().err
    assert f"fetching mine/walker-1 (licence: CC0) from {url}" in said and "100%" in said and "313k/313k" in said
    direct = load_world_model(FIXTURES / "official_tiny_single_new.pt")
    assert wm.task == "walker-walk" and direct.task is None
    assert all(torch.equal(value, direct.state_dict()[key]) for key, value in wm.state_dict().items())
    path = teacher_path("mine/walker-1")
    assert path.parent == home.cache / "teachers" / "mine" and path.read_bytes() == WEIGHTS
    assert teacher_key("mine/walker-1") == teacher_key(str(FIXTURES / "official_tiny_single_new.pt"))
    record = json.loads(record_of(path).read_text())
    assert (record["name"], record["url"], record["sha256"], record["licence"]) == ("mine/walker-1", url, SHA, "CC0")
    assert len(server.requests) == 2 and not capsys.readouterr().err  # the redirect and the file; then the cache
    with pytest.raises(CheckpointError, match="holds weights for walker-walk, not for walker-run"):
        load_world_model("mine/walker-1", task="walker-run")


def test_a_multi_task_teacher_is_bound_to_the_task_asked_for(home, server):
    server.body = (FIXTURES / "official_tiny_mt30_old.pt").read_bytes()
    home({"many": {"url": f"{server.url}/good/m.pt", "tasks": "mt30"}})
    with pytest.raises(CheckpointError, match="knows 30 tasks; pass task="):
        load_world_model("many")
    wm = load_world_model("many", task="cup-catch")
    assert (wm.task, wm.native_obs_dim, wm.action_dim) == ("cup-catch", 8, 2)


def test_our_own_format_is_fetched_too(home, server):
    save_world_model(tiny_model(), home.folder / "w.safetensors")
    server.body = (home.folder / "w.safetensors").read_bytes()
    home({"ours": {"url": f"{server.url}/good/w.safetensors"}, "short": {"url": f"{server.url}/less/w.safetensors"}})
    assert load_world_model("ours").action_dim == 2
    with pytest.raises(CheckpointError, match="sent no weights of short.*not a whole safetensors file"):
        load_world_model("short")


def test_an_unknown_checksum_is_recorded_said_and_then_insisted_on(home, server, capsys):
    home({"mine": {"url": f"{server.url}/good/file.pt", "sha256": None}})
    path = teacher_path("mine")
    said = capsys.readouterr().err
    assert f"no checksum was known; {record_of(path)} records sha256 {SHA}, which later downloads must have" in said
    path.unlink()
    server.body = OTHER
    with pytest.raises(CheckpointError, match=rf"sent a file of sha256 \w+, but {SHA} is recorded in .*first download"):
        teacher_path("mine")
    assert files(home.cache) == [record_of(path).relative_to(home.cache).as_posix()]  # the record stays, nothing else
    server.body = WEIGHTS
    assert teacher_path("mine") == path and path.read_bytes() == WEIGHTS
    # Another address is another file, with a record of its own.
    server.body = OTHER
    home({"mine": {"url": f"{server.url}/good/other.pt"}})
    assert teacher_path("mine").read_bytes() == OTHER and path.read_bytes() == WEIGHTS


FAILURES = {  # behaviour -> message
    "cut": "IncompleteRead",
    "more": "IncompleteRead",
    "stall": "Read timed out",
    "busy": "503 Server Error",
    "missing": "404 Client Error",
    "garbled": "could not be fetched",
    "escape": "InvalidSchema: No connection adapters were found for 'file:",
    "loop": "Exceeded 30 redirects",
    "less": "sent no weights of mine, nothing was kept: the file is a zip archive that is cut short",
    "page": "sent no weights of mine, nothing was kept: the file is a saved web page",
}


@pytest.mark.parametrize("behaviour", FAILURES)
def test_a_failed_download_is_one_sentence_and_leaves_nothing(home, server, behaviour):
    home({"mine": {"url": f"{server.url}/{behaviour}/file.pt"}})
    with pytest.raises(CheckpointError, match=FAILURES[behaviour]) as error:
        load_world_model("mine")
    assert len(server.requests) == (31 if behaviour == "loop" else 1)
    assert "mine" in str(error.value) and "nothing was kept" in str(error.value) and "\n" not in str(error.value)
    assert files(home.cache) == []


def test_files_of_the_hub_go_through_its_own_client(home, server, monkeypatch):
    from_the_server = partial(huggingface_hub.hf_hub_download, endpoint=server.url)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_the_server)
    home({"official/a-1": {"url": f"{registry.OFFICIAL}/dmcontrol/a-1.pt?download=true", "sha256": SHA}})
    path = teacher_path("official/a-1")
    assert path.parent == home.cache / "teachers" / "official" and path.read_bytes() == WEIGHTS
    assert set(server.requests) == {"/nicklashansen/tdmpc2/resolve/main/dmcontrol/a-1.pt"}
    assert len(files(home.cache)) == 2  # nothing of the client's own is left
    server.shutdown()
    home({"official/b-1": {"url": f"{registry.OFFICIAL}/b-1.pt"}})
    server.server_close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client asks again, later and later
    with pytest.raises(CheckpointError, match="official/b-1 could not be fetched from https://huggingface.co/.*kept"):
        teacher_path("official/b-1")


def test_a_wrong_file_never_replaces_a_right_one(home, server):
    home({"mine": {"url": f"{server.url}/good/file.pt", "sha256": SHA}})
    path = teacher_path("mine")
    home({"mine": {"url": f"{server.url}/good/file.pt", "sha256": WRONG_SHA}})
    with pytest.raises(CheckpointError, match=f"sent a file of sha256 {SHA}, but {WRONG_SHA} is listed for mine"):
        teacher_path("mine")
    assert path.read_bytes() == WEIGHTS and len(files(home.cache)) == 2


def test_what_the_cache_lost_or_nobody_vouches_for_is_fetched_again(home, server):
    home({"mine": {"url": f"{server.url}/good/file.pt"}})
    path = teacher_path("mine")
    path.write_bytes(WEIGHTS[:-1])
    assert teacher_path("mine").read_bytes() == WEIGHTS  # of another size
    path.write_bytes(WEIGHTS[:-1] + b"x")
    assert teacher_path("mine", verify=True).read_bytes() == WEIGHTS  # of another checksum
    path.write_bytes(OTHER)
    record_of(path).unlink()  # a fetch that was killed before it could record
    assert teacher_path("mine").read_bytes() == WEIGHTS and len(server.requests) == 4


def test_without_a_network_it_is_one_sentence_and_a_non_zero_exit(home, capsys):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        home({"mine": {"url": f"http://127.0.0.1:{taken.getsockname()[1]}/file.pt"}})
        assert cli.main(["fetch", "mine"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "%" not in said.err
    assert said.err.splitlines()[-1].startswith("checkpoints: mine could not be fetched from http://127.0.0.1")
    assert "Connection refused" in said.err and "-p teacher path/to/file.pt" in said.err


# -------------------------------------------------------------------------------------------------------- manifests

GOOD = {"url": "http://localhost/x.pt"}
MANIFESTS = {
    "up": ({"../x": GOOD}, "'../x' cannot name a teacher"),
    "up later": ({"a/../../x": GOOD}, "cannot name a teacher"),
    "absolute": ({"/tmp/x": GOOD}, "cannot name a teacher"),
    "hidden": ({"a/.x": GOOD}, "cannot name a teacher"),
    "backslash": ({"a\\x": GOOD}, "cannot name a teacher"),
    "long": ({"x" * 101: GOOD}, "cannot name a teacher"),
    "multiplied": ({"{a}": GOOD | {"each": {"a": "b " * 1000}}}, "'{a}' has 'each'; known facts are url, sha256"),
    "empty": ({"": GOOD}, "cannot name a teacher"),
    "file": ({"x": {"url": "file:///etc/x.pt"}}, "the url of 'x' is 'file:///etc/x.pt'; it must be http or https"),
    "ftp": ({"x": {"url": "ftp://localhost/x.pt"}}, "must be http or https"),
    "no host": ({"x": {"url": "http:///x.pt"}}, "must be http or https"),
    "broken url": ({"x": {"url": "http://[x.pt"}}, "must be http or https"),
    "pickle": ({"x": {"url": "http://localhost/x.pkl"}}, "path must end in .pt or .safetensors"),
    "no url": ({"x": {"sha256": None}}, "the url of 'x' is ''"),
    "shipped": ({"x": {"file": "../../x"}}, "'x' has 'file'; known facts are url, sha256"),
    "misspelt": ({"x": GOOD | {"sha": "0" * 64}}, "'x' has 'sha'; known facts are"),
    "md5": ({"x": GOOD | {"sha256": "0" * 32}}, "the sha256 of 'x' must be 64 hexadecimal digits"),
    "number": ({"x": GOOD | {"size": 5}}, "'size' of 'x' must be text, not 5"),
    "list": ([GOOD], "must hold"),
    "text": ({"x": [1]}, "'x' is not an object of facts"),
    "no json": ("{", "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_are_wrong_are_refused_with_file_and_name(home, case):
    content, message = MANIFESTS[case]
    home(content)
    with pytest.raises(CheckpointError, match="manifest.json.*") as error:
        teacher_path("x")
    assert message in str(error.value)


def test_nothing_is_written_outside_the_cache(home, server):
    (home.folder / "outside").mkdir()
    (home.cache / "teachers").mkdir(parents=True)
    (home.cache / "teachers" / "link").symlink_to(home.folder / "outside")
    home({"link/x": {"url": f"{server.url}/good/file.pt"}})
    with pytest.raises(CheckpointError, match="'link/x' would be written outside"):
        teacher_path("link/x")
    assert not server.requests and files(home.folder / "outside") == []


def test_a_manifest_comes_before_what_is_listed(home, server):
    listed = {"official/a-1": {"url": "https://localhost/a.pt", "sha256": "0" * 64, "task": "walker-run"}}
    (home.teachers / "registry.json").write_text(json.dumps(listed))
    home({})
    assert registry.find("official/a-1").task == "walker-run"
    home({"official/a-1": {"url": f"{server.url}/good/a.pt"}})
    assert registry.find("official/a-1") == registry.Entry("official/a-1", url=f"{server.url}/good/a.pt")
    assert teacher_path("official/a-1").read_bytes() == WEIGHTS


def test_a_manifest_comes_before_what_is_shipped_and_an_option_before_the_environment(home, server, monkeypatch):
    save_world_model(tiny_model(), home.teachers / "walker-walk-1m-1.safetensors")
    home({"a remark": "says nothing"})
    assert teacher_path("walker-walk-1m-1").suffix == ".safetensors"
    home({"walker-walk-1m-1": {"url": f"{server.url}/good/theirs.pt"}})
    assert teacher_path("walker-walk-1m-1").suffix == ".pt"
    option = home.folder / "option.json"
    option.write_text(json.dumps({"other": {"url": f"{server.url}/good/file.pt"}}))
    assert registry.find("other") is None and registry.find("other", str(option)).name == "other"
    monkeypatch.setenv(registry.MANIFEST_VARIABLE, str(home.folder / "gone.json"))
    with pytest.raises(CheckpointError, match=f"gone.json does not exist.*{registry.MANIFEST_VARIABLE}"):
        teacher_path("walker-walk-1m-1")


# ------------------------------------------------------------------------------------------------- registry and CLI


def test_the_registry_lists_the_official_weights(monkeypatch):
    monkeypatch.delenv(registry.MANIFEST_VARIABLE, raising=False)
    listed = registry.entries()
    official = {name: entry for name, entry in listed.items() if name.startswith("official/")}
    single = {f"official/{task}-{seed}" for task in (*MT30, *SINGLE) for seed in (1, 2, 3)}
    many = {f"official/{tasks}-{size}" for tasks in ("mt30", "mt80") for size in MODEL_SIZES}
    assert set(official) == single | many and (len(single), len(many)) == (117, 10)
    base = "https://huggingface.co/nicklashansen/tdmpc2/resolve/main"
    assert official["official/dog-run-1"].url == f"{base}/dmcontrol/dog-run-1.pt"
    distilled = listed["td-mpc-opt/mt30-1m"]
    assert distilled.url.startswith("https://") and (distilled.tasks, distilled.licence) == ("mt30", "MIT")
    assert not REAL.is_file() or registry.file_hash(REAL) == distilled.sha256
    assert official["official/humanoid-walk-3"].task == "humanoid-walk"
    assert official["official/mt80-317m"].url == f"{base}/multitask/mt80-317M.pt"
    assert (official["official/mt30-19m"].tasks, official["official/mt30-19m"].size) == ("mt30", "19m")
    assert all(e.licence == "MIT" and e.sha256 is None and "not verified" in e.note for e in official.values())


def test_every_shipped_teacher_is_listed_with_its_checksum(monkeypatch):
    monkeypatch.delenv(registry.MANIFEST_VARIABLE, raising=False)
    listed = {name: entry for name, entry in registry.entries().items() if entry.file}
    files = [p.relative_to(TEACHERS).with_suffix("").as_posix() for p in TEACHERS.rglob("*.safetensors")]
    assert set(listed) == set(files), "run python -m lib.weights.cli register NAME"
    for name, entry in listed.items():
        assert entry.path == TEACHERS / f"{name}.safetensors" and entry.licence == "MIT"
        assert entry.sha256 == file_hash(entry.path), f"run python -m lib.weights.cli register {name}"


def test_what_a_killed_writer_left_is_no_teacher(home, capsys):
    home({})
    for name in ("walker-walk-1m-1", ".walker-walk-1m-2.deadbeef.tmp"):
        save_world_model(tiny_model(), home.teachers / f"{name}.safetensors")
    assert shipped_teachers() == ["walker-walk-1m-1"]
    assert cli.main(["list"]) == 0 and "deadbeef" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "lacks"),
    [("[1]", "decisions, returns"), ('"x"', "decisions, returns"), ("null", "decisions, returns"), ("{", "decisions"),
     ('{"decisions": 5}', "returns"), ('{"decisions": "5", "returns": [1.0]}', "decisions")],
)  # fmt: skip
def test_a_card_of_another_shape_is_one_sentence(home, text, lacks):
    weights = home.teachers / "walker-walk-1m-1.safetensors"
    assert registry.card_of(weights) is None
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"1m-1\.json is no card of a teacher, it lacks {lacks}.*; restore it"):
        registry.card_of(weights, "decisions", "returns")
    weights.with_suffix(".json").write_text('{"decisions": 5, "returns": [1.0]}')
    assert registry.card_of(weights, "decisions", "returns")["decisions"] == 5


def test_a_registry_of_another_shape_is_one_sentence(home, capsys, monkeypatch):
    monkeypatch.delenv(registry.MANIFEST_VARIABLE)
    save_world_model(tiny_model(), home.teachers / "reacher-easy-1m-2.safetensors")
    (home.teachers / "reacher-easy-1m-2.json").write_text('{"task": "reacher-easy", "size": "1m"}')
    (home.teachers / "registry.json").write_text("[1]")
    assert cli.main(["register", "reacher-easy-1m-2"]) == 2
    assert "registry.json must hold" in capsys.readouterr().err
    assert (home.teachers / "registry.json").read_text() == "[1]"


def test_a_folder_that_cannot_be_written_to_is_one_sentence(home, capsys, monkeypatch):
    monkeypatch.delenv(registry.MANIFEST_VARIABLE)
    save_world_model(tiny_model(), home.teachers / "reacher-easy-1m-2.safetensors")
    (home.teachers / "reacher-easy-1m-2.json").write_text('{"task": "reacher-easy", "size": "1m"}')

    def refuse(path, text):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(registry, "_write", refuse)
    assert cli.main(["register", "reacher-easy-1m-2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("checkpoints: ") and said.endswith(": Read-only file system\n") and said.count("\n") == 1


def test_registering_a_teacher_keeps_the_others(home, capsys, monkeypatch):
    monkeypatch.delenv(registry.MANIFEST_VARIABLE)
    own = home.teachers / "registry.json"
    own.write_text((TEACHERS / "registry.json").read_text())
    save_world_model(tiny_model(), home.teachers / "reacher-easy-1m-2.safetensors")
    for name in ("reacher-easy-1m-2", "../reacher-easy-1m-2", "x" * 5000):
        assert cli.main(["register", name]) == 2
        assert "ship the teacher first" in capsys.readouterr().err
    (home.teachers / "reacher-easy-1m-2.json").write_text('{"task": "reacher-easy", "size": "1m"}')
    assert cli.main(["register", "reacher-easy-1m-2"]) == 0
    before, after = (file.read_text().replace("},\n", "}\n") for file in (TEACHERS / "registry.json", own))
    assert after.startswith(before.removesuffix("}\n")) and len(after.splitlines()) == len(before.splitlines()) + 1
    entry = registry.find("reacher-easy-1m-2")
    assert (entry.sha256, entry.task, entry.size) == (file_hash(entry.path), "reacher-easy", "1m")


def test_fetching_a_shipped_teacher_compares_its_checksum(home, capsys, monkeypatch):
    monkeypatch.delenv(registry.MANIFEST_VARIABLE)
    weights = home.teachers / "walker-walk-1m-1.safetensors"
    save_world_model(tiny_model(), weights)
    listed = {"file": weights.name, "sha256": file_hash(weights), "task": "walker-walk", "size": "1m", "licence": "MIT"}
    (home.teachers / "registry.json").write_text(json.dumps({"walker-walk-1m-1": listed}))
    assert cli.main(["fetch", "walker-walk-1m-1"]) == 0
    weights.write_bytes(weights.read_bytes() + b" ")
    assert cli.main(["fetch", "walker-walk-1m-1"]) == 2
    assert f"is not the file whose sha256 is listed, {listed['sha256']}" in capsys.readouterr().err
    weights.unlink()
    assert cli.main(["fetch", "walker-walk-1m-1"]) == 2
    assert "is listed as shipped but is missing; restore it from the repository" in capsys.readouterr().err


def test_list_and_info_say_what_is_here_and_fetch_nothing(home, server, capsys):
    url = f"{server.url}/good/file.pt"
    home({"mine": {"url": url, "task": "walker-walk", "size": "5m", "licence": "CC0", "note": "a remark"}})
    save_world_model(tiny_model(), home.teachers / "walker-walk-1m-1.safetensors")
    card = {"task": "walker-walk", "size": "1m", "return_mean": 912.34, "return_std": 5.0, "returns": [1, 2]}
    (home.teachers / "walker-walk-1m-1.json").write_text(json.dumps(card))

    def run(*arguments):
        assert cli.main(list(arguments)) == 0
        return capsys.readouterr().out

    rows = [line.split() for line in run("list").splitlines()]
    assert rows[1] == ["walker-walk-1m-1", "shipped", "unknown", "unknown"]
    assert rows[2] == ["mine", "5m", "not", "fetched", "unknown", "CC0"]
    assert [row[0] for row in rows[-2:]] == ["official/walker-walk-backwards-3", "td-mpc-opt/mt30-1m"]
    facts = run("info", "mine")
    assert f"url         {url}" in facts and "not fetched; `python -m lib.weights.cli fetch mine`" in facts
    assert "a remark" in facts and not server.requests
    assert run("fetch", "mine") == run("fetch", "mine") == f"{teacher_path('mine')}\n" and len(server.requests) == 1
    facts = run("info", "mine")
    assert "task        walker-walk" in facts and "licence     CC0" in facts
    assert f"sha256      {SHA} (as first downloaded)" in facts
    assert "24 observations, 6 actions, latent 32, encoder of 2 layers, 32 wide, others 32 wide, 5 Q heads" in facts
    assert run("list").splitlines()[2].split()[2] == "fetched"
    registry.register("walker-walk-1m-1")
    facts = run("info", "walker-walk-1m-1")
    assert "(as listed)" in facts and "return      912.3 ± 5.0 over 2 episodes (its card)" in facts
    save_world_model(tiny_model(seed=1), home.teachers / "walker-walk-1m-1.safetensors")
    assert "(the listed one is " in run("info", "walker-walk-1m-1")
    facts = run("info", str(FIXTURES / "official_tiny_mt30_new.pt"))
    assert "30 tasks: walker-stand, walker-walk" in facts and "task embedding 96" in facts


def test_sizes_are_named_from_the_widths():
    for size in MODEL_SIZES:
        assert size_of(WorldModelConfig.from_size(size, 24, 6)) == size
    small_latent = WorldModelConfig(24, 6, **MODEL_SIZES["19m"] | {"latent_dim": 512})
    assert size_of(small_latent) == "19m" and size_of(tiny_model().config) == "of its own"


def test_the_command_line_runs_from_any_folder_and_names_what_is_near(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != registry.MANIFEST_VARIABLE}
    command = [sys.executable, "-m", "lib.weights.cli", "info", "walker-walk-1m-1", "official/dog-rum-1"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and "task        walker-walk" in run.stdout and "(its card)" in run.stdout
    assert len(run.stderr.splitlines()) == 1 and run.stderr.startswith("checkpoints: there is no teacher")
    assert "Did you mean official/dog-run-1" in run.stderr
