"""Which policies other people's clients can live with: decided here, for all adapters."""

from __future__ import annotations

from safesock._policy import FOR_CLIENTS, Policy, policy_or_default, seconds_of


def for_client(policy: Policy | None) -> Policy:
    """What an adapter's parameter `policy` means; None is `Policy(on_loss="release")`.

    Raises ValueError for on_loss="close": clients go on polling the number of their descriptor, or
    read what is left, after they have been told of the loss.
    """
    if policy is None:
        return FOR_CLIENTS
    chosen = policy_or_default(policy)
    if chosen.on_loss == "close":
        raise ValueError(
            "a client keeps its socket's descriptor after a loss, and would poll a closed one: "
            f'give Policy({chosen.close!r}, on_loss="release"), not on_loss="close"'
        )
    return chosen


def for_event_loop(policy: Policy | None) -> Policy:
    """The same for a client that closes its socket in the event loop's own thread.

    Raises ValueError for `Drain` and `Linger` too: they wait in `close`.
    """
    chosen = for_client(policy)
    if seconds_of(chosen.close):
        raise ValueError(
            f"{chosen.close!r} waits in close, and this client closes on its event loop, which "
            "would stand still: give Graceful() or Abort()"
        )
    return chosen
