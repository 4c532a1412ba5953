"""Files of prompts, sentences and running text in common encodings: read as an editor shows them, or refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt.artifacts import text_files
from quantwatt.artifacts.errors import DataError
from quantwatt.data import prompts, sources

PROMPTS = ["a red circle", "ein grüner Ring", "猫", "a cat"]
PLAIN = "\n".join(PROMPTS) + "\n"
RESOURCES = Path(__file__).parents[2] / "resources"


@pytest.fixture
def written(tmp_path):
    def write(content, name="prompts.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(read, path):
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_every_marked_encoding_gives_the_same_prompts(written, encoding):
    content = PLAIN.encode(encoding)
    path = written(b"\xfe\xff" + content if encoding == "utf-16-be" else content)
    found, notes = prompts.read(path)
    assert found == PROMPTS
    assert notes == ([] if "8" in encoding else [f"its byte order mark says {encoding[:6].upper()}"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_gives_the_same_prompts(written, end):
    for text in (PLAIN, PLAIN.rstrip("\n")):
        assert prompts.read(written(text.replace("\n", end))) == (PROMPTS, [])


@pytest.mark.parametrize("separator", list("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))
def test_what_python_splits_at_and_editors_do_not_ends_no_prompt(written, separator):
    """As in huggingface/datasets#3729."""
    found, notes = prompts.read(written(f"a cat{separator}on a mat\nanother\n"))
    assert found == [f"a cat{separator}on a mat", "another"]
    assert notes == ["1 line with a separator within, kept whole"]
    assert sources.read_sentences(written(f"sentence\tlabel\ngood{separator}film\t1\n")) == (
        [f"good{separator}film"],
        [1],
    )


def test_blank_lines_and_unseen_ends_are_left_out_and_told_once(written, capsys):
    path = written("\n\u00a0a cat\u00a0 \n\n \t\n\ufeffa dog\u200b\nplain\n\n")
    assert prompts.first(path, 9) == ["a cat", "a dog", "plain"]
    assert prompts.first(path, 4, cycle=True) == ["a cat", "a dog", "plain", "a cat"]
    said = capsys.readouterr().err
    assert said == f"{path}: 4 blank lines left out; 2 lines without the blanks at the ends.\n"
    assert text_files.said(path) == ["4 blank lines left out", "2 lines without the blanks at the ends"]


def test_the_empty_prompt_is_two_quotation_marks(written):
    assert prompts.read(written('""\n"a quoted cat"\n'))[0] == ["", '"a quoted cat"']


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PLAIN.encode("utf-16-le"), "line 1 holds a zero byte: the file is no text, or UTF-16 without byte order mark"),
        ("a cat\nein grüner Ring\n".encode("latin-1"), "line 2, byte 7 (0xFC) is not UTF-8 (is it Latin-1"),
        ("a cat’s\n".encode("cp1252"), "line 1, byte 6 (0x92) is not UTF-8"),
        ("a cat\rgrün\r".encode("latin-1"), "line 2, byte 3 (0xFC)"),
        (b"\xff\xfea\x00\x00\xd8b\x00", "is not UTF-16, as its byte order mark says"),
        (b"PK\x03\x04\x00\x00", "holds a zero byte"),
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\n \r\n\xc2\xa0\n", "the file is empty"),
        (b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "line 1 is JSON"),
        (b'[\n  "a cat",\n  "a dog"\n]\n', "line 1 is JSON"),
        (b"prompt\n", "there is no prompt in it"),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(written, content, words):
    assert words in refusal(prompts.read, written(content))


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert "No such file" in refusal(prompts.read, tmp_path / "nowhere.txt")
    assert "directory" in refusal(prompts.read, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "left"),
    [
        ("p.tsv", "Prompt\tCategory\na cat\tAnimals\na dog, red\tAnimals\n", "'Category'"),  # PartiPrompts' layout
        ("p.csv", '\ufeffid,caption\r\n1,a cat\r\n2,"a dog, red"\r\n', "'id'"),
        ("p.csv", "id;Prompt\n1;a cat\n2;a dog, red\n", "'id'"),
        ("p.csv", 'prompt\na cat\n"a dog, red"\n', None),
        ("p.txt", "Prompt\na cat\na dog, red\n", None),
        ("p.tsv", "\tprompt\n0\ta cat\n1\ta dog, red\n", "''"),  # a table with an index, as pandas writes it
    ],
)
def test_prompts_of_tables(written, name, content, left):
    found, notes = prompts.read(written(content, name))
    assert found == ["a cat", "a dog, red"]
    assert not left or f"and {left} not" in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "1,a cat\n2,a dog\n", "line 1 is '1,a cat', and no column is called prompt"),
        ("p.txt", "a cat\t1\na dog\t2\n", "line 1 has tabs, as a table's headings do, and no column is called prompt"),
        ("p.txt", "id,what\n1,a cat\n2,a dog\n", "every line from 2 on has a column of whole numbers"),
        ("p.csv", "prompt,caption\na,b\n", "'prompt' and 'caption' could both be the column"),
        ("p.csv", 'prompt,n\n"a cat,1\na dog,2\n', "the row that begins in line 2 is not a row"),
        ("p.csv", "prompt,n\na cat,1\na dog, red,2\n", "line 3 has 3 columns, and line 1 names 2"),
        ("p.csv", "prompt,n\n,1\n", "line 2: the column 'prompt' is empty"),
        ("p.csv", "prompt,n\n\n", "nothing below its headings"),
    ],
)
def test_tables_of_prompts_that_are_refused(written, name, content, words):
    assert words in refusal(prompts.read, written(content, name))


