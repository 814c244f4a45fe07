"""The life of one connection, from connect to its end: what every driver decides the same way.

A driver owns the descriptor and calls: it says when a call came back empty or with an error, and
when its owner closes. What that means is decided here. Threads take turns, as the kernel forgets
its counts when a connection is reset; but nobody waits for ever, as `close` may come from a signal
handler or the garbage collector in the middle of anything: the first record of an end stays, and
the close sequences may be run again.
"""

from __future__ import annotations

import copy
import threading
from time import monotonic

from safesock import _closing, _forks, _kernel, _life
from safesock._closing import Outcome
from safesock._kernel import Raw, TcpState
from safesock._life import Answer, State
from safesock._loss import Cause, CloseReport, Loss, cause_of
from safesock._policy import Abort, CloseMode, Drain, Linger, Policy
from safesock._told import Told
from safesock._turn import Door, Turn, Visit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._story import Story

_made: dict[int, Door] = {}
# Seconds that a turn is waited for, beside those of a `Drain`: others take microseconds.
_PATIENCE = 1.0


class Connection(Told):
    """One TCP connection under a policy. `peer` is None until it has been made."""

    __slots__ = (
        "policy",
        "pid",
        "syn",
        "drops",
        "shut_by_owner",
        "fin_sent",
        "report",
        "untold",
        "released",
        "is_dying",
        "forgiven",
        "teller",
        "door",
        "close_is_due",
    )

    def __init__(self, policy: Policy, story: Story | None = None) -> None:
        super().__init__(story)
        self.policy = policy
        self.pid = _forks.own_pid()
        self.syn = 1
        # Whether unread input is being thrown away, so that what else is read may follow a gap.
        self.drops = False
        self.shut_by_owner = False
        self.fin_sent = False
        self.report: CloseReport | None = None
        # The error of a loss that the watcher found, for the owner's next call.
        self.untold: OSError | None = None
        self.released = False
        # It has been, but the RST is still on its way.
        self.is_dying = False
        # Bytes of the one send that seemed to succeed after `release`.
        self.forgiven: int | None = None
        # The thread that has told its owner of the loss.
        self.teller: int | None = None
        # Who is at work with it: see `_the_door`.
        self.door: Door | None = None
        self.close_is_due = False

    @property
    def state(self) -> State:
        """Where it stands: see `_life`."""
        return self._state(closed=self.close_is_due or self.report is not None)

    def _state(self, *, closed: bool) -> State:
        # Who only wants to know what was ended under its owner asks as if it were not closed.
        cause = None if self.loss is None else self.loss.cause
        return _life.state_of(cause, released=self.released, dying=self.is_dying, closed=closed)

    def established(self, sock: Raw, *, just_now: bool = False) -> None:
        """The connection was made: *just_now*, so that nothing can have been sent, or earlier."""
        if self.peer is None:
            self.peer = _kernel.peer_name(sock) or self.asked or "unknown"
            if not just_now:
                control = _kernel.control_bytes(sock)
                self.fin_sent = self.shut_by_owner = _kernel.fin_was_sent(sock) or control > 1
                self.syn = int(control > self.fin_sent)
            self.asked = None
            self.note_connected(sock)

    def is_over(self, sock: Raw) -> bool:
        """Whether a read that gave nothing means that the peer has closed.

        It does not after the owner's own shutdown(SHUT_RD): the kernel's state tells them apart.
        """
        return self.loss is not None or _kernel.tcp_state(sock) not in _kernel.PEER_OPEN

    def is_over_by(self, sock: Raw, error: OSError, cause: Cause | None) -> bool:
        """Whether *error*, which speaks of *cause*, means that the connection is over.

        It does not for a soft error that IP_RECVERR delivers on a living connection, nor for a
        send after the owner's own shutdown(SHUT_WR).
        """
        if cause is None or (self.shut_by_owner and isinstance(error, BrokenPipeError)):
            return False
        if cause is Cause.FIN:  # Only TLS tells of it by an error.
            return True
        return _kernel.tcp_state(sock) in (None, TcpState.CLOSE)

    def lose(
        self, sock: Raw, cause: Cause, error: OSError | None, decrypted: int = 0
    ) -> dict[str, Any] | None:
        """Records the loss, once, and gives what it has recorded. *decrypted*: bytes that TLS holds
        for the owner."""
        with self._in_turn():
            if _life.loss_by(cause) not in _life.MOVES[self.state]:
                return None
            end = self._end(sock, cause, error, decrypted)
            self._loses(end)
            self.teller = threading.get_ident()
            return end

    def _loses(self, end: dict[str, Any]) -> None:
        self.loss = Loss(**end)
        self.note_loss()

    def release(self, sock: Raw) -> None:
        """Ends the connection and leaves the descriptor and what is unread to the owner; or leaves
        that to the watcher, where it cannot be done yet."""
        was_released = self.released
        visit = self.enter()  # Another thread may close it meanwhile.
        try:
            with self._in_turn():  # Of two that abort it at once, each counts what the other adds.
                outcome = self._release(sock)
        finally:
            del visit
            self.leave(sock)
        self._correct(outcome)
        if outcome is not None and not was_released:
            self.note_release()

    def _release(self, sock: Raw) -> Outcome | None:
        if self.is_elsewhere() or (self.released and not self.is_dying):
            self.released = True
            return None
        mode = self.policy.close
        was_released = self.released
        try:
            # Before, not after: a call that comes in between is told what it is to be told.
            self.released = True
            if not was_released:
                self.note_end_of_close_wait(sock)
            fin_sent = self.fin_sent
            if not isinstance(mode, Abort):  # For whoever closes meanwhile.
                self.fin_sent |= _kernel.tcp_state(sock) in _kernel.SENDS_FIN
            outcome = _closing.release(sock, mode, syn=self.syn, fin_sent=fin_sent)
            if outcome is not None:
                self.fin_sent = outcome.fin_sent
        except BaseException:  # KeyboardInterrupt: the watcher is to do it.
            self.released = was_released
            raise
        self.released = was_released or outcome is not None
        self.is_dying = self.released and not (outcome and outcome.over)
        return outcome

    def owner_has_shut(self, state: TcpState | None) -> None:
        """The owner has ended its own sending, in this state."""
        self.shut_by_owner = True
        self.fin_sent |= state in _kernel.SENDS_FIN

    def step_in(self, sock: Raw, decrypted: int = 0) -> bool:
        """For an owner that has not reacted to a loss. False: it is to be done again."""
        door = self._the_door()
        is_taken = door.lock.acquire(blocking=False)
        if not is_taken and not door.is_left_held(self._patience()):
            return False  # Its owner is at it.
        door.turned_away = None
        door.stepping_in = threading.get_ident()
        try:
            # Where it is about to be closed, whoever does that is to be the last one out.
            return self.state is State.CLOSED or self._step_in(sock, decrypted)
        finally:
            door.stepping_in = None
            if is_taken:
                door.lock.release()
            self.tell_later()

    def _step_in(self, sock: Raw, decrypted: int) -> bool:
        visit = self.enter()
        try:
            return self._end_or_wait(sock, decrypted)
        finally:
            del visit
            self.leave(sock)

    def _end_or_wait(self, sock: Raw, decrypted: int) -> bool:
        state = _kernel.tcp_state(sock)
        done = self.state not in _life.STEPS_IN[self.policy.on_loss]
        if done or sock.fileno() < 0 or state in _kernel.PEER_OPEN:
            return True
        error = end = outcome = None
        was_released = self.released
        if self.loss is None:
            error = _kernel.take_error(sock) if state is TcpState.CLOSE else None
            end = self._end(sock, (error and cause_of(error)) or Cause.FIN, error, decrypted)
        if _life.NEXT[self.policy.on_loss] is not None:
            outcome = self._release(sock)
            if not self.released:
                return False  # Nothing has been recorded: until then the owner may go on.
        if end is not None:
            self.untold = error
            self._loses(end)
        self._correct(outcome)
        if outcome is not None and not was_released:
            self.note_release()
        return not self.is_dying

    def _correct(self, outcome: Outcome | None) -> None:
        """The counts of a loss that was recorded while others could still send."""
        if outcome is not None and self.loss is not None:
            counts = self._with_forgiven(outcome.sent, outcome.unacknowledged)
            if (self.loss.sent, self.loss.unacknowledged) != counts:
                sent, unacknowledged = counts
                self.loss = self.loss.__replace__(sent=sent, unacknowledged=unacknowledged)

    def settle(self, sock: Raw) -> None:
        """After a release that took the kernel a while: its error is ours, not for the owner."""
        if self.was_ended_here(Cause.FIN) and _kernel.tcp_state(sock) is TcpState.CLOSE:
            _kernel.take_error(sock)

    def was_ended_here(self, cause: Cause | None) -> bool:
        """Whether an error, which speaks of *cause*, comes of our own `release` after a FIN: the
        owner is to be told what a plain socket tells whose peer has closed."""
        return cause is not None and self._state(closed=False) in _life.ENDED_HERE

    def close(self, sock: Raw, decrypted: int = 0, end: dict[str, Any] | None = None) -> None:
        """By the policy, and close(2). In a forked child it is only close(2). *end*: what `lose`
        gave just now."""
        report = None
        visit = self.enter()
        try:
            with self._in_turn():
                if self.report is None:
                    report = self.finish(sock, self.policy.close, decrypted, end)
                    self.report = self.report or report
        except BaseException:
            if report is None and self.report is None:
                report = self._finish_again(sock, decrypted)
            raise
        finally:
            self.report = self.report or report
            self.close_is_due = True
            del visit
            self.leave(sock)
            if report is not None:
                self.note_close(report)
            self.tell()

    def finish_unseen(self, sock: Raw, decrypted: int, *, again: bool) -> None:
        """As `close`, for an object that nobody has any more; but for the close(2)."""
        if self.report is None:
            if again:
                self.report = self._finish_again(sock, decrypted)
            else:
                self.report = self.finish(sock, self.policy.close, decrypted)
            if self.report is not None:
                self.note_close(self.report)

    def _finish_again(self, sock: Raw, decrypted: int) -> CloseReport | None:
        """After a KeyboardInterrupt: no step is skipped, and nothing waited for."""
        self.fin_sent &= _kernel.tcp_state(sock) not in _kernel.SENDS_FIN
        mode = Abort() if isinstance(self.policy.close, Drain) else self.policy.close
        return self.finish(sock, mode, decrypted)

    def _in_turn(self) -> Turn:
        """After those who are at it; or beside them, when they take their time."""
        # What the parent's threads were at when this process was forked off will never end here.
        return self._the_door().turn(0.0 if self.is_elsewhere() else self._patience())

    def _patience(self) -> float:
        mode = self.policy.close
        return _PATIENCE + (mode.timeout if isinstance(mode, Drain) else 0.0)

    def _the_door(self) -> Door:
        """Made when it is first needed, as it takes more memory than all the rest; one for all, as
        `setdefault` is atomic, and an entry goes only after it is known here."""
        if self.door is None:
            made = _made.setdefault(id(self), Door())
            self.door = self.door or made
            _made.pop(id(self), None)
        return self.door

    def let_the_watcher_pass(self) -> None:
        """What it has begun, it ends first: only then is there a record to go by."""
        door = self.door
        if door is not None and door.stepping_in not in (None, threading.get_ident()):
            with self._in_turn():
                pass

    def enter(self) -> Visit:
        """Before the number of the descriptor is used."""
        return self._the_door().enter()

    def leave(self, sock: Raw) -> None:
        """After that, and `del` of the visit: whatever strikes here, it has ended. The last one out
        closes. Two may find that they are: the second close does nothing."""
        # What the parent's threads were at when this process was forked off will never end here.
        if self.close_is_due and (self.is_elsewhere() or not self.is_visited()):
            try:
                Raw.close(sock)
            except OSError:
                pass  # Linux closes the descriptor all the same.

    def is_visited(self) -> bool:
        """Whether somebody is at work with the number of the descriptor."""
        return self.door is not None and self.door.is_visited()

    def finish(
        self,
        sock: Raw,
        mode: CloseMode,
        decrypted: int = 0,
        end: dict[str, Any] | None = None,
    ) -> CloseReport | None:
        """Everything but close(2); None where there is nothing to do."""
        if sock.fileno() < 0 or self.is_elsewhere():
            return None
        if self.is_dying:
            self.release(sock)
        loss = self.loss
        cause, error = (loss.cause, loss.error) if loss else (Cause.CLOSED, None)
        end = end or self._end(sock, cause, error, decrypted)
        aborted = loss and self.released and isinstance(mode, Abort)
        if loss and aborted and _kernel.tcp_state(sock) is TcpState.CLOSE:
            # The kernel has forgotten what it had counted. It has been reset, unless our FIN was
            # sent before: then there was nothing left to reset.
            end |= {"sent": loss.sent, "unacknowledged": loss.unacknowledged}
            reset = cause is Cause.FIN and not self.fin_sent
            return CloseReport(**end, mode=mode, reset=reset)
        self.note_end_of_close_wait(sock)
        fin_sent = self.fin_sent
        if not isinstance(mode, Abort):  # For whoever does this again, where it is interrupted.
            self.fin_sent |= _kernel.tcp_state(sock) in _kernel.SENDS_FIN
            self.drops = True
        outcome = _closing.finish(sock, mode, syn=self.syn, fin_sent=fin_sent)
        if self.policy.on_loss == "close" or self.is_dying:
            self._correct(outcome)  # The loss and the close are one.
        counts = self._with_forgiven(outcome.sent, outcome.unacknowledged)
        end["sent"], end["unacknowledged"] = counts
        end["unread"] = _plus(outcome.unread, decrypted)
        return CloseReport(**end, mode=mode, reset=outcome.reset)

    def may_block(self) -> bool:
        """Whether ending it may take time."""
        return isinstance(self.policy.close, (Drain, Linger))

    def is_elsewhere(self) -> bool:
        """Whether the connection belongs to the process that this one was forked from."""
        return self.pid != _forks.own_pid()

    def may_forgive(self) -> bool:
        """Whether a send after `release` is to seem to succeed, as the first one does when the peer
        has closed and nobody has answered yet."""
        return self.released and self._answer_to_send() is Answer.SUCCESS

    def refuses_send(self) -> bool:
        """Whether nothing more can be sent for certain, as `release` has ended the connection, and
        this is the first time that its owner tries."""
        return self.released and self._answer_to_send() is not Answer.KERNEL

    def _answer_to_send(self) -> Answer:
        is_first = self.forgiven is None and not self.shut_by_owner
        state = self._state(closed=False)
        return _life.answer_to_send(state, self.policy.on_loss, is_first=is_first)

    def forgive(self, size: int) -> None:
        """The bytes of that send are counted as lost."""
        self.forgiven = size
        self._lost_too(size)

    def _lost_too(self, size: int) -> None:
        assert self.loss is not None
        self.loss = self.loss.__replace__(
            sent=_plus(self.loss.sent, size), unacknowledged=_plus(self.loss.unacknowledged, size)
        )

    def leave_unsent(self, size: int) -> None:
        """Bytes that a driver has accepted and the kernel never got: they are counted as lost."""
        self.forgiven = (self.forgiven or 0) + size
        if self.released and self.loss is not None:
            self._lost_too(size)

    def _end(
        self, sock: Raw, cause: Cause, error: BaseException | None, decrypted: int
    ) -> dict[str, Any]:
        """The fields of a record of the end."""
        if self.ended is None:
            # The peer's FIN may have come long before anybody noticed.
            self.ended = monotonic() - _kernel.age_of_close_wait(sock)
        sent, unacknowledged = self._counts(sock)
        return {
            "cause": cause,
            # Without the traceback, which would keep the owner's frames, and so the socket, alive.
            "error": error and copy.copy(error),
            "local": self.loss.local if self.loss else _kernel.local_name(sock),
            "peer": self.peer,
            "connection": self.number,
            "lifetime": monotonic() - self.born,
            "sent": sent,
            "unacknowledged": unacknowledged,
            "unread": _plus(_kernel.unread(sock), decrypted),
        }

    def _counts(self, sock: Raw) -> tuple[int | None, int | None]:
        """The bytes sent, and those that were not acknowledged."""
        return self._with_forgiven(*_kernel.counts(sock, syn=self.syn, fin_sent=self.fin_sent))

    def _with_forgiven(
        self, sent: int | None, unacknowledged: int | None
    ) -> tuple[int | None, int | None]:
        if self.forgiven is None:
            return sent, unacknowledged
        return _plus(sent, self.forgiven), _plus(unacknowledged, self.forgiven)


def _plus(count: int | None, more: int | None) -> int | None:
    return None if count is None else count + (more or 0)
