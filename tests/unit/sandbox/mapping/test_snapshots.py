"""How much memory there is for copies of what devices have."""

from recuse.sandbox.mapping.snapshots import PrivateSnapshots


def test_a_collection_of_garbage_closes_a_copy() -> None:
    """It comes in the middle of anything, with any lock held."""
    copies = PrivateSnapshots(lambda: None)
    copy = copies.begin(0, lambda: True)
    copy.append(b"12345")
    assert copies.size == 5
    with copies._lock:
        del copy
    assert copies.size == 0
