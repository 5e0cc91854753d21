from __future__ import annotations

import random
import threading
import time

from workers.solo import SoloGate


def test_a_solo_item_never_runs_beside_another() -> None:
    gate = SoloGate()
    lock = threading.Lock()
    inside = 0
    broken: list[str] = []
    together: list[int] = []

    def work(seed: int) -> None:
        nonlocal inside
        rng = random.Random(seed)
        for _ in range(20):
            solo = rng.random() < 0.2
            with gate.pass_through(solo=solo):
                with lock:
                    inside += 1
                    together.append(inside)
                    if solo and inside != 1:
                        broken.append(f"{inside} inside beside a solo item")
                time.sleep(0.001)
                with lock:
                    inside -= 1
                    if solo and inside != 0:
                        broken.append("something entered beside a solo item")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not broken
    assert max(together) > 1, "ordinary items share the gate"


def test_a_waiting_solo_item_goes_before_new_ones() -> None:
    gate = SoloGate()
    order: list[str] = []
    first_is_in, let_first_go = threading.Event(), threading.Event()

    def run(name: str, *, solo: bool) -> None:
        with gate.pass_through(solo=solo):
            order.append(name)
            if name == "first":
                first_is_in.set()
                let_first_go.wait(5)

    first = threading.Thread(target=run, args=("first",), kwargs={"solo": False})
    first.start()
    first_is_in.wait(5)
    alone = threading.Thread(target=run, args=("alone",), kwargs={"solo": True})
    alone.start()
    while not gate._waiting_alone:
        time.sleep(0.001)
    later = threading.Thread(target=run, args=("later",), kwargs={"solo": False})
    later.start()
    let_first_go.set()
    for thread in (first, alone, later):
        thread.join(5)
    assert order == ["first", "alone", "later"]
