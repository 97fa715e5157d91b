"""The results of a search as rows."""

import csv
import io

from tests.simulated_results import simulated
from tune.show import to_csv


def test_the_frame_has_the_rows_of_the_csv() -> None:
    results = simulated(6)
    header, *lines = csv.reader(io.StringIO(to_csv(results)))
    frame = results.frame()
    assert list(frame.columns) == header
    assert list(frame["id"]) == [line[0] for line in lines] == [t.id for t in results.trials]
    accuracy = header.index("eval/accuracy")
    assert [float(line[accuracy]) for line in lines] == list(frame["eval/accuracy"])
    without = results.trials.index(next(t for t in results.trials if "lora.r" not in t.config))
    assert lines[without][header.index("lora.r")] == ""
    assert frame["lora.r"].isna()[without]
