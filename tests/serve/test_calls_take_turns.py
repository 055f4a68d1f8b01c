"""What has the model to itself between two steps does not hold up the texts of others."""

import threading

from openai_server import load, served_app
from served import Waited


def test_calls_that_never_end_do_not_hold_a_text_up():
    base, ended = load("seedling", dtype="fp32"), threading.Event()
    with served_app(base) as app:
        worker = app.state.served.worker

        def again():
            if not ended.is_set():
                worker.call(again)  # so that there is always one more

        waited = Waited(base, "The kettle")
        worker.submit(waited.job)
        worker.call(again)
        try:
            assert waited.result(20).tokens
        finally:
            ended.set()
