"""Reward services and judges against servers on this machine: what is sent and comes back, is tried again, or stops."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from records import asked

from star import cli
from star.config import Scorers, load
from star.config.key import scoring_key, training_key
from star.errors import InputError, ScorerFailed
from star.scoring import judge, remote
from star.scoring.pool import RewardPool
from star.scoring.scorer import make_scorer

Reply = tuple[int, bytes, dict]  # status, body, headers


@contextmanager
def serving(answer: Callable[[str, dict, dict], Reply | None]) -> Iterator[str]:
    """The address of a server whose `answer` gets path, body and headers of every POST; None hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = answer(self.path, body, dict(self.headers))
            if reply is None:
                self.close_connection = True
                return
            status, content, headers = reply
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def good(value: object) -> Reply:
    return 200, json.dumps(value).encode(), {}


def pixels(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def brightness(body: dict) -> dict:
    """What a service may do: the mean of every picture, and of its prompt's length."""
    scores = [float(pixels(p).mean()) + len(r["prompt"]) for p, r in zip(body["images"], body["records"], strict=True)]
    return {"scores": scores, "rewards": [score / 256 for score in scores], "fingerprint": "brightness v1"}


def service(url: str, **settings: object) -> Scorers:
    return Scorers.model_validate({"services": {"bright": {"url": url, "retries": 2, **settings}}})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.01)


@pytest.fixture
def batch() -> tuple[list[np.ndarray], list]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (5 + i, 7, 3)).astype(np.uint8) for i in range(7)]
    return images, [asked("x" * i, {"include": [{"class": "cat", "count": i + 1}]}, id=f"p{i}") for i in range(1, 8)]


def test_numbers_come_back_in_order_in_batches(batch: tuple) -> None:
    sizes, records = [], {}

    def answer(path: str, body: dict, headers: dict) -> Reply:
        sizes.append(len(body["images"]))
        records.update({record["id"]: record for record in body["records"]})
        return good(brightness(body))

    images, asked_for = batch
    with serving(answer) as url:
        scorer = make_scorer("service:bright", service(url + "/rate", batch=3, version="2"))
        scored = scorer(images, asked_for)
        assert scorer([], []) == []
    expected = [float(image.mean()) + len(record.text) for image, record in zip(images, asked_for, strict=True)]
    assert [s.score for s in scored] == expected and [s.reward for s in scored] == [value / 256 for value in expected]
    assert sizes[0] == 0 and sorted(sizes[1:]) == [1, 3, 3]  # first of all, whether it is there
    assert records["p3"] == asked_for[2].as_dict()
    assert scorer.fingerprint == "service:bright brightness v1 version=2"


@pytest.mark.parametrize(
    "failure",
    [
        (503, b"busy", {}),
        (429, b"", {"Retry-After": "0"}),
        (500, b"out of memory", {}),
        (200, b'{"scores": [', {"Content-Length": "400"}),  # torn
        None,
    ],
)
def test_what_may_pass_is_tried_again(failure: Reply | None, batch: tuple) -> None:
    tries = []

    def answer(path: str, body: dict, headers: dict) -> Reply | None:
        tries.append(len(body["images"]))
        return failure if tries.count(len(body["images"])) <= 2 else good(brightness(body))

    with serving(answer) as url:
        scored = make_scorer("service:bright", service(url))(*batch)
    assert len(scored) == 7 and tries == [0, 0, 0, 7, 7, 7]


@pytest.mark.parametrize(
    ("reply", "says", "tries"),
    [
        ((400, b"no\nsuch model", {}), r"scorers\.services\.bright: http://127.*refuses \(HTTP 400 no such model\)", 1),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), "refuses .HTTP 302", 1),
        ((503, b"busy", {}), r"does not answer after 3 tries \(HTTP 503 busy\)", 3),
        (None, "does not answer after 3 tries .ConnectionError", 3),
        ((200, b"<html>", {}), "answers no JSON object but '<html>'", 1),
        ((200, b"[1]", {}), "answers no JSON object", 1),
        (good({"scores": [1.0]}), r"`scores` is \[1\.0\], not 7 finite numbers", 1),
        (good({"scores": [float("nan")] * 7}), "not 7 finite numbers", 1),
        (good({"scores": [True] * 7}), "not 7 finite numbers", 1),
        (good({"scores": [1] * 7, "rewards": 3}), "`rewards` is 3, not 7 finite numbers", 1),
        (good({"scores": [1] * 7, "fingerprint": "v2"}), "was 'v1' and is 'v2' now", 1),
    ],
)
def test_what_does_not_pass_stops_in_one_line(reply: Reply | None, says: str, tries: int, batch: tuple) -> None:
    seen = []

    def answer(path: str, body: dict, headers: dict) -> Reply | None:
        if not body["images"]:
            return good({"scores": [], "fingerprint": "v1"})
        seen.append(body)
        return reply

    with serving(answer) as url:
        scorer = make_scorer("service:bright", service(url))
        with pytest.raises(ScorerFailed, match=says) as stopped:
            scorer(*batch)
    assert "\n" not in str(stopped.value) and len(seen) == tries


