"""What the benchmarks compute from their repeats: spreads, ratios by pairs, verdicts, the table, the history."""

import json
import subprocess
import sys

import pytest

from benchmarks import harness, profiling
from benchmarks.table import WIDTH, Row, Spread, compact, table
from benchmarks.worker import Worker


def test_spread_has_median_quartiles_and_range():
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.median, spread.low, spread.high, spread.least, spread.most, spread.n) == (3, 2, 4, 1, 5, 5)
    assert Spread.of([7.0]).numbers() == [7.0, 7.0, 7.0, 7.0, 7.0, 1]


def test_ratio_is_taken_pair_by_pair():
    """Both sides slow down threefold on the way; the ratio of medians would not see that they do so together."""
    ours, peer = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]
    row = Row.of_costs("case", ours, peer, amount=12.0, unit="tokens/s", goal=1.5)
    assert (row.ratio.median, row.ratio.low, row.ratio.high) == (2, 2, 2)
    assert (row.ours.median, row.peer.median) == (6, 3)
    assert (row.verdict, row.is_met) == ("ahead", True)


@pytest.mark.parametrize(
    ("ours", "peer", "verdict"),
    [
        ([1.0, 1.0, 1.0, 1.0], [0.9, 1.1, 0.9, 1.2], "equal"),
        ([1.0, 1.0, 1.0, 1.0], [1.1, 1.1, 1.2, 1.3], "ahead"),
        ([1.0, 1.0, 1.0, 1.0], [0.9, 0.9, 0.8, 0.7], "behind"),
        ([1.0], [1.2], "ahead"),
    ],
)
def test_verdict_is_equal_where_the_quartiles_hold_one(ours, peer, verdict):
    row = Row.of_costs("case", ours, peer)
    assert row.verdict == verdict
    assert ("equal" in table([row])) == (verdict == "equal")


def test_a_row_without_a_peer_has_neither_verdict_nor_goal():
    row = Row.of_costs("case", [1.0, 2.0], goal=2.0)
    assert (row.peer, row.ratio, row.verdict, row.is_met) == (None, None, "", None)


def test_unequal_numbers_of_turns_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        Row.of_costs("case", [1.0, 2.0], [1.0])


def test_sides_take_turns_and_the_warm_up_is_dropped():
    order = []

    def side(name, first):
        values = iter(range(first, first + 9))
        return lambda: order.append(name) or float(next(values))

    taken = harness.in_turn({"ours": side("ours", 0), "peer": side("peer", 10)}, 3, warm_up=2, pause=0.0)
    assert order == ["ours", "peer"] * 5
    assert taken == {"ours": [2.0, 3.0, 4.0], "peer": [12.0, 13.0, 14.0]}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((12345.0, 11900.0, 12600.0), "12.3K (11.9–12.6)"),
        ((1060.4, 1000.0, 1100.0), "1060 (1000–1100)"),
        ((0.03071, 0.0301, 0.0328), "30.7m (30.1–32.8)"),
        ((2.5e9,), "2.50G"),
        ((0.0,), "0.000"),
    ],
)
def test_numbers_have_three_digits_and_one_suffix(values, shown):
    assert compact(values) == shown


def test_the_table_is_at_most_a_hundred_columns_wide():
    times = [12345.678, 12000.0, 13000.0]
    note = "a note that goes on for long enough " * 6
    rows = [
        Row.of_costs(
            "a case " * 30, times, times[::-1], unit="tokens/s, batch 32", peer_name="transformers", note=note
        ),
        Row.of_costs("other", [0.0123456, 0.013], [0.123, 0.124], goal=1.25),
    ]
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert note.split() == " ".join(line for line in lines if "goes on" in line or line.strip() == "enough").split()


def test_history_grows_by_one_line_a_row(tmp_path):
    row = Row.of_costs("case", [1.0, 1.1], [2.0, 2.1], peer_name="peer", goal=1.2)
    for _ in range(2):
        path = harness.record("made-up", [row, row], {"cpu": "some"}, seconds=1.4, directory=tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["run", "case", "case"] * 2
    assert lines[0]["run"]["cpu"] == "some"
    assert lines[1]["ratio"][-1] == 2
    assert lines[1]["verdict"] == "ahead"


SERVED = """
import sys
from benchmarks.worker import serve
def add(a, b):
    print("to stderr, not between the answers")
    return a + b
def die():
    sys.exit("gone")
serve({"add": add, "die": die})
"""


def test_a_worker_answers_reports_errors_and_its_death(tmp_path, monkeypatch):
    (tmp_path / "served_for_test.py").write_text(SERVED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("served_for_test") as worker:
        assert worker("add", a=1, b=2) == 3
        with pytest.raises(RuntimeError, match="TypeError"):
            worker("add", a=1, b="2")
        assert worker("add", a="x", b="y") == "xy"
        with pytest.raises(RuntimeError, match=r"(?s)died in die.*gone"):
            worker("die")


def test_the_harness_and_the_peers_side_load_nothing_of_ours():
    code = "import sys, benchmarks.harness; assert not {'torch', 'isoflop'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=harness.ROOT)
    pytest.importorskip("transformers")
    code = "import sys, benchmarks.side_transformers; assert 'isoflop' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=harness.ROOT)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("_GroupedMatmulBackward", "matrix products"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::_foreach_norm", "optimiser"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::index_select", "gathers and order"),
        ("aten::embedding_dense_backward", "gathers and order"),
        ("aten::_log_softmax", "norms and softmax"),
        ("aten::silu_backward", "elementwise"),
        ("aten::cat", "copies"),
        ("aten::empty_strided", "allocation"),
        ("something::else", profiling.REST),
    ],
)
def test_operations_fall_into_kinds(operation, kind):
    assert profiling.kind_of(operation) == kind
    assert profiling.by_kind([(operation, 2.0), (operation, 1.0)])[kind] == 3.0
