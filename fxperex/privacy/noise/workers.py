"""Threads for work that torch does not share out itself: each takes the next task, until none is
left.

torch's own threads share one operation. Between operations on arrays that fit a core's cache they
would mostly wait for each other. The result of a task must not depend on its thread or time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Task = TypeVar("Task")


def share(tasks: Sequence[Task], worker: Callable[[], Callable[[Task], None]]) -> None:
    """Does every task once, on at most as many threads as torch uses. Each thread calls `worker`
    once.

    Raises what a task raised, after all threads have ended; tasks that had not begun are skipped.
    """
    threads = torch.get_num_threads()
    waiting, errors = deque(tasks), list[BaseException]()
    if not waiting:
        return
    if threads == 1:
        _work(waiting, worker)
        return
    count = min(threads, len(tasks))
    begun = threading.Barrier(count + 1)

    def run() -> None:
        torch.set_num_threads(1)
        try:
            begun.wait()
            _work(waiting, worker)
        except BaseException as e:
            waiting.clear()
            errors.append(e)

    crew: list[threading.Thread] = []
    try:
        try:
            for _ in range(count):
                crew.append(threading.Thread(target=run, daemon=True))
                crew[-1].start()
            begun.wait()
        finally:
            # torch has one number for all threads that are still to start. It is put back as soon
            # as the crew's threads have theirs.
            torch.set_num_threads(threads)
        for thread in crew:
            thread.join()
    except BaseException:
        waiting.clear()
        begun.abort()
        raise
    finally:
        for thread in crew:
            thread.join()
    if errors:
        raise errors[0]


def _work(waiting: deque[Task], worker: Callable[[], Callable[[Task], None]]) -> None:
    do = worker()
    while True:
        try:
            task = waiting.popleft()
        except IndexError:
            return
        do(task)
