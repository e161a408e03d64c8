"""Write the training side of the real dialogues, for `sonic-kv train --data`; what is held out stays out.

python split.py --out ../../runs/dialogues.jsonl
"""

import argparse
import json
from pathlib import Path

from common import DATA, HERE, load_config, real_dialogues

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--per-source", type=int, default=2000)
    arguments = parser.parse_args()
    sources = load_config(arguments.config)["data"]["sources"]
    with arguments.out.open("w", encoding="utf-8") as file:
        for dialogue in real_dialogues(arguments.data, dict.fromkeys(sources, arguments.per_source)):
            file.write(json.dumps({"id": dialogue["id"], "messages": dialogue["messages"]}) + "\n")
