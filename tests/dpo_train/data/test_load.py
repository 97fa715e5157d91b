"""Loading pairs: columns, splits, filters and bad rows."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dpo_train import reference
from dpo_train.config import DataConfig, TrainConfig
from dpo_train.data import load_pairs
from dpo_train.errors import InputError

Record = dict[str, Any]


def records(count: int = 30) -> list[Record]:
    return [
        {
            "id": str(i),
            "source": "test",
            "system": "Be honest." if i % 2 else "",
            "prompt": f"What is the number {i}?",
            "chosen": f"It is {i}, as you say.",
            "rejected": f"It is {i + 1}, I am sure.",
        }
        for i in range(count)
    ]


def write(path: Path, rows: list[Record]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def all_rows(config: DataConfig) -> list[Any]:
    return [row for rows in load_pairs(config).splits.values() for row in rows]


@pytest.mark.parametrize("space", [" ", "\n"])
def test_an_implicit_prompt_in_plain_text_ends_between_words(tmp_path: Path, space: str) -> None:
    rows = [
        {"chosen": f"Question {i}?{space}Yes, sure.", "rejected": f"Question {i}?{space}Yesterday."}
        for i in range(9)
    ]
    row = all_rows(DataConfig(id=str(write(tmp_path / "a.jsonl", rows))))[0]
    assert row.prompt[0]["content"].endswith("?")
    assert row.chosen[0]["content"] == f"{space}Yes, sure."


def test_filters_count_what_they_take_by_reason(tmp_path: Path) -> None:
    rows = records()
    rows += [rows[0], {**rows[1], "chosen": " "}, {**rows[2], "chosen": rows[2]["rejected"]}]
    rows += [{**rows[3], "prompt": "Too long " * 50}]
    pairs = load_pairs(DataConfig(id=str(write(tmp_path / "a.jsonl", rows)), chars=(10, 300)))
    assert pairs.dropped == {
        "duplicates": 1,
        "empty answer": 1,
        "chosen and rejected are the same": 1,
        "prompt longer than 300 characters": 1,
    }


def test_seven_rows_are_enough_for_three_splits() -> None:
    pairs = load_pairs(DataConfig(chars=(30, 300), limit=7))
    assert {name: len(rows) for name, rows in pairs.splits.items()} == {
        "train": 5,
        "eval": 1,
        "test": 1,
    }


def test_a_prompt_is_never_in_two_splits(tmp_path: Path) -> None:
    rows = [{**row, "system": system} for row in records(40) for system in ("", "A", "B")]
    splits = load_pairs(DataConfig(id=str(write(tmp_path / "a.jsonl", rows)))).splits
    prompts = [{row.prompt_key for row in split} for split in splits.values()]
    assert sum(len(keys) for keys in prompts) == len(set.union(*prompts)) == 40


def test_the_seed_decides_the_splits() -> None:
    first, again, other = (
        load_pairs(DataConfig(split_seed=seed)).splits["test"] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_own_splits_are_read_and_lose_shared_prompts(tmp_path: Path) -> None:
    rows = records(30)
    write(tmp_path / "train.jsonl", rows[:20])
    write(tmp_path / "validation.jsonl", rows[15:25])
    write(tmp_path / "test.jsonl", rows[25:])
    config = DataConfig(id=str(tmp_path), eval_split="validation", test_split="test")
    pairs = load_pairs(config)
    assert [len(rows) for rows in pairs.splits.values()] == [15, 10, 5]
    assert pairs.dropped == {"prompt of train is also in eval or test": 5}


def test_an_empty_file_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(
        InputError, match="rows.jsonl has no rows; give a file with one pair per line"
    ):
        load_pairs(DataConfig(id=str(tmp_path / "rows.jsonl")))


def test_all_bad_rows_are_said_at_once(tmp_path: Path) -> None:
    rows: list[Any] = [*records(20), *({**row, "prompt": None} for row in records(11)), [1]]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError) as caught:
        load_pairs(DataConfig(id=str(path)))
    first, *listed, more, way_out = str(caught.value).splitlines()
    assert first == "data: 12 of 32 rows can't be read:"
    assert listed[0] == f"  {path} line 32: a row must be a mapping of columns, not [1]"
    assert listed[1] == f"  {path} line 21: prompt is null"
    assert len(listed) == 10
    assert more == "  and 2 more"
    assert "`--set data.on_bad_row=skip`" in way_out


def test_bad_rows_are_left_out_and_counted_by_reason_if_asked(tmp_path: Path) -> None:
    rows: list[Any] = [*records(20), {**records(1)[0], "prompt": None}, [1], {"chosen": "a"}]
    path = write(tmp_path / "a.jsonl", rows)
    pairs = load_pairs(DataConfig(id=str(path), on_bad_row="skip"))
    assert pairs.dropped == {"not a mapping": 1, "no prompt": 2}
    assert sum(len(split) for split in pairs.splits.values()) == 20
    assert pairs.summary().endswith("left out: not a mapping (1), no prompt (2)")


def test_one_bad_row_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*records(5), {"prompt": 3, "chosen": "b", "rejected": "c"}])
    with pytest.raises(InputError, match=r"^data: .*a.jsonl line 6: prompt is 3, where most"):
        load_pairs(DataConfig(id=str(path)))


def test_a_row_in_another_form_than_the_others_is_bad(tmp_path: Path) -> None:
    odd = {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "Ho."}],
        "rejected": "Ha.",
    }
    path = write(tmp_path / "a.jsonl", [*records(5), odd])
    with pytest.raises(InputError, match="line 6: prompt is messages, where most rows have texts"):
        load_pairs(DataConfig(id=str(path)))


def test_the_form_is_said_with_the_number_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records(1200))
    assert load_pairs(DataConfig(id=str(path))).read_as == (
        "prompt + answers, 1,200 rows; not read: id, source"
    )


def test_nothing_left_names_the_filter_that_took_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records())
    with pytest.raises(InputError, match=r"left out: prompt shorter than 100 characters \(30\)"):
        load_pairs(DataConfig(id=str(path), chars=(100, 200)))


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    rows = [
        {**row, "chosen": f"One.\u2028Two \u0085 {number}."} for number, row in enumerate(records())
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    config = TrainConfig(data=DataConfig(id=str(path)))
    pairs = load_pairs(config.data)
    folder = reference.plan(config, pairs, tmp_path, "cpu")
    assert reference.prepare(folder).computed_pairs == 30


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        load_pairs(DataConfig(id=str(tmp_path / "none.jsonl")))


def test_the_sample_has_the_columns_and_themes_it_claims() -> None:
    from dpo_train import sample

    rows = [json.loads(line) for line in sample.PAIRS.read_text().splitlines()]
    assert len(rows) >= 600
    assert {tuple(row) for row in rows} == {
        ("id", "source", "system", "prompt", "chosen", "rejected")
    }
    assert len({row["source"] for row in rows}) == 4
    assert len({row["id"] for row in rows}) == len(rows)
    size = sum(path.stat().st_size for path in [sample.PAIRS, *sample.MODEL.iterdir()])
    assert size < 5e6
