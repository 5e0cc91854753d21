"""README's engine block runs as it stands, on the demo model's shape with random weights."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from PIL import Image

from deploy.demo.clips import random_clip, write_mp4
from deploy.demo.random_checkpoint import write_random_checkpoint

README = Path(__file__).parents[3] / "README.md"


def test_the_cards_snippets_in_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?from pipelines\.engine\.chat import.*?)```", README.read_text(), re.DOTALL)
    block = block[block.index("from pathlib") :]
    write_random_checkpoint(tmp_path / "model", seed=3, small=False)
    Image.new("RGB", (896, 448), "red").save(tmp_path / "image1.jpg")
    Image.new("RGB", (448, 448), "green").save(tmp_path / "image2.jpg")

    write_mp4(random_clip(random.Random(1), frames=8, kind="way"), tmp_path / "red-panda.mp4")
    monkeypatch.chdir(tmp_path)
    changed = block.replace("/models/InternVL-Chat-V1-5", str(tmp_path / "model"))
    changed = changed.replace("max_new_tokens=1024, do_sample=True", "max_new_tokens=4, do_sample=False")
    assert changed.count(str(tmp_path)) == 1
    assert "max_new_tokens=4" in changed
    found: dict[str, object] = {}
    exec(compile(changed, "README.md", "exec"), found)
    assert isinstance(found["response"], str)
    assert isinstance(found["responses"], list)
    assert len(found["responses"]) == 2
    assert found["counts"] == [1] * 8
