"""`python -m dpo_train.reference_pass FOLDER` tokenises a planned folder in this process.

It prints one JSON object a line: {"done", "total"} while it works, {"error"} for wrong input.
"""

import json
import sys
from pathlib import Path

from dpo_train.errors import InputError
from dpo_train.reference_pass.tokens import tokenised


def main(folder: Path) -> int:
    """Tokenise a folder, and return the exit code: 0 done, 2 wrong input."""
    try:
        tokenised(folder, lambda done, total: _say(done=done, total=total))
    except InputError as error:
        _say(error=str(error))
        return 2
    return 0


def _say(**content: object) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
