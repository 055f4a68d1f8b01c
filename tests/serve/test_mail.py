"""From the engine's thread to the loop: everything arrives, in order, and a busy loop gets larger pieces."""

import asyncio
import threading

from graft.generate.request import Completion
from graft.serve.jobs import Ended, Failed, Piece
from graft.serve.mail import Events, Post

END = Ended(Completion("abc", [1, 2, 3], "stop"), Piece("", [], [], []))


def piece(number):
    return Piece(f"{number}", [number], [-float(number)], [{number: -float(number)}])


async def taken(events, count):
    return [await events.get() for _ in range(count)]


def test_pieces_that_nobody_took_become_one_and_the_end_stays_apart():
    async def run():
        events = Events()
        for number in range(3):
            events.put(piece(number))
        events.put(END)
        return await taken(events, 2)

    first, last = asyncio.run(run())
    assert first == Piece("012", [0, 1, 2], [0.0, -1.0, -2.0], [{0: 0.0}, {1: -1.0}, {2: -2.0}])
    assert last is END


def test_a_piece_that_was_taken_is_left_alone():
    async def run():
        events = Events()
        events.put(piece(1))
        first = await events.get()
        waits = asyncio.create_task(events.get())
        await asyncio.sleep(0)
        events.put(piece(2))
        return first, await waits

    assert asyncio.run(run()) == (piece(1), piece(2))


class Turns:
    """A worker of which only the end of its turns is known."""

    def __init__(self):
        self.after = {}

    def after_turn(self, call):
        self.after[call] = None

    def end(self):
        for call in self.after:
            call()
        self.after.clear()


def test_a_loop_is_woken_once_for_the_texts_of_a_turn():
    async def run():
        worker, loop, woken = Turns(), asyncio.get_running_loop(), []
        soon = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *call: (woken.append(1), soon(*call))
        post, texts = Post(worker), [Events() for _ in range(8)]
        tell = [post.to(events.put) for events in texts]

        def turn():
            for number, one in enumerate(tell):
                one(piece(number))
                one(Failed(ValueError(str(number))))
            worker.end()

        thread = threading.Thread(target=turn)
        thread.start()
        found = [await taken(events, 2) for events in texts]
        count = len(woken)
        await asyncio.to_thread(thread.join)
        return found, count

    found, count = asyncio.run(run())
    assert [first for first, _ in found] == [piece(number) for number in range(8)]
    assert [str(last.error) for _, last in found] == [str(number) for number in range(8)]
    assert count == 1
