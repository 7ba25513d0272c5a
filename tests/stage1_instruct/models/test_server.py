"""A model behind a server: what is sent, to whom, and what becomes of every way it can go wrong."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import ChatServer, Fault, Handler, picture_of, reply, said, serving
from click.testing import CliRunner, Result
from PIL import Image
from tiny_vlms import write_vlm

from zeus_union.cache.errors import ServerError, UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.building.failures import BuildFailures
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models import endpoint
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.models.endpoint import host_of, is_loopback
from zeus_union.stage1_instruct.models.server import check_destination, picture_part
from zeus_union.stage1_instruct.profiles.profile import load_profile

PICTURES = torch.randint(0, 256, (6, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
QUESTIONS = [f"What is {i}?" for i in range(6)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as state:
        yield state


def models(parts: dict[str, str], address: str, said_lines: list[str] | None = None, **overrides: str) -> Models:
    settings = {"instructor": "server", "address": address, "model": "tiny-vlm", "llm": "none", "retries": "2"}
    profile = load_profile("lite", {**parts, **settings, **overrides})
    return load_models(profile, "cpu", (said_lines if said_lines is not None else []).append)


def build(parts: dict[str, str], address: str, data: Path, out: Path, **overrides: str) -> None:
    """Two subjects, one modality, without an image encoder."""
    dataset = open_dataset("nnunet", data, modalities=("T2-SPIR",))
    options = BuildOptions(out, layers=("slices", "instructions"), slice_step=6)
    build_cache(dataset, models(parts, address, **{"retries": "1", **overrides}), options)


def command(parts: dict[str, str], address: str, data: Path, out: Path, **overrides: str) -> Result:
    """The same by the command."""
    line = ["build-cache", "--dataset", "nnunet", "--data-root", str(data), "--modalities", "T2-SPIR"]
    line += ["--slice-step", "9", "--out", str(out)]
    settings = {"instructor": "server", "address": address, "model": "tiny-vlm", "llm": "none", "retries": "1"}
    for part, value in {**parts, **settings, **overrides}.items():
        line += ["--set", f"{part}={value}"]
    return CliRunner().invoke(main, line)


def test_every_question_goes_with_its_picture_and_its_answer_comes_back_in_order(
    tiny_parts: dict[str, str], server: ChatServer
) -> None:
    answers = models(tiny_parts, server.address, parallel="3").instructor.answer(QUESTIONS, PICTURES)
    urls = [picture_part(picture.numpy())["image_url"]["url"] for picture in PICTURES]
    assert [answer.text for answer in answers] == [
        " ".join(said(question, [url]).split()) for question, url in zip(QUESTIONS, urls)
    ]
    assert {(answer.prompt_tokens, answer.output_tokens, answer.stop_reason) for answer in answers} == {(13, 7, "stop")}
    sent = {np.asarray(Image.open(io.BytesIO(picture_of(body)))).tobytes() for body in server.asked}
    assert sent == {picture.numpy().tobytes() for picture in PICTURES}


def test_another_picture_changes_the_request_and_the_answer(tiny_parts: dict[str, str], server: ChatServer) -> None:
    instructor = models(tiny_parts, server.address).instructor
    changed = PICTURES.clone()
    changed[0, 100, 100] ^= 1
    first, second = (instructor.answer(QUESTIONS[:1], seen[:1])[0].text for seen in (PICTURES, changed))
    assert first != second and picture_of(server.asked[0]) != picture_of(server.asked[1])


def test_as_many_requests_as_the_profile_says_are_under_way(tiny_parts: dict[str, str], server: ChatServer) -> None:
    server.delay_s = 0.1
    models(tiny_parts, server.address, parallel="3").instructor.answer(QUESTIONS, PICTURES)
    assert server.most == 3


def test_greedy_by_default_and_sampled_with_a_seed_for_each_row(tiny_parts: dict[str, str], server: ChatServer) -> None:
    models(tiny_parts, server.address).instructor.answer(QUESTIONS[:1], PICTURES[:1])
    sampled = models(tiny_parts, server.address, temperature="0.7", top_p="0.9", parallel="1").instructor
    sampled.answer(QUESTIONS[:2], PICTURES[:2], [5, 2**62 + 9])
    greedy, *rows = server.asked
    assert greedy["temperature"] == 0 and greedy["max_tokens"] == 8 and "seed" not in greedy
    assert [(row["temperature"], row["top_p"], row["seed"]) for row in rows] == [(0.7, 0.9, 5), (0.7, 0.9, 9)]


def test_recipe_has_model_and_settings_and_not_where_it_is_served(tiny_parts: dict[str, str]) -> None:
    def recipe(address: str = "http://localhost:1/v1", **overrides: str) -> str:
        return json.dumps(models(tiny_parts, address, **overrides).instruction_recipe(), sort_keys=True)

    base = recipe()
    changes = ({"model": "other"}, {"max_new_tokens": "9"}, {"temperature": "0.5"})
    assert len({base, *(recipe(**change) for change in changes)}) == 4
    assert recipe("http://localhost:2/v1", parallel="9", retries="0", timeout_s="3") == base
    assert "tiny-vlm" in base and "localhost" not in base


def test_build_sends_pictures_and_questions_and_nothing_that_names_a_subject_or_a_path(
    tiny_parts: dict[str, str], server: ChatServer, nnunet: Path, tmp_path: Path
) -> None:
    done = command(tiny_parts, server.address, nnunet, tmp_path / "a.h5")
    assert done.exit_code == 0, done.output
    with Cache(tmp_path / "a.h5") as cache:
        rows = np.arange(len(cache.rows))
        pictures = {picture.tobytes() for picture in cache.images(rows)[:, 0]}
        texts = cache.instructions("lite").to_pylist()
        subjects = cache.subjects
    assert {np.asarray(Image.open(io.BytesIO(picture_of(body)))).tobytes() for body in server.asked} == pictures
    assert len(server.asked) == len(rows) and all(text["text"].startswith("The picture is ") for text in texts)
    words = [*subjects, str(tmp_path), str(Path.home()), "phantom", "nnunet", ".nii"]
    for sent in server.received:
        for word in words:
            assert word.encode().lower() not in sent.lower(), word
    chunks = [picture_of(body) for body in server.asked]
    assert all(data.count(b"tEXt") + data.count(b"iTXt") + data.count(b"eXIf") == 0 for data in chunks)


def test_finished_subjects_are_not_asked_again(
    tiny_parts: dict[str, str], server: ChatServer, nnunet: Path, tmp_path: Path
) -> None:
    build(tiny_parts, server.address, nnunet, tmp_path / "whole.h5")
    count = len(server.asked)
    server.bodies.clear()
    server.faults = [proper] * (count // 2) + [fails] * 2
    with pytest.raises(ServerError, match=r"answers 500: out of memory \(2 tries\)"):
        build(tiny_parts, server.address, nnunet, tmp_path / "parts.h5", parallel="1")
    server.bodies.clear()
    build(tiny_parts, server.address, nnunet, tmp_path / "parts.h5")
    assert len(server.asked) == count - count // 2
    with Cache(tmp_path / "whole.h5") as whole, Cache(tmp_path / "parts.h5") as parts:
        assert whole.instructions("lite").to_pylist() == parts.instructions("lite").to_pylist()
    server.bodies.clear()
    build(tiny_parts, server.address, nnunet, tmp_path / "parts.h5")
    assert server.bodies == []


def proper(handler: Handler) -> None:
    """No fault."""
    handler.answer_properly()  # type: ignore[attr-defined]


def garbage(handler: Handler) -> None:
    reply(handler, b"<html>\n<b>Bad gateway</b>")


def no_choices(handler: Handler) -> None:
    reply(handler, b'{"choices": []}')


def a_list(handler: Handler) -> None:
    reply(handler, b'["x"]')


def no_text(handler: Handler) -> None:
    reply(handler, b'{"choices": [{"message": {"content": 3}}]}')


def empty(handler: Handler) -> None:
    reply(handler, b'{"choices": [{"message": {"content": " \\n"}, "finish_reason": "length"}]}')


def nothing(handler: Handler) -> None:
    reply(handler, b"")


def null(handler: Handler) -> None:
    reply(handler, b'{"choices": [{"message": {"content": null}}]}')


def fails(handler: Handler) -> None:
    reply(handler, b'{"error": {"message": "out of\\nmemory"}}', 500)


def too_many(handler: Handler) -> None:
    reply(handler, b"slow down", 429)


def cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "The')
    handler.close_connection = True


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def slow(handler: Handler) -> None:
    time.sleep(1.0)
    proper(handler)


def endless(handler: Handler) -> None:
    reply(handler, b" " * (endpoint.LARGEST_ANSWER + 1))


def drips(handler: Handler) -> None:
    """A byte now and then: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    for _ in range(9):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return
        time.sleep(0.1)


