"""Prompt files of others: what a person reads is what is read, whoever wrote the file; misfits are named in one line."""

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star import cli
from star.config import load
from star.errors import InputError
from star.prompts import make
from star.prompts.record import Prompt, read, read_foreign
from star.prompts.text import lines_of, plain, read_text, readable

CONFIG = "config/miniature.yaml"
PROMPTS = ["a photo of four rings", "a café at night", "ein Schild \u2028 mit Text"]
SYSTEMS = {
    "unix": ("\n", "utf-8"),
    "no line end": (None, "utf-8"),
    "windows": ("\r\n", "utf-8-sig"),
    "old mac": ("\r", "utf-8"),
    "powershell": ("\r\n", "utf-16"),
    "big-endian": ("\n", "utf-16-be-mark"),
    "utf-32": ("\n", "utf-32"),
}


def written(path: Path, lines: list[str], system: str) -> Path:
    end, encoding = SYSTEMS[system]
    text = "\n".join(lines) if end is None else "".join(line + end for line in lines)
    path.write_bytes(b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-mark" else text.encode(encoding))
    return path


def own(file: Path, task: str) -> list[Prompt]:
    """The training prompts of a configuration that names a file."""
    return make.records(load(CONFIG, [f"tasks.{task}.prompts={{train: {file}, set: {task}}}"]), task, "train")


# -- text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["p.txt", "p.TXT", "p.jsonl"])
def test_every_system_writes_the_same_prompts(system: str, name: str, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS] if name == "p.jsonl" else PROMPTS
    file = written(tmp_path / name, lines, system)
    assert [line.text for line in read_foreign(file)] == PROMPTS
    assert [line.where for line in read_foreign(file)] == [f"{file}:{n}" for n in (1, 2, 3)]
    assert [prompt.text for prompt in own(file, "preference")] == PROMPTS


def test_records_are_read_whatever_saved_them_again(tmp_path: Path) -> None:
    prompts = own(written(tmp_path / "p.txt", PROMPTS, "unix"), "preference")
    lines = [json.dumps(prompt.as_dict(), ensure_ascii=False) for prompt in prompts]
    for system in SYSTEMS:
        assert read(written(tmp_path / "records.jsonl", lines, system)) == prompts


@pytest.mark.parametrize(
    ("written_as", "seen"),
    [
        (unicodedata.normalize("NFD", "a café"), "a café"),
        ("\ufeffa ring", "a ring"),
        ("a ri\u200bng", "a ring"),
        ("ａ ＲＥＤ ring of ２", "a RED ring of 2"),
        ("ｶﾞｷﾞ，（丸）", "ガギ，（丸）"),
        ("a ri\xadng\u200e", "a ring"),
        ("a \x1b ring", "a  ring"),
        ("👩\u200d🚀 ❤\ufe0f", "👩\u200d🚀 ❤\ufe0f"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("½ a “ring”, one\u2028two", "½ a “ring”, one\u2028two"),
        ("全角，的", "全角，的"),
    ],
)
def test_a_prompt_is_what_a_person_reads(written_as: str, seen: str, tmp_path: Path) -> None:
    assert readable(written_as) == readable(seen) == seen
    (tmp_path / "p.txt").write_text(f"  {written_as} \n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": written_as}) + "\n")
    for name in ("p.txt", "p.jsonl"):
        assert [line.text for line in read_foreign(tmp_path / name)] == [seen]


def test_core_spans_count_the_characters_that_were_written(tmp_path: Path) -> None:
    text = unicodedata.normalize("NFD", "a café ring")
    core = [{"text": "ring", "start": text.index("ring"), "end": len(text), "kind": "object"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text, "core": core}))
    (prompt,) = own(tmp_path / "p.jsonl", "preference")
    assert prompt.text == text and [span.text for span in prompt.core] == ["ring"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", unicodedata.normalize("NFD", "CAFÉ")),
        ("OPEN 24", "ＯＰＥＮ２４"),
        ("DON’T", "don't"),
        ("A–Z", "a-z"),
        ("1⁄2", "½"),
        ("o\u200bpen", "OPEN"),
        ("ﬁne", "FINE"),
        ("“A”", '"a"'),
    ],
)
def test_two_writings_of_one_text_are_one(one: str, other: str) -> None:
    assert plain(one) == plain(other) != ""


def test_other_texts_stay_other() -> None:
    assert len({plain(text) for text in ("OPEN", "0PEN", "OPÉN", "OP EN!", "ΟPEN")}) == 5  # the last begins in Greek
    assert plain(" \u200b\ufeff\u2060") == ""


