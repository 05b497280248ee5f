"""Prompts of the real benchmarks: GenEval's suite and training set, published files from every place, captions, the filter."""

import hashlib
import http.server
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from star import cli
from star.config import load
from star.errors import InputError
from star.prompts import core, make
from star.prompts.record import KEYS, Prompt, read
from star.worlds.coco import geneval, ocr, pickscore, published

ROOT = Path(__file__).parents[2]
SD35 = ROOT / "config/sd35-medium.yaml"
CLASSES_SHA256 = "8aad18a0fdff92ac691f5387a560abfee0c4027fd731fb8bbf83d5df11233cf5"  # of GenEval's object_names.txt
TRAIN_SHA256 = "95c16b6125cc8f8879a0043869eda3936b2d81a307c0d0be1a03632b253bf636"  # ours, of the first thousand
GENERATED_SHA256 = "b9d7fc157a1cb72dda728bd46ef273aa78fdc4f8c2ecad698382f5f550c83f1e"  # ours


def records(task: str, split: str, *settings: str) -> list[Prompt]:
    return make.records(load(SD35, list(settings)), task, split)


def check(found: list[Prompt], task: str) -> None:
    """The contract of prompt records, whatever wrote them."""
    assert [r.id for r in found] == [f"{task}-{i:05d}" for i in range(len(found))]
    for r in found:
        assert tuple(r.as_dict()) == KEYS and r.task == task
        assert (r.metadata["prompt"], r.metadata["tag"]) == (r.text, r.tag)
        end = 0
        for span in r.core:
            assert span.start >= end and r.text[span.start : span.end] == span.text != ""
            end = span.end


# -- GenEval -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def geneval_splits() -> dict[str, list[Prompt]]:
    return {split: records("geneval", split) for split in ("train", "validation", "test")}


def test_the_suite_is_the_official_file_byte_for_byte(geneval_splits: dict):
    text = geneval.official([r.metadata for r in geneval_splits["test"]])
    official = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert hashlib.sha256(text.encode()).hexdigest() == official
    tags = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(r.tag for r in geneval_splits["test"]) == tags


def test_the_classes_are_the_official_list():
    listed = "\n".join(geneval.CLASSES)
    assert hashlib.sha256(listed.encode()).hexdigest() == CLASSES_SHA256
    assert len(set(geneval.CLASSES)) == 80


def test_geneval_records_keep_the_contract_and_everything_but_the_template_is_core(geneval_splits: dict):
    for split, found in geneval_splits.items():
        check(found, "geneval")
        for r in found[:3000] if split == "train" else found:
            rest = r.text
            for span in reversed(r.core):
                rest = rest[: span.start] + rest[span.end :]
            assert set(rest.split()) <= {"a", "an", "photo", "of", "and"}, r.text
            kinds = Counter(span.kind for span in r.core)
            include = r.metadata["include"]
            assert kinds["object"] == len(include) and kinds["attribute"] == sum("color" in i for i in include)
            assert kinds["relation"] == (r.tag == "position") and kinds["count"] == (r.tag == "counting")


def test_the_training_set_has_its_size_and_weights(geneval_splits: dict):
    tags = Counter(r.tag for r in geneval_splits["train"])
    assert tags.total() == 50_000
    weights = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
    assert tags.keys() == weights.keys()
    for tag, weight in weights.items():
        share = weight / 17
        assert abs(tags[tag] - 50_000 * share) < 4 * np.sqrt(50_000 * share * (1 - share)), tag


def swapped(prompt: str) -> str:
    """The same prompt with its two objects exchanged, by its words alone."""
    match = re.fullmatch(r"a photo of (an? .+) (and|left of|right of|above|below) (an? .+)", prompt)
    return f"a photo of {match[3]} {match[2]} {match[1]}" if match else prompt


def test_no_test_prompt_is_trained_on_also_not_swapped(geneval_splits: dict):
    said = {split: {r.text for r in found} for split, found in geneval_splits.items()}
    for held_out, others in (("test", ("train", "validation")), ("validation", ("train",))):
        barred = said[held_out] | {swapped(prompt) for prompt in said[held_out]}
        assert len(barred) > len(said[held_out])
        for other in others:
            assert not barred & said[other]
    assert len(said["validation"]) == len(geneval_splits["validation"]) == 180


def test_the_training_set_is_seeded(geneval_splits: dict):
    text = geneval.official([r.metadata for r in geneval_splits["train"][:1000]])
    assert hashlib.sha256(text.encode()).hexdigest() == TRAIN_SHA256


# -- published files -----------------------------------------------------------------------------------------------------