def test_a_slow_answer_is_not_waited_for(batch: tuple) -> None:
    released = threading.Event()
    with (
        serving(lambda *_: released.wait(20) and None) as url,
        pytest.raises(InputError, match=r"ReadTimeout.*start the service"),
    ):
        try:
            make_scorer("service:bright", service(url, timeout=0.1, retries=0))
        finally:
            released.set()


def test_a_service_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/1.png")
    (tmp_path / "p.txt").write_text("a cat")
    where = ["--images", str(tmp_path / "images"), "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out.jsonl")]
    gone = "scorers.services={bright: {url: http://127.0.0.1:9, retries: 1}}"
    assert cli.main(["score", "--scorer", "service:bright", "--set", gone, *where]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "scorers.services.bright: http://127.0.0.1:9 does not answer after 2 tries" in said
    assert cli.main(["score", "--scorer", "service:dark", *where]) == 2
    assert "scorers.services.dark: service:dark is asked for, but no such service" in capsys.readouterr().err
    with serving(lambda path, body, headers: good(brightness(body))) as url:
        there = f"scorers.services.bright.url={url}"
        assert cli.main(["score", "--scorer", "service:bright", "--set", there, *where]) == 0
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert line["score"] == len("a cat")


def test_a_token_is_sent_and_never_written(batch: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def answer(path: str, body: dict, headers: dict) -> Reply:
        sent.append(headers.get("Authorization"))
        return good(brightness(body))

    with serving(answer) as url:
        settings = service(url, token_variable="REWARD_TOKEN")
        with pytest.raises(InputError, match=r"scorers\.services\.bright\.token_variable: REWARD_TOKEN is not set"):
            make_scorer("service:bright", settings)
        monkeypatch.setenv("REWARD_TOKEN", "secret")
        scorer = make_scorer("service:bright", settings)
    assert sent == ["Bearer secret"] and "secret" not in settings.model_dump_json() + scorer.fingerprint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_service_is_a_reward(workers: int, batch: tuple) -> None:
    images, records = batch
    with (
        serving(lambda path, body, headers: good(brightness(body))) as url,
        RewardPool({"service:bright": 2.0}, service(url), workers) as pool,
    ):
        pool.check(records)
        rewards, _ = pool.submit(images, records).result(timeout=60)
    expected = [(float(image.mean()) + len(record.text)) / 128 for image, record in zip(images, records, strict=True)]
    assert np.allclose(rewards, expected)


MINE = "tasks.mine={prompts: preference, reward: {'service:bright': 1.0}, report: ['service:bright', pickscore]}"
ADDRESS = "scorers.services.bright.url=http://127.0.0.1:1234/rate"


def test_a_service_is_configured_before_work_and_keyed_by_what_it_is() -> None:
    from star.config import run_settings

    with pytest.raises(InputError, match=r"tasks\.mine: service:bright is not configured; add scorers\.services\.bright"):
        load("config/miniature.yaml", [MINE])
    config = load("config/miniature.yaml", [MINE, ADDRESS])
    assert config.tasks["mine"].report == ["service:bright", "pickscore"]

    def keys(*more: str) -> tuple[str, str]:
        changed = load("config/miniature.yaml", [MINE, ADDRESS, *more])
        return scoring_key(changed, "service:bright"), training_key(run_settings(changed, "mine", "star"))

    place, part = "scorers.services.bright.", keys()
    assert keys(f"{place}url=https://elsewhere:80", f"{place}batch=2", f"{place}timeout=9") == part
    other = keys(f"{place}version='2'")
    assert other[0] != part[0] and other[1] != part[1]
    for wrong in ("url=ftp://x/y", "url=http://user:word@host/x", "url=$NOT_SET/x", "retries=-1", "timeout=0"):
        with pytest.raises(InputError, match=r"scorers\.services\.bright\."):
            load("config/miniature.yaml", [MINE, ADDRESS, place + wrong])


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("All is there.\n\nScore: 7", 7),
        ("**Score:** 7/10", 7),
        ("score = 6.5.", 6.5),
        ("Score: 3 at first sight. On second thoughts\nScore: 10", 10),
        ("Score: 0", 0),
        ("Score: 11", None),
        ("Score: -3", None),
        ("I give it 7.", None),
        ("", None),
        ("<think>Score: 2?</think>\n`Score: 8`", 8),
    ],
)
def test_the_parser(reply: str, value: float | None) -> None:
    assert judge.parse(reply) == value