def test_lines_end_where_files_say_so_and_nowhere_else() -> None:
    assert lines_of("a\u2028b\x85c\x0bd\ne\r\nf\rg\n\n \n") == ["a\u2028b\x85c\x0bd", "e", "f", "g"]
    assert lines_of("") == lines_of("\n\n") == []
    assert lines_of("a\n\nb") == ["a", "", "b"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("größe".encode("latin-1"), r"p\.txt: not UTF-8 text \(byte 2\); save it as UTF-8"),
        ("a ring\na cat".encode("utf-16-le"), r"p\.txt:1: a NUL character.*UTF-16"),
        (b"\xff\xfea", "not UTF-16-LE text"),
    ],
)
def test_other_encodings_are_refused_by_name(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_text(tmp_path / "p.txt", "missing")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_foreign(tmp_path)
    with pytest.raises(InputError, match="no such file of prompts"):
        read_foreign(tmp_path / "none.txt")


def test_a_terminal_without_a_letter_gets_it_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = own(written(tmp_path / "p.txt", ["ein Schild 営業中"], "unix"), "preference")
    (tmp_path / "records.jsonl").write_text(json.dumps(prompts[0].as_dict()))
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="latin-1", write_through=True))
    assert cli.main(["prompts", "--show-core", str(tmp_path / "records.jsonl")]) == 0
    assert rb"ein|object] [Schild|object] [\u55b6\u696d\u4e2d|object]" in printed.getvalue()


# -- forms ---------------------------------------------------------------------------------------------------------------


def test_a_json_array_is_read_and_its_items_have_lines(tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {i}", "metadata": {"seed": i}} for i in range(3)]
    for indent, lines in ((1, (2, 8, 14)), (None, (1, 1, 1))):
        (tmp_path / "p.json").write_text("\ufeff" + json.dumps(rows, indent=indent), encoding="utf-8")
        read_lines = read_foreign(tmp_path / "p.json")
        assert [line.text for line in read_lines] == [row["prompt"] for row in rows]
        assert [line.where for line in read_lines] == [f"{tmp_path}/p.json:{n}" for n in lines]
    (tmp_path / "p.json").write_text('[{"prompt": "a"},\n {"prompt": 3}]')
    with pytest.raises(InputError, match=r"p\.json:2: `prompt` is 3"):
        read_foreign(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('[{"prompt": "a"},\n')
    with pytest.raises(InputError, match=r"p\.json:1: not a JSON array"):
        read_foreign(tmp_path / "p.json")


def test_geneval_metadata_trains_as_it_is(tmp_path: Path) -> None:
    line = {"tag": "counting", "include": [{"class": "ring", "count": 4.0}], "prompt": "a photo of four rings"}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    (prompt,) = own(tmp_path / "p.jsonl", "shapes")
    assert prompt.tag == prompt.metadata["tag"] == "counting"
    count = prompt.metadata["include"][0]["count"]
    assert count == 4 and isinstance(count, int)
    assert [(span.text, span.kind) for span in prompt.core] == [("four", "count"), ("rings", "object")]


def ring(**more: object) -> dict:
    return {"prompt": "a red ring", "metadata": {"tag": "colors", "include": [{"class": "ring", "count": 1} | more]}}


CORE = {"text": "ring", "start": 6, "end": 10, "kind": "object"}
MISFITS = [
    ({"metadata": None}, "`metadata` is None, not an object"),
    ({"prompt": 5}, "`prompt` is 5, not text"),
    ({"prompt": "\u200b \ufeff"}, "no prompt"),
    ({"id": ""}, "`id` is ''"),
    ({"id": "a\nb"}, "`id` is"),
    ({"id": 7}, "`id` is 7"),
    ({"tag": ["colors"]}, "`tag` is"),
    ({"file": " "}, "`file` is"),
    ({"metadata": {"tag": None}}, "`metadata.tag` is None"),
    ({"metadata": {"text": 4}}, "`metadata.text` is 4"),
    ({"metadata": {"include": {"class": "ring"}}}, "`metadata.include` is {'class': 'ring'}, not a list"),
    ({"metadata": {"exclude": ["ring"]}}, r"`metadata.exclude\[0\]` is 'ring', not an object"),
    ({"metadata": {"include": [{"class": "ring"}]}}, r"`metadata.include\[0\]` has no `count`"),
    ({"metadata": {"include": [{"count": 1}]}}, r"`metadata.include\[0\]` has no `class`"),
    (ring(count="4"), r"`metadata.include\[0\].count` is '4', not a whole number from 1"),
    (ring(count=1.5), "is 1.5"),
    (ring(count=True), "is True"),
    (ring(count=0), "is 0"),
    (ring(count=float("nan")), "is nan"),
    (ring(colour="red"), r"`metadata.include\[0\]` has the key 'colour', which nothing would judge"),
    (ring(color=None), r"`metadata.include\[0\].color` is None, not text"),
    (ring(position=["above"]), r"`metadata.include\[0\].position` is \['above'\], not \[relation"),
    (ring(position=["above", -1]), r"position\[1\]` is -1"),
    ({"core": "cat"}, "`core` is 'cat', not a list of spans"),
    ({"core": ["cat"]}, r"`core\[0\]` is 'cat', not a span"),
    ({"core": [CORE | {"kind": "noun"}]}, r"`core\[0\].kind` is 'noun'; choose one of object"),
    ({"core": [CORE | {"start": "6"}]}, r"`core\[0\].start` is '6'"),
    ({"core": [CORE | {"end": 11}]}, r"`core\[0\]` is 6 to 11 of 10 characters"),
    ({"core": [CORE | {"start": 10}]}, r"`core\[0\]` is 10 to 10"),
    ({"core": [CORE, CORE]}, r"`core\[1\]` is 6 to 10"),
    ({"core": [CORE | {"text": "rung"}]}, r"`core\[0\].text` is 'rung', but the prompt has 'ring'"),
    ({"prompt": "half \ud800 a letter"}, "holds what no file can keep"),
    ({"metadata": {"seed": float("inf")}}, "holds what no file can keep"),
]


@pytest.mark.parametrize(("change", "words"), MISFITS)
def test_what_does_not_fit_is_named_with_file_line_and_key(change: dict, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(ring()) + "\n" + json.dumps(ring() | change) + "\n")
    for reader in (lambda: read_foreign(tmp_path / "p.jsonl"), lambda: own(tmp_path / "p.jsonl", "preference")):
        with pytest.raises(InputError, match=rf"p\.jsonl:2: {words}|p\.jsonl:2: .*{words}") as refused:
            reader()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("change", "words"), [row for row in MISFITS if "file" not in row[0]])
def test_records_are_held_to_the_same_schema(change: dict, words: str, tmp_path: Path) -> None:
    good = {"id": "x", "task": "t", "tag": "colors", "core": [], **ring()}
    (tmp_path / "p.jsonl").write_text(json.dumps(good | change))
    with pytest.raises(InputError, match=words):
        read(tmp_path / "p.jsonl")


def test_whole_floats_are_numbers_in_spans_too(tmp_path: Path) -> None:
    row = {"id": "x", "task": "t", "tag": "g", "metadata": {}, "prompt": "a red ring"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row | {"core": [CORE | {"start": 6.0, "end": 10.0}]}))
    (prompt,) = read(tmp_path / "p.jsonl")
    assert (prompt.core[0].start, prompt.core[0].end) == (6, 10) and isinstance(prompt.core[0].start, int)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"prompt": ' * 100_000, "9" * 5000, '{"prompt": 1' + "0" * 5000 + "}", '{"a": 1,}']
)
def test_json_that_breaks_parsers_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    for reader in (read, read_foreign):
        with pytest.raises(InputError, match=r"p\.jsonl:1: not a? ?JSON") as refused:
            reader(tmp_path / "p.jsonl")
        assert len(str(refused.value)) < 400


