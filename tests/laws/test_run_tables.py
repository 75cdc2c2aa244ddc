"""Run tables: typed columns, reading, deriving, and one clear sentence for whatever is wrong with a file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from isoflop import InputError
from isoflop.laws import RunTable, exponent, matching, parse_number, read_runs, write_runs


def csv_file(tmp_path: Path, text: str, name: str = "runs.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e20", 1e20), ("100M", 100e6), ("4.37B", 4.37e9), ("2.1T", 2.1e12), ("3K", 3e3), ("3 k", 3e3), ("-1.5", -1.5),
        ("1,234,567", 1234567.0), (".5", 0.5), ("+2E3", 2000.0), ("inf", float("inf")), ("1.2.3", None), ("4m", None),
        ("12abc", None), ("", None), ("1,23", None),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, value: float | None) -> None:
    assert parse_number(text) == (None if value is None else pytest.approx(value, rel=1e-15))


def test_columns_are_typed_and_rows_can_be_chosen(tmp_path: Path) -> None:
    runs = read_runs(
        csv_file(
            tmp_path,
            "run_id,N,D,loss,router,causal,status,note\n"
            "001,100M,2B,3.1,none,True,done,\n"
            '002,200M,4B,2.9,top-k,False,diverged,"a, b"\n'
            "003,400M,,2.7,none,True,done,c\n",
        ),
        columns={"params_total": "N", "tokens": "D"},
    )
    assert len(runs) == 3
    assert runs["params_total"].dtype == float
    assert runs["params_total"].tolist() == [1e8, 2e8, 4e8]
    assert np.isnan(runs["tokens"][2])
    assert runs["run_id"].tolist() == ["001", "002", "003"]
    assert runs["router"].tolist() == ["none", "top-k", "none"]
    assert runs["causal"].tolist() == [True, False, True]
    assert runs["note"].tolist() == [None, "a, b", "c"]
    assert runs.where(router="none", status="done").labels == ["line 2", "line 4"]
    assert runs.where(runs["loss"] < 3)["run_id"].tolist() == ["002", "003"]
    assert len(runs.usable()) == 2
    assert runs.rows[0]["loss"] == 3.1
    assert matching(runs, "params_total>=200M")["run_id"].tolist() == ["002", "003"]
    assert matching(runs, "router != none")["run_id"].tolist() == ["002"]


def test_what_can_be_derived_is_derived_and_said(tmp_path: Path) -> None:
    runs = read_runs(csv_file(tmp_path, "params_total,flops,loss\n1e9,6e19,2.5\n2e9,6e20,2.2\n"))
    assert runs["tokens"].tolist() == pytest.approx([1e10, 5e10])
    assert runs["granularity"].tolist() == [1, 1]
    assert runs["expansion_rate"].tolist() == [1, 1]
    assert "tokens is absent: derived as flops / (6 · params_active)." in runs.notes
    runs = read_runs(
        csv_file(tmp_path, "params_total,params_active,tokens,loss,expansion_rate,granularity\n8e9,1e9,1e10,2.5,8,4\n")
    )
    assert runs["flops"].tolist() == [6e19]
    assert runs["flops_convention"].tolist() == ["6ND"]
    assert runs.notes == ("flops is absent: derived as 6 · params_active · tokens.",)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_round_trip_keeps_every_value(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rows = [
        {"run_id": "007", "loss": 0.1 + 0.2, "flops": 1e20, "n_layers": 3, "causal": True, "error": None},
        {"run_id": "1e5", "loss": None, "flops": 1.5e20, "n_layers": 4, "causal": False, "error": 'NaN at, "5"\nline'},
    ]
    common = {"params_total": 5, "tokens": 7.5, "granularity": 1, "expansion_rate": 1, "params_active": 5}
    table = RunTable([row | common for row in rows])
    write_runs(table, tmp_path / f"runs{suffix}")
    assert read_runs(tmp_path / f"runs{suffix}").rows == table.rows


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"N": 1e9, "tokens": "2B", "loss": 2.5}, {"N": 2e9, "tokens": "4B", "loss": None}]
    path = csv_file(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n", "runs.jsonl")
    runs = read_runs(path, columns={"params_total": "N"})
    assert runs["tokens"].tolist() == [2e9, 4e9]
    assert np.isnan(runs["loss"][1])


@pytest.mark.parametrize("name", ["runs.json", "runs.jsonl"])
def test_an_array_of_objects(tmp_path: Path, name: str) -> None:
    rows = [{"params_total": 1e9, "tokens": "2B", "loss": 2.5}, {"params_total": 2e9, "tokens": "4B", "loss": 2.2}]
    runs = read_runs(csv_file(tmp_path, json.dumps(rows, indent=1), name))
    assert runs["tokens"].tolist() == [2e9, 4e9]
    assert runs.labels == ["entry 1", "entry 2"]


@pytest.mark.parametrize(
    ("name", "text", "columns", "says"),
    [
        ("runs.csv", "N,D,loss\n1,2,3\n", {"tokens": "T"}, "no column 'T' to take tokens from; it has N, D, loss"),
        ("runs.csv", "a,b\n1,2\n3\n", {}, "line 3: it has 1 cells and the header has 2"),
        ("runs.csv", "a,a\n1,2\n", {}, "column 'a' appears twice"),
        ("runs.csv", "a,b\n", {}, "has no rows"),
        ("runs.csv", "", {}, "has no rows"),
        ("runs.xlsx", "a", {}, "readable are .csv, .tsv, .jsonl, .json (also .gz of these) and .parquet"),
        ("runs.jsonl", '{"a": 1}\n{"a": \n', {}, "line 2 is not JSON"),
        ("runs.jsonl", "[1]\n", {}, "entry 1 holds int"),
        ("runs.csv", "a;b\n1;2\n", {}, "line 1: its header is the one cell 'a;b', which semicolons seem to divide"),
        ("runs.parquet", "not parquet", {}, "cannot be read"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, text: str, columns: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_runs(csv_file(tmp_path, text, name), columns=columns)
    assert "\n" not in str(caught.value)


def test_absent_files_columns_and_words_for_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_runs(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"line 2: tokens is 'many', which is not a number"):
        read_runs(csv_file(tmp_path, "params_total,tokens,loss\n1e9,many,2\n2e9,1e9,2\n"))
    runs = read_runs(csv_file(tmp_path, "params_total,tokens,loss,family\n1e9,1e9,2,a\n2e9,1e9,2,b\n"))
    with pytest.raises(InputError, match="has no column loss_std; it has params_total, tokens, loss, family"):
        runs["loss_std"]
    with pytest.raises(InputError, match="family holds text, which knows only = and !="):
        matching(runs, "family<3")
    with pytest.raises(InputError, match="holds numbers"):
        matching(runs, "loss<low")
    with pytest.raises(InputError, match="none of the 2 rows"):
        matching(runs, "loss>3")
    with pytest.raises(InputError, match="write it as COLUMN=VALUE"):
        matching(runs, "loss")
    with pytest.raises(InputError, match="one entry for each of the 2 rows"):
        runs.where([True])
    with pytest.raises(InputError, match=r"writable are \.csv and \.parquet"):
        write_runs(runs, tmp_path / "runs.txt")


def test_a_word_for_a_number_is_blamed_on_its_own_line_and_column(tmp_path: Path) -> None:
    text = (
        "# made by hand, on a Tuesday\n"
        "N,D,loss,flops,note\n"
        '1e8,2B,3.1,1e18,"two\nlines"\n'
        "\n"
        "# the larger ones\n"
        "2e8,many,2.9,1e18,\n"
        '4e8,few,2.7,1e18,"two\nlines"\n'
    )
    runs = read_runs(csv_file(tmp_path, text), columns={"params_total": "N", "tokens": "D"})
    assert runs.labels == ["lines 3 to 4", "line 7", "lines 8 to 9"]
    with pytest.raises(InputError, match=r"runs\.csv line 7: tokens \(column D of the file\) is 'many', which is not"):
        runs.numeric("tokens")
    with pytest.raises(InputError, match=r"lines 8 to 9: tokens .* is 'few'"):
        runs.where(loss=2.7).numeric("tokens")
    assert runs.where(loss=3.1).numeric("tokens").tolist() == [2e9]
    with pytest.raises(InputError, match="line 7: tokens"):
        matching(runs, "tokens>1e6")


def test_a_name_that_starts_with_a_hash_is_a_row(tmp_path: Path) -> None:
    runs = read_runs(csv_file(tmp_path, "#,params_total,tokens,loss\n#7,1e9,2e9,3\n#note\n"))
    assert runs.columns[:2] == ["#", "params_total"]
    assert runs.rows[0]["#"] == "#7"
    assert len(runs) == 1


def test_an_open_quote_names_the_lines_that_it_swallowed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lines 2 to 4: it has 2 cells and the header has 3; .*close every quote"):
        read_runs(csv_file(tmp_path, 'a,b,c\n1,"2,3\n4,5,6\n7,8,9\n'))


def test_column_mistakes_say_what_was_meant(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "N,D,loss\n1e8,2B,3.1\n")
    with pytest.raises(InputError, match=r"did you mean --column tokens=D\?"):
        read_runs(path, columns={"D": "tokens"})
    runs = read_runs(path, columns={"params_total": "N", "tokens": "D"})
    with pytest.raises(InputError, match="no column size, it has params_total, tokens, loss"):
        matching(runs, "size>3")
    with pytest.raises(InputError, match="no column D any more: it was read as tokens"):
        matching(runs, "D>3")
    for condition, sign in (("loss<<3", "<<"), ("loss=<3", "=<"), ("loss<>3", "<>")):
        with pytest.raises(InputError, match=f"'{sign}' is no comparison, allowed are = !="):
            matching(runs, condition)


def test_flops_are_written_as_powers_of_ten() -> None:
    assert [exponent(value) for value in (5e12, 1.934e20, 9.999e11, 0.0, 30)] == ["5e12", "1.93e20", "1e12", "0", "3e1"]