def _judging(chats: list, see: Callable[[np.ndarray, str], str]) -> Callable:
    """An OpenAI-compatible endpoint whose model `see`s a picture and its question."""

    def answer(path: str, body: dict, headers: dict) -> Reply:
        assert path == "/v1/chat/completions" and body["model"] == "tiny-vlm" and body["temperature"] == 0
        chats.append(body["messages"])
        first = body["messages"][0]["content"]
        if isinstance(first, str):
            return good({"choices": [{"message": {"content": "Score: 10"}}]})
        picture, question = first
        address = picture["image_url"]["url"]
        reply = see(pixels(address.removeprefix("data:image/png;base64,")), question["text"])
        return good({"choices": [{"message": {"content": "Score: 4" if len(body["messages"]) > 1 else reply}}]})

    return answer


def _knows(image: np.ndarray, question: str) -> str:
    """Red discs from portraits, and a picture's brightness in tenths; hesitates over grey ones."""
    if "portrait" in question or "red circle" in question:
        disc = image.shape == (512, 512, 3) and (image[0, 0] == 255).all()
        return f"Seen.\nScore: {9 if disc == ('red circle' in question) else 1}"
    return "hard to say" if image.mean() == 128 else f"Score: {image.mean() / 25.5:.1f}"


def _judge(url: str, **settings: object) -> Scorers:
    judged = {"url": f"{url}/v1", "model": "tiny-vlm", "retries": 1, **settings}
    return Scorers.model_validate({"judges": {"quality": judged}})


def test_a_judge_sees_picture_and_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    chats: list = []
    images = [np.full((8, 8, 3), level, np.uint8) for level in (0, 255, 51, 128)]
    records = [asked(f"a {{wall}} number {i}") for i in range(4)]
    with serving(_judging(chats, _knows)) as url:
        scorer = make_scorer("judge:quality", _judge(url))
        told = len(chats)
        scored = scorer(images, records)
        other = make_scorer("judge:quality", _judge(url, question="Is it {prompt}?", version="2"))
    assert told == 5  # whether it is there, and two golden pictures with two captions each
    assert [s.score for s in scored] == [0.0, 1.0, 0.2, 0.4] and scored[1].findings == {"reply": "Score: 10.0"}
    questions = {
        chat[0]["content"][1]["text"] for chat in chats[told:] if len(chat) == 1 and not isinstance(chat[0]["content"], str)
    }
    assert questions >= {judge.QUESTION.replace("{prompt}", record.text) for record in records}
    demanded = [chat for chat in chats if len(chat) == 3]
    assert [message["content"] for message in demanded[0][1:]] == ["hard to say", judge.DEMAND]
    assert scorer.fingerprint != other.fingerprint and "tiny-vlm version=2" in other.fingerprint


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            _judging([], lambda *_: "Score: 5"),
            ScorerFailed,
            r"wrong on a golden picture: 'a portrait .* \(judge:quality tiny-vlm",
        ),
        (
            lambda *_: good({"choices": [{"message": {"content": None}}]}),
            ScorerFailed,
            r"scorers\.judges\.quality: no `Score: N` from 0 to 10 for the prompt 'a portrait",
        ),
        (
            lambda *_: (404, b'{"error": "no model tiny-vlm"}', {}),
            InputError,
            r"HTTP 404 .*no model tiny-vlm.*correct address and model",
        ),
        (lambda *_: good({"error": "x"}), InputError, r"no choices\[0\]"),
    ],
)
def test_a_judge_that_is_blind_silent_or_absent_is_refused(answer: Callable, error: type, says: str) -> None:
    with serving(answer) as url, pytest.raises(error, match=says) as refused:
        make_scorer("judge:quality", _judge(url))
    assert "\n" not in str(refused.value)


def test_a_judge_is_configured_with_a_question_that_has_the_prompt() -> None:
    with pytest.raises(InputError, match=r"scorers\.judges\.taste: judge:taste is asked for, but no such judge"):
        make_scorer("judge:taste", Scorers())
    with pytest.raises(InputError, match=r"scorers\.judges\.q\.question: has no {prompt}"):
        load("config/miniature.yaml", ["scorers.judges.q={url: 'http://x/v1', model: m, question: 'How nice?'}"])
