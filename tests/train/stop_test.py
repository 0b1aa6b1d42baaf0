"""Signals: the first one is a wish, the second acts at once, and afterwards all is as before."""

import os
import signal
import threading

import pytest

from jaxsae.train.same import differences
from jaxsae.train.stop import stop_on_signal


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_a_flag_and_the_old_handlers_return(signum):
    before = signal.getsignal(signum)
    with stop_on_signal() as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signum)
        assert (stop.signum, stop.name) == (signum, signal.Signals(signum).name)
        assert signal.getsignal(signum) is before
    assert signal.getsignal(signum) is before


def test_a_second_interrupt_acts_at_once():
    with stop_on_signal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_or_when_not_enabled_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look():
        with stop_on_signal():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    with stop_on_signal(enabled=False):
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen == [before, before]


def test_differences_name_the_path_of_both_sides_and_skip_what_is_harmless():
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "log": {"e": 1}}
    new = {"a": 1, "b": {"c": [1, 3], "d": 4}, "log": {"e": 2}, "f": 5}
    assert list(differences(old, new, skip=("log",))) == [("b.c[1]", 2, 3), ("b.d", None, 4), ("f", None, 5)]
    assert list(differences(old, old)) == []