# -- ids -----------------------------------------------------------------------------------------------------------------


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a ring", "prompt": "a disc"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:1: not JSON.*the key `prompt` stands twice"):
        read_foreign(tmp_path / "p.jsonl")


def test_an_id_of_two_prompts_is_refused_wherever_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {"task": "t", "tag": "g", "core": [], "metadata": {}}
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps({"id": "same", "prompt": text, **row}) + "\n" for text in ("a ring", "a cross")))
    with pytest.raises(InputError, match=r"prompts 1 and 2 have the same id 'same'"):
        read(file)
    with pytest.raises(InputError, match=r"prompts 1 and 2 have the same id 'same'"):
        own(file, "preference")
    images = tmp_path / "images"
    images.mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(images / name)
    arguments = ["score", "--scorer", "pickscore", "--images", str(images), "--out", str(tmp_path / "scores.jsonl")]
    assert cli.main([*arguments, "--prompts", str(file)]) == 2
    assert "records.jsonl:2: id 'same' is that of another prompt" in capsys.readouterr().err
    (tmp_path / "p.jsonl").write_text('{"prompt": "a ring", "id": "pickscore-00001"}\n{"prompt": "a cross"}\n')  # one is made
    assert cli.main([*arguments, "--prompts", str(tmp_path / "p.jsonl")]) == 2
    assert "id 'pickscore-00001' is that of another prompt in" in capsys.readouterr().err


def test_folders_of_one_id_and_two_prompts_are_refused(tmp_path: Path) -> None:
    from star.scoring import samples

    for folder, prompt in (("00000", "a ring"), ("00001", "a cross")):
        (tmp_path / folder / "samples").mkdir(parents=True)
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps({"prompt": prompt, "id": "x"}), encoding="utf-8-sig")
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / folder / "samples/0000.png")
    with pytest.raises(InputError, match=r"00001/metadata\.jsonl:1: id 'x'.*00000/metadata\.jsonl:1"):
        samples.find(tmp_path, "pickscore")
    (tmp_path / "00001/metadata.jsonl").write_text(json.dumps({"prompt": 5}))
    with pytest.raises(InputError, match=r"00001/metadata\.jsonl:1: `prompt` is 5, not text"):
        samples.find(tmp_path, "pickscore")
