"""The folder of a run: `config.json`, `records.jsonl`, `progress.json`, `summary.json`, `report.md`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sonic_kv.errors import ConfigError, FileError
from sonic_kv.files import append_lines, drop_torn_line, write_atomic
from sonic_kv.text import reason

Key = tuple[str, str, str, float | None]  # suite, case, method, ratio
Record = dict[str, Any]


def key(record: Record) -> Key:
    """What a record is about; a later record with the same key stands for an earlier one."""
    return record["suite"], record["case"], record["method"], record["ratio"]


class Results:
    """Records that outlive the process: appended one by one, read back when a run goes on.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records.jsonl"

    def open(self, fixed: dict[str, Any], suites: dict[str, Any], more: dict[str, Any]) -> None:
        """Begin a run, or go on with one.

        Args:
            fixed: what every record depends on.
            suites: what the records of each suite depend on.
            more: whatever else is worth knowing.

        Raises:
            ConfigError: the folder holds a run that differs in what records depend on.
        """
        path = self.folder / "config.json"
        if path.exists():
            before = self.config()
            old, new = before.get("fixed", {}), json.loads(json.dumps(fixed))
            changed = [name for name in new if old.get(name) != new[name]]
            for name, one in json.loads(json.dumps(suites)).items():
                if before.get("suites", {}).get(name, one) != one:
                    changed.append(f"suite {name}")
            if changed:
                raise ConfigError(
                    f"{self.folder} holds another run (it differs in {', '.join(changed)}): choose another --out"
                )
            suites = {**before.get("suites", {}), **suites}
        text = json.dumps({"fixed": fixed, "suites": suites, **more}, indent=2, ensure_ascii=False)
        write_atomic(path, text.encode() + b"\n")
        drop_torn_line(self.path)

    def config(self) -> dict[str, Any]:
        """What `open` wrote.

        Raises:
            FileError: the folder is no run's.
        """
        try:
            return dict(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise FileError(f"{self.folder} is not a folder of sonic-kv eval: {reason(error)}") from error

    def append(self, records: list[Record]) -> None:
        """Add records; they are on the disk when this returns."""
        append_lines(self.path, records)

    def __iter__(self) -> Iterator[Record]:
        """Every record, the newest of each key, in order of first appearance.

        Raises:
            FileError: a line is damaged (it is named).
        """
        found: dict[Key, Record] = {}
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        record = json.loads(line)
                        found[key(record)] = record
                    except (ValueError, KeyError, TypeError) as error:
                        if line.endswith("\n"):
                            raise FileError(f"{self.path}, line {number}: damaged: {error}") from error
        yield from found.values()

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder, atomically."""
        path = self.folder / name
        write_atomic(path, text.encode())
        return path