LABELLED = (["a fine film .", 'a "poor" one .'], [1, 0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", 'sentence\tlabel\na fine film . \t1\na "poor" one .\t0\n'),
        ("t.tsv", '\ufeffText\tSentiment\r\na fine film .\t1\r\na "poor" one .\t0\r\n'),
        ("t.tsv", 'idx\tlabel\tsentence\n0\t1\ta fine film .\n1\t0\ta "poor" one .\n'),
        ("t.tsv", '"sentence"\t"label"\n"a fine film ."\t"1"\n"a ""poor"" one ."\t"0"\n'),
        ("t.csv", 'review,label\n"a fine film .",1\n"a ""poor"" one .",0\n'),
        ("t.csv", 'text;class\na fine film .;1\n"a ""poor"" one .";0\n'),
    ],
)
def test_labelled_tables(written, name, content):
    assert sources.read_sentences(written(content, name)) == LABELLED


def test_a_quoted_field_may_go_over_lines(written):
    path = written('text,label\n"good\nfilm",positive\nbad,negative\n', "t.csv")
    assert sources.read_sentences(path) == (["good\nfilm", "bad"], ["positive", "negative"])
    path = written('text,label\n"good\nfilm",\n', "t.csv")
    assert "line 2: the label is ''" in refusal(sources.read_sentences, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("good\t1\nbad\t0\n", "line 1 has tabs, as a table's headings do, and no column is called sentence or text"),
        ("comment\trating\ngood\t1\n", "line 1 has tabs"),
        ("comment,rating\ngood,1\nbad,0\n", "every line from 2 on has a column of whole numbers"),
        ("0,bad film\n1,good film\n", "every line from 2 on has a column of whole numbers"),
        ("text,label\ngood,1\n", "separated by ','; separate them by tabs, or let the file's name end in .csv"),
        ("sentence1\tsentence2\tlabel\na\tb\t1\n", "line 1 has tabs"),
        ("label\tsentence\n1\n", "line 2 has 1 columns, and line 1 names 2"),
        ("sentence\tlabel\ngood\t-1\n", "line 2: the label is '-1', not a whole number from 0"),
        ("sentence\tlabel\ngood\t1\nbad\tno\n", "line 3: the label is 'no', and the labels before it are each a whole"),
    ],
)
def test_tables_of_sentences_that_are_refused(written, content, words):
    assert words in refusal(sources.read_sentences, written(content))


def test_sentences_keep_the_commas_numbers_and_tabs_that_they_have(written):
    lines = ["text, they say, is dead", "in 1999, 3", "a film\twith a tab"]
    assert sources.read_sentences(written("\n".join(lines))) == (lines, None)
    assert sources.read_sentences(written("sentence\ngood\nbad\n")) == (["good", "bad"], None)


def test_running_text_keeps_its_blank_lines(written):
    text = "one\n\n two \u2028 three\n"
    assert sources.read_running_text(written("\ufeff" + text.replace("\n", "\r\n"))) == ([text], None)
    assert "is not UTF-8" in refusal(sources.read_running_text, written("grün".encode("latin-1")))


def test_shipped_prompts_are_what_they_were():
    for path in sorted((RESOURCES / "prompts").glob("*.txt")):
        assert prompts.read(path) == (path.read_text(encoding="utf-8").splitlines(), [])


def test_the_reader_imports_no_torch():
    program = f"import sys; sys.path.insert(0, {str(Path(prompts.__file__).parents[2])!r}); "
    program += "import quantwatt.data.prompts, quantwatt.data.sources; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