FAULTS = {
    garbage: "answers what is not JSON: <html> <b>Bad gateway</b>",
    nothing: "answers what is not JSON: (nothing)",
    no_choices: "answers what is no completion",
    a_list: "answers what is no completion",
    no_text: "answers what is no text: 3",
    empty: "answers without a word (finish_reason length)",
    null: "answers without a word",
    fails: "answers 500: out of memory",
    too_many: "answers 429: slow down",
    cut: "the connection failed",
    hangs_up: "the connection failed",
    slow: "no whole answer within timeout_s = 0.5",
    endless: "answers with more than 16 MiB",
    drips: "no whole answer within timeout_s = 0.5",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_that_passes_is_tried_again(fault: Fault, tiny_parts: dict[str, str], server: ChatServer) -> None:
    instructor = models(tiny_parts, server.address, timeout_s="0.5", parallel="1").instructor
    expected = instructor.answer(QUESTIONS[:3], PICTURES[:3])
    server.faults = [fault, fault]
    assert instructor.answer(QUESTIONS[:3], PICTURES[:3]) == expected


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_that_stays_is_one_line_after_the_last_try(
    fault: Fault, tiny_parts: dict[str, str], server: ChatServer
) -> None:
    server.always = fault
    with pytest.raises(UserError) as raised:
        models(tiny_parts, server.address, timeout_s="0.5", retries="1").instructor.answer(QUESTIONS[:1], PICTURES[:1])
    assert FAULTS[fault] in str(raised.value) and "(2 tries)" in str(raised.value)
    assert "\n" not in str(raised.value) and len(server.asked) == 2


def test_command_ends_with_one_line_and_2_and_goes_on_when_the_server_is_up_again(
    tiny_parts: dict[str, str], server: ChatServer, nnunet: Path, tmp_path: Path
) -> None:
    server.faults = [proper, *[fails] * 50]
    done = command(tiny_parts, server.address, nnunet, tmp_path / "a.h5", parallel="1")
    assert done.exit_code == 2 and FAULTS[fails] in done.output.strip().splitlines()[-1], done.output
    server.faults.clear()
    assert command(tiny_parts, server.address, nnunet, tmp_path / "a.h5").exit_code == 0
    assert verify(tmp_path / "a.h5") == []


@pytest.mark.parametrize("fault", [garbage, cut, empty, slow], ids=lambda fault: fault.__name__)
def test_fault_that_stays_leaves_nothing_half_written(
    fault: Fault, tiny_parts: dict[str, str], server: ChatServer, nnunet: Path, tmp_path: Path
) -> None:
    server.faults = [proper, *[fault] * 50]
    with pytest.raises(UserError):
        build(tiny_parts, server.address, nnunet, tmp_path / "a.h5", parallel="1", timeout_s="0.5")
    assert not [path for path in (tmp_path / "a.h5.d").rglob("*") if "instructions" in path.name and path.is_file()]
    server.faults.clear()
    build(tiny_parts, server.address, nnunet, tmp_path / "a.h5")
    assert verify(tmp_path / "a.h5") == []


def test_address_where_nobody_listens_stops_the_build_at_once(
    tiny_parts: dict[str, str], nnunet: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=f"{address}: cannot be reached.*refused"):
            build(tiny_parts, address, nnunet, tmp_path / "a.h5")


def test_server_that_fails_is_no_subjects_fault(
    tiny_parts: dict[str, str], server: ChatServer, nnunet: Path, tmp_path: Path
) -> None:
    server.always = fails
    with pytest.raises(ServerError):
        build(tiny_parts, server.address, nnunet, tmp_path / "a.h5", parallel="1")
    assert len(server.asked) == 2


def test_subject_with_an_empty_answer_is_left_out_and_the_others_go_on(
    tiny_parts: dict[str, str], server: ChatServer, nnunet: Path, tmp_path: Path
) -> None:
    server.faults = [empty, empty]
    with pytest.raises(BuildFailures, match="1 of 2 subjects could not be built"):
        build(tiny_parts, server.address, nnunet, tmp_path / "a.h5", parallel="1")
    build(tiny_parts, server.address, nnunet, tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("status", "advice"), [(400, ""), (401, ""), (404, "the address ends in /v1 with most"), (422, "")]
)
def test_refusal_is_passed_on_and_not_tried_again(
    status: int, advice: str, tiny_parts: dict[str, str], server: ChatServer
) -> None:
    server.always = lambda handler: reply(handler, b'{"error": "no such model"}', status)
    with pytest.raises(ServerError, match=f"refuses with {status}: no such model.*{advice}"):
        models(tiny_parts, server.address, parallel="1").instructor.answer(QUESTIONS, PICTURES)
    assert len(server.asked) == 1


def test_pause_that_the_server_asks_for_is_kept(tiny_parts: dict[str, str], server: ChatServer) -> None:
    server.faults = [lambda handler: reply(handler, b"later", 429, Retry_After="1")]
    start = time.monotonic()
    models(tiny_parts, server.address).instructor.answer(QUESTIONS[:1], PICTURES[:1])
    assert 1 <= time.monotonic() - start < 3


def test_picture_is_never_carried_on_to_another_address(tiny_parts: dict[str, str], server: ChatServer) -> None:
    with serving() as other:
        server.always = lambda handler: reply(handler, b"", 307, Location=f"{other.address}/chat/completions")
        with pytest.raises(ServerError, match="answers 307 and points to http"):
            models(tiny_parts, server.address).instructor.answer(QUESTIONS[:1], PICTURES[:1])
        assert other.received == []


def test_proxies_of_the_environment_get_no_picture(
    tiny_parts: dict[str, str], server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address.removesuffix("/v1"))
        models(tiny_parts, server.address).instructor.answer(QUESTIONS[:1], PICTURES[:1])
        assert proxy.received == [] and len(server.asked) == 1


def test_key_comes_from_the_environment_and_into_no_recipe(
    tiny_parts: dict[str, str], server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="key_variable = TINY_KEY, but no environment variable"):
        models(tiny_parts, server.address, key_variable="TINY_KEY").instructor.load()
    monkeypatch.setenv("TINY_KEY", "secret-7")
    used = models(tiny_parts, server.address, key_variable="TINY_KEY")
    used.instructor.load()
    assert all(b"Authorization: Bearer secret-7" in sent for sent in server.received)
    assert "secret-7" not in json.dumps(used.instruction_recipe())


def test_model_that_takes_no_picture_is_refused_before_the_first_subject(
    tiny_parts: dict[str, str], server: ChatServer
) -> None:
    server.sees = False
    with pytest.raises(UserError, match="accepts no images: a question has 3 tokens with and without one"):
        models(tiny_parts, server.address).instructor.load()
    server.counts, notes = False, []  # type: ignore[var-annotated]
    models(tiny_parts, server.address, notes).instructor.load()
    assert "counts no tokens" in notes[0]


def test_model_that_the_server_does_not_list_is_said(tiny_parts: dict[str, str], server: ChatServer) -> None:
    notes: list[str] = []
    models(tiny_parts, server.address, notes, model="other").instructor.load()
    assert notes == [f"{server.address} lists tiny-vlm and not other"]


def test_doctor_asks_the_server(tiny_parts: dict[str, str], server: ChatServer) -> None:
    def doctor() -> Any:
        settings = {"instructor": "server", "address": server.address, "model": "tiny-vlm", "retries": "0"}
        command = ["doctor"]
        for part, value in {**tiny_parts, **settings}.items():
            command += ["--set", f"{part}={value}"]
        return CliRunner().invoke(main, command)

    done = doctor()
    assert done.exit_code == 0, done.output
    assert f"server: {server.address}: tiny-vlm answers" in done.output and "vision features" not in done.output
    server.sees = False
    done = doctor()
    assert done.exit_code == 2 and "WRONG  server: tiny-vlm at" in done.output


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://localhost:8000/v1", "localhost"),
        ("HTTP://LOCALHOST/v1", "localhost"),
        ("http://127.0.0.1:1", "127.0.0.1"),
        ("http://[::1]:8000/v1", "::1"),
        ("https://gpu.hospital.org/v1", "gpu.hospital.org"),
    ],
)
def test_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "ftp://localhost/v1",
        "http://",
        "http://localhost@evil.org/v1",
        "http://user:word@localhost/v1",
        "http://localhost/v1?to=evil.org",
        "http://evil.org#@localhost/v1",
        "http://evil.org\\@localhost/v1",
        "/v1",
    ],
)
def test_address_that_could_be_read_in_two_ways_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="expected http"):
        host_of(address)


