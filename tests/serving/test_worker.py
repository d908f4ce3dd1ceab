"""One thread, a queue with a bound, and work that ends with its client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import pytest
from served import CPU, Running

from saekit.intervention import steered_text
from saekit.serving.worker import Busy, Worker


def in_loop(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


class Held:
    """Work that waits for `release`."""

    def __init__(self) -> None:
        self.began, self.release = threading.Event(), threading.Event()

    def __call__(self, tell) -> None:
        self.began.set()
        assert self.release.wait(20)
        tell("done")


def test_events_arrive_in_order_and_what_is_raised_is_raised():
    async def main() -> None:
        worker = Worker(CPU)
        job = worker.submit(lambda tell: [tell(n) for n in range(100)] and None)
        assert [await job.next() for _ in range(101)] == [*range(100), None]

        def fails(tell) -> None:
            tell("one")
            raise KeyError("two")

        job = worker.submit(fails)
        assert await job.next() == "one"
        with pytest.raises(KeyError, match="two"):
            await job.next()
        worker.close()
        worker.join(10)

    in_loop(main)


def test_one_job_runs_at_a_time_in_the_order_of_submission():
    async def main() -> None:
        worker, running, most, order = Worker(CPU, 50), 0, 0, []

        def work(number: int):
            def run(tell) -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                time.sleep(0.002)
                order.append(number)
                running -= 1

            return run

        jobs = [worker.submit(work(number)) for number in range(30)]
        assert [await job.next() for job in jobs] == [None] * 30
        assert (most, order) == (1, list(range(30)))
        worker.close()

    in_loop(main)


def test_a_full_queue_refuses_and_a_client_that_goes_makes_room():
    async def main() -> None:
        worker, held, ran = Worker(CPU, 2), Held(), []
        first = worker.submit(held)
        await asyncio.to_thread(held.began.wait, 10)
        waiting = [worker.submit(lambda tell, n=n: ran.append(n)) for n in range(2)]
        with pytest.raises(Busy) as refused:
            worker.submit(lambda tell: ran.append("refused"))
        assert 1 <= refused.value.seconds <= 60
        waiting[0].cancel()
        third = worker.submit(lambda tell: ran.append(2))
        held.release.set()
        assert await first.next() == "done"
        assert await third.next() is None
        assert ran == [1, 2]
        worker.close()

    in_loop(main)


def test_closing_ends_what_runs_and_what_waits():
    async def main() -> None:
        worker, told = Worker(CPU), 0

        def endless(tell) -> None:
            nonlocal told
            while True:
                tell("more")
                told += 1
                time.sleep(0.001)

        running = worker.submit(endless)
        assert await running.next() == "more"
        waiting = worker.submit(lambda tell: tell("never"))
        worker.close()
        assert await waiting.next() is None
        worker.join(10)
        before = told
        time.sleep(0.05)
        assert told == before
        with pytest.raises(Busy):
            worker.submit(endless)

    in_loop(main)


def test_a_client_is_told_when_to_come_again(bench, monkeypatch):
    held, real = Held(), type(bench.reader).read
    monkeypatch.setattr(
        type(bench.reader), "read", lambda *a: held(lambda _: None) or real(*a), raising=True
    )
    answers = []
    with Running(bench, queue=1) as running:

        def asks() -> None:
            answers.append(running.client.send("text", {"text": "the cat"}))

        threads = [threading.Thread(target=asks) for _ in range(2)]
        threads[0].start()
        assert held.began.wait(10)
        threads[1].start()
        until(lambda: len(running.worker._waiting) == 1)
        refused = running.client.send("text", {"text": "the cat"})
        assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json == {"error": "the model is busy", "hint": "try again in 1 s"}
        # what needs no model is answered
        assert running.client.send("about").status == 200
        held.release.set()
        for thread in threads:
            thread.join(30)
    assert [answer.status for answer in answers] == [200, 200]


def until(condition, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def test_writing_ends_when_its_client_goes(bench, monkeypatch):
    written, put = 0, steered_text._Told.put

    def counted(self, value) -> None:
        nonlocal written
        written += 1
        time.sleep(0.01)
        put(self, value)

    monkeypatch.setattr(steered_text._Told, "put", counted)
    config = bench.steering.live_model.module.generation_config
    monkeypatch.setattr(config, "eos_token_id", None)
    body = json.dumps({"prompt": "far away", "latents": {"3": 1}, "max_new_tokens": 500}).encode()
    with Running(bench) as running:
        client = running.client
        head = f"POST /{client.token}/steer HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            received = b""
            while received.count(b"clean") < 3:
                received += connection.recv(1 << 16)
        until(lambda: running.worker._running is None)
        assert 3 <= written < 300
        # the model is as it was, for the next
        assert client.send("text", {"text": "the cat"}).status == 200


def test_fifty_clients_get_their_own_answers(bench, made):
    texts = ["the cat sat", "a dog ran far away", "on a mat from home", "it and the mat"]
    questions = [("text", {"text": text}) for text in texts] + [
        ("steer", {"prompt": text, "latents": {str(n): 2}, "raw": True, "max_new_tokens": 3})
        for n, text in enumerate(texts)
    ]
    with Running(bench, queue=8) as running:
        expected = [running.client.send(*question).body for question in questions]
        wrong, refused, slowest = [], 0, 0.0

        def asks(number: int) -> None:
            nonlocal refused
            path, body = questions[number % len(questions)]
            for _ in range(200):
                answer = running.client.send(path, body)
                if answer.status != 503:
                    break
                assert int(answer.headers["retry-after"]) >= 1
                refused += 1
                time.sleep(0.1)
            if answer.status != 200 or answer_of(answer.body) != answer_of(
                expected[number % len(questions)]
            ):
                wrong.append((number, answer))

        threads = [threading.Thread(target=asks, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            assert running.client.send("latents?q=3").status == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    assert not wrong
    assert refused > 0, "the queue was never full"
    assert slowest < 10


def answer_of(body: bytes) -> bytes:
    """The last lines; a clean text that is known is told at once."""
    return b"\n".join(line for line in body.splitlines() if b'"kind": "clean"' not in line)