OCR = [f'A sign number {i} in the rain that reads "Stop {i}", at night.' for i in range(700)]
PREFERENCE = [f"a castle on hill {i}, oil painting" for i in range(700)] + ["a naked man", "two \u2028 lines \x85 of one"]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Stand-ins of the published files, known by their git blob hashes; the working folder is empty."""
    texts = {
        "dataset/ocr/train.txt": "\n".join(OCR[:600]),
        "dataset/ocr/test.txt": "\n".join(OCR[600:]) + "\n\n",
        "dataset/pickscore/train.txt": "\r\n".join(PREFERENCE[:600]),
        "dataset/pickscore/test.txt": "\n".join(PREFERENCE[600:]) + "\n",
    }
    assert texts.keys() == published.BLOBS.keys()
    made = {name: text.encode() for name, text in texts.items()}
    monkeypatch.setattr(published, "BLOBS", {name: git_hash(data) for name, data in made.items()})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(published, "BASE", "http://127.0.0.1:1/")  # nobody listens on port 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return made


def git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}".encode() + b"\x00" + data).hexdigest()


@pytest.fixture
def server(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A web server on this machine with the stand-ins, in place of the published location; what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            data = files.get(self.path.removeprefix("/repository/commit/"))
            self.send_response(200 if data is not None else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    monkeypatch.setattr(published, "BASE", f"http://127.0.0.1:{listening.server_port}/repository/commit/")
    yield asked
    listening.shutdown()
    thread.join()
    listening.server_close()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_the_hashes_are_those_on_record():
    assert published.BLOBS["dataset/ocr/train.txt"] == "3ce0521b77b0a9031191d66ecc36ebaaf27a3922"
    assert published.BLOBS["dataset/pickscore/train.txt"] == "a437bd921c03fbc00c4e7ce148ae2d28fcd6e49b"
    assert published.BLOBS["dataset/pickscore/test.txt"] == "45f05231b969fb5f74c8debd606b22cd3be27f8e"
    assert published.BASE.startswith("https://raw.githubusercontent.com/yifan123/flow_grpo/")


def test_contents_are_hashed_as_git_does():
    assert published.blob_hash(b"") == git_hash(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert published.blob_hash(b"hello\n") == git_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_file_is_fetched_once_and_cached(server: list[str], files: dict[str, bytes], capsys: pytest.CaptureFixture):
    first = records("ocr", "test")
    cached = Path("resources/prompts/dataset/ocr/test.txt")
    assert cached.read_bytes() == files["dataset/ocr/test.txt"] and [f.name for f in cached.parent.iterdir()] == ["test.txt"]
    assert "fetched http://127.0.0.1" in capsys.readouterr().out
    assert records("ocr", "test") == first and server == ["/repository/commit/dataset/ocr/test.txt"]
    assert [r.text for r in first] == OCR[600:]
    check(first, "ocr")


def test_a_changed_file_is_refused_wherever_it_comes_from(
    server: list[str], files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name, true = "dataset/ocr/test.txt", files["dataset/ocr/test.txt"]
    files[name] = true.replace(b"600", b"601")
    expected = rf"not the published {name}: git blob {git_hash(files[name])}, expected {git_hash(true)}"
    with pytest.raises(InputError, match=rf"{server_address()}.*{expected}; nothing was kept"):
        records("ocr", "test")
    assert not Path("resources").exists()
    mirror = put(tmp_path / "mirror", files)
    with pytest.raises(InputError, match=rf"{mirror}/{name}: {expected}; prompts.mirror needs an unchanged copy"):
        records("ocr", "test", f"prompts.mirror={mirror}")
    put(Path("resources/prompts"), files)
    with pytest.raises(InputError, match=rf"resources/prompts/{name}: {expected}; delete it"):
        records("ocr", "test")
    assert len(server) == 1


def server_address() -> str:
    return re.escape(published.BASE)


def test_a_mirror_serves_without_network_and_is_not_copied(files: dict[str, bytes], tmp_path: Path):
    mirror = put(tmp_path / "mirror", files)
    assert [r.text for r in records("ocr", "test", f"prompts.mirror={mirror}")] == OCR[600:]
    assert list(Path.cwd().iterdir()) == []
    (mirror / "dataset/ocr/test.txt").unlink()
    with pytest.raises(InputError, match=r"^prompts\.mirror: no file .*/mirror/dataset/ocr/test\.txt"):
        records("ocr", "test", f"prompts.mirror={mirror}")


@pytest.mark.parametrize(("task", "third"), [("ocr", "prompts.ocr: generated"), ("pickscore", "take pickscore out of `tasks`")])
def test_without_network_and_mirror_one_line_names_three_remedies(
    files: dict[str, bytes], task: str, third: str, capsys: pytest.CaptureFixture
):
    code = cli.main(["prompts", "--config", str(SD35), "--task", task, "--split", "train", "--out", "out/x.jsonl"])
    line = capsys.readouterr().err.strip()
    assert code == 2 and "\n" not in line and list(Path.cwd().iterdir()) == []
    for remedy in ("connect this machine once", f"set prompts.mirror to a folder that holds dataset/{task}/train.txt", third):
        assert remedy in line


def test_a_missing_page_says_so(server: list[str], files: dict[str, bytes]):
    del files["dataset/pickscore/test.txt"]
    with pytest.raises(InputError, match="HTTP Error 404"):
        records("pickscore", "test")


@pytest.mark.parametrize(("task", "captions"), [("ocr", OCR), ("pickscore", PREFERENCE)])
def test_validation_is_carved_from_the_train_file(server: list[str], task: str, captions: list[str]):
    train, validation, test = ([r.text for r in records(task, s)] for s in ("train", "validation", "test"))
    assert sorted(train + validation) == sorted(captions[:600]) and len(validation) == published.VALIDATION_PROMPTS
    order = {caption: i for i, caption in enumerate(captions)}
    assert [order[p] for p in train] == sorted(order[p] for p in train) and not set(test) & {*train, *validation}
    assert validation == [r.text for r in records(task, "validation")]


def test_a_repeated_caption_is_not_in_two_splits(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "dataset/ocr/train.txt"
    doubled = "\n".join([*OCR[:300], *OCR[:300]]).encode()
    monkeypatch.setitem(published.BLOBS, name, git_hash(doubled))
    mirror = put(tmp_path / "mirror", {name: doubled})
    train, validation = ({r.text for r in records("ocr", s, f"prompts.mirror={mirror}")} for s in ("train", "validation"))
    assert not train & validation and train | validation == set(OCR[:300])


def test_captions_without_a_target_are_left_out_and_counted(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    name = "dataset/ocr/test.txt"
    text = b'a sign\na sign that says ""\na mug that says "Tea"\n'
    monkeypatch.setitem(published.BLOBS, name, git_hash(text))
    (only,) = records("ocr", "test", f"prompts.mirror={put(tmp_path / 'mirror', {name: text})}")
    assert only.metadata == {"tag": "ocr", "text": "Tea", "carrier": "mug", "prompt": 'a mug that says "Tea"'}
    assert "ocr test: 2 of 3 captions left out" in capsys.readouterr().out


def test_written_records_are_read_back_whatever_the_captions_hold(server: list[str], tmp_path: Path):
    config = load(SD35)
    number = make.write(config, "pickscore", "test", tmp_path / "p.jsonl")
    found = read(tmp_path / "p.jsonl")
    assert found == records("pickscore", "test") and len(found) == number
    assert "two \u2028 lines \x85 of one" in {r.text for r in found}
    check(found, "pickscore")


# -- lettering -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "carrier", "target"),
    [
        ('A cozy bakery with a chalkboard in the window sign that reads "Fresh Bread", at dawn.', "sign", "Fresh Bread"),
        ('A bakery door with a red "Keep Out" sign on it.', "sign", "Keep Out"),
        ('A diner with a "Kitchen Closed" neon sign glowing.', "sign", "Kitchen Closed"),
        ('A journal lies open on moss. The entry reads, "Day 9", underlined.', "journal", "Day 9"),
        ('A billboard stands tall. Its poster displays the words: "Sale".', "poster", "Sale"),
        ('A fire, clearly labeled, displays "Hot".', None, "Hot"),
        ("The baker's apron says “Kiss the Cook”.", "apron", "Kiss the Cook"),
        ('"Sign here" written on banners in bold letters', "banners", "Sign here"),
        ('A note "Sign" and a "poster" of it', "note", "Sign"),
        ('A mug "" beside a cup with "One" and "Two words"', "cup", "One"),
        ('Words "Stop" beside "sign"', None, "Stop"),
    ],
)
def test_the_carrier_of_a_target(caption: str, carrier: str | None, target: str):
    record = ocr.record(0, caption)
    check([record], "ocr")
    assert record.metadata.get("carrier") == carrier and record.metadata["text"] == target
    assert [s.text for s in record.core if s.kind == "object"] == ([carrier] if carrier else [])
    assert next(s.text for s in record.core if s.kind == "text") == target


@pytest.fixture(scope="module")
def generated() -> dict[str, list[Prompt]]:
    return {split: records("ocr", split, "prompts.ocr=generated") for split in ("train", "validation", "test")}


def test_generated_captions_have_one_target_on_a_known_carrier(generated: dict):
    shape = re.compile(r'A [a-z]+(?: [a-z]+)? of an? [^",]+, where an? [^",]*?([a-z-]+) [a-z ]+ "([^"]+)", [a-z ,]+\.')
    for found in generated.values():
        check(found, "ocr")
        for r in found[:2000]:
            assert shape.fullmatch(r.text), r.text
            noun, target = r.metadata["carrier"], r.metadata["text"]
            assert f" {noun} " in r.text.split('"')[0] and r.text.split('"')[1] == target
            assert [s.text for s in r.core] == [noun, target]
            assert noun in ocr.CARRIERS


def test_generated_targets_are_no_test_targets(generated: dict):
    targets = {split: [r.metadata["text"].lower() for r in found] for split, found in generated.items()}
    assert {split: len(found) for split, found in targets.items()} == {"train": 19_653, "validation": 256, "test": 1018}
    for split in ("validation", "test"):
        assert len(set(targets[split])) == len(targets[split]) and not set(targets[split]) & set(targets["train"])
    assert not set(targets["validation"]) & set(targets["test"])
    words = Counter(len(t.split()) for t in targets["train"])
    assert words.keys() == {1, 2, 3, 4} and max(map(len, targets["train"])) <= 40
    assert len({r.text for r in generated["train"]}) > 19_600


def test_generated_captions_are_seeded(generated: dict):
    text = "\n".join(r.text for r in generated["test"])
    assert hashlib.sha256(text.encode()).hexdigest() == GENERATED_SHA256


# -- the filter ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption",
    [
        "a NAKED man on a horse",
        "portrait, nude_woman",
        "fully ｎｕｄｅ statue",
        "a pre teen in a park",
        "preteen models",
        "a girl in a tiny bikini",
        "schoolgirls, skin-tight suit",
        "man having fun with his girl in his bed",
        "a decapitated knight",
        "a man hanging by the neck",
        "nazis at a picnic",
    ],
)
def test_unsafe_captions(caption: str):
    assert pickscore.unsafe(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a Ford Escort by David Lynch",
        "rapeseed field in Essex, grapes, a peacock and an assassin",
        "a lollipop for a baby, close up",
        "a girl reading a book, a cat on her lap",
        "a tiny baby dragon on a skyscraper",
        "woman in a bikini on a beach",
        "a latex balloon, analysis of Scunthorpe's cockpit",
        "classic portrait of a bass player, chestnut hair, sextant",
        "",
    ],
)
def test_harmless_captions(caption: str):
    assert not pickscore.unsafe(caption)


def test_the_filter_is_on_counted_and_can_be_turned_off(server: list[str], capsys: pytest.CaptureFixture):
    filtered, whole = records("pickscore", "test"), records("pickscore", "test", "prompts.filter_unsafe=false")
    out = capsys.readouterr().out
    assert out.count("dropped by prompts.filter_unsafe") == 1
    assert "pickscore test: 1 of 102 captions dropped by prompts.filter_unsafe" in out
    assert [r.text for r in whole] == PREFERENCE[600:]
    assert [r.text for r in filtered] == [p for p in PREFERENCE[600:] if p != "a naked man"]
    check(filtered, "pickscore")
    assert filtered[0].core == core.content_words(filtered[0].text) != ()


# -- the configuration ---------------------------------------------------------------------------------------------------


def test_where_the_files_lie_changes_no_run():
    from star.config import run_settings
    from star.config.key import training_key

    def digest(*settings: str) -> str:
        return training_key(run_settings(load(SD35, list(settings)), "ocr", "star"))

    assert digest("prompts.mirror=/somewhere") == digest()
    assert digest("prompts.ocr=generated") != digest() != digest("prompts.filter_unsafe=false")


def test_the_paper_scale_configuration_has_flow_grpos_hyper_parameters():
    config = load(SD35)
    published_values = {
        "rollout": {"steps": 10, "noise_level": 0.7, "groups": 48, "group_size": 24, "trained_fraction": 0.99},
        "training": {"updates_per_epoch": 2},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 1e-4},
        "objective": {"clip_range": 1e-4, "kl_weight": 0.04},
        "evaluation": {"steps": 40},
        "policy": {"resolution": 512, "guidance": 4.5, "model": "stabilityai/stable-diffusion-3.5-medium"},
    }
    for section, values in published_values.items():
        assert {key: getattr(getattr(config, section), key) for key in values} == values
    assert config.rollout.groups * config.rollout.group_size % config.rollout.batch == 0
    assert json.loads(json.dumps(config.tasks["pickscore"].overrides)) == {"objective": {"kl_weight": 0.01}}