def test_loopback_is_this_machine_and_nothing_else() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    others = ("0.0.0.0", "192.168.0.1", "::", "localhost.evil.org", "127.0.0.1.evil.org", "10.0.0.1", "example.org")
    assert not any(is_loopback(host) for host in others)


def test_another_machine_gets_images_only_where_it_is_named(
    tiny_parts: dict[str, str], nnunet: Path, tmp_path: Path
) -> None:
    address, lines = "http://192.0.2.7:8000/v1", []  # type: ignore[var-annotated]
    with pytest.raises(
        UserError, match=r"every image would be sent to 192\.0\.2\.7; give --send-images-to 192\.0\.2\.7"
    ):
        check_destination(address, None, lines.append)
    with pytest.raises(UserError, match="--send-images-to gpu, but the profile's address is"):
        check_destination(address, "gpu", lines.append)
    assert lines == []
    check_destination(address, "192.0.2.7", lines.append)
    assert lines == ["images are sent to 192.0.2.7, not encrypted (http), as --send-images-to 192.0.2.7 allows"]
    check_destination("https://GPU.example/v1", "gpu.example", lines.append)
    assert lines[1] == "images are sent to gpu.example, as --send-images-to gpu.example allows"
    done = command(tiny_parts, address, nnunet, tmp_path / "a.h5")
    assert done.exit_code == 2 and "give --send-images-to 192.0.2.7" in done.output


