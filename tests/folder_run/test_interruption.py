"""Signals wait until they cannot part the files of a result."""

import signal
import threading

import pytest

from dcp_clip.folder_run.interruption import Interruption

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_raised_where_it_is_allowed(number):
    steps = []
    with Interruption() as interruption:
        with interruption.allowed():
            steps.append(1)
        signal.raise_signal(number)
        steps.append(2)  # not allowed: continues
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            steps.append(3)
    assert steps == [1, 2] and interruption.signal == number
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            signal.raise_signal(number)
            steps.append(3)
    assert steps == [1, 2] and interruption.signal == number


def test_second_ctrl_c_is_raised_anywhere():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interruption.signal == signal.SIGTERM


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    try:
        with Interruption() as interruption, interruption.allowed():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert interruption.signal is None


def test_other_threads_can_use_it():
    results = []

    def work():
        with Interruption() as interruption, interruption.allowed():
            results.append(interruption.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [None]
