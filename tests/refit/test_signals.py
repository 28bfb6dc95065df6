"""Signals that ask to end are noted while a block runs, and handed on to whoever handled them before."""

import os
import signal
import threading

import pytest

from refit.signals import noting_stop


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture
def earlier():
    told = []
    handlers = {number: signal.signal(number, lambda number, _frame: told.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield told
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_nothing_else_happens(number, earlier):
    with noting_stop() as stop:
        assert not stop.is_asked
        send(number)
        assert (stop.is_asked, stop.signal_number, earlier) == (True, number, [])


def test_leaving_does_what_the_signal_would_have_done():
    with noting_stop() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.leave()


def test_leaving_ends_the_process_where_nobody_handled_the_signal(earlier):
    with noting_stop() as stop:
        send()
        with pytest.raises(SystemExit) as caught:
            stop.leave()
    assert (caught.value.code, earlier) == (128 + signal.SIGTERM, [signal.SIGTERM])


def test_a_second_signal_is_not_held_back():
    with noting_stop():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_afterwards_signals_are_handled_as_before(earlier):
    with noting_stop():
        pass
    send()
    assert earlier == [signal.SIGTERM]


def test_a_signal_that_was_ignored_stays_ignored(earlier):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with noting_stop() as stop:
        send(signal.SIGINT)
        assert not stop.is_asked


def test_in_another_thread_signals_stay_as_they_are(earlier):
    def work():
        with noting_stop() as stop:
            send()
            told.append(stop.is_asked)

    told = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (told, earlier) == ([False], [signal.SIGTERM])
