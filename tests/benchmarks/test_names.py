"""No benchmark has the name of a library."""

import importlib.util

from tests.conftest import ROOT


def test_no_benchmark_hides_a_library_of_its_name() -> None:
    # Python looks for imports beside the script first, so a script gguf.py would hide gguf.
    names = [path.stem for path in (ROOT / "benchmarks").glob("*.py")]
    assert len(names) > 20
    assert [name for name in names if importlib.util.find_spec(name) is not None] == []