def test_host_for_images_without_a_server_is_refused(tiny_parts: dict[str, str]) -> None:
    with pytest.raises(UserError, match="--send-images-to gpu is for instructor = server and this is llm"):
        load_models(load_profile("lite", tiny_parts), "cpu", print, send_images_to="gpu")


def test_segment_sends_a_new_study_only_where_the_command_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run's own instructor writes the texts of a new study."""
    given: dict[str, Any] = {}

    class Stopped(UserError):
        pass

    def segmenter(_: Any, **more: Any) -> None:
        given.update(more)
        raise Stopped("seen enough")

    run = SimpleNamespace(inputs=SimpleNamespace(channels={}))
    monkeypatch.setattr("zeus_union.stage2_segment.checkpoint.load_config", lambda _: run)
    monkeypatch.setattr("zeus_union.pipelines.segment.segmenter.Segmenter", segmenter)
    line = ["segment", str(tmp_path), "--run", str(tmp_path), "--send-images-to", "gpu.example"]
    assert "seen enough" in CliRunner().invoke(zeus, line).output
    assert given["send_images_to"] == "gpu.example"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"address": "none"}, "instructor = server needs address"),
        ({"model": "none"}, "instructor = server needs model"),
        ({"parallel": "0"}, "parallel = 0, expected 1 or more"),
        ({"timeout_s": "0"}, "timeout_s above 0"),
        ({"keep_states": "yes"}, "instructor = server no language model has states"),
        ({"lora": "x.safetensors"}, "is for instructor = llm"),
    ],
)
def test_setting_that_cannot_be_is_one_clear_error(overrides: dict[str, str], message: str) -> None:
    settings = {"instructor": "server", "address": "http://localhost/v1", "model": "m"}
    with pytest.raises(UserError, match=message):
        load_profile("lite", {**settings, **overrides})


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`transformers serve` with a tiny vision-language model: its address and the model's folder."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    folder = write_vlm("llava", tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "from transformers.cli.transformers import main; main()"
    options = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (folder / "log").open("w")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, *options], stdout=log, stderr=log, env=environment)
    try:
        for _ in range(600):
            time.sleep(0.2)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                break
        else:
            pytest.fail("transformers serve did not come up")
        if process.poll() is not None:
            pytest.fail(f"transformers serve ended: {(folder / 'log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


@pytest.mark.slow
def test_transformers_serve_says_what_the_same_model_says_here(
    transformers_serve: tuple[str, Path], tiny_parts: dict[str, str]
) -> None:
    address, folder = transformers_serve
    lines: list[str] = []
    served = models(tiny_parts, address, lines, model=str(folder), parallel="2").instructor
    served.load()
    assert not [line for line in lines if "counts no tokens" in line]
    answers = served.answer(QUESTIONS[:3], PICTURES[:3])
    here = models(tiny_parts, address, instructor="vlm", model=str(folder), no_repeat_ngram_size="0").instructor
    assert [answer.text for answer in answers] == [answer.text for answer in here.answer(QUESTIONS[:3], PICTURES[:3])]
    changed = served.answer(QUESTIONS[:1], PICTURES[1:2])[0]
    assert changed.text != answers[0].text and changed.prompt_tokens == answers[0].prompt_tokens > 16


@pytest.mark.slow
def test_transformers_serve_refuses_another_model_in_one_line(
    transformers_serve: tuple[str, Path], tiny_parts: dict[str, str]
) -> None:
    with pytest.raises(ServerError, match=r"refuses with 400: Server is pinned to .*; requested 'other'"):
        models(tiny_parts, transformers_serve[0], model="other").instructor.load()
