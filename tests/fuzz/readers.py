"""Fuzzes a reader by what its code does with a file, with atheris, which the suite does not need.

python tests/fuzz/readers.py a.json FOLDER -max_total_time=180

The first argument is a key of ``KINDS`` in ``tests/unit/test_damaged_files.py``, whose file is the first input; FOLDER keeps
the inputs that reached new code, and other arguments are libFuzzer's. A reader may refuse with ``ValueError`` or ``OSError`` that
names the file, or give a set, whose every example is then looked at; anything else, 20 seconds or 4 GB are findings, and the
input is left behind as ``crash-...``.
"""

import sys
import tempfile
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

with atheris.instrument_imports(include=["fedjax_sim.data"]):
    from unit.test_damaged_files import KINDS, flat


def main() -> None:
    name, corpus, *options = sys.argv[1:]
    kind, path = KINDS[name], Path(tempfile.mkdtemp()) / name
    kind.write(path)
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "first").write_bytes(path.read_bytes())

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = kind.read(path)
        except (OSError, ValueError) as error:
            named = path if kind.named == 0 else path.parents[kind.named - 1]
            assert str(named) in str(error), error
        else:
            flat(found)  # all of it can be looked at
            assert found.classes is None or found.classes >= 0

    atheris.Setup(
        [
            sys.argv[0],
            str(folder),
            "-len_control=0",
            "-timeout=20",
            "-rss_limit_mb=4096",
            "-max_len=65536",
            *options,
        ],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
