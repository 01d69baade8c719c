"""Finding jobs with the `fluoro` command."""

from fluoro.v1 import job_pb2

State = job_pb2.Job.State


async def test_a_list_is_filtered_and_ordered(gateway, fluoro):
    jobs = [gateway.add_job(job_pb2.Job(labels={"study": study})) for study in "aabb"]
    for number in (3, 0):
        gateway.end(jobs[number].name, State.STATE_FAILED, "JOB_EXPIRED")
    searches = {
        ("--filter", 'state != PENDING AND labels.study != "a"'): [3],
        ("--filter", "labels.study = a"): [1, 0],
        ("--order-by", "create_time"): [0, 1, 2, 3],
        ("--order-by", "end_time"): [3, 0],
    }
    for words, found in searches.items():
        code, out, _ = await fluoro("list", *words)
        assert code == 0
        names = [line.split()[0] for line in out.splitlines()[1:]]
        assert names == [jobs[number].name for number in found], words
    code, _, err = await fluoro("list", "--filter", "nonsense")
    assert code == 3
    assert "FILTER_INVALID" in err
