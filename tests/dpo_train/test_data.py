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


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = all_rows(DataConfig(id=str(write(tmp_path / f"rows{suffix}", records()))))
    assert len(rows) == 30
    row = next(row for row in rows if row.prompt[-1]["content"] == "What is the number 1?")
    assert row.prompt[0] == {"role": "system", "content": "Be honest."}
    assert row.chosen == [{"role": "assistant", "content": "It is 1, as you say."}]


def test_conversations_and_implicit_prompts_become_the_same_messages(tmp_path: Path) -> None:
    user, good, bad = (
        {"role": role, "content": content}
        for role, content in (("user", "Hi you?"), ("assistant", "Good."), ("assistant", "Bad."))
    )
    forms: list[Record] = [
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "Hi you?", "chosen": "Good.", "rejected": "Bad."},
    ]
    seen = []
    for number, form in enumerate(forms):
        path = tmp_path / f"{number}.jsonl"
        others = [{"prompt": f"p{i}?", "chosen": "a", "rejected": "b"} for i in range(9)]
        rows = all_rows(DataConfig(id=str(write(path, [form, *others]))))
        seen.append(next(row for row in rows if row.prompt[0]["content"] == "Hi you?"))
    assert seen[0] == seen[1] == seen[2]


def test_an_implicit_prompt_in_plain_text_ends_between_words(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"Question {i}? Yes, sure.", "rejected": f"Question {i}? Yesterday."}
        for i in range(9)
    ]
    row = all_rows(DataConfig(id=str(write(tmp_path / "a.jsonl", rows))))[0]
    assert row.prompt[0]["content"].endswith("?")
    assert row.chosen[0]["content"] == " Yes, sure."


def test_filters_count_what_they_take_by_reason(tmp_path: Path) -> None:
    rows = records()
    rows += [rows[0], {**rows[1], "chosen": " "}, {**rows[2], "chosen": rows[2]["rejected"]}]
    rows += [{**rows[3], "prompt": "Too long " * 50}]
    pairs = load_pairs(DataConfig(id=str(write(tmp_path / "a.jsonl", rows)), chars=(10, 300)))
    assert pairs.dropped == {
        "that stood there before": 1,
        "with an empty part": 1,
        "with chosen equal to rejected": 1,
        "whose prompt has not 10 to 300 characters": 1,
    }


def test_seven_rows_are_enough_for_three_splits() -> None:
    pairs = load_pairs(DataConfig(chars=(30, 300), limit=7))
    assert {name: len(rows) for name, rows in pairs.splits.items()} == {
        "train": 5,
        "eval": 1,
        "test": 1,
    }


def test_a_prompt_never_stands_on_two_sides(tmp_path: Path) -> None:
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
    assert pairs.dropped == {"of train whose prompt is also held out": 5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "chosen": "b"}', "line 1: no column 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt', "line 2: not JSON"),
        ('{"prompt": 3, "chosen": "b", "rejected": "c"}', "line 1: 3 is neither a text nor"),
        ("[1]", "line 1: a row must be a mapping"),
        ("", "no pair is left for train; of 0 rows"),
        ('{"chosen": "a b", "rejected": "c d"}', "line 1: no prompt"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_pairs(DataConfig(id=str(path)))
    assert said in str(caught.value)


def test_nothing_left_names_the_filter_that_took_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records())
    with pytest.raises(InputError, match="took: 30 whose prompt has not 100 to 200 characters"):
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


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
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
