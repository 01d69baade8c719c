"""The ledger counts the bytes of each owner, whoever adds and removes blobs beside each other."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
from fluoro.v1.blob_service_pb2 import Blob
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import blobs, usage

OWNERS = ("ann", "bob", "cleo")
ADD = """
INSERT INTO blobs (id, owner, size_bytes, sha256, media_type, uploaded)
SELECT gen_random_uuid(), owner, n, '', '', false FROM unnest(%s::text[]) owner,
  generate_series(1, 4) n
"""
REMOVE = (
    "DELETE FROM blobs WHERE id = ANY(ARRAY(SELECT id FROM blobs LIMIT 3 FOR UPDATE SKIP LOCKED))"
)


def used(database_url: str) -> list[tuple[str, int, int]]:
    """Of each owner what is counted, and what there is."""
    with psycopg.connect(database_url) as db:
        there = dict(
            db.execute("SELECT owner, sum(size_bytes)::int8 FROM blobs GROUP BY owner").fetchall()
        )
        return [(one, usage.used_bytes(db, one), there.get(one, 0)) for one in OWNERS]


def test_bytes_are_counted_while_many_add_and_remove_blobs(database_url: str) -> None:
    def work(number: int) -> None:
        # More at once than there are counters of an owner, and in any order of owners.
        owners = list(OWNERS[number % 3 :] + OWNERS[: number % 3])
        with psycopg.connect(database_url, autocommit=True) as db:
            for _ in range(10):
                db.execute(ADD, (owners,))
                db.execute(REMOVE)

    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(work, range(20))) == [None] * 20
    counted = used(database_url)
    assert all(one == there for _, one, there in counted)
    assert sum(one for _, one, _ in counted) > 0


def test_the_same_bytes_again_are_not_counted_again(database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        for _ in range(2):
            blobs.add(db, "ann", blob(7))
        assert usage.used_bytes(db, "ann") == 7
        assert usage.is_there(db, "ann", 7, bytes(32), None)
        assert usage.is_there(db, "ann", 0, bytes(32), None)
        assert not usage.is_there(db, "ann", 8, bytes(32), None)
        assert not usage.is_there(db, "bob", 7, bytes(32), None)


def blob(size_bytes: int) -> Blob:
    return Blob(name=f"blobs/{new_id()}", size_bytes=size_bytes, sha256=bytes(32), media_type="a/b")
